//! The eBPF side of the collector: which programs this host permits (`plan`), their loading, their ring and their maps.
//!
//! Not here: what a probe's records mean (`crate::probes`), whose they are (`crate::pods`).

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::Serialize;
use sonde_common::config::Config;
use sonde_common::prom::Page;
use sonde_common::time::now_ns;
use tokio::sync::mpsc::Sender;

use crate::event::{Gap, NetnsKey, Observation};
use crate::pods::PodIndex;
use crate::switched::Switched;
use crate::table::Table;

mod attribute;
mod btf;
mod change;
mod clock;
mod connection;
mod counted;
mod doctor;
mod engine;
mod facts;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod gaps;
mod governor;
mod latency;
mod listing;
mod load;
mod metrics;
mod packets;
mod plan;
mod probe;
pub(crate) mod probes;
mod reasons;
pub(crate) mod record;
mod ring;
mod sites;
pub(crate) mod symbols;
mod sys;

#[cfg(test)]
mod live;

pub use attribute::attribute;
pub use change::Changed;
pub(crate) use clock::watch as watch_clock;
pub use clock::{Clock, clock};
pub(crate) use clock::{boot_ns, monotonic_ns};
pub use doctor::{DoctorReport, doctor};
pub(crate) use facts::is_since;
pub use governor::{GovernorStatus, GovernorThread};

use engine::{Around, Engine};
use plan::{Signal, Step, plan};
use symbols::Symbols;

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
    /// What keeps programs within their budget of CPU time.
    pub governor: GovernorStatus,
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

/// All loaded programs. Dropping it detaches them and ends the rings' threads.
pub struct Kernel {
    /// With the place of the step that each runs on.
    signals: Vec<(&'static Signal, Option<usize>, SignalStatus)>,
    /// One for the probes that ran at the start, one for those switched on at another time. A probe is in one of them.
    engines: Vec<Engine>,
    btf: Option<String>,
    index: Arc<PodIndex>,
    symbols: Arc<Symbols>,
    events: Sender<Vec<Observation>>,
    /// What the configuration asks for.
    asked: Config,
    /// As it was applied last: what it asks for, less what the governor leaves out.
    config: Config,
    governor: governor::State,
    /// Since when probes, or their events, are off as the configuration has it so.
    switched: Switched,
    visits_due: Arc<AtomicBool>,
    /// Namespaces that have been looked at for what others left.
    swept: HashSet<NetnsKey>,
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
        let mut kernel = Self {
            signals: Vec::new(),
            engines: Vec::new(),
            btf: facts.btf.as_ref().ok().map(|btf| btf.path.display().to_string()),
            index,
            symbols: Arc::new(Symbols::new(&config.host.proc)),
            events,
            asked: config.clone(),
            config: config.clone(),
            governor: governor::State::default(),
            switched: Switched::default(),
            visits_due: Arc::default(),
            swept: HashSet::new(),
        };
        let mut wanted = Vec::new();
        for signal in probes::signals() {
            let mut decision = plan(signal, &facts, config);
            decision.candidates.retain(|at| allowed(&signal.steps[*at]));
            if decision.candidates.is_empty() {
                let reason = decision.reason(signal, None);
                let status = status_of(signal, None, reason, decision.chosen);
                kernel.signals.push((signal, None, status));
            } else {
                wanted.push((signal, decision));
            }
        }
        let results = kernel.begin(config, &facts, btf, wanted);
        // Pods are found after this.
        kernel.visits_due.store(false, Ordering::Release);
        kernel.signals.extend(results);
        kernel.signals.sort_by_key(|(signal, _, _)| signal.name);
        change::note(&mut kernel.switched, config, now_ns());
        let statuses = kernel.statuses();
        (kernel, statuses)
    }

    /// An engine for probes that none has yet.
    fn begin(
        &mut self,
        config: &Config,
        facts: &facts::Facts,
        btf: Option<btf::Btf>,
        mut wanted: Vec<(&'static Signal, plan::Decision)>,
    ) -> Vec<(&'static Signal, Option<usize>, SignalStatus)> {
        let names: Vec<_> = wanted.iter().map(|(signal, _)| signal.name).collect();
        let alone = wanted.extract_if(.., |(signal, _)| {
            signal.after.is_some_and(|after| !names.contains(&after))
        });
        let mut results: Vec<_> = alone
            .map(|(signal, _)| {
                let why = format!("{} does not run", signal.after.unwrap_or_default());
                // That one says what is missing.
                (signal, None, status_of(signal, None, why, true))
            })
            .collect();
        if wanted.is_empty() {
            return results;
        }
        let around = Around {
            config,
            facts,
            index: &self.index,
            symbols: &self.symbols,
            events: &self.events,
            later: !self.engines.is_empty(),
        };
        let (engine, outcomes) = Engine::start(&around, btf, wanted);
        if engine.as_ref().is_some_and(Engine::is_for_devices) {
            self.visits_due.store(true, Ordering::Release);
        }
        self.engines.extend(engine);
        results.extend(outcomes.into_iter().map(with_status));
        results
    }

    fn statuses(&self) -> Vec<SignalStatus> {
        self.signals.iter().map(|(_, _, status)| status.clone()).collect()
    }

    /// The network namespaces of all pods that are there now; the host's is added here when `pods.include_host`.
    /// Cheap when nothing changed.
    pub fn netns_changed(&mut self, live: &[NetnsKey]) {
        self.swept.retain(|netns| live.contains(netns));
        for engine in &mut self.engines {
            engine.netns_changed(live);
        }
    }

    /// Becomes true when all pods are to be visited once more: see [`Self::visit`].
    pub fn visits_due(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.visits_due)
    }

    /// Attaches programs to the devices of a pod, and takes away those that a collector left there which was killed. To be
    /// called by a thread that is in the pod's network namespace, when the pod is found and each time that its devices have
    /// changed.
    pub fn visit(&mut self, netns: NetnsKey) {
        if self.swept.insert(netns) {
            match probes::sweep() {
                Ok(0) => {}
                Ok(devices) => tracing::info!(inode = netns.inode, devices, "took away what another collector left"),
                Err(error) => {
                    tracing::warn!(inode = netns.inode, %error, "what another collector may have left could not be taken away");
                }
            }
        }
        for engine in &mut self.engines {
            engine.visit(netns);
        }
    }

    /// Rows of this round, and what could not be seen since the round before.
    pub fn read(&mut self, time_ns: u64, index: &PodIndex) -> (Vec<Table>, Vec<Gap>) {
        let (mut tables, mut gaps) = (Vec::new(), Vec::new());
        for engine in &mut self.engines {
            let running: Vec<_> = self
                .signals
                .iter()
                .filter(|(signal, _, _)| engine.has(signal.probe))
                .filter_map(|(signal, step, _)| Some((*signal, (*step)?)))
                .collect();
            let (rows, missed) = engine.read(time_ns, index, &running);
            tables.extend(rows);
            gaps.extend(missed);
        }
        (tables, gaps)
    }

    pub fn status(&self) -> KernelStatus {
        let engines = || self.engines.iter();
        let reports = engines().flat_map(|engine| {
            let last = engine.last();
            engine.standings().map(move |(probe, standing, gauges)| ProbeReport {
                probe: probe.spec.name,
                keys: standing.keys,
                unknown: standing.unknown,
                uncounted: probe.uncounted.map_or(0, |(at, _)| last.uncounted[at]),
                gauges,
            })
        });
        KernelStatus {
            signals: self
                .signals
                .iter()
                .map(|(signal, step, status)| self.report(signal, *step, status))
                .collect(),
            btf: self.btf.clone(),
            kallsyms: self
                .engines
                .first()
                .map_or_else(|| "not read".to_owned(), Engine::symbols),
            namespaces: engines().map(Engine::namespaces).max().unwrap_or(0),
            map_bytes: engines().map(Engine::map_bytes).sum(),
            unknown_records: engines()
                .map(|engine| engine.last().bad_records.get("").copied().unwrap_or(0))
                .sum(),
            probes: reports.collect(),
            governor: self.governor.status(&self.asked),
        }
    }

    fn report(&self, signal: &Signal, step: Option<usize>, status: &SignalStatus) -> SignalReport {
        let engine = self.engines.iter().find(|engine| engine.has(signal.probe));
        let last = engine.map(Engine::last).unwrap_or_default();
        let running = engine.zip(step);
        let counters = running.map_or_else(Default::default, |(engine, step)| engine.program(signal, step));
        let sum = |of: &dyn Fn(usize) -> u64| signal.buckets.iter().map(|bucket| of(bucket.position)).sum();
        let ring = engine.map(Engine::ring_counters);
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

fn with_status((signal, step, why): engine::Outcome) -> (&'static Signal, Option<usize>, SignalStatus) {
    (signal, step, status_of(signal, step, why, false))
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
