//! `sonde events [-f]`.

use serde_json::Value;
use sonde_common::event_text::event_text;

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
    /// Follow: print events as they come, until Ctrl-C
    #[arg(short, long)]
    follow: bool,
    /// Begin: RFC 3339, or back from now as `-15m`
    #[arg(long, default_value = "-1h", allow_hyphen_values = true, value_name = "TIME")]
    since: String,
    /// End, like --since
    #[arg(long, allow_hyphen_values = true, value_name = "TIME")]
    until: Option<String>,
    #[arg(long, value_name = "KIND/NAME")]
    workload: Vec<String>,
    #[arg(long = "type", value_name = "TYPE")]
    kind: Vec<String>,
    #[arg(long, value_name = "REASON")]
    reason: Vec<String>,
    /// Source or destination address, or a network such as 10.0.0.0/8
    #[arg(long, value_name = "IP")]
    ip: Vec<String>,
    /// Source or destination port
    #[arg(long, value_name = "PORT")]
    port: Vec<String>,
    #[arg(long, default_value_t = 100, value_name = "N")]
    limit: u32,
}

pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let client = Client::new(&args.server.server);
    let mut query = Query::default();
    args.filters.apply(&mut query);
    for (name, values) in [
        ("workload", &args.workload),
        ("type", &args.kind),
        ("reason", &args.reason),
        ("ip", &args.ip),
        ("port", &args.port),
    ] {
        values.iter().for_each(|value| query.add(name, value));
    }
    if args.follow {
        let json = args.output.format == Format::Json;
        return client
            .follow("/api/v1/events/stream", &query, |event| {
                if json {
                    println!("{event}");
                } else {
                    println!("{} {}", cell(&event["time"]), event_text(&event));
                }
            })
            .await;
    }
    query.add("from", &args.since);
    if let Some(until) = &args.until {
        query.add("to", until);
    }
    query.add("limit", &args.limit.to_string());
    let answer = client.get("/api/v1/events", &query).await?;
    let events = answer["events"].as_array().cloned().unwrap_or_default();
    match args.output.format {
        Format::Json => println!("{answer:#}"),
        Format::Text => events
            .iter()
            .rev()
            .for_each(|e| println!("{} {}", cell(&e["time"]), event_text(e))),
        Format::Table => {
            let rows: Vec<Vec<String>> = events.iter().rev().map(row).collect();
            table(
                &[
                    "TIME",
                    "TYPE",
                    "REASON",
                    "NODE",
                    "NAMESPACE",
                    "POD",
                    "PROTOCOL",
                    "FROM",
                    "TO",
                    "DIRECTION",
                ],
                &rows,
            );
        }
    }
    Ok(())
}

fn row(event: &Value) -> Vec<String> {
    let end = |address: &str, port: &str| match (event[address].as_str(), event.get(port)) {
        (Some(ip), Some(port)) if ip.contains(':') => format!("[{ip}]:{port}"),
        (Some(ip), Some(port)) => format!("{ip}:{port}"),
        (Some(ip), None) => ip.to_owned(),
        (None, _) => String::new(),
    };
    let mut row: Vec<String> = ["time", "type", "reason", "node", "namespace", "pod", "protocol"]
        .iter()
        .map(|key| cell(&event[*key]))
        .collect();
    row.extend([end("saddr", "sport"), end("daddr", "dport"), cell(&event["direction"])]);
    row
}
