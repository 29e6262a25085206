//! The newest row of each series in memory: what `/federate` shows.
//!
//! A series is born with the first row of its label set and ends at once when a newer reading of its probe lacks it,
//! when its pod ends, or when its node has been silent for three intervals. Readers take snapshots and hold no lock.
//! What is beyond the budget of a probe on a node is added up.

mod federate;
mod fold;
mod labels;
mod meta;
mod readings;
mod rebuild;
mod selector;
mod snapshot;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock};
use sonde_common::config::MaxSeries;
use sonde_common::time::now_ns;
use sonde_proto::v1;

pub(crate) use meta::Suffix;
pub(crate) use readings::{Column, Reading, Wanted};
pub use rebuild::{LoadedPod, LoadedRow, LoadedTable, width};
pub(crate) use selector::Mask;
pub use selector::{MAX_SELECTORS, Selector, SelectorError};

use crate::packed::Packer;
use labels::{SubjectList, Subjects};
use meta::ProbeMeta;
use snapshot::{Read, Snapshot};

/// A node is silent after so many intervals without rows.
const SILENT_INTERVALS: u32 = 3;
/// For a collector that did not say its interval.
const DEFAULT_INTERVAL: Duration = Duration::from_secs(5);
/// Rows read longer ago are history (a spool being emptied after an outage), not the present: Prometheus' own lookback.
const LOOKBACK: Duration = Duration::from_secs(300);

#[derive(Debug, Default)]
pub struct LiveTable {
    state: RwLock<State>,
    limits: MaxSeries,
    packer: Mutex<Packer>,
}

#[derive(Debug, Default)]
struct State {
    nodes: BTreeMap<Arc<str>, Node>,
    /// Each distinct probe definition once, whatever the number of nodes.
    metas: Vec<Arc<ProbeMeta>>,
}

#[derive(Debug, Default)]
struct Node {
    /// A new stream may say hello before the old one is found dead.
    streams: usize,
    interval: Duration,
    probes: HashMap<String, Arc<ProbeMeta>>,
    snapshots: BTreeMap<String, Arc<Snapshot>>,
    subjects: Subjects,
}

/// How much the table holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Size {
    pub nodes: usize,
    pub rows: usize,
}

impl LiveTable {
    pub fn new() -> Arc<Self> {
        Self::with_limits(MaxSeries::default())
    }

    /// A table that shows at most so many series of a probe on a node.
    pub fn with_limits(limits: MaxSeries) -> Arc<Self> {
        Arc::new(Self {
            limits,
            ..Self::default()
        })
    }

    /// A collector's stream began: what it can send, and how often.
    pub fn hello(&self, node: &str, catalogue: &v1::Catalogue, interval_ns: u64) {
        let mut state = self.state.write();
        state.prune();
        let probes = state.adopt(node, catalogue);
        let entry = state.nodes.entry(node.into()).or_default();
        entry.streams += 1;
        entry.interval = interval(interval_ns);
        entry.probes = probes;
    }

    /// A collector's stream ended; called once for each `hello`.
    pub fn disconnected(&self, node: &str) {
        if let Some(node) = self.state.write().nodes.get_mut(node) {
            node.streams = node.streams.saturating_sub(1);
        }
    }

    /// Whether a collector of this node holds a stream to this aggregator; None: it never did.
    pub fn is_connected(&self, node: &str) -> Option<bool> {
        self.state.read().nodes.get(node).map(|n| n.streams > 0)
    }

    /// A batch of this node has committed. Called in order.
    pub fn apply(&self, node: &str, body: &v1::BatchBody) {
        if !body.rows.is_empty()
            && let Some(subjects) = self.subjects_of(node, body)
        {
            for rows in &body.rows {
                self.apply_rows(node, rows, body, &subjects);
            }
        }
        let ended: HashSet<&str> = body
            .pods
            .iter()
            .filter(|p| p.valid_to_ns != 0)
            .map(|p| p.sandbox.as_str())
            .collect();
        if !ended.is_empty() {
            self.end_pods(node, &|sandbox| ended.contains(sandbox));
        }
    }

    /// `None`: the node is not known.
    fn subjects_of(&self, node: &str, body: &v1::BatchBody) -> Option<Arc<SubjectList>> {
        let mut state = self.state.write();
        let entry = state.nodes.get_mut(node)?;
        Some(entry.subjects.of(node, &body.pods))
    }

    fn apply_rows(&self, node: &str, rows: &v1::Rows, body: &v1::BatchBody, subjects: &Arc<SubjectList>) {
        let Some((name, meta, lifetime, old)) = self.place_of(node, &rows.probe) else {
            return;
        };
        if old.as_ref().is_some_and(|old| old.time_ns > rows.time_ns) {
            return;
        }
        let read = Read {
            rows,
            body,
            subjects: Arc::clone(subjects),
        };
        let tools = (&self.limits, &mut *self.packer.lock());
        match Snapshot::from_rows(&name, meta, read, lifetime, old.as_deref(), tools) {
            Ok(snapshot) => self.put(snapshot),
            Err(error) => tracing::error!(node, %error, "rows left out of the live table"),
        }
    }

    #[expect(
        clippy::type_complexity,
        reason = "what one look under the lock gives, taken apart at once"
    )]
    fn place_of(&self, node: &str, probe: &str) -> Option<(Arc<str>, Arc<ProbeMeta>, Duration, Option<Arc<Snapshot>>)> {
        let state = self.state.read();
        let (name, node) = state.nodes.get_key_value(node)?;
        let meta = node.probes.get(probe)?;
        Some((
            name.clone(),
            meta.clone(),
            node.interval * SILENT_INTERVALS,
            node.snapshots.get(probe).cloned(),
        ))
    }

    fn put(&self, snapshot: Snapshot) {
        let mut state = self.state.write();
        if let Some(node) = state.nodes.get_mut(&snapshot.node) {
            node.snapshots.insert(snapshot.meta.probe.clone(), Arc::new(snapshot));
        }
    }

    fn end_pods(&self, node: &str, ended: &dyn Fn(&str) -> bool) {
        let mut state = self.state.write();
        let Some(node) = state.nodes.get_mut(node) else { return };
        for snapshot in node.snapshots.values_mut() {
            if snapshot.has_pod(ended) {
                *snapshot = Arc::new(snapshot.without_pods(ended, &mut self.packer.lock()));
            }
        }
    }

    /// What is there now.
    fn snapshots(&self) -> Vec<Arc<Snapshot>> {
        let (now, now_ns) = (Instant::now(), now_ns());
        let state = self.state.read();
        let all = state.nodes.values().flat_map(|node| node.snapshots.values());
        all.filter(|s| s.is_live(now, now_ns)).cloned().collect()
    }

    /// Rows that are added up in rows of pod `__overflow__`, by probe.
    pub fn folded(&self) -> BTreeMap<String, usize> {
        let mut folded = BTreeMap::new();
        for snapshot in self.snapshots() {
            let of_snapshot = snapshot.budget.as_ref().map_or(0, |budget| budget.lock().folded());
            *folded.entry(snapshot.meta.probe.clone()).or_default() += of_snapshot;
        }
        folded
    }

    pub fn size(&self) -> Size {
        let snapshots = self.snapshots();
        let nodes: HashSet<_> = snapshots.iter().map(|s| &*s.node).collect();
        Size {
            nodes: nodes.len(),
            rows: snapshots.iter().map(|s| s.rows.len()).sum(),
        }
    }
}

impl State {
    /// The probes of a catalogue, sharing definitions with the nodes that have the same.
    fn adopt(&mut self, node: &str, catalogue: &v1::Catalogue) -> HashMap<String, Arc<ProbeMeta>> {
        let mut probes = HashMap::new();
        for def in &catalogue.probes {
            match ProbeMeta::new(def) {
                Ok(meta) => {
                    let meta = self.share(meta);
                    probes.insert(def.name.clone(), meta);
                }
                Err(error) => tracing::warn!(node, probe = def.name, %error, "probe cannot be federated"),
            }
        }
        probes
    }

    fn share(&mut self, meta: ProbeMeta) -> Arc<ProbeMeta> {
        if let Some(held) = self.metas.iter().find(|held| ***held == meta) {
            return held.clone();
        }
        let meta = Arc::new(meta);
        self.metas.push(meta.clone());
        meta
    }

    /// Forgets silent nodes and definitions that nobody uses.
    fn prune(&mut self) {
        let (now, now_ns) = (Instant::now(), now_ns());
        self.nodes.retain(|_, node| {
            node.snapshots.retain(|_, s| s.is_live(now, now_ns));
            node.streams > 0 || !node.snapshots.is_empty()
        });
        self.metas.retain(|meta| Arc::strong_count(meta) > 1);
    }
}

impl Snapshot {
    fn is_live(&self, now: Instant, now_ns: u64) -> bool {
        now < self.ends && now_ns.saturating_sub(self.time_ns) <= LOOKBACK.as_nanos() as u64
    }
}

fn interval(ns: u64) -> Duration {
    match ns {
        0 => DEFAULT_INTERVAL,
        // An hour at most: a hostile value must not overflow what is computed from it.
        ns => Duration::from_nanos(ns.min(3_600_000_000_000)),
    }
}

#[cfg(test)]
mod tests;
