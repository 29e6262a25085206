//! An aggregator with a private PostgreSQL in a folder of its own, and what both took so far.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{ConnectOptions as _, Executor as _};

use crate::programs::{self, Program};

pub(crate) struct Store {
    pub(crate) aggregator: Program,
    pub(crate) grpc: String,
    dir: PathBuf,
    /// Removes the folder in the end, where nobody wants to keep it.
    temporary: Option<tempfile::TempDir>,
}

/// CPU time of both, and what the tables take.
#[derive(Clone, Copy)]
pub(crate) struct Usage {
    pub(crate) aggregator: Duration,
    pub(crate) postgres: Duration,
}

impl Store {
    pub(crate) fn start() -> anyhow::Result<Self> {
        let temporary = tempfile::Builder::new().prefix("sonde-bench").tempdir()?;
        let mut store = Self::start_in(temporary.path().to_owned())?;
        store.temporary = Some(temporary);
        Ok(store)
    }

    /// In a folder that stays, with what is stored there.
    pub(crate) fn start_in(dir: PathBuf) -> anyhow::Result<Self> {
        use std::os::unix::fs::PermissionsExt as _;
        std::fs::create_dir_all(&dir)?;
        // The aggregator becomes an unprivileged user, which has to get in.
        std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o755))?;
        let (aggregator, grpc) = serve(&dir)?;
        Ok(Self {
            aggregator,
            grpc,
            dir,
            temporary: None,
        })
    }

    /// Ends it in order and starts it on what it stored. How long until it is ready.
    pub(crate) fn restart(self) -> anyhow::Result<(Self, Duration)> {
        let Self {
            aggregator,
            dir,
            temporary,
            ..
        } = self;
        drop(aggregator);
        let started = std::time::Instant::now();
        let (aggregator, grpc) = serve(&dir)?;
        let elapsed = started.elapsed();
        let store = Self {
            aggregator,
            grpc,
            dir,
            temporary,
        };
        Ok((store, elapsed))
    }

    pub(crate) async fn database(&self) -> anyhow::Result<PgConnection> {
        let options = PgConnectOptions::new_without_pgpass()
            .socket(self.data_dir().join("postgres/run"))
            .username("sonde")
            .database("sonde");
        options.connect().await.context("private database of the aggregator")
    }

    fn data_dir(&self) -> PathBuf {
        self.dir.join("aggregator")
    }

    /// Reads all files of the database once, so that the system has them in memory if they fit.
    pub(crate) fn warm(&self) -> anyhow::Result<()> {
        let mut folders = vec![self.data_dir().join("postgres/data/base")];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder)? {
                let entry = entry?;
                if entry.file_type()?.is_dir() {
                    folders.push(entry.path());
                } else {
                    std::io::copy(&mut std::fs::File::open(entry.path())?, &mut std::io::sink())?;
                }
            }
        }
        Ok(())
    }

    pub(crate) fn usage(&self) -> anyhow::Result<Usage> {
        let of_postgres = programs::descendants(self.aggregator.pid()).into_iter();
        Ok(Usage {
            aggregator: self.aggregator.cpu()?,
            // Connections and vacuum workers that ended are in their parent's.
            postgres: of_postgres
                .filter_map(|pid| programs::cpu_with_children(pid).ok())
                .sum(),
        })
    }

    pub(crate) fn postgres_resident(&self) -> u64 {
        let of_postgres = programs::descendants(self.aggregator.pid()).into_iter();
        of_postgres.filter_map(|pid| programs::resident(pid).ok()).sum()
    }

    /// Bytes of all tables of the store and their indexes, after a checkpoint.
    pub(crate) async fn bytes(&self) -> anyhow::Result<u64> {
        let mut database = self.database().await?;
        database.execute("checkpoint").await?;
        let sql = "select coalesce(sum(pg_total_relation_size(c.oid)), 0)::bigint from pg_class c \
                   join pg_namespace n on n.oid = c.relnamespace \
                   where n.nspname in ('sonde_parts', 'sonde_store') and c.relkind in ('r', 'm')";
        let bytes: i64 = sqlx::query_scalar(sql).fetch_one(&mut database).await?;
        Ok(bytes.cast_unsigned())
    }
}

fn serve(dir: &Path) -> anyhow::Result<(Program, String)> {
    let (http, grpc): (SocketAddr, SocketAddr) = (programs::free_address()?, programs::free_address()?);
    let env = [
        ("SONDE_AGGREGATOR_HTTP", http.to_string()),
        ("SONDE_AGGREGATOR_GRPC", grpc.to_string()),
        (
            "SONDE_AGGREGATOR_DATA_DIR",
            dir.join("aggregator").display().to_string(),
        ),
    ];
    let aggregator = Program::start("sonde-aggregator", "serve", http, dir, &env)?;
    Ok((aggregator, format!("http://{grpc}")))
}

impl std::ops::Sub for Usage {
    type Output = Self;

    fn sub(self, before: Self) -> Self {
        Self {
            aggregator: self.aggregator.saturating_sub(before.aggregator),
            postgres: self.postgres.saturating_sub(before.postgres),
        }
    }
}
