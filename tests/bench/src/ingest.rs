//! Samples and events a second, from a fleet of simulated nodes through gRPC into PostgreSQL, durable; what that costs,
//! and plain rows, one a sample, beside it.

use std::time::Duration;

use sonde_fleet::{Options, Pace, Shape, Until};

use crate::plain;
use crate::report::{Report, mebibytes, thousands};
use crate::store::{Store, Usage};

/// As many as the aim is said for.
const NODES: usize = 400;
const PODS: usize = 50;
const EVENTS_A_BATCH: usize = 1000;
/// A frame is 120 readings: over fewer, the keyframe it begins with weighs more than it does in the end.
const LONG_NODES: usize = 20;
const LONG_READINGS: u64 = 240;
/// From one reading of a node to its next.
const PACED: Duration = Duration::from_secs(5);

/// How long each kind of load lasts: `SONDE_BENCH_SECONDS`, 300 for the figures that are aimed at.
pub(crate) fn seconds() -> Duration {
    let asked = std::env::var("SONDE_BENCH_SECONDS")
        .ok()
        .and_then(|text| text.parse().ok());
    Duration::from_secs(asked.unwrap_or(60))
}

fn options(store: &Store, pace: Pace) -> Options {
    Options {
        url: store.grpc.clone(),
        nodes: NODES,
        shape: Shape {
            pods: PODS,
            ..Shape::default()
        },
        pace,
        until: Until::Passed(seconds()),
        // As much on its way as a node has readings in twenty seconds.
        window: 4,
        ..Options::default()
    }
}

pub(crate) async fn run(report: &mut Report) -> anyhow::Result<()> {
    let store = Store::start()?;
    report.section(
        "Ingest",
        &format!(
            "{NODES} simulated nodes of {PODS} pods (`sonde-fleet`: the collector's own probes, a tenth of the pods busy) on \
             the same cores, {} s each kind of load; an ack means committed. A sample is a value of a row; a histogram is one. \
             `make bench` runs it, `SONDE_BENCH_SECONDS` says how long.",
            seconds().as_secs()
        ),
    );
    rows(report, &store).await?;
    paced(report, &store).await?;
    events(report, &store).await?;
    long(report, &store).await?;
    report.row(
        "resident memory of the aggregator after it",
        mebibytes(store.aggregator.resident()?),
    );
    report.row("its highest", mebibytes(store.aggregator.highest()?));
    report.row(
        "resident memory of PostgreSQL after it (shared pages counted in each process)",
        mebibytes(store.postgres_resident()),
    );
    plain::run(report, &store).await
}

async fn rows(report: &mut Report, store: &Store) -> anyhow::Result<()> {
    let bytes = store.bytes().await?;
    let (load, used) = load(store, options(store, Pace::Readings)).await?;
    let million = load.samples as f64 / 1e6;
    report.row(
        "samples a second, as fast as acks permit",
        thousands(load.samples_per_second()),
    );
    report.row(
        "the same with each bucket of a histogram for one",
        thousands(load.numbers as f64 / load.elapsed.as_secs_f64()),
    );
    cost(report, used, "samples", million);
    let readings = load.batches as f64 / NODES as f64;
    report.row(
        &format!("bytes a sample in PostgreSQL, indexes included, after {readings:.0} readings of each node"),
        format!("{:.2}", (store.bytes().await? - bytes) as f64 / load.samples as f64),
    );
    report.row(
        "bytes a sample on the wire",
        format!("{:.2}", load.bytes as f64 / load.samples as f64),
    );
    Ok(())
}

async fn paced(report: &mut Report, store: &Store) -> anyhow::Result<()> {
    let mut options = options(store, Pace::Every(PACED));
    options.events = 1000.0;
    let (load, _) = load(store, options).await?;
    report.row(
        "a reading of each node every 5 s and 1,000 events a second: samples a second",
        thousands(load.samples_per_second()),
    );
    let [p50, p99, max] = [0.5, 0.99, 1.0].map(|share| load.latency(share).as_secs_f64() * 1e3);
    report.row(
        "ack latency, from when a batch is due: p50, p99, longest",
        format!("{p50:.0} ms, {p99:.0} ms, {max:.0} ms"),
    );
    report.row("readings that were not made in time", load.late);
    Ok(())
}

/// As much as a database holds that was not begun a minute ago.
async fn long(report: &mut Report, store: &Store) -> anyhow::Result<()> {
    let bytes = store.bytes().await?;
    let span = PACED * LONG_READINGS as u32;
    let (load, _) = load(
        store,
        Options {
            nodes: LONG_NODES,
            shape: Shape {
                pods: PODS,
                // A spool of its own.
                seed: 2,
                ..Shape::default()
            },
            until: Until::Batches(LONG_READINGS),
            times: Some((sonde_common::time::now_ns() - span.as_nanos() as u64, PACED)),
            ..options(store, Pace::Readings)
        },
    )
    .await?;
    report.row(
        &format!("bytes a sample in PostgreSQL, indexes included, over {LONG_READINGS} readings, 5 s apart"),
        format!("{:.2}", (store.bytes().await? - bytes) as f64 / load.samples as f64),
    );
    Ok(())
}

async fn events(report: &mut Report, store: &Store) -> anyhow::Result<()> {
    let (load, used) = load(store, options(store, Pace::Events(EVENTS_A_BATCH))).await?;
    report.row(
        "events a second, as fast as acks permit",
        thousands(load.events_per_second()),
    );
    cost(report, used, "events", load.events as f64 / 1e6);
    Ok(())
}

async fn load(store: &Store, options: Options) -> anyhow::Result<(sonde_fleet::Report, Usage)> {
    let before = store.usage()?;
    let load = sonde_fleet::run(options).await?;
    anyhow::ensure!(load.reconnects == 0, "{} streams broke", load.reconnects);
    Ok((load, store.usage()? - before))
}

fn cost(report: &mut Report, used: Usage, of: &str, million: f64) {
    let each = |time: Duration| format!("{:.2} s", time.as_secs_f64() / million);
    report.row(&format!("CPU of PostgreSQL for a million {of}"), each(used.postgres));
    report.row(
        &format!("CPU of the aggregator for a million {of}"),
        each(used.aggregator),
    );
}
