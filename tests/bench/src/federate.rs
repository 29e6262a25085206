//! `/federate` with 100,000 series.

use std::sync::Arc;
use std::time::Instant;

use anyhow::ensure;
use sonde_collector::catalogue::Kind;
use sonde_fleet::{Mix, Options, Pace, Shape, Until};

use crate::report::{Report, mebibytes, thousands};
use crate::store::Store;

const NODES: usize = 10;
const SERIES: usize = 100_000;
const SCRAPES: u32 = 5;

pub(crate) async fn run(report: &mut Report) -> anyhow::Result<()> {
    let store = Store::start()?;
    let mix = Arc::new(Mix::real());
    let pods = (1..)
        .find(|pods| series(&mix, *pods) * NODES >= SERIES)
        .unwrap_or_default();
    let expected = series(&mix, pods) * NODES;
    sonde_fleet::run(Options {
        url: store.grpc.clone(),
        nodes: NODES,
        shape: Shape {
            pods,
            ..Shape::default()
        },
        pace: Pace::Readings,
        until: Until::Batches(1),
        ..Options::default()
    })
    .await?;
    report.section(
        "Federation",
        &format!(
            "`/federate` with {} series of the collector's probes, whole answer read.",
            thousands(expected as f64)
        ),
    );
    let probes: Vec<&str> = mix.probes.iter().map(|probe| probe.spec.name).collect();
    // match[]={__name__=~"sonde_(a|b)_.*"}
    let all = format!(
        "/federate?match[]=%7B__name__%3D~%22sonde_({})_.%2A%22%7D",
        probes.join("%7C")
    );
    let (first, size) = scrape(&store, &all)?;
    ensure!(first == expected, "{first} series came back, {expected} were sent");
    let before = store.aggregator.cpu()?;
    let started = Instant::now();
    for _ in 0..SCRAPES {
        scrape(&store, &all)?;
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

/// As Prometheus counts them: a histogram has one for each bucket, one for the sum and one for the count.
fn series(mix: &Mix, pods: usize) -> usize {
    let of = |spec: &sonde_collector::catalogue::ColumnSpec| spec.width() + usize::from(spec.kind == Kind::Histogram);
    mix.probes
        .iter()
        .map(|probe| probe.rows(pods) * probe.spec.columns.iter().map(of).sum::<usize>())
        .sum()
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
