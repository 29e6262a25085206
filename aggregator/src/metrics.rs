//! The aggregator's own counters, prefix `sonde_aggregator_`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use sonde_common::prom::{Page, Type};

use crate::store::ProblemKind;

/// A number that several tasks change.
#[derive(Debug, Default)]
pub struct Count(AtomicU64);

impl Count {
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }
    pub fn sub(&self, n: u64) {
        self.0.fetch_sub(n, Ordering::Relaxed);
    }
    pub fn set(&self, n: u64) {
        self.0.store(n, Ordering::Relaxed);
    }
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Upper bounds in seconds.
const BOUNDS: [f64; 13] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
];

/// Durations.
#[derive(Debug, Default)]
pub struct Histogram {
    /// Not cumulated; the last one is for what is beyond the bounds.
    buckets: [Count; BOUNDS.len() + 1],
    nanos: Count,
}

impl Histogram {
    pub fn observe(&self, duration: Duration) {
        let seconds = duration.as_secs_f64();
        let bucket = BOUNDS
            .iter()
            .position(|bound| seconds <= *bound)
            .unwrap_or(BOUNDS.len());
        self.buckets[bucket].add(1);
        self.nanos.add(duration.as_nanos() as u64);
    }

    fn render(&self, page: &mut Page, name: &str, help: &str) {
        page.family(name, Type::Histogram, help);
        let mut sum = 0;
        for (at, bucket) in self.buckets.iter().enumerate() {
            sum += bucket.get();
            let le = BOUNDS.get(at).map_or_else(|| "+Inf".to_owned(), ToString::to_string);
            page.sample(&format!("{name}_bucket"), &[("le", &le)], sum);
        }
        page.sample(&format!("{name}_sum"), &[], self.nanos.get() as f64 / 1e9);
        page.sample(&format!("{name}_count"), &[], sum);
    }
}

/// Names of nodes come from outside: beyond this many they are counted together, under the empty name.
const MOST_NODES: usize = 10_000;

/// Shared by ingest and store.
#[derive(Debug, Default)]
pub struct Metrics {
    pub samples: Count,
    pub rows: Count,
    pub events: Count,
    pub gaps: Count,
    pub batches: Count,
    pub resent: Count,
    pub missing_sequences: Count,
    pub expired: Count,
    pub transactions: Count,
    pub commit_seconds: Histogram,
    pub queued_batches: Count,
    pub queued_bytes: Count,
    pub streams: Count,
    pub partitions: Count,
    pub database_up: Count,
    pub dropped_partitions: Count,
    pub repaired_peers: Count,
    pub failed_transactions: Count,
    problem: Mutex<Option<ProblemKind>>,
    pub rollup: Rollup,
    refused: Mutex<BTreeMap<String, u64>>,
}

/// What rolling up readings costs, and how far it is.
#[derive(Debug, Default)]
pub struct Rollup {
    pub rows: Count,
    pub late_hours: Count,
    pub failures: Count,
    pub hours_behind: Count,
    pub nanos: Count,
}

impl Metrics {
    pub fn new() -> Arc<Self> {
        Arc::new(Self::default())
    }

    /// A batch or hello of this node was refused for its content.
    pub fn refused(&self, node: &str) {
        let mut refused = self.refused.lock();
        let name = if refused.contains_key(node) || refused.len() < MOST_NODES {
            node
        } else {
            ""
        };
        *refused.entry(name.to_owned()).or_default() += 1;
    }

    /// Whether batches can be stored, or why not.
    pub fn database(&self, problem: Option<ProblemKind>) {
        self.database_up.set(u64::from(problem.is_none()));
        *self.problem.lock() = problem;
    }

    /// Appends every family of ingest and storage to a page.
    pub fn render(&self, page: &mut Page) {
        for (name, count, help) in [
            (
                "samples",
                &self.samples,
                "Single values stored, histogram buckets included.",
            ),
            ("rows", &self.rows, "Rows of probes stored."),
            ("events", &self.events, "Events stored."),
            ("gaps", &self.gaps, "Gaps stored."),
            ("batches", &self.batches, "Batches stored."),
            (
                "resent_batches",
                &self.resent,
                "Batches that were stored already and came again.",
            ),
            (
                "missing_sequences",
                &self.missing_sequences,
                "Batches that a collector passed over, such as refused ones.",
            ),
            (
                "expired",
                &self.expired,
                "Rows, events and gaps that were older than what is kept when they came.",
            ),
            ("transactions", &self.transactions, "Transactions that stored batches."),
            (
                "failed_transactions",
                &self.failed_transactions,
                "Attempts to store a group of batches that failed for a reason that passes: the same is tried again.",
            ),
            (
                "repaired_peers",
                &self.repaired_peers,
                "Events whose peer became known after they were stored.",
            ),
            (
                "dropped_partitions",
                &self.dropped_partitions,
                "Partitions dropped by retention.",
            ),
            (
                "rollup_rows",
                &self.rollup.rows,
                "Rows of rollups made by this aggregator: one for each series and hour in each of the two tables.",
            ),
            (
                "rollup_repeats",
                &self.rollup.late_hours,
                "Hours of a node that were rolled up again, as readings came late or the hour before them changed.",
            ),
            (
                "rollup_failures",
                &self.rollup.failures,
                "Times that rolling up failed and was put off.",
            ),
        ] {
            page.single(
                &format!("sonde_aggregator_{name}_total"),
                Type::Counter,
                help,
                count.get(),
            );
        }
        for (name, count, help) in [
            (
                "queued_batches",
                &self.queued_batches,
                "Batches that wait for the writer.",
            ),
            (
                "queued_bytes",
                &self.queued_bytes,
                "Memory that batches in flight take, estimated.",
            ),
            ("streams", &self.streams, "Collectors connected."),
            ("partitions", &self.partitions, "Partitions of all tables."),
            ("database_up", &self.database_up, "Whether batches can be stored."),
        ] {
            page.single(&format!("sonde_aggregator_{name}"), Type::Gauge, help, count.get());
        }
        let name = "sonde_aggregator_database_problem";
        page.family(name, Type::Gauge, "What keeps batches from being stored.");
        let now = *self.problem.lock();
        for (kind, label) in ProblemKind::ALL {
            page.sample(name, &[("problem", label)], u64::from(now == Some(kind)));
        }
        page.single(
            "sonde_aggregator_rollup_behind_seconds",
            Type::Gauge,
            "How long ago the first hour was due that is not rolled up, in whole hours, when this aggregator rolled up last.",
            self.rollup.hours_behind.get() * 3600,
        );
        page.single(
            "sonde_aggregator_rollup_seconds_total",
            Type::Counter,
            "Time spent on rolling up.",
            self.rollup.nanos.get() as f64 / 1e9,
        );
        let help = "How long it took to store a group of batches and commit.";
        self.commit_seconds
            .render(page, "sonde_aggregator_commit_seconds", help);
        let name = "sonde_aggregator_refused_batches_total";
        page.family(
            name,
            Type::Counter,
            "Batches and hellos refused for their content, by the node that sent them.",
        );
        for (node, count) in self.refused.lock().iter() {
            page.sample(name, &[("k8s_node", node)], *count);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_histogram_is_cumulated_and_ends_in_all() {
        let metrics = Metrics::default();
        metrics.commit_seconds.observe(Duration::from_millis(2));
        metrics.commit_seconds.observe(Duration::from_secs(60));
        let mut page = Page::new();
        metrics.render(&mut page);
        let page = page.finish();
        for line in [
            "sonde_aggregator_commit_seconds_bucket{le=\"0.001\"} 0",
            "sonde_aggregator_commit_seconds_bucket{le=\"0.0025\"} 1",
            "sonde_aggregator_commit_seconds_bucket{le=\"10\"} 1",
            "sonde_aggregator_commit_seconds_bucket{le=\"+Inf\"} 2",
            "sonde_aggregator_commit_seconds_sum 60.002",
        ] {
            assert!(page.lines().any(|l| l == line), "{line} in {page}");
        }
    }

    #[test]
    fn strange_node_names_cannot_fill_the_memory() {
        let metrics = Metrics::default();
        for n in 0..MOST_NODES + 5 {
            metrics.refused(&format!("node-{n}"));
        }
        let refused = metrics.refused.lock();
        assert_eq!((refused.len(), refused[""]), (MOST_NODES + 1, 5));
    }
}
