//! How the store is doing: what the keeper sees and what the writer meets, for readiness, metrics and streams.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;

use super::database::{Trouble, classify, describe};
use super::transaction::Tables;
use crate::embedded::Complaint;
use crate::metrics::Metrics;

/// A transaction of the writer that takes longer than this is a problem to be told.
const SLOW: Duration = Duration::from_secs(5);

/// ENOSPC in the server's words: its messages are English where it is our own.
const NO_SPACE: &str = "No space left on device";

/// What keeps batches from being stored. A fixed set: these are values of a label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProblemKind {
    /// It was not asked yet, or its schema is being brought up to date.
    Starting,
    /// It does not answer, or ends connections.
    Away,
    ReadOnly,
    /// It has no room left.
    Full,
    /// Locks or statements take too long.
    Slow,
    /// Set up by a newer version of Sonde, or by another build.
    OtherSchema,
}

impl ProblemKind {
    /// As the metric has it.
    pub const ALL: [(Self, &'static str); 6] = [
        (Self::Starting, "starting"),
        (Self::Away, "away"),
        (Self::ReadOnly, "read_only"),
        (Self::Full, "full"),
        (Self::Slow, "slow"),
        (Self::OtherSchema, "other_schema"),
    ];
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    pub kind: ProblemKind,
    /// One line.
    pub why: String,
}

impl Problem {
    pub(super) fn new(kind: ProblemKind, why: impl Into<String>) -> Self {
        Self { kind, why: why.into() }
    }
}

impl From<&sqlx::Error> for Problem {
    fn from(error: &sqlx::Error) -> Self {
        let code = error.as_database_error().and_then(|e| e.code()).unwrap_or_default();
        let kind = match &*code {
            "25006" => ProblemKind::ReadOnly,
            "53100" => ProblemKind::Full,
            "55P03" | "57014" => ProblemKind::Slow,
            _ if classify(error) == Trouble::OtherSchema => ProblemKind::OtherSchema,
            _ => ProblemKind::Away,
        };
        Self::new(kind, describe(error))
    }
}

/// What everybody may know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreStatus {
    /// Whether batches can be stored.
    pub database_up: bool,
    /// Whether the schema was found or made ready, ever.
    pub prepared: bool,
    /// What is wrong, while something is.
    pub problem: Option<Problem>,
}

/// The status and what it is made of.
#[derive(Debug)]
pub(super) struct Health {
    status: watch::Sender<StoreStatus>,
    parts: Mutex<Parts>,
    /// How often the tables turned out to be others than they were.
    generation: AtomicU64,
    metrics: Arc<Metrics>,
    complaint: Complaint,
}

/// Each has its own teller: one that does well must not hide that another does not.
#[derive(Debug, Default)]
struct Parts {
    seen: Option<Problem>,
    written: Option<Problem>,
    slow: Option<Problem>,
    writing_since: Option<Instant>,
    writer: Option<i32>,
}

impl Parts {
    /// What is told: what is seen, and where that is no more than that nobody answers, also why.
    fn problem(&self, complaint: &Complaint) -> Option<Problem> {
        let problem = [&self.seen, &self.written, &self.slow].into_iter().flatten().next()?;
        if problem.kind != ProblemKind::Away {
            return Some(problem.clone());
        }
        let Problem { kind, why } = problem;
        let told = match (&self.written, complaint.get()) {
            (_, Some(said)) => {
                let kind = if said.contains(NO_SPACE) {
                    ProblemKind::Full
                } else {
                    *kind
                };
                Problem::new(kind, format!("{why}; the server says: {said}"))
            }
            (Some(before), None) if before.kind == ProblemKind::Full => {
                Problem::new(ProblemKind::Full, format!("{why}; before that: {}", before.why))
            }
            _ => problem.clone(),
        };
        Some(told)
    }
}

impl Health {
    pub(super) fn new(metrics: Arc<Metrics>, complaint: Complaint) -> Arc<Self> {
        let problem = Problem::new(ProblemKind::Starting, "the database was not asked yet");
        let health = Self {
            status: watch::Sender::new(StoreStatus {
                database_up: false,
                prepared: false,
                problem: Some(problem.clone()),
            }),
            parts: Mutex::new(Parts {
                seen: Some(problem),
                ..Parts::default()
            }),
            generation: AtomicU64::new(0),
            metrics,
            complaint,
        };
        health.metrics.database(Some(ProblemKind::Starting));
        Arc::new(health)
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<StoreStatus> {
        self.status.subscribe()
    }

    pub(super) fn status(&self) -> StoreStatus {
        self.status.borrow().clone()
    }

    /// The schema is there, and what is in it is known.
    pub(super) fn prepared(&self) {
        self.status.send_modify(|status| status.prepared = true);
    }

    /// What was known of the tables before is of another generation, and must not be used together with them.
    pub(super) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// The tables are not what they were: an older state of the database, or somebody dropped something. All streams say
    /// hello again, and what is known of tables begins anew with what they find.
    pub(super) fn start_over(&self, tables: &Tables) {
        let mut tables = tables.write();
        tables.clear();
        self.generation.fetch_add(1, Ordering::AcqRel);
    }

    /// What the keeper found when it asked.
    pub(super) fn seen(&self, problem: Option<Problem>) {
        self.change(|parts| parts.seen = problem);
    }

    /// What the writer met when it wrote. Where the disk of its log (WAL) is full the server ends, and may not come up until
    /// there is room: that it is away from then on must not hide why.
    pub(super) fn written(&self, problem: Option<Problem>) {
        let is = |problem: &Option<Problem>, kind| problem.as_ref().is_some_and(|p| p.kind == kind);
        self.change(|parts| {
            if !(is(&parts.written, ProblemKind::Full) && is(&problem, ProblemKind::Away)) {
                parts.written = problem;
            }
        });
    }

    /// The writer begins a transaction, or is through with one.
    pub(super) fn writing(&self, since: Option<Instant>) {
        self.change(|parts| {
            parts.writing_since = since;
            parts.slow = parts.slow.take().filter(|_| since.is_some());
        });
    }

    /// Backend process of the writer's connection.
    pub(super) fn writer_is(&self, pid: Option<i32>) {
        self.parts.lock().writer = pid;
    }

    /// For how long the writer has been waiting for one transaction, if too long, and its backend process.
    pub(super) fn late(&self) -> Option<(Duration, Option<i32>)> {
        let parts = self.parts.lock();
        let since = parts.writing_since?.elapsed();
        (since >= SLOW).then_some((since, parts.writer))
    }

    /// The writer is late, and this is known of it.
    pub(super) fn slow(&self, why: String) {
        self.change(|parts| {
            // It may have come through in the meantime.
            if parts.writing_since.is_some_and(|since| since.elapsed() >= SLOW) {
                parts.slow = Some(Problem::new(ProblemKind::Slow, why));
            }
        });
    }

    fn change(&self, change: impl FnOnce(&mut Parts)) {
        let mut parts = self.parts.lock();
        change(&mut parts);
        let problem = parts.problem(&self.complaint);
        let problem = problem.as_ref();
        self.metrics.database(problem.map(|p| p.kind));
        self.status.send_if_modified(|status| {
            let before = status.problem.as_ref().map(|p| p.kind);
            match problem {
                None if before.is_some() => tracing::info!("the database takes batches"),
                Some(problem) if before != Some(problem.kind) => {
                    tracing::warn!(error = %problem.why, "the database takes no batches, nothing is acknowledged");
                }
                _ => {}
            }
            let news = status.problem.as_ref() != problem;
            status.database_up = problem.is_none();
            status.problem = problem.cloned();
            news
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn that_a_server_ended_for_a_full_disk_is_told_until_something_is_stored() {
        let health = Health::new(Metrics::new(), Complaint::default());
        let told = || health.status().problem.map(|p| (p.kind, p.why));
        let full = || Problem::new(ProblemKind::Full, "no room for pg_wal");
        let away = || Problem::new(ProblemKind::Away, "connection refused");
        health.seen(None);
        health.written(Some(full()));
        health.written(Some(away()));
        health.seen(Some(away()));
        let both = "connection refused; before that: no room for pg_wal";
        assert_eq!(told(), Some((ProblemKind::Full, both.into())));
        health.seen(None);
        assert_eq!(told(), Some((ProblemKind::Full, full().why)));
        health.written(None);
        assert_eq!(told(), None);
        health.written(Some(away()));
        assert_eq!(told(), Some((ProblemKind::Away, away().why)));
    }
}
