//! Several hosts in the URL: a primary and its standby, and what happens when the primary dies.

use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use sonde_aggregator::embedded::{Cluster, Options, user};
use sonde_aggregator::store::{ProblemKind, Target};
use sonde_common::config::Storage;
use sqlx::ConnectOptions as _;
use sqlx::postgres::{PgConnectOptions, PgPool};
use tonic::Code;

use crate::fixture::{Aggregator, Collector, PATIENCE, batch, hello};
use crate::outage::directory;

/// A PostgreSQL that nobody starts again when it is killed.
struct Server {
    process: Child,
    dir: PathBuf,
}

/// Makes a data directory; where the programs of PostgreSQL are.
async fn make(dir: &Path) -> PathBuf {
    let options = Options {
        data_dir: dir.to_owned(),
        run_as: user::is_root().then(|| user::choose("").unwrap()),
        settings: Vec::new(),
    };
    let made = tokio::task::spawn_blocking(|| {
        let cluster = Cluster::start(options).unwrap();
        let program = std::fs::read_link(format!("/proc/{}/exe", cluster.pid().unwrap())).unwrap();
        cluster.stop();
        program
    });
    made.await.unwrap().parent().unwrap().to_owned()
}

fn as_owner(command: &mut Command) -> &mut Command {
    if user::is_root() {
        let owner = user::choose("").unwrap();
        command.uid(owner.uid).gid(owner.gid);
    }
    command
}

fn socket(dir: &Path) -> PathBuf {
    dir.join("postgres/run")
}

impl Server {
    async fn start(programs: &Path, dir: &Path) -> Self {
        let mut command = Command::new(programs.join("postgres"));
        command.arg("-D").arg(dir.join("postgres/data"));
        for setting in [
            "listen_addresses=",
            "shared_buffers=16MB",
            "max_locks_per_transaction=512",
            &format!("unix_socket_directories={}", socket(dir).display()),
        ] {
            command.args(["-c", setting]);
        }
        let process = as_owner(&mut command)
            .current_dir(dir)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let server = Self {
            process,
            dir: dir.to_owned(),
        };
        let answers = async {
            while server.options().connect().await.is_err() {
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(PATIENCE, answers).await.expect("it starts");
        server
    }

    fn options(&self) -> PgConnectOptions {
        PgConnectOptions::new_without_pgpass()
            .socket(socket(&self.dir))
            .username("sonde")
            .database("postgres")
            .disable_statement_logging()
    }

    async fn execute(&self, sql: &'static str) {
        let mut connection = self.options().connect().await.unwrap();
        sqlx::raw_sql(sql).execute(&mut connection).await.unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_that_is_promoted_takes_over_and_each_batch_is_there_once() {
    let (first, second) = (directory(), directory());
    let programs = make(first.path()).await;
    let mut primary = Server::start(&programs, first.path()).await;
    // The directories exist, with the right owner; the data is the primary's.
    make(second.path()).await;
    let data = second.path().join("postgres/data");
    std::fs::remove_dir_all(&data).unwrap();
    let mut copy = Command::new(programs.join("pg_basebackup"));
    copy.args(["-U", "sonde", "-R", "-X", "stream", "-c", "fast", "-h"])
        .arg(socket(first.path()))
        .arg("-D")
        .arg(&data)
        .current_dir(second.path());
    assert!(as_owner(&mut copy).status().unwrap().success());
    let standby = Server::start(&programs, second.path()).await;
    // An acknowledged batch is on both.
    primary
        .execute("alter system set synchronous_standby_names = '*'")
        .await;
    primary.execute("select pg_reload_conf()").await;

    // The standby is asked first, and is not what we want.
    let encoded = |dir: &Path| socket(dir).display().to_string().replace('/', "%2F");
    let url = format!(
        "postgres://sonde@{},{}/postgres?target_session_attrs=read-write",
        encoded(second.path()),
        encoded(first.path())
    );
    let target: Target = url.parse().unwrap();
    let after = PgPool::connect_lazy_with(standby.options());
    let aggregator = Aggregator::at(target, after, Storage::default()).await;
    aggregator.up().await;
    let mut collector = Collector::connect(&aggregator, hello("n1", 1)).await.unwrap();
    for sequence in 1..=10 {
        collector.send(sequence, &batch(2, 3)).await;
    }
    collector.acked(10).await;

    primary.process.kill().unwrap();
    primary.process.wait().unwrap();
    for sequence in 11..=20 {
        collector.send(sequence, &batch(2, 3)).await;
    }
    let why = aggregator.problem(ProblemKind::ReadOnly).await;
    assert!(
        why.contains("no host takes writes (") && why.contains("it is a standby"),
        "{why}"
    );
    assert!(!collector.has_news());
    assert_eq!(aggregator.store.nodes().await.unwrap().len(), 1, "the standby is read");
    let Err(status) = Collector::connect(&aggregator, hello("n2", 1)).await else {
        panic!("a collector is taken by a standby");
    };
    assert_eq!(status.code(), Code::Unavailable, "{status}");

    standby.execute("select pg_promote()").await;
    collector.acked(20).await;
    aggregator.up().await;
    let mut other = Collector::connect(&aggregator, hello("n2", 1)).await.unwrap();
    other.send(1, &batch(2, 3)).await;
    other.acked(1).await;
    assert_eq!(aggregator.count("sonde.events").await, 63);
    assert_eq!(aggregator.count("sonde.netdev").await, 42);
    aggregator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_never_answers_is_passed_over() {
    let database = sonde_aggregator::testing::Database::migrated().await;
    // Takes connections, and says nothing.
    let mute = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = mute.local_addr().unwrap().port();
    let socket = database
        .options
        .get_socket()
        .unwrap()
        .display()
        .to_string()
        .replace('/', "%2F");
    let url = format!(
        "postgres://sonde@127.0.0.1:{port},{socket}/{}?sslmode=disable",
        database.name
    );
    let target: Target = url.parse().unwrap();
    let aggregator = Aggregator::at(target, database.pool(), Storage::default()).await;
    aggregator.up().await;
    let mut collector = Collector::connect(&aggregator, hello("n1", 1)).await.unwrap();
    collector.send(1, &batch(1, 1)).await;
    collector.acked(1).await;
    aggregator.stop().await;
}
