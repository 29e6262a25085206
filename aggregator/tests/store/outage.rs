//! The database goes away and comes back; nothing is acknowledged in between, nothing is lost or doubled.

use std::path::Path;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use sonde_aggregator::embedded::{Cluster, Options, user};
use sonde_aggregator::testing::Database;
use sonde_common::config::Storage;
use tonic::Code;

use crate::fixture::{Aggregator, Collector, PATIENCE, batch, hello};

async fn cluster(dir: &Path) -> Cluster {
    let options = Options {
        data_dir: dir.to_owned(),
        run_as: user::is_root().then(|| user::choose("").unwrap()),
        settings: vec![("shared_buffers", "16MB".into())],
    };
    tokio::task::spawn_blocking(|| Cluster::start(options))
        .await
        .unwrap()
        .unwrap()
}

async fn stop(cluster: Cluster) {
    tokio::task::spawn_blocking(|| cluster.stop()).await.unwrap();
}

fn database(cluster: &Cluster) -> Database {
    Database {
        name: "postgres".into(),
        options: cluster.connect_options("postgres"),
    }
}

/// A directory that another user may pass.
fn directory() -> tempfile::TempDir {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    dir
}

#[tokio::test(flavor = "multi_thread")]
async fn kill_9_of_postgresql_under_load_loses_and_doubles_nothing() {
    let dir = directory();
    let cluster = cluster(dir.path()).await;
    let aggregator = Aggregator::on(&database(&cluster), Storage::default()).await;
    let mut collector = Collector::connect(&aggregator, hello("n1", 1)).await.unwrap();
    let mut sequence = 0;
    for _ in 0..3 {
        for _ in 0..20 {
            sequence += 1;
            collector.send(sequence, &batch(2, 3)).await;
        }
        let pid = cluster.pid().expect("it runs");
        kill(Pid::from_raw(pid as i32), Signal::SIGKILL).unwrap();
        for _ in 0..20 {
            sequence += 1;
            collector.send(sequence, &batch(2, 3)).await;
        }
        collector.acked(sequence).await;
    }
    assert_eq!(aggregator.count("sonde.events").await, 3 * sequence as i64);
    assert_eq!(aggregator.count("sonde.netdev").await, 2 * sequence as i64);
    aggregator.stop().await;
    stop(cluster).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_database_is_away_nothing_is_acknowledged_and_the_store_says_so() {
    let dir = directory();
    let first = cluster(dir.path()).await;
    let aggregator = Aggregator::on(&database(&first), Storage::default()).await;
    let mut collector = Collector::connect(&aggregator, hello("n1", 1)).await.unwrap();
    collector.send(1, &batch(1, 1)).await;
    collector.acked(1).await;
    stop(first).await;

    collector.send(2, &batch(1, 1)).await;
    let down = async {
        while aggregator.store.status().database_up {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, down).await.expect("it is noticed");
    assert!(aggregator.store.status().reason.is_some());
    let Err(status) = Collector::connect(&aggregator, hello("n2", 1)).await else {
        panic!("a hello is answered without a database");
    };
    assert_eq!(status.code(), Code::Unavailable, "{status}");

    let second = cluster(dir.path()).await;
    collector.acked(2).await;
    assert_eq!(aggregator.count("sonde.events").await, 2);
    assert!(aggregator.store.status().database_up);
    aggregator.stop().await;
    stop(second).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_state_of_the_database_makes_streams_start_over() {
    let database = Database::migrated().await;
    let aggregator = Aggregator::on(&database, Storage::default()).await;
    let mut collector = Collector::connect(&aggregator, hello("n1", 1)).await.unwrap();
    collector.send(1, &batch(1, 1)).await;
    collector.acked(1).await;
    // As after a restore from before this collector came.
    for sql in [
        "truncate sonde_store.cursors, sonde_store.events, sonde_store.key_netdev, sonde_store.delta_netdev",
        "delete from sonde_store.pods where id > 0",
        "delete from sonde_store.nodes",
        "delete from sonde_store.strings where id > 0",
        "select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()",
    ] {
        sqlx::query(sql).execute(&aggregator.db).await.unwrap();
    }
    collector.send(2, &batch(1, 1)).await;
    let status = collector.refused().await;
    assert_eq!(status.code(), Code::Unavailable, "{status}");
    let mut collector = Collector::connect(&aggregator, hello("n1", 1)).await.unwrap();
    assert_eq!(collector.durable, 0);
    for sequence in 1..=2 {
        collector.send(sequence, &batch(1, 1)).await;
    }
    collector.acked(2).await;
    assert_eq!(
        aggregator
            .count("sonde.events where pod = 'server' and reason = 'NETFILTER_DROP'")
            .await,
        2
    );
    aggregator.stop().await;
}
