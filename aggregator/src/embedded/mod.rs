//! A private PostgreSQL: the installed server's binaries, a data directory of our own, a Unix socket and no port.
//! It starts and stops with the aggregator, and dies with it when the aggregator is killed. Nothing here knows a table.

mod binaries;
mod complaint;
mod initdb;
mod layout;
mod predecessor;
mod supervisor;
pub mod user;

use std::path::{Path, PathBuf};

use sqlx::postgres::PgConnectOptions;

pub use complaint::Complaint;

use layout::{Layout, Paths};
use supervisor::Supervisor;
use user::RunAs;

/// Superuser of the private server, and the name of its database.
pub const NAME: &str = "sonde";

/// Why there is no private server. Each is one line that says what to do.
#[derive(Debug, thiserror::Error)]
pub enum EmbeddedError {
    #[error(
        "no PostgreSQL server is installed (looked for initdb and postgres in {looked}): install one, such as Debian's `postgresql`, or set storage.database_url"
    )]
    NotInstalled { looked: String },
    #[error(
        "data directory {} was made by PostgreSQL {made_by}, but only {installed} is installed: install PostgreSQL {made_by}, convert the directory with pg_upgrade, or move it away", dir.display()
    )]
    OtherVersion {
        dir: PathBuf,
        made_by: String,
        installed: String,
    },
    #[error("{} is not a data directory of PostgreSQL (it has no PG_VERSION) and is not empty: move it away", dir.display())]
    NotADataDirectory { dir: PathBuf },
    #[error("user {user} may not pass through directory {} to reach {}: chmod it, or choose another aggregator.data_dir", dir.display(), to.display())]
    NoPassage { user: String, dir: PathBuf, to: PathBuf },
    #[error("{} is in use by another aggregator (process {pid}): choose another aggregator.data_dir", dir.display())]
    InUse { dir: PathBuf, pid: String },
    #[error("cannot {what} {}: {source}", path.display())]
    Io {
        what: &'static str,
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("{program} failed: {why}")]
    Failed { program: &'static str, why: String },
    #[error("PostgreSQL process {pid} of an earlier run does not end: end it by hand")]
    WillNotEnd { pid: i32 },
    #[error("storage.run_as: {0}")]
    RunAs(String),
}

impl EmbeddedError {
    fn io<'a>(what: &'static str, path: &'a Path) -> impl FnOnce(std::io::Error) -> Self + use<'a> {
        move |source| Self::Io {
            what,
            path: path.to_owned(),
            source,
        }
    }
}

/// What differs between the aggregator and tests.
#[derive(Clone, Debug)]
pub struct Options {
    /// `aggregator.data_dir`; only `postgres/` below it is touched.
    pub data_dir: PathBuf,
    /// Run the server as somebody else than this process. The aggregator drops its own rights first and needs none.
    pub run_as: Option<RunAs>,
    /// Settings (`fsync=off`) on top of ours.
    pub settings: Vec<(&'static str, String)>,
}

/// A running server. Dropping it stops the server too, but cannot say how that went: prefer [`Cluster::stop`].
#[derive(Debug)]
pub struct Cluster {
    layout: Layout,
    supervisor: Supervisor,
}

impl Cluster {
    /// Starts the server and waits until it takes connections: a second, or as long as recovery takes. Blocks.
    pub fn start(options: Options) -> Result<Self, EmbeddedError> {
        let (cluster, first) = Self::launch(options)?;
        first?;
        Ok(cluster)
    }

    /// The same, but a data directory from which the server does not start now, as where its disk is full, is no reason to
    /// give up: it is tried again and again, and [`Self::complaint`] says why.
    pub fn start_patiently(options: Options) -> Result<Self, EmbeddedError> {
        let is_new = !Paths::below(&options.data_dir.join("postgres"))
            .has_data()
            .unwrap_or(false);
        let (cluster, first) = Self::launch(options)?;
        match first {
            Err(error) if is_new => return Err(error),
            Err(error) => tracing::error!(%error, "postgresql does not start, it is tried again"),
            Ok(()) => {}
        }
        Ok(cluster)
    }

    /// And how its first start went.
    fn launch(options: Options) -> Result<(Self, Result<(), EmbeddedError>), EmbeddedError> {
        let layout = Layout::open(&options.data_dir, options.run_as.as_ref())?;
        let paths = &layout.paths;
        let binaries = binaries::choose(paths)?;
        predecessor::settle(paths)?;
        if !paths.has_data()? {
            initdb::run(&binaries, paths, options.run_as.as_ref())?;
        }
        let (supervisor, first) = Supervisor::start(&binaries, paths, &options)?;
        if first.is_ok() {
            tracing::info!(version = %binaries.version, socket = %layout.paths.socket_dir.display(), "private postgresql is ready");
        }
        Ok((Self { layout, supervisor }, first))
    }

    /// How to reach a database of it.
    pub fn connect_options(&self, database: &str) -> PgConnectOptions {
        PgConnectOptions::new_without_pgpass()
            .socket(&self.layout.paths.socket_dir)
            .port(layout::PORT)
            .username(NAME)
            .database(database)
    }

    /// Makes a database that is not there yet.
    pub async fn ensure_database(&self, database: &str) -> sqlx::Result<()> {
        ensure_database(self.connect_options("postgres"), database).await
    }

    /// Why it does not run, while it does not.
    pub fn complaint(&self) -> Complaint {
        self.supervisor.complaint()
    }

    /// Directory of the Unix socket: `psql -h DIR -U sonde sonde`.
    pub fn socket_dir(&self) -> &Path {
        &self.layout.paths.socket_dir
    }

    /// Process id of the postmaster; `None` while it is being started again.
    pub fn pid(&self) -> Option<u32> {
        self.supervisor.pid()
    }

    /// Fast shutdown: sessions end, a checkpoint is written. Blocks until the server is gone.
    pub fn stop(self) {
        self.supervisor.stop();
    }
}

/// Makes a database that is not there yet. `server` reaches another one of the same server.
pub async fn ensure_database(server: PgConnectOptions, database: &str) -> sqlx::Result<()> {
    use sqlx::{ConnectOptions as _, Connection as _};
    let mut connection = server.disable_statement_logging().connect().await?;
    let there = sqlx::query("select from pg_database where datname = $1")
        .bind(database)
        .fetch_optional(&mut connection)
        .await?;
    if there.is_none() {
        let sql = format!("create database \"{}\"", database.replace('"', "\"\""));
        sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(&mut connection).await?;
    }
    connection.close().await
}

/// The user to run as when started by root; see [`user::choose`]. Makes and hands over the directory.
pub fn hand_over(data_dir: &Path, to: &RunAs) -> Result<(), EmbeddedError> {
    layout::hand_over(data_dir, to)
}
