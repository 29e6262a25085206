//! A real PostgreSQL for tests: one private server for each test program, one clean database for each test.
//!
//! The server dies with the program however that ends, and a watchdog then removes its directory.

use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use sqlx::postgres::{PgConnectOptions, PgPool};
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _};
use tokio::sync::OnceCell;

use crate::embedded::{Cluster, Options, user};
use crate::store;

static SERVER: OnceCell<Cluster> = OnceCell::const_new();
static NEXT: AtomicU32 = AtomicU32::new(0);

/// A database of its own.
#[derive(Clone, Debug)]
pub struct Database {
    pub name: String,
    pub options: PgConnectOptions,
}

impl Database {
    /// With nothing in it.
    pub async fn empty() -> Self {
        let server = SERVER.get_or_init(start).await;
        create(server, "").await
    }

    /// With all tables and views.
    pub async fn migrated() -> Self {
        let server = SERVER.get_or_init(start).await;
        static TEMPLATE: OnceCell<Database> = OnceCell::const_new();
        let template = TEMPLATE
            .get_or_init(|| async {
                let template = create(server, "").await;
                store::migrate(template.options.clone())
                    .await
                    .expect("the migrations run");
                template
            })
            .await;
        create(server, &format!(" template {}", template.name)).await
    }

    /// Brings the fixed tables to where an earlier version had them, from any version before.
    pub async fn migrate_to(&self, version: i64) {
        let mut connection = self.options.connect().await.expect("it is up");
        let migrated = store::schema::migrate_to(&mut connection, version).await;
        migrated.expect("the migrations run");
        let _ = connection.close().await;
    }

    /// The newest migration.
    pub fn newest_version() -> i64 {
        store::schema::newest()
    }

    /// Connections that may do everything.
    pub fn pool(&self) -> PgPool {
        PgPool::connect_lazy_with(self.options.clone())
    }
}

async fn start() -> Cluster {
    let data_dir = std::env::temp_dir().join(format!("sonde-test-{}", std::process::id()));
    watch(&data_dir);
    let options = Options {
        data_dir,
        run_as: user::is_root().then(|| user::choose("").expect("there is an unprivileged user")),
        // Nothing here has to outlive a power cut.
        settings: vec![
            ("fsync", "off".into()),
            ("max_connections", "200".into()),
            ("shared_buffers", "64MB".into()),
        ],
    };
    tokio::task::spawn_blocking(|| Cluster::start(options))
        .await
        .expect("no panic")
        .unwrap_or_else(|e| panic!("a private PostgreSQL for the tests: {e}"))
}

/// Waits for our end (its standard input closes), then for the server's, and removes the directory.
fn watch(data_dir: &PathBuf) {
    let script = r#"cat >/dev/null; for i in $(seq 100); do [ -e "$0/postgres/data/postmaster.pid" ] || break; sleep 0.1; done; rm -rf "$0""#;
    let child = Command::new("sh")
        .args(["-c", script])
        .arg(data_dir)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        // Whoever ends a whole group of processes must not end this one with it.
        .process_group(0)
        .spawn();
    // Never waited for and never dropped: the pipe closes with the process.
    std::mem::forget(child.expect("there is a shell"));
}

async fn create(server: &Cluster, from: &str) -> Database {
    let name = format!("test_{}", NEXT.fetch_add(1, Ordering::Relaxed));
    let mut admin = server
        .connect_options("postgres")
        .disable_statement_logging()
        .connect()
        .await
        .expect("it is up");
    let sql = format!("create database {name}{from}");
    sqlx::raw_sql(AssertSqlSafe(sql))
        .execute(&mut admin)
        .await
        .expect("a name of its own");
    let _ = admin.close().await;
    Database {
        options: server.connect_options(&name),
        name,
    }
}
