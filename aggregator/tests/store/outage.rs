//! The database goes away and comes back; nothing is acknowledged in between, nothing is lost or doubled.

use std::path::Path;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use sonde_aggregator::embedded::{Cluster, Options, user};
use sonde_aggregator::store::ProblemKind;
use sonde_aggregator::testing::Database;
use sonde_common::config::Storage;
use sonde_proto::v1;
use tonic::Code;

use crate::fixture::{Aggregator, Collector, batch, column, hello};

async fn cluster(dir: &Path) -> Cluster {
    cluster_with(dir, &[]).await
}

async fn cluster_with(dir: &Path, settings: &[(&'static str, &str)]) -> Cluster {
    let settings = settings.iter().chain(&[("shared_buffers", "16MB")]);
    let options = Options {
        data_dir: dir.to_owned(),
        run_as: user::is_root().then(|| user::choose("").unwrap()),
        settings: settings.map(|(key, value)| (*key, (*value).to_owned())).collect(),
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
pub(crate) fn directory() -> tempfile::TempDir {
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
async fn a_crash_in_the_middle_of_a_transaction_gives_no_number_of_a_frame_twice() {
    let dir = directory();
    // What the sequence gave is on the disk with a commit, and by nobody's doing before.
    let cluster = cluster_with(dir.path(), &[("wal_writer_delay", "10s")]).await;
    let aggregator = Aggregator::on(&database(&cluster), Storage::default()).await;
    let mut collector = Collector::connect(&aggregator, hello("n1", 1)).await.unwrap();
    let mut lock = aggregator.db.begin().await.unwrap();
    sqlx::query("lock table sonde_store.event_ids in exclusive mode")
        .execute(&mut *lock)
        .await
        .unwrap();
    // Its keyframes are copied, and their numbers taken, when it comes to its events.
    collector.send(1, &batch(2, 1)).await;
    aggregator.writer_waits().await;
    let writer = "select pid from pg_stat_activity where application_name = 'sonde-aggregator writer'";
    let writer: i32 = sqlx::query_scalar(writer).fetch_one(&aggregator.db).await.unwrap();
    // The server ends all sessions and recovers.
    kill(Pid::from_raw(writer), Signal::SIGKILL).unwrap();
    collector.acked(1).await;
    aggregator.stop().await;

    let aggregator = Aggregator::on(&database(&cluster), Storage::default()).await;
    let mut collector = Collector::connect(&aggregator, hello("n1", 1)).await.unwrap();
    // Enough for more than one frame.
    for sequence in 2..=20 {
        collector.send(sequence, &batch(2, 1)).await;
    }
    collector.acked(20).await;
    assert_eq!(aggregator.count("sonde.netdev").await, 40);
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
    aggregator.problem(ProblemKind::Away).await;
    let Err(status) = Collector::connect(&aggregator, hello("n2", 1)).await else {
        panic!("a hello is answered without a database");
    };
    assert_eq!(status.code(), Code::Unavailable, "{status}");

    let second = cluster(dir.path()).await;
    collector.acked(2).await;
    assert_eq!(aggregator.count("sonde.events").await, 2);
    aggregator.up().await;
    aggregator.stop().await;
    stop(second).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_away_at_the_start_is_waited_for() {
    let dir = directory();
    let first = cluster(dir.path()).await;
    let database = database(&first);
    stop(first).await;
    let aggregator = Aggregator::at(database.options.clone(), database.pool(), Storage::default()).await;
    aggregator.problem(ProblemKind::Away).await;
    let Err(status) = Collector::connect(&aggregator, hello("n1", 1)).await else {
        panic!("a hello is answered without a database");
    };
    assert_eq!(status.code(), Code::Unavailable, "{status}");
    assert!(
        status.message().starts_with("the database does not answer: "),
        "{status}"
    );

    let second = cluster(dir.path()).await;
    aggregator.up().await;
    let mut collector = Collector::connect(&aggregator, hello("n1", 1)).await.unwrap();
    collector.send(1, &batch(1, 1)).await;
    collector.acked(1).await;
    assert_eq!(aggregator.count("sonde.events").await, 1);
    aggregator.stop().await;
    stop(second).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_only_database_is_read_and_not_acknowledged() {
    let database = Database::migrated().await;
    let aggregator = Aggregator::on(&database, Storage::default()).await;
    let mut collector = Collector::connect(&aggregator, hello("n1", 1)).await.unwrap();
    collector.send(1, &batch(1, 1)).await;
    collector.acked(1).await;
    let read_only = async |on: &str| {
        let sql = format!(
            "alter database {} set default_transaction_read_only = {on}",
            database.name
        );
        let end = "select pg_terminate_backend(pid) from pg_stat_activity \
                   where datname = current_database() and pid <> pg_backend_pid()";
        let sql = format!("begin read write; {sql}; commit; {end}");
        aggregator.execute(&sql).await;
    };
    read_only("on").await;
    collector.send(2, &batch(1, 1)).await;
    let why = aggregator.problem(ProblemKind::ReadOnly).await;
    assert!(why.contains("read-only"), "{why}");
    assert_eq!(aggregator.store.nodes().await.unwrap().len(), 1, "it is read");
    assert!(!collector.has_news());
    // Another one that starts now waits too.
    let late = Aggregator::at(database.options.clone(), database.pool(), Storage::default()).await;
    late.problem(ProblemKind::ReadOnly).await;
    assert_eq!(late.store.nodes().await.unwrap().len(), 1, "it is read");

    read_only("off").await;
    collector.acked(2).await;
    aggregator.up().await;
    late.up().await;
    let mut other = Collector::connect(&late, hello("n2", 1)).await.unwrap();
    other.send(1, &batch(1, 1)).await;
    other.acked(1).await;
    assert_eq!(aggregator.count("sonde.events").await, 3);
    aggregator.stop().await;
    late.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lock_that_somebody_holds_is_named_and_waited_for() {
    let database = Database::migrated().await;
    let aggregator = Aggregator::on(&database, Storage::default()).await;
    let mut collector = Collector::connect(&aggregator, hello("n1", 1)).await.unwrap();
    collector.send(1, &batch(1, 1)).await;
    collector.acked(1).await;
    let options = database.options.clone().application_name("somebody");
    let mut other = sqlx::ConnectOptions::connect(&options).await.unwrap();
    let lock = "begin; lock table sonde_store.cursors in access exclusive mode";
    sqlx::raw_sql(lock).execute(&mut other).await.unwrap();
    collector.send(2, &batch(1, 1)).await;
    let why = aggregator.problem(ProblemKind::Slow).await;
    assert!(
        why.contains("a transaction of the writer has not been finished for"),
        "{why}"
    );
    assert!(why.contains("(\"somebody\")"), "{why}");
    assert!(!collector.has_news());
    sqlx::raw_sql("commit").execute(&mut other).await.unwrap();
    collector.acked(2).await;
    aggregator.up().await;
    assert_eq!(aggregator.count("sonde.events").await, 2);
    aggregator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_hangs_is_noticed_and_goes_on() {
    let dir = directory();
    let cluster = cluster(dir.path()).await;
    let aggregator = Aggregator::on(&database(&cluster), Storage::default()).await;
    let mut collector = Collector::connect(&aggregator, hello("n1", 1)).await.unwrap();
    collector.send(1, &batch(1, 1)).await;
    collector.acked(1).await;
    let pid = Pid::from_raw(cluster.pid().expect("it runs") as i32);
    let signal_all = |signal| {
        let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
        let children = children.split_whitespace().map(|c| Pid::from_raw(c.parse().unwrap()));
        for process in children.chain([pid]) {
            // Sessions come and go.
            let _ = kill(process, signal);
        }
    };
    signal_all(Signal::SIGSTOP);
    collector.send(2, &batch(1, 1)).await;
    let why = aggregator.problem(ProblemKind::Away).await;
    assert!(why.contains("does not answer within"), "{why}");
    assert!(!collector.has_news());
    signal_all(Signal::SIGCONT);
    collector.acked(2).await;
    aggregator.up().await;
    assert_eq!(aggregator.count("sonde.events").await, 2);
    aggregator.stop().await;
    stop(cluster).await;
}

/// A file system of its own, with hardly any room.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn mount(mib: usize) -> Self {
        let dir = directory();
        let size = format!("size={mib}m,mode=0777");
        nix::mount::mount(
            Some("sonde-test"),
            dir.path(),
            Some("tmpfs"),
            nix::mount::MsFlags::empty(),
            Some(size.as_str()),
        )
        .unwrap();
        Self(dir)
    }

    fn fill(&self) {
        use std::io::Write as _;
        let mut file = std::fs::File::create(self.0.path().join("ballast")).unwrap();
        while file.write_all(&[1; 4096]).is_ok() {}
    }

    fn make_room(&self) {
        std::fs::remove_file(self.0.path().join("ballast")).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(self.0.path(), nix::mount::MntFlags::MNT_DETACH);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_named_and_waited_for() {
    if !user::is_root() {
        println!("SKIPPED: only root mounts a small disk");
        return;
    }
    let disk = SmallDisk::mount(48);
    let place = disk.0.path().join("tablespace");
    std::fs::create_dir(&place).unwrap();
    let owner = user::choose("").unwrap();
    std::os::unix::fs::chown(&place, Some(owner.uid), Some(owner.gid)).unwrap();
    let database = Database::empty().await;
    let aggregator = Aggregator::on(&database, Storage::default()).await;
    // What is made from now on is there: the table of the probe and its partitions.
    aggregator
        .execute(&format!("create tablespace small location '{}'", place.display()))
        .await;
    aggregator
        .execute(&format!(
            "alter database {} set default_tablespace = small",
            database.name
        ))
        .await;
    aggregator
        .execute("select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()")
        .await;
    let mut collector = Collector::connect(&aggregator, hello("n1", 1)).await.unwrap();
    collector.send(1, &batch(1, 1)).await;
    collector.acked(1).await;
    disk.fill();
    collector.send(2, &batch(20_000, 1)).await;
    let why = aggregator.problem(ProblemKind::Full).await;
    assert!(why.contains("No space left on device (SQLSTATE 53100)"), "{why}");
    assert!(!collector.has_news());
    assert_eq!(aggregator.count("sonde.netdev").await, 1, "it is read");
    disk.make_room();
    collector.acked(2).await;
    aggregator.up().await;
    assert_eq!(aggregator.count("sonde.netdev").await, 20_001);
    assert_eq!(aggregator.count("sonde.events").await, 2);
    let drop = format!("drop database {} with (force)", database.name);
    aggregator.stop().await;
    let admin = sqlx::postgres::PgPool::connect_with(database.options.database("postgres"))
        .await
        .unwrap();
    for sql in [drop.as_str(), "drop tablespace small"] {
        let sql = sqlx::AssertSqlSafe(sql.to_owned());
        sqlx::raw_sql(sql).execute(&admin).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schema_of_a_newer_version_is_never_written() {
    let database = Database::migrated().await;
    let aggregator = Aggregator::on(&database, Storage::default()).await;
    let mut collector = Collector::connect(&aggregator, hello("n1", 1)).await.unwrap();
    collector.send(1, &batch(1, 1)).await;
    collector.acked(1).await;
    let state = "select (select count(*) from sonde.events), (select count(*) from sonde_store.nodes), \
                 (select sequence from sonde_store.cursors)";
    let before: (i64, i64, i64) = sqlx::query_as(state).fetch_one(&aggregator.db).await.unwrap();
    aggregator
        .execute("insert into sonde_store.migrations values (9999, 'future', now(), true, '', 0)")
        .await;
    // Sent before anybody noticed: the transaction itself finds out.
    collector.send(2, &batch(1, 1)).await;
    let status = collector.refused().await;
    assert_eq!(status.code(), Code::Unavailable, "{status}");
    assert!(
        status.message().contains("newer version of Sonde (migration 9999"),
        "{status}"
    );
    let why = aggregator.problem(ProblemKind::OtherSchema).await;
    assert!(why.contains("newer version of Sonde (migration 9999"), "{why}");
    // One that starts now stays up too, and says the same.
    let late = Aggregator::at(database.options.clone(), database.pool(), Storage::default()).await;
    late.problem(ProblemKind::OtherSchema).await;
    for aggregator in [&aggregator, &late] {
        let Err(status) = Collector::connect(aggregator, hello("n2", 1)).await else {
            panic!("a collector is taken with a newer schema");
        };
        assert_eq!(status.code(), Code::Unavailable, "{status}");
        assert!(status.message().contains("migration 9999"), "{status}");
    }
    let after: (i64, i64, i64) = sqlx::query_as(state).fetch_one(&aggregator.db).await.unwrap();
    assert_eq!(before, after);
    assert_eq!(aggregator.store.nodes().await.unwrap().len(), 1, "it is read");

    // As when a backup from before the upgrade is restored.
    aggregator
        .execute("delete from sonde_store.migrations where version = 9999")
        .await;
    aggregator.up().await;
    late.up().await;
    let mut collector = Collector::connect(&late, hello("n1", 1)).await.unwrap();
    assert_eq!(collector.durable, 1);
    collector.send(2, &batch(1, 1)).await;
    collector.acked(2).await;
    assert_eq!(aggregator.count("sonde.events").await, 2);
    aggregator.stop().await;
    late.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_state_with_fewer_columns_is_written_as_it_is_then() {
    let aggregator = Aggregator::start().await;
    let mut plain = Collector::connect(&aggregator, hello("plain", 1)).await.unwrap();
    let mut wider = hello("wider", 1);
    let columns = &mut wider.catalogue.as_mut().unwrap().probes[0].columns;
    columns.push(column("send_bytes", v1::Kind::Counter, "bytes", 0.0, &[]));
    columns.push(column("drops", v1::Kind::Counter, "", 0.0, &[]));
    let connect = async |hello: &v1::Hello| Collector::connect(&aggregator, hello.clone()).await.unwrap();
    let mut first = connect(&wider).await;
    let mut body = batch(1, 0);
    body.rows[0]
        .columns
        .extend([70, 5].map(|value| v1::Column { values: vec![value] }));
    first.send(1, &body).await;
    first.acked(1).await;
    plain.send(1, &batch(1, 0)).await;
    plain.acked(1).await;
    // As after a restore from before the wider collector came: its columns are gone, the cursors are as they were.
    aggregator
        .execute("drop table sonde_store.key_netdev, sonde_store.delta_netdev cascade; delete from sonde_store.probes")
        .await;
    plain.send(2, &batch(1, 0)).await;
    assert_eq!(plain.refused().await.code(), Code::Unavailable);
    // The columns are made in another order now. A stream from before must not write by the places it knows.
    let swapped = &mut wider.catalogue.as_mut().unwrap().probes[0].columns;
    swapped.swap(3, 4);
    wider.node = "swapped".into();
    let mut swapped = connect(&wider).await;
    let mut other = body.clone();
    other.rows[0].columns.swap(3, 4);
    swapped.send(1, &other).await;
    swapped.acked(1).await;
    first.send(2, &body).await;
    let status = first.refused().await;
    assert_eq!(status.code(), Code::Unavailable, "{status}");
    wider.node = "wider".into();
    wider.catalogue.as_mut().unwrap().probes[0].columns.swap(3, 4);
    let mut again = connect(&wider).await;
    again.send(2, &body).await;
    again.acked(2).await;
    let right = "sonde.netdev where send_bytes = 70 and drops = 5";
    assert_eq!(aggregator.count(right).await, 2);
    assert_eq!(aggregator.count("sonde.netdev").await, 2);
    aggregator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_comes_back_empty_is_set_up_again() {
    let database = Database::migrated().await;
    let aggregator = Aggregator::on(&database, Storage::default()).await;
    let mut collector = Collector::connect(&aggregator, hello("n1", 1)).await.unwrap();
    collector.send(1, &batch(1, 1)).await;
    collector.acked(1).await;
    aggregator
        .execute("drop schema sonde cascade; drop schema sonde_parts cascade; drop schema sonde_store cascade")
        .await;
    // The stream that is open hears that it has to begin again, at the latest with its next batch.
    collector.send(2, &batch(1, 1)).await;
    let status = collector.refused().await;
    assert_eq!(status.code(), Code::Unavailable, "{status}");
    let mut collector = loop {
        match Collector::connect(&aggregator, hello("n1", 1)).await {
            Ok(collector) => break collector,
            Err(status) => assert_eq!(status.code(), Code::Unavailable, "{status}"),
        }
    };
    assert_eq!(collector.durable, 0);
    collector.send(1, &batch(1, 1)).await;
    collector.acked(1).await;
    assert_eq!(aggregator.count("sonde.events").await, 1);
    aggregator.stop().await;
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
