//! `sonde status`: is it ready, and which nodes speak to it.

use anyhow::bail;

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
    let client = Client::new(&args.server.server);
    let (status, why) = client.get_raw("/-/ready", &Query::default()).await?;
    if !status.is_success() {
        bail!("the aggregator is not ready: {}", String::from_utf8_lossy(&why).trim());
    }
    let nodes = client.get("/api/v1/nodes", &Query::default()).await?;
    if args.output.format == Format::Json {
        println!("{nodes:#}");
        return Ok(());
    }
    let rows: Vec<Vec<String>> = nodes["nodes"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|node| {
            let state = if node["connected"] == true {
                "connected"
            } else {
                "SILENT"
            };
            vec![
                cell(&node["node"]),
                state.into(),
                cell(&node["pods"]),
                cell(&node["kernel"]),
                cell(&node["version"]),
                cell(&node["last_seen"]),
            ]
        })
        .collect();
    table(&["NODE", "STATE", "PODS", "KERNEL", "COLLECTOR", "LAST SEEN"], &rows);
    Ok(())
}
