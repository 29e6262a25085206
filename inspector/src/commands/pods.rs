//! `sonde pods`.

use crate::client::{Client, Query, Server};
use crate::commands::Filters;
use crate::output::{Format, Output, cell, table};

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    server: Server,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    filters: Filters,
    /// Ended pods too
    #[arg(long)]
    all: bool,
}

pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let mut query = Query::default();
    args.filters.apply(&mut query);
    if args.all {
        query.add("all", "true");
    }
    let pods = Client::new(&args.server.server).get("/api/v1/pods", &query).await?;
    if args.output.format == Format::Json {
        println!("{pods:#}");
        return Ok(());
    }
    let rows: Vec<Vec<String>> = pods["pods"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|pod| {
            ["node", "namespace", "pod", "workload", "ips", "valid_from", "valid_to"]
                .iter()
                .map(|key| cell(&pod[*key]))
                .collect()
        })
        .collect();
    table(&["NODE", "NAMESPACE", "POD", "WORKLOAD", "IPS", "FROM", "TO"], &rows);
    Ok(())
}
