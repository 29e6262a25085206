//! Many nodes and many series: memory while they are connected, and how long a start on them takes.

use std::time::Duration;

use anyhow::ensure;
use sonde_fleet::{Mix, Node, Options, Pace, Shape, Until};

use crate::report::{Report, mebibytes, thousands};
use crate::store::Store;

const NODES: usize = 1000;
const PODS: usize = 50;
/// So seldom that two cores do it: what matters here is how much there is to remember.
const INTERVAL: Duration = Duration::from_secs(30);
const SERIES: u64 = 1_000_000;

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
        mebibytes(store.aggregator.highest()?),
    );
    report.row("series of these", thousands(series_a_node() as f64 * NODES as f64));
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
    let (store, elapsed) = store.restart()?;
    let series = series_a_node() as f64 * nodes as f64;
    report.row(
        &format!("start with {} series in the database, until ready", thousands(series)),
        format!("{:.1} s", elapsed.as_secs_f64()),
    );
    report.row(
        "resident memory of the aggregator then",
        mebibytes(store.aggregator.resident()?),
    );
    Ok(())
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
