//! PostgreSQL: the schema, the one writer, and what readers need. Nobody outside this module writes a table.

pub mod batch;
mod cache;
pub mod catalogue;
pub(crate) mod cluster;
mod copy;
mod database;
mod dictionary;
mod encode;
mod event_indexes;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod keeper;
mod partitions;
mod pods;
pub mod query;
mod register;
mod rollup;
mod schema;
mod streams;
mod tables;
mod transaction;
mod writer;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use sonde_common::config::Storage;
use sonde_common::shutdown;
use sqlx::PgPool;
use sqlx::postgres::PgConnectOptions;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinHandle;

use crate::live::LiveTable;
use crate::metrics::Metrics;
use batch::Batch;
use database::describe;
use keeper::Keeper;
use transaction::{Keep, Session, Tables};
use writer::Writer;

pub use register::{Newcomer, RegisterError, Registered};
pub use rollup::Rolled;
pub use streams::{Place, Streams, Taken};

/// Batches that may wait for the writer; their memory is bounded elsewhere, see `ingest`.
const QUEUE: usize = 4096;

/// Collectors that are registered at the same time: after a restart all of them come at once, and upkeep needs
/// connections of the same pool.
const REGISTERING: usize = 4;

/// How long queries of readers may still take at the end.
const LAST_QUERIES: std::time::Duration = std::time::Duration::from_secs(2);

/// Why there is no store. One line each.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("storage.database_url: {0}")]
    Url(String),
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
    readers: PgPool,
    admin: PgPool,
    queue: mpsc::Sender<Batch>,
    registering: Semaphore,
    tables: Tables,
    streams: Streams,
    metrics: Arc<Metrics>,
    newest_event: watch::Sender<i64>,
    status: watch::Sender<StoreStatus>,
    options: PgConnectOptions,
    keep: Keep,
    /// Set when this aggregator wrote facts of the cluster: the writer reads them before its next group.
    facts_changed: Arc<AtomicBool>,
}

/// How the store is doing, for readiness and metrics.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StoreStatus {
    /// Whether the database answered when it was asked last.
    pub database_up: bool,
    /// Why it is not up: one line.
    pub reason: Option<String>,
}

/// The store's tasks, to be waited for at the end.
#[derive(Debug)]
pub struct Tasks {
    writer: JoinHandle<()>,
    keeper: JoinHandle<()>,
    roller: JoinHandle<()>,
    admin: PgPool,
    readers: PgPool,
    stop: shutdown::Trigger,
}

/// What a store works with.
#[derive(Clone, Debug)]
pub struct Parts {
    pub live: Arc<LiveTable>,
    pub metrics: Arc<Metrics>,
}

/// Brings the schema up to date, and nothing else: `sonde-aggregator migrate`.
pub async fn migrate(options: &PgConnectOptions) -> Result<(), OpenError> {
    reach(options).await?;
    let admin = database::admin_pool(options.clone());
    let result = schema::migrate(&admin).await;
    admin.close().await;
    result
}

/// The first contact: a wrong address, password or database shows here.
async fn reach(options: &PgConnectOptions) -> Result<(), OpenError> {
    // Not from a pool: that would try a refused connection again until its own time is up, and name that.
    database::writer_connection(options)
        .await
        .map(drop)
        .map_err(|e| OpenError::Refused {
            target: match options.get_socket() {
                Some(socket) => socket.display().to_string(),
                None => format!("{}:{}", options.get_host(), options.get_port()),
            } + "/"
                + options.get_database().unwrap_or_else(|| options.get_username()),
            why: describe(&e),
        })
}

/// A database URL as the configuration has it.
pub fn parse_url(url: &str) -> Result<PgConnectOptions, OpenError> {
    url.parse().map_err(|e: sqlx::Error| OpenError::Url(describe(&e)))
}

impl Store {
    /// Connects, migrates, makes today's partitions and starts writer and upkeep.
    pub async fn open(options: PgConnectOptions, storage: &Storage, parts: Parts) -> Result<(Self, Tasks), OpenError> {
        reach(&options).await?;
        let admin = database::admin_pool(options.clone());
        schema::migrate(&admin).await?;
        let failed = |e: sqlx::Error| OpenError::Database(describe(&e));
        let tables = Tables::default();
        *tables.write() = register::load_tables(&admin).await.map_err(failed)?;
        let keep = Keep {
            rows: storage.keep_rows.0,
            events: storage.keep_events.0,
            rollups_1m: storage.keep_rollups_1m.0,
            rollups_1h: storage.keep_rollups_1h.0,
        };
        let (queue, batches) = mpsc::channel(QUEUE);
        let store = Self {
            inner: Arc::new(Inner {
                readers: database::reader_pool(options.clone()),
                admin: admin.clone(),
                queue,
                registering: Semaphore::new(REGISTERING),
                tables: Arc::clone(&tables),
                streams: Streams::default(),
                metrics: Arc::clone(&parts.metrics),
                newest_event: watch::Sender::new(0),
                status: watch::Sender::new(StoreStatus {
                    database_up: true,
                    reason: None,
                }),
                options: options.clone(),
                keep,
                facts_changed: Arc::default(),
            }),
        };
        let keeper = Keeper {
            admin: admin.clone(),
            tables: Arc::clone(&tables),
            keep,
            streams: store.inner.streams.clone(),
            metrics: Arc::clone(&parts.metrics),
            newest_event: store.inner.newest_event.clone(),
            status: store.inner.status.clone(),
        };
        set_status(&store.inner.status, &parts.metrics, None);
        keeper.look().await.map_err(failed)?;
        keeper.tidy(sonde_common::time::now_ns()).await.map_err(failed)?;
        let (stop, stopped) = shutdown::channel();
        let writer = Writer {
            options,
            session: Session::new(tables, keep),
            queue: batches,
            live: parts.live,
            metrics: parts.metrics,
            newest_event: store.inner.newest_event.clone(),
            status: store.inner.status.clone(),
            connection: None,
            shutdown: stopped.clone(),
            refreshed: None,
            facts_changed: Arc::clone(&store.inner.facts_changed),
        };
        let tasks = Tasks {
            writer: tokio::spawn(writer.run()),
            keeper: tokio::spawn(keeper.run(stopped.clone())),
            roller: tokio::spawn(rollup::run(store.clone(), stopped)),
            admin: store.inner.admin.clone(),
            readers: store.inner.readers.clone(),
            stop,
        };
        Ok((store, tasks))
    }

    /// Connections for reading. Read-only, with a statement timeout; the writer has its own.
    pub fn pool(&self) -> &PgPool {
        &self.inner.readers
    }

    /// Highest committed event id, 0 before the first. Ids ascend in the order of commits, also across aggregators,
    /// so a reader that has seen all up to N finds everything newer by `id > N`.
    pub fn newest_event(&self) -> watch::Receiver<i64> {
        self.inner.newest_event.subscribe()
    }

    pub fn status(&self) -> StoreStatus {
        self.inner.status.borrow().clone()
    }

    /// Who is connected to this aggregator.
    pub fn streams(&self) -> &Streams {
        &self.inner.streams
    }

    /// Hands a checked batch to the writer, waiting for room. What becomes of it shows in the stream's progress.
    pub async fn submit(&self, batch: Batch) {
        // An error means that the writer is gone, and it goes only with the process: nobody waits for this batch.
        if let Ok(room) = self.inner.queue.reserve().await {
            self.inner.metrics.queued_batches.add(1);
            room.send(batch);
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
        // Otherwise a private server would have to end these sessions, and complain.
        let close = async { tokio::join!(self.admin.close(), self.readers.close()) };
        let _ = tokio::time::timeout(LAST_QUERIES, close).await;
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

/// Says once when the database goes and when it comes back.
fn set_status(sender: &watch::Sender<StoreStatus>, metrics: &Metrics, reason: Option<String>) {
    metrics.database_up.set(u64::from(reason.is_none()));
    sender.send_if_modified(|status| {
        let up = reason.is_none();
        if up != status.database_up {
            match &reason {
                None => tracing::info!("the database is back"),
                Some(reason) => tracing::warn!(error = %reason, "the database is away, nothing is acknowledged"),
            }
        }
        let next = StoreStatus {
            database_up: up,
            reason,
        };
        let news = *status != next;
        *status = next;
        news
    });
}
