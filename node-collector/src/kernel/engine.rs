//! What runs when at least one signal does: object, ring thread, and the reading of maps.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use parking_lot::Mutex;
use sonde_common::config::Config;
use sonde_ebpf_common::drop::Lost;
use tokio::sync::mpsc::Sender;

use super::btf::Btf;
use super::counts::Counts;
use super::facts::Facts;
use super::gaps::{self, Totals};
use super::listing::Listing;
use super::load::{LoadError, Object, Settings};
use super::plan::{Decision, Rung, Signal};
use super::reasons::Reasons;
use super::ring::{RingCounters, RingThread};
use super::sites::{Sites, verdicts};
use super::symbols::Symbols;
use super::sys::{ProgramCounters, RawMap};
use crate::event::{Gap, NetnsKey, Observation, Subject};
use crate::pods::PodIndex;
use crate::table::Table;

pub(super) struct Engine {
    /// Before the object: the thread holds the object's ring.
    _ring: Option<RingThread>,
    object: Object,
    counts: Counts,
    lost: RawMap<u32, Lost>,
    listing: Arc<Listing>,
    sites: Arc<Sites>,
    symbols: Arc<Symbols>,
    ring_counters: Arc<RingCounters>,
    /// Why the last listing failed, to log each failure once.
    list_error: Mutex<Option<String>>,
}

/// Signal, the rung it runs on, and why not on a better one.
pub(super) type Outcome = (&'static Signal, Option<Rung>, String);

impl Engine {
    /// Loads what was decided. Each signal is tried by itself, rung after rung.
    pub(super) fn start(
        config: &Config,
        facts: &Facts,
        btf: Option<Btf>,
        wanted: Vec<(&'static Signal, Decision)>,
        index: &PodIndex,
        events: Sender<Vec<Observation>>,
    ) -> (Option<Self>, Vec<Outcome>) {
        match Self::prepare(config, facts, btf, index) {
            Ok(mut engine) => {
                let outcomes: Vec<Outcome> = wanted
                    .into_iter()
                    .map(|(signal, decision)| {
                        let (rung, why) = climb(&mut engine.object, signal, &decision);
                        (signal, rung, why)
                    })
                    .collect();
                engine.object.done();
                let outcomes = engine.start_ring(outcomes, events);
                let runs = outcomes.iter().any(|(_, rung, _)| rung.is_some());
                (runs.then_some(engine), outcomes)
            }
            Err(error) => {
                let why = error.to_string();
                (
                    None,
                    wanted
                        .into_iter()
                        .map(|(signal, _)| (signal, None, why.clone()))
                        .collect(),
                )
            }
        }
    }

    fn prepare(config: &Config, facts: &Facts, btf: Option<Btf>, index: &PodIndex) -> Result<Self, LoadError> {
        let btf_facts = facts.btf.as_ref().map_err(|why| LoadError::Btf(why.clone()))?;
        let reasons = btf
            .as_ref()
            .map(|btf| Reasons::read(btf, &config.host.sys))
            .unwrap_or_default();
        drop(btf);
        let cpus = aya::util::nr_cpus().unwrap_or(1);
        let settings = Settings::new(config, facts, verdicts(&reasons), cpus);
        let object = Object::new(btf_facts, &settings)?;
        let host = index.node().filter(|_| config.pods.include_host);
        let listing = Listing::new(object.map("NAMESPACES")?, object.map("HELD")?, host)
            .map_err(|error| LoadError::Map("NAMESPACES", error))?;
        let symbols = Arc::new(Symbols::new(&config.host.proc));
        let sites = Sites::new(reasons, Arc::clone(&symbols), Some(object.map("SITES")?));
        let engine = Self {
            _ring: None,
            counts: Counts::new(object.map("COUNTS")?),
            lost: object.map("LOST")?,
            object,
            listing: Arc::new(listing),
            sites: Arc::new(sites),
            symbols,
            ring_counters: Arc::default(),
            list_error: Mutex::default(),
        };
        let live: Vec<NetnsKey> = index.live().iter().map(|pod| pod.netns).collect();
        engine.list(&live);
        Ok(engine)
    }

    fn start_ring(&mut self, mut outcomes: Vec<Outcome>, events: Sender<Vec<Observation>>) -> Vec<Outcome> {
        let Some(outcome) = outcomes
            .iter_mut()
            .find(|(signal, rung, _)| signal.events && rung.is_some())
        else {
            return outcomes;
        };
        let (sites, listing) = (Arc::clone(&self.sites), Arc::clone(&self.listing));
        let started = self
            .object
            .take_ring()
            .map_err(|error| error.to_string())
            .and_then(|ring| {
                RingThread::start(ring, sites, listing, Arc::clone(&self.ring_counters), events)
                    .map_err(|error| error.to_string())
            });
        match started {
            Ok(ring) => self._ring = Some(ring),
            Err(why) => (outcome.1, outcome.2) = (None, format!("the ring cannot be read: {why}")),
        }
        outcomes
    }

    pub(super) fn list(&self, live: &[NetnsKey]) {
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
        running: &[(&'static Signal, Rung)],
        last: &mut Totals,
    ) -> (Vec<Table>, Vec<Gap>) {
        let gone = self.listing.take_gone();
        let owner = |netns| match index.by_netns(netns, time_ns) {
            // What is still freed after a pod's last reading would begin its counters anew.
            Subject::Pod(pod) if pod.has_ended() && !gone.contains(&netns) => Subject::Unknown,
            subject => subject,
        };
        let counts = running.iter().any(|(signal, _)| !signal.events);
        let table = counts.then(|| self.counts.read(time_ns, &self.sites, &gone, owner));
        let mut gaps = gaps::Gaps::new(last.read_at_ns, time_ns);
        let mut tables = Vec::new();
        match table {
            Some(Ok(table)) if table.is_empty() => {}
            Some(Ok(table)) => tables.push(table),
            Some(Err(error)) => gaps.read_failed(&error),
            None => {}
        }
        let now = self.totals(time_ns, running, last);
        gaps.compare(last, &now);
        match self.listing.held_since_last_gap() {
            Ok(held) => {
                let owner = |netns| index.by_netns(netns, time_ns);
                gaps.held_back(&held, owner);
            }
            Err(error) => gaps.read_failed(&error),
        }
        let suppressed = now.suppressed + gaps.suppressed;
        *last = Totals { suppressed, ..now };
        (tables, gaps.finish())
    }

    /// Where a number cannot be read it stays what it was.
    fn totals(&self, time_ns: u64, running: &[(&'static Signal, Rung)], last: &Totals) -> Totals {
        let mut now = Totals {
            read_at_ns: time_ns,
            ..last.clone()
        };
        if let Ok(Some(copies)) = self.lost.get(&0) {
            now.uncounted = copies.iter().map(|copy| copy.uncounted.skbs).sum();
            now.ring_lost = copies.iter().map(|copy| copy.ring_full).sum();
        }
        now.bad_records = self.ring_counters.bad_records.load(Ordering::Relaxed);
        for (signal, rung) in running {
            let misses = self.program(signal, *rung).misses;
            let slot = if signal.events {
                &mut now.event_misses
            } else {
                &mut now.count_misses
            };
            *slot = misses.max(*slot);
        }
        now
    }

    pub(super) fn program(&self, signal: &Signal, rung: Rung) -> ProgramCounters {
        self.object.counters(signal, rung).unwrap_or_default()
    }

    /// Events given on, and records that could not be read.
    pub(super) fn ring_counters(&self) -> (u64, u64) {
        let counters = &self.ring_counters;
        (
            counters.events.load(Ordering::Relaxed),
            counters.bad_records.load(Ordering::Relaxed),
        )
    }

    pub(super) fn symbols(&self) -> String {
        self.symbols
            .len()
            .map_or_else(|why| why, |functions| format!("{functions} functions"))
    }

    pub(super) fn namespaces(&self) -> usize {
        self.listing.len()
    }

    pub(super) fn sites(&self) -> usize {
        self.sites.len()
    }

    pub(super) fn count_keys(&self) -> usize {
        self.counts.keys
    }

    pub(super) fn unknown_drops(&self) -> u64 {
        self.counts.unknown.skbs
    }
}

/// The first rung that the kernel takes, and why not the ones before it.
pub(super) fn climb(object: &mut Object, signal: &Signal, decision: &Decision) -> (Option<Rung>, String) {
    let mut why = decision.reason(decision.candidates.first().copied());
    for rung in &decision.candidates {
        match object.attach(signal, *rung) {
            Ok(()) => return (Some(*rung), why),
            Err(error) => {
                let separator = if why.is_empty() { "" } else { "; " };
                why = format!("{why}{separator}{}: {error}", rung.name());
            }
        }
    }
    (None, why)
}
