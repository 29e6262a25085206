//! PostgreSQL: the schema, the one writer, and what readers need. Nobody outside this module writes a table.

mod attribution;
pub mod batch;
mod cache;
pub mod catalogue;
pub(crate) mod cluster;
mod copy;
mod database;
mod dictionary;
mod digest;
mod distribution;
mod encode;
mod event_indexes;
mod event_ranges;
mod frames;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod keeper;
mod locks;
mod partitions;
mod pods;
mod push_cursor;
pub mod query;
mod queue;
mod register;
mod rollup;
pub(crate) mod schema;
mod status;
mod streams;
mod tables;
mod target;
mod transaction;
mod writer;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use parking_lot::Mutex;
use sonde_common::config::{Distribution, Storage};
use sonde_common::shutdown;
use sqlx::{Connection as _, PgPool};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;

use crate::live::LiveTable;
use crate::metrics::Metrics;
use batch::{Batch, StreamProbe};
use database::{Pools, describe};
use keeper::Keeper;
use queue::Queue;
use status::Health;
use transaction::{Keep, Session, Tables};
use writer::Writer;

pub(crate) use push_cursor::{PushCursor, PushTarget};
pub use register::{Newcomer, RegisterError, Registered};
pub use rollup::Rolled;
pub use status::{Problem, ProblemKind, StoreStatus};
pub use streams::{Place, Streams, Taken};
pub use target::{BadUrl, Target};

/// Collectors that are registered at the same time: after a restart all of them come at once, and upkeep needs
/// connections of the same pool.
const REGISTERING: usize = 4;

/// How long queries of readers may still take at the end.
const LAST_QUERIES: std::time::Duration = std::time::Duration::from_secs(2);

/// Why there is no store. One line each.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("database {target}: {why}")]
    Refused { target: String, why: String },
    #[error("database: {0}")]
    Database(String),
    #[error("database: it was set up by a newer version of Sonde (migration {0} is not known here)")]
    NewerSchema(i64),
    #[error("database: it was set up by another build of Sonde (its migration {0} differs from ours)")]
    OtherSchema(i64),
    #[error("database: {0}")]
    Migrate(sqlx::migrate::MigrateError),
}

/// Handle to the database. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Store {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    pools: Arc<Pools>,
    queue: Arc<Queue>,
    registering: Arc<Semaphore>,
    tables: Tables,
    streams: Streams,
    metrics: Arc<Metrics>,
    newest_event: watch::Sender<i64>,
    health: Arc<Health>,
    target: Target,
    keep: Keep,
    distribution: Distribution,
    /// Set when this aggregator wrote facts of the cluster: the writer reads them before its next group.
    facts_changed: Arc<AtomicBool>,
    /// The probes of the newest stream: those of most others too.
    said: Mutex<Arc<HashMap<String, StreamProbe>>>,
}

/// The store's tasks, to be waited for at the end.
#[derive(Debug)]
pub struct Tasks {
    writer: JoinHandle<()>,
    keeper: JoinHandle<()>,
    roller: JoinHandle<()>,
    digest: JoinHandle<()>,
    pools: Arc<Pools>,
    stop: shutdown::Trigger,
}

/// What a store works with.
#[derive(Clone, Debug)]
pub struct Parts {
    pub live: Arc<LiveTable>,
    pub metrics: Arc<Metrics>,
}

/// Brings the schema up to date, and nothing else: `sonde-aggregator migrate`.
pub async fn migrate(target: impl Into<Target>) -> Result<(), OpenError> {
    let target = target.into();
    let refused = |why: String| OpenError::Refused {
        target: target.name(),
        why,
    };
    let found = database::find(&target, "admin").await;
    let mut found = found.map_err(|e| refused(describe(&e)))?;
    if let Some(why) = found.read_only {
        return Err(refused(why));
    }
    schema::migrate(&mut found.connection).await?;
    let _ = found.connection.close().await;
    Ok(())
}

impl Store {
    /// Starts writer and upkeep. The database need not be there: what is wrong with it is in [`Store::status`], and goes
    /// by itself when it is mended.
    pub fn start(target: impl Into<Target>, storage: &Storage, parts: Parts) -> (Self, Tasks) {
        let target = target.into();
        let tables = Tables::default();
        let keep = Keep {
            rows: storage.keep_rows.0,
            events: storage.keep_events.0,
            rollups_1m: storage.keep_rollups_1m.0,
            rollups_1h: storage.keep_rollups_1h.0,
        };
        let pools = Arc::new(Pools::new(target.options()));
        let health = Health::new(Arc::clone(&parts.metrics), target.complaint().clone());
        let queue = Arc::new(Queue::default());
        let store = Self {
            inner: Arc::new(Inner {
                pools: Arc::clone(&pools),
                queue: Arc::clone(&queue),
                registering: Arc::new(Semaphore::new(REGISTERING)),
                tables: Arc::clone(&tables),
                streams: Streams::default(),
                metrics: Arc::clone(&parts.metrics),
                newest_event: watch::Sender::new(0),
                health: Arc::clone(&health),
                target: target.clone(),
                keep,
                distribution: storage.distribution,
                facts_changed: Arc::default(),
                said: Mutex::default(),
            }),
        };
        let keeper = Keeper {
            target: target.clone(),
            pools: Arc::clone(&pools),
            connection: None,
            host: 0,
            said: None,
            distribution: storage.distribution,
            tables: Arc::clone(&tables),
            keep,
            streams: store.inner.streams.clone(),
            metrics: Arc::clone(&parts.metrics),
            newest_event: store.inner.newest_event.clone(),
            health: Arc::clone(&health),
        };
        let (stop, stopped) = shutdown::channel();
        let writer = Writer {
            target,
            session: Session::new(Arc::clone(&tables), keep),
            tables,
            queue,
            enough: writer::FIRST_ENOUGH,
            live: parts.live,
            metrics: parts.metrics,
            newest_event: store.inner.newest_event.clone(),
            health,
            connection: None,
            shutdown: stopped.clone(),
            refreshed: None,
            facts_changed: Arc::clone(&store.inner.facts_changed),
        };
        let tasks = Tasks {
            writer: tokio::spawn(writer.run()),
            keeper: tokio::spawn(keeper.run(stopped.clone())),
            roller: tokio::spawn(rollup::run(store.clone(), stopped.clone())),
            digest: tokio::spawn(digest::run(store.clone(), stopped)),
            pools,
            stop,
        };
        (store, tasks)
    }

    /// The same for those who need the database at once: an error where it is not ready when it is asked first.
    pub async fn open(target: impl Into<Target>, storage: &Storage, parts: Parts) -> Result<(Self, Tasks), OpenError> {
        let (store, tasks) = Self::start(target, storage, parts);
        match store.first_answer().await {
            None => Ok((store, tasks)),
            Some(problem) => {
                tasks.finish(LAST_QUERIES).await;
                Err(OpenError::Database(problem.why))
            }
        }
    }

    /// How the first look at the database ended: `None` where it is ready.
    pub async fn first_answer(&self) -> Option<Problem> {
        let mut status = self.watch_status();
        let answered = |status: &StoreStatus| status.problem.as_ref().is_none_or(|p| p.kind != ProblemKind::Starting);
        let status = status.wait_for(answered).await.expect("the sender lives in us").clone();
        status.problem
    }

    /// Resolves when the schema is there, however long that takes.
    pub async fn prepared(&self) {
        let _ = self.watch_status().wait_for(|status| status.prepared).await;
    }

    /// Connections for reading. Read-only, with a statement timeout; the writer has its own.
    pub fn pool(&self) -> &PgPool {
        &self.inner.pools.readers
    }

    /// Highest committed event id, 0 before the first. Ids ascend in the order of commits, also across aggregators,
    /// so a reader that has seen all up to N finds everything newer by `id > N`.
    pub fn newest_event(&self) -> watch::Receiver<i64> {
        self.inner.newest_event.subscribe()
    }

    pub fn status(&self) -> StoreStatus {
        self.inner.health.status()
    }

    pub fn watch_status(&self) -> watch::Receiver<StoreStatus> {
        self.inner.health.subscribe()
    }

    /// Who is connected to this aggregator.
    pub fn streams(&self) -> &Streams {
        &self.inner.streams
    }

    /// Hands a checked batch to the writer. What becomes of it shows in the stream's progress; nobody waits for one that
    /// comes when the writer has ended, as it ends with the process.
    pub fn submit(&self, batch: Batch) {
        if self.inner.queue.push(batch) {
            self.inner.metrics.queued_batches.add(1);
        }
    }
}

impl Tasks {
    /// Stores what is queued, within `grace`, and ends.
    pub async fn finish(self, grace: std::time::Duration) {
        self.stop.fire();
        let mut writer = self.writer;
        if tokio::time::timeout(grace, &mut writer).await.is_err() {
            tracing::warn!("the database did not take the last batches in time; collectors send them again");
            writer.abort();
        }
        let _ = self.keeper.await;
        let _ = self.roller.await;
        let _ = self.digest.await;
        // Otherwise a private server would have to end these sessions, and complain.
        let _ = tokio::time::timeout(LAST_QUERIES, self.pools.close()).await;
    }
}

/// Raises a number that never falls.
fn raise(sender: &watch::Sender<i64>, to: i64) {
    sender.send_if_modified(|now| {
        let news = to > *now;
        *now = to.max(*now);
        news
    });
}
