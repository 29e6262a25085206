//! `/status`: what runs and on what, what is missing and why.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use serde::Serialize;
use sonde_common::time::rfc3339;
use sonde_push::Reason;

use super::State;
use crate::gaps;
use crate::kernel::KernelStatus;
use crate::pipeline::Outcome;
use crate::procfs::ReadError;
use crate::reload::Report;

#[derive(Debug, Serialize)]
pub(super) struct Status {
    node: String,
    version: &'static str,
    uptime_s: u64,
    interval_s: f64,
    ready: bool,
    pods: usize,
    probes: Vec<ProbeStatus>,
    kernel: Option<KernelStatus>,
    /// What the host does not permit, and why.
    missing: BTreeMap<&'static str, String>,
    rounds: RoundStatus,
    events: Vec<EventStatus>,
    gaps: GapStatus,
    spool: SpoolStatus,
    aggregator: LinkStatus,
    sinks: Vec<SinkStatus>,
    config: Report,
}

#[derive(Debug, Serialize)]
struct ProbeStatus {
    name: &'static str,
    /// `running`, `failing` (some of its last readings failed), `off`.
    state: &'static str,
    rung: &'static str,
    rows: usize,
    errors: BTreeMap<&'static str, u64>,
    #[serde(skip_serializing_if = "String::is_empty")]
    last_error: String,
}

#[derive(Debug, Serialize)]
struct RoundStatus {
    count: u64,
    last: String,
    last_ms: f64,
    cpu_ms_mean: f64,
}

#[derive(Debug, Serialize)]
struct EventStatus {
    probe: &'static str,
    r#type: &'static str,
    outcomes: BTreeMap<&'static str, u64>,
}

#[derive(Debug, Serialize)]
struct GapStatus {
    counts: BTreeMap<&'static str, u64>,
    newest: Vec<gaps::Entry>,
}

#[derive(Debug, Serialize)]
struct SpoolStatus {
    epoch: String,
    bytes: u64,
    max_bytes: u64,
    frames: u64,
    #[serde(skip_serializing_if = "String::is_empty")]
    oldest: String,
    next_sequence: u64,
    acked_sequence: u64,
    /// `running`, or `failing`: the last batch could not be written, or what was written not be brought to the disk.
    state: &'static str,
    write_errors: u64,
    upkeep_errors: u64,
    #[serde(skip_serializing_if = "String::is_empty")]
    last_error: String,
}

#[derive(Debug, Serialize)]
struct SinkStatus {
    name: &'static str,
    /// `running`, `failing` (its last try failed), `off`.
    state: &'static str,
    #[serde(skip_serializing_if = "String::is_empty")]
    target: String,
    queued: usize,
    sent: u64,
    retries: u64,
    /// By reason.
    dropped: BTreeMap<&'static str, u64>,
    #[serde(skip_serializing_if = "String::is_empty")]
    last_error: String,
}

#[derive(Debug, Serialize)]
struct LinkStatus {
    /// That is talked to, or was tried last; empty: none.
    target: String,
    /// All there are.
    targets: Vec<String>,
    connected: bool,
    #[serde(skip_serializing_if = "String::is_empty")]
    last_error: String,
}

pub(super) fn status(state: &State) -> Status {
    let (count, cpu_ns, _, last_ns) = state.rounds.totals();
    let snapshot = state.rounds.snapshot();
    let spool = state.spool.stats();
    Status {
        node: state.node.clone(),
        version: env!("CARGO_PKG_VERSION"),
        uptime_s: state.started.elapsed().as_secs(),
        interval_s: state.settings.current().collector.interval.0.as_secs_f64(),
        ready: snapshot.is_some(),
        pods: state.index.live().len(),
        probes: probes(state),
        kernel: snapshot.as_ref().map(|s| s.kernel_status.clone()),
        missing: state.missing.list(),
        rounds: RoundStatus {
            count,
            last: snapshot.map(|s| rfc3339(s.time_ns)).unwrap_or_default(),
            last_ms: last_ns as f64 / 1e6,
            cpu_ms_mean: if count == 0 {
                0.0
            } else {
                cpu_ns as f64 / 1e6 / count as f64
            },
        },
        events: events(state),
        gaps: GapStatus {
            counts: state
                .gaps
                .counts()
                .into_iter()
                .filter(|c| c.1 > 0)
                .map(|(cause, n, _)| (cause, n))
                .collect(),
            newest: state.gaps.newest(),
        },
        spool: SpoolStatus {
            epoch: state.spool.epoch().to_string(),
            bytes: spool.bytes,
            max_bytes: state.spool_max_bytes,
            frames: spool.frames,
            oldest: if spool.oldest_ns == 0 {
                String::new()
            } else {
                rfc3339(spool.oldest_ns)
            },
            next_sequence: spool.next_sequence,
            acked_sequence: spool.acked,
            state: if spool.failing { "failing" } else { "running" },
            write_errors: spool.write_errors,
            upkeep_errors: spool.upkeep_errors,
            last_error: state.spool.last_error(),
        },
        aggregator: LinkStatus {
            target: state.link.target(),
            targets: state.targets.clone(),
            connected: state.link.connected.load(Ordering::Relaxed),
            last_error: state.link.last_error(),
        },
        sinks: sinks(state),
        config: state.settings.report(),
    }
}

fn probes(state: &State) -> Vec<ProbeStatus> {
    let running = state.probe_stats();
    let all = running.into_iter().map(|probe| ProbeStatus {
        name: probe.name,
        state: if probe.failing { "failing" } else { "running" },
        rung: "procfs",
        rows: probe.rows,
        errors: ReadError::KINDS
            .into_iter()
            .zip(probe.errors)
            .filter(|(_, count)| *count > 0)
            .collect(),
        last_error: probe.last_error,
    });
    let off = state.settings.off().into_iter().map(|name| ProbeStatus {
        name,
        state: "off",
        rung: "procfs",
        rows: 0,
        errors: BTreeMap::new(),
        last_error: String::new(),
    });
    all.chain(off).collect()
}

fn sinks(state: &State) -> Vec<SinkStatus> {
    let all = state.sinks.status().into_iter().map(|sink| SinkStatus {
        name: sink.name,
        state: match (sink.on, sink.state.failing) {
            (false, _) => "off",
            (true, false) => "running",
            (true, true) => "failing",
        },
        target: sink.target,
        queued: sink.queued,
        sent: sink.state.sent,
        retries: sink.state.retries,
        dropped: Reason::ALL
            .into_iter()
            .map(Reason::name)
            .zip(sink.state.dropped)
            .filter(|(_, count)| *count > 0)
            .collect(),
        last_error: sink.state.last_error,
    });
    all.collect()
}

fn events(state: &State) -> Vec<EventStatus> {
    let named = |outcomes: [u64; 4]| Outcome::ALL.into_iter().map(Outcome::name).zip(outcomes).collect();
    state
        .events
        .all()
        .into_iter()
        .map(|(probe, kind, outcomes)| EventStatus {
            probe,
            r#type: kind,
            outcomes: named(outcomes),
        })
        .collect()
}
