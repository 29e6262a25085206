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
mod connection;
mod counted;
mod doctor;
mod engine;
mod facts;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod gaps;
mod latency;
mod listing;
mod load;
mod metrics;
mod packets;
mod plan;
mod probe;
pub(crate) mod probes;
mod reasons;
mod record;
mod ring;
mod sites;
pub(crate) mod symbols;
mod sys;

#[cfg(test)]
mod live;

pub use attribute::attribute;
pub use clock::{Clock, clock};
pub use doctor::{DoctorReport, doctor};

use engine::Engine;
use plan::{Signal, Step, plan};

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
    /// It is off as the configuration has it so: nothing is missing.
    #[serde(skip)]
    pub chosen: bool,
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
    /// Memory of all maps.
    pub map_bytes: u64,
    /// Records of the rings that are of no known kind, or not as long as they say.
    pub unknown_records: u64,
    /// Probes of which at least one signal runs.
    pub probes: Vec<ProbeReport>,
}

/// What a probe's maps hold.
#[derive(Clone, Debug, Serialize)]
pub struct ProbeReport {
    pub probe: &'static str,
    /// Keys in its maps.
    pub keys: usize,
    /// Counted in namespaces that belong to no pod: in no row.
    pub unknown: u64,
    /// Counted under no key as the map was full.
    pub uncounted: u64,
    /// Figures of its own.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub gauges: Vec<Gauge>,
}

/// A figure that only one probe has.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Gauge {
    pub name: &'static str,
    #[serde(skip)]
    pub help: &'static str,
    pub value: u64,
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
    /// With the place of the step that each runs on.
    signals: Vec<(&'static Signal, Option<usize>, SignalStatus)>,
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

    /// With the steps that `allowed` lets through.
    fn start_on(
        config: &Config,
        index: Arc<PodIndex>,
        events: Sender<Vec<Observation>>,
        allowed: impl Fn(&Step) -> bool,
    ) -> (Self, Vec<SignalStatus>) {
        let (facts, btf) = facts::gather(config);
        let mut wanted = Vec::new();
        let mut signals = Vec::new();
        for signal in probes::signals() {
            let mut decision = plan(signal, &facts, config);
            decision.candidates.retain(|at| allowed(&signal.steps[*at]));
            if decision.candidates.is_empty() {
                let reason = decision.reason(signal, None);
                signals.push((signal, None, status_of(signal, None, reason, decision.chosen)));
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
                    .map(|(signal, step, why)| (signal, step, status_of(signal, step, why, false))),
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
            .filter_map(|(signal, step, _)| Some((*signal, (*step)?)))
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
                .map(|(signal, step, status)| self.report(signal, *step, status, &last))
                .collect(),
            btf: self.btf.clone(),
            kallsyms: engine.map_or_else(|| "not read".to_owned(), Engine::symbols),
            namespaces: engine.map_or(0, Engine::namespaces),
            map_bytes: engine.map_or(0, Engine::map_bytes),
            unknown_records: last.bad_records.get("").copied().unwrap_or(0),
            probes: engine
                .into_iter()
                .flat_map(Engine::standings)
                .map(|(probe, standing, gauges)| ProbeReport {
                    probe: probe.spec.name,
                    keys: standing.keys,
                    unknown: standing.unknown,
                    uncounted: probe.uncounted.map_or(0, |(at, _)| last.uncounted[at]),
                    gauges,
                })
                .collect(),
        }
    }

    fn report(&self, signal: &Signal, step: Option<usize>, status: &SignalStatus, last: &gaps::Totals) -> SignalReport {
        let running = self.engine.as_ref().zip(step);
        let counters = running.map_or_else(Default::default, |(engine, step)| engine.program(signal, step));
        let sum = |of: &dyn Fn(usize) -> u64| signal.buckets.iter().map(|bucket| of(bucket.position)).sum();
        let ring = running.map(|(engine, _)| engine.ring_counters());
        let bad_records = last.bad_records.get(signal.probe).copied().unwrap_or(0);
        SignalReport {
            signal: status.clone(),
            events: ring.map_or(0, |ring| sum(&|at| ring.events(at))),
            suppressed: sum(&|at| last.suppressed[at]),
            ring_lost: sum(&|at| last.ring_lost[at]),
            bad_records: if signal.buckets.is_empty() { 0 } else { bad_records },
            misses: counters.misses,
            runs: counters.runs,
            run_time_ns: counters.run_time_ns,
        }
    }

    /// Families `sonde_collector_ebpf_*`.
    pub fn self_metrics(&self, page: &mut Page) {
        metrics::write(&self.status(), page);
    }
}

fn status_of(signal: &Signal, step: Option<usize>, reason: String, chosen: bool) -> SignalStatus {
    let rung = step.map(|at| signal.steps[at].rung.name());
    SignalStatus {
        name: signal.name,
        rung,
        reason,
        chosen,
    }
}
