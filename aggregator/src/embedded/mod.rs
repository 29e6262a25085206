//! A private PostgreSQL: the installed server's binaries, a data directory of our own, a Unix socket and no port.
//! It starts and stops with the aggregator, and dies with it when the aggregator is killed. Nothing here knows a table.

mod binaries;
mod initdb;
mod layout;
mod predecessor;
mod supervisor;
pub mod user;

use std::path::{Path, PathBuf};

use sqlx::postgres::PgConnectOptions;

use layout::Layout;
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
        let layout = Layout::open(&options.data_dir, options.run_as.as_ref())?;
        let paths = &layout.paths;
        let binaries = binaries::choose(paths)?;
        predecessor::settle(paths)?;
        if !paths.has_data()? {
            initdb::run(&binaries, paths, options.run_as.as_ref())?;
        }
        let supervisor = Supervisor::start(&binaries, paths, &options)?;
        tracing::info!(version = %binaries.version, socket = %layout.paths.socket_dir.display(), "private postgresql is ready");
        Ok(Self { layout, supervisor })
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
        use sqlx::{ConnectOptions as _, Connection as _};
        let mut connection = self
            .connect_options("postgres")
            .disable_statement_logging()
            .connect()
            .await?;
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

/// The user to run as when started by root; see [`user::choose`]. Makes and hands over the directory.
pub fn hand_over(data_dir: &Path, to: &RunAs) -> Result<(), EmbeddedError> {
    layout::hand_over(data_dir, to)
}
