//! Samples and events a second, from simulated collectors through gRPC into PostgreSQL, durable.

use std::time::{Duration, Instant};

use crate::fleet::{Node, Shape};
use crate::programs::{self, Program};
use crate::report::{Report, mebibytes, thousands};

const NODES: usize = 4;
/// As many samples a reading as a node of 100 pods has.
const SHAPE: Shape = Shape {
    pods: 100,
    probes: 8,
    columns: 20,
};
const READINGS: u64 = 40;
const EVENT_BATCHES: u64 = 50;
const EVENTS_A_BATCH: usize = 1000;

/// Aggregator with a private PostgreSQL in a folder of its own.
pub(crate) struct Store {
    pub(crate) aggregator: Program,
    pub(crate) grpc: String,
    _dir: tempfile::TempDir,
}

impl Store {
    pub(crate) fn start() -> anyhow::Result<Self> {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::Builder::new().prefix("sonde-bench").tempdir()?;
        // The aggregator becomes an unprivileged user, which has to get in.
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755))?;
        let (http, grpc) = (programs::free_address()?, programs::free_address()?);
        let env = [
            ("SONDE_AGGREGATOR_HTTP", http.to_string()),
            ("SONDE_AGGREGATOR_GRPC", grpc.to_string()),
            (
                "SONDE_AGGREGATOR_DATA_DIR",
                dir.path().join("aggregator").display().to_string(),
            ),
        ];
        let aggregator = Program::start("sonde-aggregator", "serve", http, dir.path(), &env)?;
        Ok(Self {
            aggregator,
            grpc: format!("http://{grpc}"),
            _dir: dir,
        })
    }

    fn postgres_cpu(&self) -> Duration {
        programs::descendants(self.aggregator.pid())
            .into_iter()
            .filter_map(|pid| programs::cpu(pid).ok())
            .sum()
    }

    fn postgres_resident(&self) -> u64 {
        programs::descendants(self.aggregator.pid())
            .into_iter()
            .filter_map(|pid| programs::resident(pid).ok())
            .sum()
    }
}

pub(crate) async fn run(report: &mut Report) -> anyhow::Result<()> {
    let store = Store::start()?;
    let mut nodes = Vec::new();
    for number in 0..NODES {
        nodes.push(Node::connect(&store.grpc, number, SHAPE).await?);
    }
    report.section(
        "Ingest",
        &format!("{NODES} simulated collectors of {} pods send as fast as acks permit; an ack means committed. `make bench` runs it.", SHAPE.pods),
    );

    let (elapsed, cpu, postgres) = load(&store, &mut nodes, READINGS, Node::rows).await?;
    let samples = (SHAPE.samples() * READINGS * NODES as u64) as f64;
    report.row("samples a second", thousands(samples / elapsed.as_secs_f64()));
    report.row(
        "CPU of PostgreSQL for a million samples",
        format!("{:.2} s", postgres.as_secs_f64() / samples * 1e6),
    );
    report.row(
        "CPU of the aggregator for a million samples",
        format!("{:.2} s", cpu.as_secs_f64() / samples * 1e6),
    );

    let (elapsed, cpu, postgres) = load(&store, &mut nodes, EVENT_BATCHES, |node| node.events(EVENTS_A_BATCH)).await?;
    let events = (EVENTS_A_BATCH as u64 * EVENT_BATCHES * NODES as u64) as f64;
    report.row("events a second", thousands(events / elapsed.as_secs_f64()));
    report.row(
        "CPU of PostgreSQL for a million events",
        format!("{:.1} s", postgres.as_secs_f64() / events * 1e6),
    );
    report.row(
        "CPU of the aggregator for a million events",
        format!("{:.1} s", cpu.as_secs_f64() / events * 1e6),
    );
    report.row(
        "resident memory of the aggregator after it",
        mebibytes(store.aggregator.resident()?),
    );
    report.row(
        "resident memory of PostgreSQL after it (shared pages counted in each process)",
        mebibytes(store.postgres_resident()),
    );
    Ok(())
}

/// All nodes at once: wall time, CPU of the aggregator, CPU of PostgreSQL.
async fn load(
    store: &Store,
    nodes: &mut [Node],
    batches: u64,
    make: impl Fn(&mut Node) -> sonde_proto::v1::BatchBody + Copy,
) -> anyhow::Result<(Duration, Duration, Duration)> {
    let before = (store.aggregator.cpu()?, store.postgres_cpu());
    let started = Instant::now();
    // One task, many streams: the load takes one core at most.
    let runs = nodes.iter_mut().map(|node| node.run(batches, make));
    for result in futures::future::join_all(runs).await {
        result?;
    }
    let elapsed = started.elapsed();
    Ok((
        elapsed,
        store.aggregator.cpu()?.saturating_sub(before.0),
        store.postgres_cpu().saturating_sub(before.1),
    ))
}
