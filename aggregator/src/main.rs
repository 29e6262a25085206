//! `sonde-aggregator`: the command line.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use sonde_aggregator::push::Pushes;
use sonde_aggregator::{http, run};
use sonde_common::config::{self, Config, ConfigError};
use sonde_common::{descriptors, log, shutdown};

#[derive(Parser)]
#[command(
    name = "sonde-aggregator",
    version,
    about = "Stores what collectors send, and answers questions about it"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Configuration file (YAML); every key is also an environment variable SONDE_...
    #[arg(long, global = true, env = "SONDE_CONFIG")]
    config: Option<PathBuf>,
    /// PostgreSQL to use instead of a private one: postgres://USER:PASSWORD@HOST:PORT/DATABASE;
    /// several hosts with commas between them: the one that takes writes is used
    #[arg(long, global = true, hide_env_values = true)]
    database_url: Option<String>,
}

#[derive(Subcommand)]
enum Command {
    /// Take what collectors send, and serve pages, federation and the REST interface
    Serve,
    /// Bring the tables and views of the database up to date, and end
    Migrate,
    /// Check the configuration, and end
    CheckConfig,
    /// Print the description of the REST interface (OpenAPI, JSON), and end
    Openapi,
}

/// As `sonde` and `sonde-collector` have it.
const BAD_CONFIG: u8 = 2;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let loaded = load(&cli).map_err(|e| e.to_string()).and_then(|config| {
        run::target(&config).map_err(|e| format!("storage.database_url: {e}"))?;
        Pushes::new(&config.push).map_err(|e| e.to_string())?;
        Ok(config)
    });
    let config = match loaded {
        Ok(config) => config,
        Err(e) => {
            eprintln!("sonde-aggregator: {e}");
            return ExitCode::from(BAD_CONFIG);
        }
    };
    let result = match cli.command {
        Command::Openapi => openapi(),
        Command::CheckConfig => {
            println!("the configuration is good");
            Ok(())
        }
        Command::Migrate => migrate(&config),
        Command::Serve => serve(config),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("sonde-aggregator: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn load(cli: &Cli) -> Result<Config, ConfigError> {
    config::load(cli.config.as_deref(), |key| match (key, &cli.database_url) {
        ("SONDE_STORAGE_DATABASE_URL", Some(url)) => Some(url.clone()),
        _ => std::env::var(key).ok(),
    })
}

fn openapi() -> anyhow::Result<()> {
    println!("{}", http::openapi().to_pretty_json()?);
    Ok(())
}

fn migrate(config: &Config) -> anyhow::Result<()> {
    log::init(&config.log);
    run::drop_root(config)?;
    runtime()?.block_on(run::migrate(config))
}

fn serve(config: Config) -> anyhow::Result<()> {
    log::init(&config.log);
    descriptors::take_all();
    let listeners = run::Listeners::bind(&config)?;
    run::drop_root(&config)?;
    runtime()?.block_on(async {
        let (trigger, stop) = shutdown::channel();
        shutdown::on_signals(trigger)?;
        run::serve(config, listeners, stop).await
    })
}

fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()
}
