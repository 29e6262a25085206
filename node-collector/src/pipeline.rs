//! From observations to events that know whose they are.
//!
//! An event from a namespace that nobody knows yet asks for a look at the names and waits a moment: a pod's first
//! packet may be dropped before the pod is found. Then the configuration decides.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use sonde_common::config::{Config, UnknownNetns};
use tokio::sync::mpsc::Receiver;
use tokio::time::Instant;

use crate::event::{Event, Observation, Subject};
use crate::kernel::attribute;
use crate::netfilter::Explainer;
use crate::pods::PodIndex;
use crate::pods::netns::Rescan;
use crate::ship::writer::Shipper;
use crate::sinks::Sinks;

/// Longer than the time between two looks at all names.
const HOLD: Duration = Duration::from_millis(1200);
/// More events of unknown namespaces than this do not wait.
const HELD: usize = 20_000;
/// A storm from a namespace that stays unknown must not keep the watcher busy.
const RESCAN_EVERY: Duration = Duration::from_millis(50);

/// What became of events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Outcome {
    /// Of a pod or the node.
    Known,
    /// Its namespace is no pod's; kept.
    Unknown,
    /// Its namespace is no pod's; dropped, as `events.unknown_netns` says.
    UnknownDropped,
    /// Its namespace is left out by `pods.netns.include`, or is the node's and `pods.include_host` is false.
    Excluded,
}

impl Outcome {
    pub const ALL: [Self; 4] = [Self::Known, Self::Unknown, Self::UnknownDropped, Self::Excluded];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Known => "known",
            Self::Unknown => "unknown",
            Self::UnknownDropped => "unknown_dropped",
            Self::Excluded => "excluded",
        }
    }
}

/// Events by probe, type and outcome.
#[derive(Debug, Default)]
pub struct EventStats(Mutex<Vec<(&'static str, &'static str, [u64; 4])>>);

impl EventStats {
    fn count(&self, seen: &Observation, outcome: Outcome) {
        let mut all = self.0.lock();
        let place = all
            .iter()
            .position(|(probe, kind, _)| *probe == seen.probe && *kind == seen.kind);
        let place = place.unwrap_or_else(|| {
            all.push((seen.probe, seen.kind, [0; 4]));
            all.len() - 1
        });
        all[place].2[outcome as usize] += 1;
    }

    /// All of them.
    pub fn total(&self) -> u64 {
        self.0.lock().iter().flat_map(|(_, _, outcomes)| outcomes).sum()
    }

    pub fn all(&self) -> Vec<(&'static str, &'static str, [u64; 4])> {
        self.0.lock().clone()
    }
}

#[derive(Debug)]
pub struct Pipeline {
    index: Arc<PodIndex>,
    rescan: Rescan,
    shipper: Shipper,
    sinks: Arc<Sinks>,
    /// Gives on events of its own.
    explainer: Explainer,
    stats: Arc<EventStats>,
    unknown: UnknownNetns,
    include_host: bool,
    /// In the order of their deadline.
    held: VecDeque<(Instant, Event)>,
    rescanned: Option<Instant>,
}

impl Pipeline {
    pub fn new(
        config: &Config,
        index: Arc<PodIndex>,
        rescan: Rescan,
        shipper: Shipper,
        sinks: Arc<Sinks>,
        explainer: Explainer,
        stats: Arc<EventStats>,
    ) -> Self {
        Self {
            index,
            rescan,
            shipper,
            sinks,
            explainer,
            stats,
            unknown: config.events.unknown_netns,
            include_host: config.pods.include_host,
            held: VecDeque::new(),
            rescanned: None,
        }
    }

    /// Ends when the kernel side is gone; what is held then is decided at once.
    pub async fn run(mut self, mut observations: Receiver<Vec<Observation>>) {
        let mut changes = self.index.changes();
        loop {
            let deadline = self.held.front().map(|(deadline, _)| *deadline);
            tokio::select! {
                batch = observations.recv() => match batch {
                    Some(batch) => self.take(batch),
                    None => break,
                },
                Ok(()) = changes.changed(), if !self.held.is_empty() => self.ask_again(),
                () = tokio::time::sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => {
                    self.decide(Instant::now());
                }
            }
        }
        self.decide(Instant::now() + HOLD);
    }

    fn take(&mut self, batch: Vec<Observation>) {
        let mut events = Vec::with_capacity(batch.len());
        for observation in batch {
            let event = attribute(observation, &self.index);
            if self.waits(&event) {
                self.held.push_back((Instant::now() + HOLD, event));
            } else {
                events.extend(self.judge(event));
            }
        }
        self.deliver(events);
    }

    /// Whose it is as far as it will be known here goes with an event to the sinks too.
    fn deliver(&self, mut events: Vec<Event>) {
        self.explainer.take(&mut events);
        self.sinks.events(&events);
        self.shipper.events(events);
    }

    /// Whether a pod may yet be found for it.
    fn waits(&mut self, event: &Event) -> bool {
        let Some(netns) = event.observation.netns else {
            return false;
        };
        if event.subject != Subject::Unknown || self.index.is_excluded(netns) {
            return false;
        }
        let now = Instant::now();
        if self.rescanned.is_none_or(|last| now - last >= RESCAN_EVERY) {
            self.rescanned = Some(now);
            self.rescan.request();
        }
        self.held.len() < HELD
    }

    /// The index learnt something: some of the held ones may have an owner now.
    fn ask_again(&mut self) {
        let mut events = Vec::new();
        let held = std::mem::take(&mut self.held);
        for (deadline, event) in held {
            let event = attribute(event.observation, &self.index);
            let excluded = event
                .observation
                .netns
                .is_some_and(|netns| self.index.is_excluded(netns));
            if event.subject == Subject::Unknown && !excluded {
                self.held.push_back((deadline, event));
            } else {
                events.extend(self.judge(event));
            }
        }
        self.deliver(events);
    }

    fn decide(&mut self, now: Instant) {
        let mut events = Vec::new();
        while let Some((_, event)) = self.held.pop_front_if(|(deadline, _)| *deadline <= now) {
            events.extend(self.judge(attribute(event.observation, &self.index)));
        }
        self.deliver(events);
    }

    fn judge(&self, event: Event) -> Option<Event> {
        let outcome = match &event.subject {
            Subject::Pod(_) => Outcome::Known,
            Subject::Node if self.include_host => Outcome::Known,
            Subject::Node => Outcome::Excluded,
            Subject::Unknown
                if event
                    .observation
                    .netns
                    .is_some_and(|netns| self.index.is_excluded(netns)) =>
            {
                Outcome::Excluded
            }
            Subject::Unknown if self.unknown == UnknownNetns::Keep => Outcome::Unknown,
            Subject::Unknown => Outcome::UnknownDropped,
        };
        self.stats.count(&event.observation, outcome);
        matches!(outcome, Outcome::Known | Outcome::Unknown).then_some(event)
    }
}
