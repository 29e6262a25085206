//! The eBPF side of the collector: which programs this host permits (`plan`), their loading, their ring and their maps.
//!
//! Not here: what a probe's records mean (`crate::probes`), whose they are (`crate::pods`).

use std::sync::Arc;

use parking_lot::Mutex;
use serde::Serialize;
use sonde_common::config::Config;
use sonde_common::prom::Page;
use tokio::sync::mpsc::Sender;

use crate::event::{Gap, NetnsKey, Observation};
use crate::pods::PodIndex;
use crate::table::Table;

mod attribute;
mod btf;
mod clock;
mod counts;
mod doctor;
mod engine;
mod facts;
mod gaps;
mod listing;
mod load;
mod metrics;
mod plan;
mod reasons;
mod ring;
mod sites;
mod symbols;
mod sys;

#[cfg(test)]
mod live;

pub use attribute::attribute;
pub use clock::{Clock, clock};
pub use doctor::{DoctorReport, doctor};

use engine::Engine;
use plan::{Rung, SIGNALS, Signal, plan};

/// What one signal (a probe's counts, or its events) runs on, for the log, `/status` and `doctor`.
#[derive(Clone, Debug, Serialize)]
pub struct SignalStatus {
    /// `packetloss.count`, `packetloss.events`
    pub name: &'static str,
    /// `tp_btf`, `raw_tracepoint`; absent: off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rung: Option<&'static str>,
    /// Why it is off, or why no better rung was taken. Empty: it runs on the best one.
    pub reason: String,
}

/// What `/status` says of the kernel side.
#[derive(Clone, Debug, Default, Serialize)]
pub struct KernelStatus {
    pub signals: Vec<SignalReport>,
    /// Where kernel fields were looked up. Absent: nowhere.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub btf: Option<String>,
    /// Functions that stacks can be named by, or why there are none.
    pub kallsyms: String,
    /// Namespaces of pods and node that the kernel side knows.
    pub namespaces: usize,
    /// Kinds of drops seen so far.
    pub sites: usize,
    pub count_keys: usize,
    /// Drops in namespaces that belong to no pod: in no row.
    pub unknown_drops: u64,
    /// Drops that were counted under no key as the map was full.
    pub uncounted_drops: u64,
}

/// Counters since start.
#[derive(Clone, Debug, Serialize)]
pub struct SignalReport {
    #[serde(flatten)]
    pub signal: SignalStatus,
    /// Given on to the collector.
    pub events: u64,
    /// Held back by token buckets.
    pub suppressed: u64,
    /// For which the ring had no room.
    pub ring_lost: u64,
    pub bad_records: u64,
    /// Runs that the kernel skipped.
    pub misses: u64,
    /// 0 unless kernel.bpf_stats_enabled.
    pub runs: u64,
    pub run_time_ns: u64,
}

/// All loaded programs. Dropping it detaches them and ends the ring's thread.
pub struct Kernel {
    signals: Vec<(&'static Signal, Option<Rung>, SignalStatus)>,
    engine: Option<Engine>,
    btf: Option<String>,
    /// What the last round found, for `status` and metrics between rounds.
    last: Mutex<gaps::Totals>,
}

impl Kernel {
    /// Never fails as a whole: what is off says why. Observations go to `events` in the order of the ring; they carry
    /// no subject yet: see [`attribute`].
    pub fn start(config: &Config, index: Arc<PodIndex>, events: Sender<Vec<Observation>>) -> (Self, Vec<SignalStatus>) {
        Self::start_on(config, index, events, |_| true)
    }

    /// With the rungs that `allowed` lets through.
    fn start_on(
        config: &Config,
        index: Arc<PodIndex>,
        events: Sender<Vec<Observation>>,
        allowed: impl Fn(Rung) -> bool,
    ) -> (Self, Vec<SignalStatus>) {
        let (facts, btf) = facts::gather(config);
        let mut wanted = Vec::new();
        let mut signals = Vec::new();
        for signal in SIGNALS {
            let mut decision = plan(signal, &facts, config);
            decision.candidates.retain(|rung| allowed(*rung));
            if decision.candidates.is_empty() {
                signals.push((signal, None, status_of(signal, None, decision.reason(None))));
            } else {
                wanted.push((signal, decision));
            }
        }
        let mut engine = None;
        if !wanted.is_empty() {
            let (started, results) = Engine::start(config, &facts, btf, wanted, &index, events);
            engine = started;
            signals.extend(
                results
                    .into_iter()
                    .map(|(signal, rung, why)| (signal, rung, status_of(signal, rung, why))),
            );
        }
        signals.sort_by_key(|(signal, _, _)| signal.name);
        let statuses = signals.iter().map(|(_, _, status)| status.clone()).collect();
        let btf = facts.btf.as_ref().ok().map(|btf| btf.path.display().to_string());
        (
            Self {
                signals,
                engine,
                btf,
                last: Mutex::default(),
            },
            statuses,
        )
    }

    /// The network namespaces of all pods that are there now; the host's is added here when `pods.include_host`.
    /// Cheap when nothing changed.
    pub fn netns_changed(&self, live: &[NetnsKey]) {
        if let Some(engine) = &self.engine {
            engine.list(live);
        }
    }

    /// Rows of this round, and what could not be seen since the round before.
    pub fn read(&mut self, time_ns: u64, index: &PodIndex) -> (Vec<Table>, Vec<Gap>) {
        let Some(engine) = &mut self.engine else {
            return (Vec::new(), Vec::new());
        };
        let running: Vec<_> = self
            .signals
            .iter()
            .filter_map(|(signal, rung, _)| Some((*signal, (*rung)?)))
            .collect();
        engine.read(time_ns, index, &running, &mut self.last.lock())
    }

    pub fn status(&self) -> KernelStatus {
        let last = self.last.lock();
        let engine = self.engine.as_ref();
        KernelStatus {
            signals: self
                .signals
                .iter()
                .map(|(signal, rung, status)| self.report(signal, *rung, status, &last))
                .collect(),
            btf: self.btf.clone(),
            kallsyms: engine.map_or_else(|| "not read".to_owned(), Engine::symbols),
            namespaces: engine.map_or(0, Engine::namespaces),
            sites: engine.map_or(0, Engine::sites),
            count_keys: engine.map_or(0, Engine::count_keys),
            unknown_drops: engine.map_or(0, Engine::unknown_drops),
            uncounted_drops: last.uncounted,
        }
    }

    fn report(&self, signal: &Signal, rung: Option<Rung>, status: &SignalStatus, last: &gaps::Totals) -> SignalReport {
        let counters = match (&self.engine, rung) {
            (Some(engine), Some(rung)) => engine.program(signal, rung),
            _ => sys::ProgramCounters::default(),
        };
        let mut report = SignalReport {
            signal: status.clone(),
            events: 0,
            suppressed: 0,
            ring_lost: 0,
            bad_records: 0,
            misses: counters.misses,
            runs: counters.runs,
            run_time_ns: counters.run_time_ns,
        };
        if let Some(engine) = self.engine.as_ref().filter(|_| signal.events) {
            let (events, bad_records) = engine.ring_counters();
            (report.events, report.bad_records) = (events, bad_records);
            (report.suppressed, report.ring_lost) = (last.suppressed, last.ring_lost);
        }
        report
    }

    /// Families `sonde_collector_ebpf_*`.
    pub fn self_metrics(&self, page: &mut Page) {
        metrics::write(&self.status(), page);
    }
}

fn status_of(signal: &Signal, rung: Option<Rung>, reason: String) -> SignalStatus {
    match rung {
        Some(rung) => tracing::info!(signal = signal.name, rung = rung.name(), %reason, "kernel signal on"),
        None => tracing::warn!(signal = signal.name, %reason, "kernel signal off"),
    }
    SignalStatus {
        name: signal.name,
        rung: rung.map(Rung::name),
        reason,
    }
}
