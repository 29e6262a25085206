//! `sonde probes`.

use crate::client::{Client, Query, Server};
use crate::output::{Format, Output, cell, table};

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    server: Server,
    #[command(flatten)]
    output: Output,
}

pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let probes = Client::new(&args.server.server)
        .get("/api/v1/probes", &Query::default())
        .await?;
    if args.output.format == Format::Json {
        println!("{probes:#}");
        return Ok(());
    }
    let mut rows = Vec::new();
    for probe in probes["probes"].as_array().into_iter().flatten() {
        for column in probe["columns"].as_array().into_iter().flatten() {
            rows.push(vec![
                cell(&probe["name"]),
                cell(&column["metric"]),
                cell(&column["kind"]),
                cell(&column["help"]),
            ]);
        }
        for kind in probe["event_types"].as_array().into_iter().flatten() {
            rows.push(vec![
                cell(&probe["name"]),
                cell(&kind["name"]),
                "event".into(),
                cell(&kind["help"]),
            ]);
        }
    }
    table(&["PROBE", "METRIC OR EVENT", "KIND", "HELP"], &rows);
    Ok(())
}
