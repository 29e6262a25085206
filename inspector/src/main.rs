//! `sonde`: the command line, and the whole system of one host in one command.

mod client;
mod commands;
mod output;
mod up;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "sonde", version, about = "What the network did to every pod of a cluster")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run private PostgreSQL, aggregator and the collector of this host, in the foreground
    Up(up::Args),
    /// How the aggregator and its nodes are
    Status(commands::status::Args),
    /// Pods, those of now or with --all those of history
    Pods(commands::pods::Args),
    /// What can be measured: probes, their metrics and event types
    Probes(commands::probes::Args),
    /// Search events, or follow them with -f
    Events(commands::events::Args),
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Up(args) => return up::run(args).await,
        Command::Status(args) => commands::status::run(args).await,
        Command::Pods(args) => commands::pods::run(args).await,
        Command::Probes(args) => commands::probes::run(args).await,
        Command::Events(args) => commands::events::run(args).await,
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
