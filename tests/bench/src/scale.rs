//! Many nodes and many series: memory while they are connected, and how long a start on them takes.

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use sonde_fleet::{Mix, Node, Options, Pace, Shape, Until};

use crate::report::{Report, mebibytes, thousands};
use crate::store::Store;

const NODES: usize = 1000;
const PODS: usize = 50;
/// So seldom that two cores do it: what matters here is how much there is to remember.
const INTERVAL: Duration = Duration::from_secs(30);
const SERIES: u64 = 1_000_000;
/// How long all of them send as fast as acks permit.
const FULL_LOAD: Duration = Duration::from_secs(20);
const MEMORY_GOAL: &str = "the goal is 512 MiB";
const START_GOAL: &str = "the goal is 10 s";
/// The table is known to be whole by then, or never.
const PATIENCE: Duration = Duration::from_secs(120);

pub(crate) async fn run(report: &mut Report) -> anyhow::Result<()> {
    report.section(
        "Many nodes",
        "Simulated nodes as above. A series is a value of a row, of one subject and label set; a histogram is one.",
    );
    memory(report).await?;
    start_up(report).await
}

async fn memory(report: &mut Report) -> anyhow::Result<()> {
    let store = Store::start()?;
    let load = sonde_fleet::run(Options {
        pace: Pace::Every(INTERVAL),
        // Each node has at least two readings.
        until: Until::Passed(INTERVAL * 2),
        events: 1000.0,
        ..options(&store, NODES)
    })
    .await?;
    ensure!(load.reconnects == 0, "{} streams broke", load.reconnects);
    report.row(
        &format!(
            "highest resident memory of the aggregator with {} nodes of {PODS} pods",
            thousands(NODES as f64)
        ),
        format!("{} ({MEMORY_GOAL})", mebibytes(store.aggregator.highest()?)),
    );
    report.row("series of these", thousands(series_a_node() as f64 * NODES as f64));
    let load = sonde_fleet::run(Options {
        pace: Pace::Readings,
        until: Until::Passed(FULL_LOAD),
        window: 4,
        ..options(&store, NODES)
    })
    .await?;
    ensure!(load.reconnects == 0, "{} streams broke", load.reconnects);
    report.row(
        "the highest when all send as fast as acks permit",
        format!("{} ({MEMORY_GOAL})", mebibytes(store.aggregator.highest()?)),
    );
    Ok(())
}

async fn start_up(report: &mut Report) -> anyhow::Result<()> {
    let store = Store::start()?;
    let nodes = SERIES.div_ceil(series_a_node()) as usize;
    sonde_fleet::run(Options {
        pace: Pace::Readings,
        until: Until::Batches(3),
        ..options(&store, nodes)
    })
    .await?;
    let rows = live_rows(&store)?;
    let started = Instant::now();
    let (store, until_ready) = store.restart()?;
    // Doors open before the table is whole where that takes long.
    while live_rows(&store)? < rows {
        ensure!(
            started.elapsed() < PATIENCE,
            "{} of {rows} rows came back",
            live_rows(&store)?
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let until_whole = started.elapsed();
    let series = series_a_node() as f64 * nodes as f64;
    for (what, elapsed) in [
        ("until ready", until_ready),
        ("until all of them are in /federate", until_whole),
    ] {
        report.row(
            &format!("start with {} series in the database, {what}", thousands(series)),
            format!("{:.1} s ({START_GOAL})", elapsed.as_secs_f64()),
        );
    }
    report.row(
        "highest resident memory of the aggregator then",
        mebibytes(store.aggregator.highest()?),
    );
    Ok(())
}

fn live_rows(store: &Store) -> anyhow::Result<u64> {
    let page = crate::http::get(store.aggregator.http, "/metrics")?;
    for line in String::from_utf8_lossy(&page.body).lines() {
        if let Some(rows) = line.strip_prefix("sonde_aggregator_live_rows ") {
            return rows.parse().context("sonde_aggregator_live_rows");
        }
    }
    bail!("/metrics does not have sonde_aggregator_live_rows")
}

fn options(store: &Store, nodes: usize) -> Options {
    Options {
        url: store.grpc.clone(),
        nodes,
        shape: shape(),
        ..Options::default()
    }
}

fn shape() -> Shape {
    Shape {
        pods: PODS,
        ..Shape::default()
    }
}

fn series_a_node() -> u64 {
    Node::new(0, std::sync::Arc::new(Mix::real()), shape(), 1).samples()
}
