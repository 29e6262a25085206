//! What runs when at least one signal does: object, ring thread, and the reading of maps.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use parking_lot::Mutex;
use sonde_common::config::Config;
use sonde_ebpf_common::lost::Lost;
use tokio::sync::mpsc::Sender;

use super::btf::Btf;
use super::facts::Facts;
use super::gaps::{self, Totals};
use super::listing::Listing;
use super::load::{KernelTypes, LoadError, Object, Settings};
use super::plan::{Decision, Signal};
use super::probe::{Host, KernelProbe, Live, Open, Reader, Round, Setup, Standing};
use super::probes;
use super::ring::{Decoders, RingCounters, RingThread, Rings};
use super::symbols::Symbols;
use super::sys::{ProgramCounters, RawMap};
use crate::event::{Gap, NetnsKey, Observation, Subject};
use crate::pods::PodIndex;
use crate::table::Table;

pub(super) struct Engine {
    /// Before the object: the thread holds the object's rings.
    _ring: Option<RingThread>,
    object: Object,
    readers: Vec<Running>,
    lost: RawMap<u32, Lost>,
    listing: Arc<Listing>,
    symbols: Arc<Symbols>,
    ring_counters: Arc<RingCounters>,
    map_bytes: u64,
    /// Where observations of readers go, beside those of the ring.
    events: Sender<Vec<Observation>>,
    /// Those that had no room there in the rounds before.
    waiting: Vec<(usize, Observation)>,
    /// Why the last listing failed, to log each failure once.
    list_error: Mutex<Option<String>>,
    /// What the last round found, for `status` and metrics between rounds.
    last: Mutex<Totals>,
}

/// A probe of which at least one signal runs.
struct Running {
    probe: &'static KernelProbe,
    reader: Box<dyn Reader>,
    live: Arc<Live>,
    /// One of its signals counts for rows.
    rows: bool,
}

/// Signal, the step it runs on, and why not on a better one.
pub(super) type Outcome = (&'static Signal, Option<usize>, String);

/// Probes that shall run, and what each asks for.
type Prepared = Vec<(&'static KernelProbe, Open, Arc<Live>)>;

/// What an engine begins with.
pub(super) struct Around<'a> {
    pub config: &'a Config,
    pub facts: &'a Facts,
    pub index: &'a PodIndex,
    pub symbols: &'a Arc<Symbols>,
    pub events: &'a Sender<Vec<Observation>>,
    /// There are others: it is for a few probes, and its rings are smaller.
    pub later: bool,
}

impl Engine {
    /// Loads what was decided. Each signal is tried by itself, step after step.
    pub(super) fn start(
        around: &Around<'_>,
        btf: Option<Btf>,
        wanted: Vec<(&'static Signal, Decision)>,
    ) -> (Option<Self>, Vec<Outcome>) {
        let probes: Vec<_> = probes::ALL
            .iter()
            .copied()
            .filter(|probe| wanted.iter().any(|(signal, _)| signal.probe == probe.spec.name))
            .collect();
        let (mut engine, prepared) = match Self::prepare(around, btf, &probes) {
            Ok(prepared) => prepared,
            Err(error) => {
                let why = error.to_string();
                let off = wanted.into_iter().map(|(signal, _)| (signal, None, why.clone()));
                return (None, off.collect());
            }
        };
        let types = KernelTypes::default();
        let mut outcomes: Vec<Outcome> = Vec::with_capacity(wanted.len());
        for (signal, decision) in wanted {
            let runs = |name| {
                outcomes
                    .iter()
                    .any(|(other, step, _)| other.name == name && step.is_some())
            };
            let (step, why) = match signal.after.filter(|after| !runs(*after)) {
                Some(after) => (None, format!("{after} does not run")),
                None => climb(&mut engine.object, signal, &decision, &types),
            };
            outcomes.push((signal, step, why));
        }
        drop(types);
        let decoders = engine.open(prepared, &mut outcomes);
        let running: HashSet<_> = engine.readers.iter().map(|running| running.probe.spec.name).collect();
        engine.object.done(&running);
        engine.map_bytes = engine.object.map_bytes();
        engine.start_ring(&mut outcomes, decoders, around.events.clone());
        let runs = outcomes.iter().any(|(_, step, _)| step.is_some());
        (runs.then_some(engine), outcomes)
    }

    fn prepare(
        around: &Around<'_>,
        btf: Option<Btf>,
        wanted: &[&'static KernelProbe],
    ) -> Result<(Self, Prepared), LoadError> {
        let Around {
            config,
            facts,
            index,
            symbols,
            ..
        } = *around;
        let btf_facts = facts.btf.as_ref().map_err(|why| LoadError::Btf(why.clone()))?;
        let cpus = aya::util::nr_cpus().unwrap_or(1);
        let mut settings = Settings::new(config, facts, wanted, cpus);
        if around.later {
            settings.smaller_ring();
        }
        let prepared = wanted
            .iter()
            .map(|probe| {
                let (setup, live) = set_up(probe, config, index.node(), btf.as_ref(), symbols);
                settings.add(setup.globals);
                (*probe, setup.open, live)
            })
            .collect();
        drop(btf);
        let object = Object::new(btf_facts, &settings)?;
        let host = index.node().filter(|_| config.pods.include_host);
        let listing = Listing::new(
            object.map("NAMESPACES")?,
            object.map("HELD")?,
            object.map("LISTINGS")?,
            host,
        )
        .map_err(|error| LoadError::Map("NAMESPACES", error))?;
        let engine = Self {
            _ring: None,
            readers: Vec::new(),
            lost: object.map("LOST")?,
            object,
            listing: Arc::new(listing),
            symbols: Arc::clone(symbols),
            ring_counters: Arc::new(RingCounters::new(probes::ALL.iter().map(|probe| probe.spec.name))),
            map_bytes: 0,
            events: around.events.clone(),
            waiting: Vec::new(),
            list_error: Mutex::default(),
            last: Mutex::default(),
        };
        let live: Vec<NetnsKey> = index.live().iter().map(|pod| pod.netns).collect();
        engine.list(&live);
        Ok((engine, prepared))
    }

    /// Goes on with the probes that have a running signal. One that cannot be gone on with is off.
    fn open(&mut self, prepared: Prepared, outcomes: &mut [Outcome]) -> Decoders {
        let mut decoders = HashMap::new();
        for (probe, open, live) in prepared {
            let name = probe.spec.name;
            let runs = |outcome: &&mut Outcome| outcome.0.probe == name && outcome.1.is_some();
            if !outcomes.iter_mut().any(|outcome| runs(&outcome)) {
                continue;
            }
            match open(&self.object) {
                Ok(opened) => {
                    let kinds = opened.decoders.into_iter();
                    decoders.extend(kinds.map(|(kind, decoder)| (kind, (name, decoder))));
                    self.readers.push(Running {
                        probe,
                        reader: opened.reader,
                        live,
                        rows: outcomes.iter_mut().filter(runs).any(|outcome| outcome.0.rows),
                    });
                }
                Err(error) => {
                    for (signal, step, why) in outcomes.iter_mut().filter(runs) {
                        if let Some(at) = step.take() {
                            self.object.detach(&signal.steps[at]);
                        }
                        *why = error.to_string();
                    }
                }
            }
        }
        decoders
    }

    fn start_ring(&mut self, outcomes: &mut [Outcome], decoders: Decoders, events: Sender<Vec<Observation>>) {
        let makes_events = |(signal, step, _): &&mut Outcome| !signal.buckets.is_empty() && step.is_some();
        // Those of a probe that runs may be switched on later.
        let may_make = |running: &Running| running.probe.signals.iter().any(|signal| !signal.buckets.is_empty());
        if !self.readers.iter().any(may_make) {
            return;
        }
        let (listing, counters) = (Arc::clone(&self.listing), Arc::clone(&self.ring_counters));
        let started = self.take_rings().map_err(|error| error.to_string()).and_then(|rings| {
            RingThread::start(rings, decoders, listing, counters, events).map_err(|error| error.to_string())
        });
        match started {
            Ok(ring) => self._ring = Some(ring),
            Err(error) => {
                for (signal, step, why) in outcomes.iter_mut().filter(makes_events) {
                    *why = format!("the rings cannot be read: {error}");
                    // What it counts beside its events is still good.
                    if signal.only_events()
                        && let Some(at) = step.take()
                    {
                        self.object.detach(&signal.steps[at]);
                    }
                }
            }
        }
    }

    fn take_rings(&mut self) -> Result<Rings, LoadError> {
        Ok(Rings {
            rare: self.object.take_ring("RARE")?,
            events: self.object.take_ring("EVENTS")?,
        })
    }

    fn list(&self, live: &[NetnsKey]) {
        let error = self.listing.update(live).err().map(|error| error.to_string());
        let mut last = self.list_error.lock();
        if let Some(error) = error.as_ref().filter(|_| *last != error) {
            tracing::warn!(%error, "a network namespace could not be listed");
        }
        *last = error;
    }

    pub(super) fn read(
        &mut self,
        time_ns: u64,
        index: &PodIndex,
        running: &[(&'static Signal, usize)],
    ) -> (Vec<Table>, Vec<Gap>) {
        let last = std::mem::take(&mut *self.last.lock());
        let gone = self.listing.take_gone();
        let owner = |netns| match index.by_netns(netns, time_ns) {
            // What is still counted after a pod's last reading would begin its counters anew.
            Subject::Pod(pod) if pod.has_ended() && !gone.contains(&netns) => Subject::Unknown,
            subject => subject,
        };
        let round = Round {
            time_ns,
            gone: &gone,
            owner: &owner,
        };
        let mut gaps = gaps::Gaps::new(last.read_at_ns, time_ns);
        let mut tables = Vec::new();
        for running in self.readers.iter_mut().filter(|running| running.rows) {
            match running.reader.read(&round) {
                Ok(table) if table.is_empty() => {}
                Ok(table) => tables.push(table),
                Err(error) => gaps.read_failed(running.probe.spec.name, &error),
            }
            for (netns, what) in running.reader.missed() {
                gaps.missed(running.probe.spec.name, index.by_netns(netns, time_ns), what);
            }
        }
        self.observe(&mut gaps);
        let mut now = self.totals(time_ns, running, &last);
        gaps.compare(&last, &now);
        match self.listing.held_since_last_gap() {
            Ok(held) => {
                let owner = |netns| index.by_netns(netns, time_ns);
                gaps.held_back(&held, owner);
            }
            Err(error) => gaps.read_failed("", &error),
        }
        for (total, new) in now.suppressed.iter_mut().zip(gaps.suppressed) {
            *total += new;
        }
        *self.last.lock() = now;
        (tables, gaps.finish())
    }

    /// As [`Self::list`], for what readers have left in namespaces too.
    pub(super) fn netns_changed(&mut self, live: &[NetnsKey]) {
        self.list(live);
        for running in &mut self.readers {
            running.reader.stay_in(live);
        }
    }

    /// Whether it has programs for devices of pods.
    pub(super) fn is_for_devices(&self) -> bool {
        self.object.is_for_devices()
    }

    /// The calling thread is in that namespace, a pod's, whose devices are new or have changed.
    pub(super) fn visit(&mut self, netns: NetnsKey) {
        for running in &mut self.readers {
            if let Err(error) = running.reader.visit(netns) {
                let probe = running.probe.spec.name;
                tracing::warn!(probe, inode = netns.inode, %error, "programs could not be attached to a pod's devices");
            }
        }
    }

    /// Gives on what readers find; what has no room waits for the next round.
    fn observe(&mut self, gaps: &mut gaps::Gaps) {
        for running in &mut self.readers {
            match running.reader.observe() {
                Ok(found) => self.waiting.extend(found),
                Err(error) => gaps.read_failed(running.probe.spec.name, &error),
            }
        }
        if self.waiting.is_empty() {
            return;
        }
        if let Ok(room) = self.events.try_reserve() {
            let (buckets, found): (Vec<usize>, Vec<Observation>) = self.waiting.drain(..).unzip();
            room.send(found);
            for bucket in buckets {
                self.ring_counters.event(bucket);
            }
        }
    }

    /// Where a number cannot be read it stays what it was.
    fn totals(&self, time_ns: u64, running: &[(&'static Signal, usize)], last: &Totals) -> Totals {
        let mut now = Totals {
            read_at_ns: time_ns,
            ..last.clone()
        };
        if let Ok(Some(copies)) = self.lost.get(&0) {
            now.uncounted = std::array::from_fn(|at| copies.iter().map(|copy| copy.uncounted[at]).sum());
            now.ring_lost = std::array::from_fn(|at| copies.iter().map(|copy| copy.ring_full[at]).sum());
        }
        now.bad_records = self.ring_counters.bad_records();
        for (signal, step) in running {
            let misses = self.program(signal, *step).misses;
            let before = now.misses.entry(signal.name).or_default();
            *before = misses.max(*before);
        }
        now
    }

    /// As of the last round.
    pub(super) fn last(&self) -> Totals {
        self.last.lock().clone()
    }

    /// Whether it runs the probe.
    pub(super) fn has(&self, probe: &str) -> bool {
        self.readers.iter().any(|running| running.probe.spec.name == probe)
    }

    pub(super) fn is_idle(&self) -> bool {
        self.readers.is_empty()
    }

    /// What may change while programs run is as `config` says.
    pub(super) fn set_live(&self, config: &Config) -> Result<(), LoadError> {
        for running in &self.readers {
            running.live.set(&running.probe.settings(config));
        }
        self.object.set_live(config)
    }

    /// Adds signals to a probe that runs.
    pub(super) fn add(&mut self, wanted: Vec<(&'static Signal, Decision)>) -> Vec<Outcome> {
        let types = KernelTypes::default();
        let added = wanted.into_iter().map(|(signal, decision)| {
            let (step, why) = climb(&mut self.object, signal, &decision, &types);
            let of_it = |running: &&mut Running| running.probe.spec.name == signal.probe;
            if let Some(running) = self.readers.iter_mut().find(of_it).filter(|_| step.is_some()) {
                running.rows |= signal.rows;
            }
            (signal, step, why)
        });
        added.collect()
    }

    /// Ends signals. A probe of which none is left goes with its maps.
    pub(super) fn remove(&mut self, signals: &[(&'static Signal, usize)], left: impl Fn(&str) -> bool) {
        for (signal, step) in signals {
            self.object.detach(&signal.steps[*step]);
        }
        self.readers.retain(|running| left(running.probe.spec.name));
        let running: HashSet<_> = self.readers.iter().map(|running| running.probe.spec.name).collect();
        self.object.done(&running);
        self.map_bytes = self.object.map_bytes();
    }

    pub(super) fn program(&self, signal: &Signal, step: usize) -> ProgramCounters {
        self.object.counters(&signal.steps[step]).unwrap_or_default()
    }

    pub(super) fn ring_counters(&self) -> &RingCounters {
        &self.ring_counters
    }

    pub(super) fn symbols(&self) -> String {
        self.symbols
            .len()
            .map_or_else(|why| why, |functions| format!("{functions} functions"))
    }

    pub(super) fn namespaces(&self) -> usize {
        self.listing.len()
    }

    /// Memory of all maps, in bytes.
    pub(super) fn map_bytes(&self) -> u64 {
        self.map_bytes
    }

    /// Each running probe, what its maps hold, and figures of its own.
    pub(super) fn standings(&self) -> impl Iterator<Item = (&'static KernelProbe, Standing, Vec<super::Gauge>)> {
        self.readers
            .iter()
            .map(|running| (running.probe, running.reader.standing(), running.reader.gauges()))
    }
}

/// What the probe wants to be set before its programs are loaded.
pub(super) fn set_up(
    probe: &KernelProbe,
    config: &Config,
    node: Option<NetnsKey>,
    btf: Option<&Btf>,
    symbols: &Arc<Symbols>,
) -> (Setup, Arc<Live>) {
    let settings = probe.settings(config);
    let live = Arc::new(Live::new(&settings));
    let setup = (probe.prepare)(&Host {
        config,
        node,
        live: Arc::clone(&live),
        btf,
        symbols: Arc::clone(symbols),
    });
    (setup, live)
}

/// The first step that the kernel takes, and why not the ones before it.
fn climb(object: &mut Object, signal: &Signal, decision: &Decision, types: &KernelTypes) -> (Option<usize>, String) {
    let mut failed = decision.clone();
    for at in &decision.candidates {
        match object.attach(&signal.steps[*at], types) {
            Ok(()) => return (Some(*at), failed.reason(signal, Some(*at))),
            Err(error) => failed.reject(*at, error.to_string()),
        }
    }
    (None, failed.reason(signal, None))
}
