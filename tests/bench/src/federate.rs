//! `/federate` with 100,000 series.

use std::time::Instant;

use anyhow::ensure;

use crate::fleet::{Node, Shape};
use crate::ingest::Store;
use crate::report::{Report, mebibytes};

const NODES: usize = 10;
const SHAPE: Shape = Shape {
    pods: 100,
    probes: 5,
    columns: 20,
};
const SCRAPES: u32 = 5;

pub(crate) async fn run(report: &mut Report) -> anyhow::Result<()> {
    let store = Store::start()?;
    let mut nodes = Vec::new();
    for number in 0..NODES {
        let mut node = Node::connect(&store.grpc, number, SHAPE).await?;
        node.run(1, Node::rows).await?;
        nodes.push(node);
    }
    report.section(
        "Federation",
        "`/federate?match[]={__name__=~\"sonde_bench.*\"}` with 100,000 series, whole answer read.",
    );
    let all = "/federate?match[]=%7B__name__%3D~%22sonde_bench.%2A%22%7D";
    let (first, size) = scrape(&store, all)?;
    ensure!(
        first == SHAPE.samples() as usize * NODES,
        "{first} series came back, {} were sent",
        SHAPE.samples() as usize * NODES
    );
    let before = store.aggregator.cpu()?;
    let started = Instant::now();
    for _ in 0..SCRAPES {
        scrape(&store, all)?;
    }
    let wall = started.elapsed() / SCRAPES;
    let cpu = (store.aggregator.cpu()? - before) / SCRAPES;
    report.row("series", first);
    report.row("answer", mebibytes(size as u64));
    report.row("wall time of a scrape", format!("{:.0} ms", wall.as_secs_f64() * 1e3));
    report.row(
        "CPU of the aggregator for a scrape",
        format!("{:.0} ms", cpu.as_secs_f64() * 1e3),
    );
    report.row(
        "resident memory of the aggregator after it",
        mebibytes(store.aggregator.resident()?),
    );
    Ok(())
}

/// Number of samples and bytes.
fn scrape(store: &Store, path: &str) -> anyhow::Result<(usize, usize)> {
    let answer = crate::http::get(store.aggregator.http, path)?;
    ensure!(answer.status == 200, "status {}", answer.status);
    let samples = answer
        .body
        .split(|b| *b == b'\n')
        .filter(|line| !line.is_empty() && line[0] != b'#')
        .count();
    Ok((samples, answer.body.len()))
}
