//! The one task that writes: takes what all streams have queued, stores it in one transaction, then lets them ack.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::FutureExt as _;
use sonde_common::shutdown::Shutdown;
use sonde_common::time::now_ns;
use sqlx::error::DatabaseError;
use sqlx::postgres::{PgConnection, PgDatabaseError, PgSeverity};
use tokio::sync::watch;
use tokio::time::Instant;

use super::batch::{Batch, Ended};
use super::database::{self, Trial, Trouble, classify, describe};
use super::queue::Queue;
use super::status::{Health, Problem};
use super::target::Target;
use super::transaction::{Fate, Session, Stored, Tables};
use crate::live::LiveTable;
use crate::metrics::Metrics;

/// Under load a transaction begins at most this often; after a pause the first batch does not wait.
const PACE: Duration = Duration::from_millis(150);
/// A group of this size does not wait, and takes no more: bytes of decoded batches, estimated. It grows while there is
/// more than a transaction takes and transactions are quick, as each costs something for each table, and shrinks when
/// they are slow, as acks wait for them.
pub(super) const FIRST_ENOUGH: usize = 8 << 20;
const LEAST_ENOUGH: usize = 2 << 20;
const MOST_ENOUGH: usize = 32 << 20;
const QUICK: Duration = Duration::from_millis(400);
const SLOW: Duration = Duration::from_secs(1);
/// Waiting times between attempts while the database is away.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// Longer than the server itself lets a statement take: beyond, nobody is at the other end.
const LONGEST_ATTEMPT: Duration = Duration::from_secs(150);
/// How often pods that other aggregators stored are read, and how far back beyond the last reading: their transactions
/// may have been open when we looked.
const REFRESH: Duration = Duration::from_secs(5);
const REFRESH_OVERLAP: Duration = Duration::from_secs(60);

pub(super) struct Writer {
    pub(super) target: Target,
    pub(super) session: Session,
    pub(super) tables: Tables,
    pub(super) queue: Arc<Queue>,
    pub(super) enough: usize,
    pub(super) live: Arc<LiveTable>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) newest_event: watch::Sender<i64>,
    pub(super) health: Arc<Health>,
    pub(super) connection: Option<PgConnection>,
    pub(super) shutdown: Shutdown,
    pub(super) refreshed: Option<Instant>,
    pub(super) facts_changed: Arc<AtomicBool>,
}

impl Writer {
    /// Until the shutdown fires and the queue is empty.
    pub(super) async fn run(mut self) {
        let mut last_start = None;
        while let Some(group) = self.next_group(last_start).await {
            let started = Instant::now();
            last_start = Some(started);
            let full = self.queue.backlog().fills(self.enough);
            self.store(group).await;
            self.enough = next_enough(self.enough, full, started.elapsed());
        }
        if let Some(connection) = self.connection.take() {
            let _ = sqlx::Connection::close(connection).await;
        }
    }

    /// `None`: everything is stored, and the process ends.
    async fn next_group(&mut self, last_start: Option<Instant>) -> Option<Vec<Batch>> {
        tokio::select! {
            () = self.queue.wait_for(|backlog| backlog.count > 0) => {}
            // What is queued is still taken; nothing more gets in.
            () = self.shutdown.recv() => self.queue.close(),
        }
        let enough = self.enough;
        if let Some(last_start) = last_start {
            tokio::select! {
                () = self.queue.wait_for(|backlog| backlog.closed || backlog.fills(enough)) => {}
                () = tokio::time::sleep_until(last_start + PACE) => {}
            }
        }
        let group = self.queue.take(enough);
        self.metrics.queued_batches.sub(group.len() as u64);
        (!group.is_empty()).then_some(group)
    }

    /// Stores a group, however often that has to be tried; halves it when something in it is refused.
    async fn store(&mut self, group: Vec<Batch>) {
        let mut parts: Vec<Vec<Batch>> = vec![group];
        while let Some(mut part) = parts.pop() {
            // Places of columns that such a stream knows are those of tables that are no more.
            let generation = self.health.generation();
            let old = part.extract_if(.., |batch| batch.stream.generation != generation);
            old.for_each(|batch| batch.stream.end(Ended::StartOver));
            if part.is_empty() {
                continue;
            }
            match self.store_part(&part).await {
                Ok(stored) => self.settle(&part, &stored),
                Err(None) => {}
                Err(Some(why)) if part.len() == 1 => {
                    let batch = &part[0];
                    tracing::error!(node = %batch.stream.node, sequence = batch.sequence, error = %why, "the database refuses a batch");
                    self.metrics.refused(&batch.stream.node);
                    batch.stream.end(Ended::Poison {
                        sequence: batch.sequence,
                        why,
                    });
                }
                Err(Some(_)) => {
                    let second = part.split_off(part.len() / 2);
                    parts.push(second);
                    parts.push(part);
                }
            }
        }
    }

    /// `Err(Some(why))`: the data is refused. `Err(None)`: given up, the streams know.
    async fn store_part(&mut self, part: &[Batch]) -> Result<Stored, Option<String>> {
        let open: Vec<&Batch> = part.iter().collect();
        let mut pause = FIRST_PAUSE;
        loop {
            let started = Instant::now();
            self.health.writing(Some(started));
            let attempt = AssertUnwindSafe(self.attempt_in_time(&open)).catch_unwind().await;
            self.health.writing(None);
            let error = match attempt {
                Ok(Ok(stored)) => {
                    self.metrics.commit_seconds.observe(started.elapsed());
                    self.health.written(None);
                    return Ok(stored);
                }
                Ok(Err(error)) => error,
                // A batch that all checks let through and that we cannot handle: a mistake of ours, which must not
                // take everybody's writer with it.
                Err(_) => {
                    self.lose_connection();
                    self.health.written(None);
                    return Err(Some("the aggregator failed on it".into()));
                }
            };
            let trouble = classify(&error);
            if trouble != Trouble::Away {
                // Over: it is not tried again.
                self.health.written(None);
            }
            match trouble {
                Trouble::Data => return Err(Some(describe(&error))),
                Trouble::OtherSchema => {
                    // Dropped here, the batches are still in the spools, and another aggregator may take them.
                    let why = format!("the database cannot be written: {}", describe(&error));
                    part.iter()
                        .for_each(|batch| batch.stream.end(Ended::Elsewhere(why.clone())));
                    return Err(None);
                }
                Trouble::SchemaLost => {
                    tracing::error!(error = %describe(&error), "tables are missing or changed, all streams start over");
                    self.lose_connection();
                    self.health.start_over(&self.tables);
                    part.iter().for_each(|batch| batch.stream.end(Ended::StartOver));
                    return Err(None);
                }
                Trouble::Away => {
                    self.metrics.failed_transactions.add(1);
                    self.health.written(Some(Problem::from(&error)));
                    if !matches!(&error, sqlx::Error::Database(e) if keeps_session(&**e)) {
                        self.lose_connection();
                    }
                    // At the end of the process somebody loses patience and aborts this.
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
            }
        }
    }

    async fn attempt_in_time(&mut self, group: &[&Batch]) -> sqlx::Result<Stored> {
        match tokio::time::timeout(LONGEST_ATTEMPT, self.attempt(group)).await {
            Ok(result) => result,
            // Whether it was committed is not known; the cursors will tell when it is tried again.
            Err(_) => {
                self.lose_connection();
                let seconds = LONGEST_ATTEMPT.as_secs();
                Err(Trial::error(format!(
                    "the database did not answer the writer within {seconds} s"
                )))
            }
        }
    }

    async fn attempt(&mut self, group: &[&Batch]) -> sqlx::Result<Stored> {
        if self.connection.is_none() {
            let mut connection = database::writer_connection(&self.target).await?;
            let pid = sqlx::query_scalar("select pg_backend_pid()");
            self.health.writer_is(Some(pid.fetch_one(&mut connection).await?));
            self.connection = Some(connection);
        }
        let connection = self.connection.as_mut().expect("just made");
        let since = self.refreshed.map(|at| at.elapsed());
        let facts_changed = self.facts_changed.swap(false, Ordering::Relaxed);
        if facts_changed || since.is_none_or(|since| since > REFRESH) {
            let window = since.map(|since| (since + REFRESH_OVERLAP).as_secs_f64());
            self.session.pods.refresh(connection, window).await?;
            self.session.cluster.refresh(connection, window).await?;
            self.session.prune(now_ns());
            self.refreshed = Some(Instant::now());
        }
        self.session.store(connection, group).await
    }

    fn settle(&self, part: &[Batch], stored: &Stored) {
        let m = &self.metrics;
        let fresh = stored.fate.iter().filter(|f| **f == Fate::Stored).count() as u64;
        m.transactions.add(u64::from(fresh > 0));
        m.batches.add(fresh);
        m.rows.add(stored.rows);
        m.samples.add(stored.samples);
        m.events.add(stored.events);
        m.gaps.add(stored.gaps);
        m.expired.add(stored.expired);
        m.missing_sequences.add(stored.missing);
        for (batch, fate) in part.iter().zip(&stored.fate) {
            match fate {
                Fate::Stored => self.live.apply(&batch.stream.node, &batch.body),
                Fate::Resent(_) => m.resent.add(1),
                Fate::Skipped | Fate::Superseded | Fate::Lost => {}
            }
        }
        if let Some(newest) = stored.newest_event {
            super::raise(&self.newest_event, newest);
        }
        for (batch, fate) in part.iter().zip(&stored.fate) {
            match fate {
                Fate::Stored => batch.stream.committed(batch.sequence),
                Fate::Resent(cursor) => batch.stream.committed(*cursor),
                Fate::Skipped => {}
                Fate::Superseded => batch.stream.end(Ended::Superseded),
                Fate::Lost => batch.stream.end(Ended::StartOver),
            }
        }
    }

    /// The database may have been another one, or an older state of it, when it comes back.
    fn lose_connection(&mut self) {
        self.connection = None;
        self.health.writer_is(None);
        self.refreshed = None;
        self.session.forget();
    }
}

/// How large the next group may be. `full`: so much was waiting behind this one that another would be full too.
fn next_enough(enough: usize, full: bool, took: Duration) -> usize {
    match () {
        () if full && took < QUICK => (enough * 2).min(MOST_ENOUGH),
        () if took > SLOW => (enough / 2).max(LEAST_ENOUGH),
        () => enough,
    }
}

/// Deadlocks, locks, full disks and cancelled statements leave the session as it was; not where the server ends for it, as with
/// a full disk of its log (WAL).
fn keeps_session(error: &dyn DatabaseError) -> bool {
    let severity = error
        .try_downcast_ref::<PgDatabaseError>()
        .map(PgDatabaseError::severity);
    if matches!(severity, Some(PgSeverity::Fatal | PgSeverity::Panic)) {
        return false;
    }
    let code = error.code().unwrap_or_default();
    ["40", "53", "55"].iter().any(|class| code.starts_with(class)) || code == "57014"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_grow_under_load_while_they_are_quick_and_shrink_when_they_are_slow() {
        let ms = Duration::from_millis;
        assert_eq!(next_enough(FIRST_ENOUGH, false, ms(5)), FIRST_ENOUGH, "no load");
        let after = |mut enough, full, took| {
            for _ in 0..10 {
                enough = next_enough(enough, full, took);
            }
            enough
        };
        assert_eq!(after(FIRST_ENOUGH, true, ms(50)), MOST_ENOUGH);
        assert_eq!(after(FIRST_ENOUGH, true, ms(700)), FIRST_ENOUGH);
        assert_eq!(after(MOST_ENOUGH, true, ms(3000)), LEAST_ENOUGH);
    }
}
