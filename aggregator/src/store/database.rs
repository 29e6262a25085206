//! Connections, and what a database error means for us.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use parking_lot::Mutex;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgPool, PgPoolOptions};
use sqlx::{ConnectOptions as _, Executor as _};
use tokio::time::Instant;

use super::target::{Found, Target};

/// What to do about an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trouble {
    /// The database is away, full, restarting or busy: the same again later.
    Away,
    /// Tables are missing that were there: somebody dropped or restored something. Start over from the streams.
    SchemaLost,
    /// This very data is refused, and would be again.
    Data,
    /// The schema is not ours to write into: another version of Sonde made it.
    OtherSchema,
}

/// What we find wrong ourselves when we try the database, in the type in which its own errors come.
#[derive(Debug, thiserror::Error)]
pub(super) enum Trial {
    #[error("{0}")]
    Failed(String),
    #[error("it was set up by a newer version of Sonde (migration {0} is not known here): upgrade this aggregator")]
    NewerSchema(i64),
    #[error("its schema is at migration {found} and {expected} is expected: it is being brought up to date")]
    OlderSchema { found: i64, expected: i64 },
}

impl Trial {
    pub(super) fn error(why: String) -> sqlx::Error {
        Self::Failed(why).into()
    }
}

impl From<Trial> for sqlx::Error {
    fn from(trial: Trial) -> Self {
        Self::AnyDriverError(Box::new(trial))
    }
}

/// Sorted by SQLSTATE class. What is not known to be about data is taken to pass: data must not be lost by a guess.
pub(super) fn classify(error: &sqlx::Error) -> Trouble {
    let sqlx::Error::Database(error) = error else {
        return match error {
            // Our own mistake in binding or reading a value: not better the next time.
            sqlx::Error::Encode(_) | sqlx::Error::Decode(_) | sqlx::Error::ColumnDecode { .. } => Trouble::Data,
            sqlx::Error::AnyDriverError(e) if matches!(e.downcast_ref(), Some(Trial::NewerSchema(_))) => {
                Trouble::OtherSchema
            }
            _ => Trouble::Away,
        };
    };
    let code = error.code().unwrap_or_default();
    match code.get(..2).unwrap_or_default() {
        "42" if code == "42501" => Trouble::Away, // insufficient privilege: an administrator's to mend
        "42" | "3F" => Trouble::SchemaLost,
        // A number of ours refers to nothing any more: the only foreign keys are those of nodes.
        _ if code == "23503" => Trouble::SchemaLost,
        "22" | "23" | "54" | "0A" | "21" => Trouble::Data,
        _ => Trouble::Away,
    }
}

/// One line for people: the server's own words without the chain around them.
pub(super) fn describe(error: &sqlx::Error) -> String {
    match error {
        sqlx::Error::Database(e) => match e.code() {
            Some(code) => format!("{} (SQLSTATE {code})", e.message()),
            None => e.message().to_owned(),
        },
        sqlx::Error::PoolTimedOut => "no connection became free in time".into(),
        sqlx::Error::AnyDriverError(e) => e.to_string(),
        other => other.to_string().replace('\n', " "),
    }
}

/// Session settings that all our connections share.
fn session(options: PgConnectOptions, role: &str) -> PgConnectOptions {
    options
        .application_name(&format!("sonde-aggregator {role}"))
        .options([("client_min_messages", "warning")])
        .disable_statement_logging()
}

/// Searches that run at the same time. What the database does for readers is what writers go without.
const SEARCHES: u32 = 4;
/// One for what is new, and those for streams that are behind.
const STREAMS: u32 = 3;

/// A query whose client has gone ends within that time; that is PostgreSQL 14 and newer. What an index finds all over a table is
/// read ahead, so that a disk has many reads to do at once and not one after the other. Neither is to be had on every system.
const SETTINGS: &str = "do $$ begin perform set_config('client_connection_check_interval', '1000', false); \
                        exception when others then null; end $$; \
                        do $$ begin perform set_config('effective_io_concurrency', '100', false); \
                        exception when others then null; end $$";

/// Pools of connections to the host that is in use.
#[derive(Debug)]
pub(super) struct Pools {
    /// Read-only, and no statement runs for ever.
    pub(super) readers: PgPool,
    /// The same for searches of events, which may take long: nobody else waits for them, and there are never more.
    pub(super) searches: PgPool,
    /// The same for what all event streams read together, so that searches do not hold them up.
    pub(super) streams: PgPool,
    /// For tables and hellos.
    pub(super) admin: PgPool,
    /// Connections that are older lead to the host before.
    moved: Arc<Mutex<Instant>>,
}

impl Pools {
    pub(super) fn new(options: &PgConnectOptions) -> Self {
        let moved = Arc::new(Mutex::new(Instant::now()));
        Self {
            readers: pool(reader(options), 8, &moved),
            searches: pool(reader(options), SEARCHES, &moved),
            streams: pool(reader(options), STREAMS, &moved),
            admin: pool(admin(options), 7, &moved),
            moved,
        }
    }

    /// From now on this host.
    pub(super) fn move_to(&self, options: &PgConnectOptions) {
        for readers in [&self.readers, &self.searches, &self.streams] {
            readers.set_connect_options(reader(options));
        }
        self.admin.set_connect_options(admin(options));
        *self.moved.lock() = Instant::now();
    }

    pub(super) async fn close(&self) {
        let pools = [&self.readers, &self.searches, &self.streams, &self.admin];
        futures::future::join_all(pools.map(PgPool::close)).await;
    }
}

/// Whether a statement ended because a lock could not be had in time.
pub(super) fn waited_too_long(error: &sqlx::Error) -> bool {
    error
        .as_database_error()
        .is_some_and(|e| e.code().as_deref() == Some("55P03"))
}

fn reader(options: &PgConnectOptions) -> PgConnectOptions {
    // No statement runs for ever, and none takes more than one processor.
    session(options.clone(), "reader").options([
        ("default_transaction_read_only", "on"),
        ("statement_timeout", "30000"),
        ("max_parallel_workers_per_gather", "0"),
    ])
}

fn admin(options: &PgConnectOptions) -> PgConnectOptions {
    session(options.clone(), "admin")
}

fn pool(options: PgConnectOptions, connections: u32, moved: &Arc<Mutex<Instant>>) -> PgPool {
    let moved = Arc::clone(moved);
    PgPoolOptions::new()
        .max_connections(connections)
        .min_connections(0)
        .acquire_timeout(Duration::from_secs(5))
        .idle_timeout(Duration::from_secs(300))
        .after_connect(|connection, _| async move { connection.execute(SETTINGS).await.map(drop) }.boxed())
        .before_acquire(move |_, connection| {
            let since = moved.lock().elapsed();
            async move { Ok(connection.age <= since) }.boxed()
        })
        .connect_lazy_with(options)
}

/// A connection of one task to wherever the database is, also where that only reads. Whoever waits for a lock on a table
/// holds up all who come behind: not for ever.
pub(super) async fn find(target: &Target, role: &str) -> sqlx::Result<Found> {
    let limits = [("lock_timeout", "10000")];
    target.find(|options| session(options, role).options(limits)).await
}

/// The one that rolls up. Its transactions must not be taken for those of a writer.
pub(super) async fn roller_connection(target: &Target) -> sqlx::Result<PgConnection> {
    let found = find(target, "roller").await?;
    match found.read_only {
        Some(why) => Err(Trial::error(why)),
        None => Ok(found.connection),
    }
}

/// The one that sums events up.
pub(super) async fn digest_connection(target: &Target) -> sqlx::Result<PgConnection> {
    let found = find(target, "digest").await?;
    match found.read_only {
        Some(why) => Err(Trial::error(why)),
        None => Ok(found.connection),
    }
}

/// A connection for writing. A lock that somebody holds, or a statement that hangs, is an error after a while.
pub(super) async fn writer_connection(target: &Target) -> sqlx::Result<PgConnection> {
    let limits = [("lock_timeout", "30000"), ("statement_timeout", "60000")];
    let found = target
        .find(|options| session(options, "writer").options(limits))
        .await?;
    match found.read_only {
        Some(why) => Err(Trial::error(why)),
        None => Ok(found.connection),
    }
}
