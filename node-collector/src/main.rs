//! `sonde-collector`: the node collector's command line.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand, ValueEnum};
use sonde_collector::catalogue::{Kind, ProbeSpec};
use sonde_collector::{doctor, probes};
use sonde_common::config::{self, Config};
use sonde_common::{descriptors, log, shutdown};

/// Reads what the kernel knows of every pod's network, and sends it to the aggregator
#[derive(Parser)]
#[command(version)]
struct Cli {
    /// Configuration file (YAML); each key is also an environment variable SONDE_...
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run in the foreground until SIGTERM or Ctrl-C
    Run,
    /// List the probes with their metrics and event types
    Probes {
        #[arg(short, long, value_enum, default_value_t = Output::Text)]
        output: Output,
    },
    /// Say what this host permits, and why the rest is off
    Doctor {
        #[arg(short, long, value_enum, default_value_t = Output::Text)]
        output: Output,
    },
    /// Check the configuration and print it with all defaults
    CheckConfig,
}

#[derive(Clone, Copy, ValueEnum)]
enum Output {
    Text,
    Json,
}

/// Exit codes: 0 ended as asked, 1 could not start or stay up, 2 bad configuration or command line.
fn main() -> ExitCode {
    let cli = Cli::parse();
    let config = match load(&cli) {
        Ok(config) => config,
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::from(2);
        }
    };
    let result = match cli.command {
        Command::Run => run(config, cli.config),
        Command::Probes { output } => list(output),
        Command::Doctor { output } => {
            let report = doctor::doctor(&config);
            match output {
                Output::Text => print(&report.to_string()),
                Output::Json => print_json(&report),
            }
        }
        Command::CheckConfig => print_json(&config),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The chain in one line: what could not be done, and why.
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn load(cli: &Cli) -> anyhow::Result<Config> {
    let config = config::load(cli.config.as_deref(), |key| std::env::var(key).ok())?;
    sonde_collector::check(&config)?;
    Ok(config)
}

fn run(config: Config, file: Option<PathBuf>) -> anyhow::Result<()> {
    log::init(&config.log);
    descriptors::take_all();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let result = runtime.block_on(async {
        let (trigger, shutdown) = shutdown::channel();
        shutdown::on_signals(trigger)?;
        sonde_collector::run(config, file, shutdown).await
    });
    // A sink that writes where nobody reads does not hold the end up.
    runtime.shutdown_timeout(Duration::from_millis(100));
    result
}

/// To standard output; a reader that went away early is no error.
fn print(text: &str) -> anyhow::Result<()> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => Err(e.into()),
        _ => Ok(()),
    }
}

fn print_json(value: &impl serde::Serialize) -> anyhow::Result<()> {
    print(&(serde_json::to_string_pretty(value)? + "\n"))
}

fn list(output: Output) -> anyhow::Result<()> {
    let specs = probes::specs();
    match output {
        Output::Text => print(&specs.iter().map(|spec| text_of(spec)).collect::<String>()),
        Output::Json => print_json(&specs.iter().map(|spec| json_of(spec)).collect::<Vec<_>>()),
    }
}

fn text_of(spec: &ProbeSpec) -> String {
    let mut text = format!("{}: {}\n", spec.name, spec.help);
    for label in spec.labels {
        text += &format!("  label {:<53} {}\n", label.name, label.help);
    }
    for column in spec.columns {
        let metric = sonde_proto::names::metric(spec.name, &column.to_proto());
        text += &format!("  {metric:<59} {}\n", column.help);
    }
    for event in spec.event_types {
        text += &format!("  event {:<53} {}\n", event.name, event.help);
    }
    text
}

fn json_of(spec: &ProbeSpec) -> serde_json::Value {
    let kind = |kind| match kind {
        Kind::Histogram => "histogram",
        Kind::Gauge => "gauge",
        Kind::Counter | Kind::Unspecified => "counter",
    };
    let named = |name: &str, help: &str| serde_json::json!({"name": name, "help": help});
    serde_json::json!({
        "name": spec.name,
        "help": spec.help,
        "source": spec.source,
        "labels": spec.labels.iter().map(|l| named(l.name, l.help)).collect::<Vec<_>>(),
        "columns": spec.columns.iter().map(|column| serde_json::json!({
            "name": column.name,
            "metric": sonde_proto::names::metric(spec.name, &column.to_proto()),
            "help": column.help,
            "kind": kind(column.kind),
            "unit": column.unit,
        })).collect::<Vec<_>>(),
        "event_types": spec.event_types.iter().map(|t| named(t.name, t.help)).collect::<Vec<_>>(),
    })
}
