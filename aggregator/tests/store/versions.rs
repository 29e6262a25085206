//! Collectors and databases of other versions.

use std::path::Path;
use std::time::Duration;

use sonde_aggregator::testing::Database;
use sonde_common::config::Storage;
use sonde_common::time::now_ns;
use sonde_proto::v1;
use sqlx::AssertSqlSafe;

use crate::fixture::{Aggregator, Collector, batch, column, hello};
use crate::hellos::probe;
use crate::refusals::gap;

#[tokio::test(flavor = "multi_thread")]
async fn what_only_newer_collectors_know_is_left_out_and_the_rest_is_stored() {
    let aggregator = Aggregator::start().await;
    let mut newer = hello("n1", 1);
    let mut strange = column("strange", v1::Kind::Gauge, "", 0.0, &[]);
    strange.kind = 17;
    probe(&mut newer).columns.insert(1, strange);
    let mut collector = Collector::connect(&aggregator, newer).await.unwrap();
    collector.send_message(v1::Up { message: None }).await;
    let mut body = batch(2, 2);
    body.rows[0].columns.insert(1, v1::Column { values: vec![1; 14] });
    body.events[0].direction = 9;
    body.events[1].direction = 1;
    body.strings.push("NEWTYPE".into());
    body.events[1].r#type = 6;
    body.gaps.push(gap("new_cause", 1, 2));
    collector.send(1, &body).await;
    collector.acked(1).await;
    for (count, from) in [
        (2, "sonde.netdev where wait_seconds = 1.5"),
        (1, "sonde.events where direction is null and type = 'PACKETLOSS'"),
        (1, "sonde.events where direction = 'ingress' and type = 'NEWTYPE'"),
        (1, "sonde.gaps where cause = 'new_cause'"),
        (0, "information_schema.columns where column_name = 'strange'"),
    ] {
        assert_eq!(aggregator.count(from).await, count, "{from}");
    }
    aggregator.stop().await;
}

/// What is in the views of data that each version has.
const THERE: &[(i64, &str)] = &[
    (1, "sonde_store.stacks where text = E'nft_do_chain+0x4f1\\nip_rcv+0x1'"),
    (
        2,
        "sonde.nodes where version = '0.1.0' and kernel = '6.1.0' and interval_seconds = 5",
    ),
    (
        1,
        "sonde.pods where node = 'old-1' and pod = 'web-0' and workload = 'web' and labels->>'app' = 'web' and valid_to is null",
    ),
    (
        1,
        "sonde.pods where pod = 'db-0' and 'fd00::3' = any(ips) and valid_to is not null",
    ),
    (2, "sonde.events where probe = 'netdev' and type = 'PACKETLOSS'"),
    (
        1,
        "sonde.events where id = 1 and node = 'old-1' and pod = 'web-0' and reason = 'NETFILTER_DROP' \
         and protocol = 'TCP' and saddr = '10.0.0.2' and dport = 5432 and direction = 'egress' and latency_ns = 1000000 \
         and interface = 'eth0' and suppressed = 9 and stack[1] = 'nft_do_chain+0x4f1' and attributes->>'rule' = 'drop'",
    ),
    (
        1,
        "sonde.events where id = 2 and node = 'old-2' and pod is null and direction is null",
    ),
    (
        1,
        "sonde.gaps where node = 'old-1' and probe = 'netdev' and cause = 'ring_full' and count = 12 and detail = 'in words'",
    ),
];

/// The same of the probe, whose view is made when a collector speaks of it where it is not there yet.
const OF_PROBE: &[(i64, &str)] = &[
    (3, "sonde.netdev where node = 'old-1'"),
    (
        1,
        "sonde.netdev where pod = 'web-0' and device = 'eth0' and receive_bytes = 1000 and wait_seconds = 1.5 \
         and latency_seconds = '{3,2,1,7}'",
    ),
    (1, "sonde.netdev where receive_bytes = 1100 and wait_seconds is null"),
    (
        1,
        "sonde.netdev where pod = '' and device = 'lo' and wait_seconds = 0 and latency_seconds is null",
    ),
];

const OF_CLUSTER: &[(i64, &str)] = &[
    (1, "sonde.services where service = 'db' and type = 'ClusterIP'"),
    (1, "sonde.endpoints where service = 'db' and pod = 'db-0' and ready"),
    (1, "sonde.changes where kind = 'service_created' and service = 'db'"),
    (
        1,
        "sonde.events where id = 1 and peer_service = 'db' and peer_pod is null",
    ),
];

/// What was summed up by hours is summed up by six hours when the tables for that are made.
const OF_DIGEST: &[(i64, &str)] = &[
    (
        1,
        "sonde_store.event_subjects_6h where node_id = 1 and pod_id = 1 and n = 1 \
         and time = date_bin('6 hours', (select time from sonde_store.events where id = 1), '1970-01-01 00:00:00+00')",
    ),
    (
        1,
        "sonde_store.event_ends_6h where type = 0 and field = 1 and address = '10.0.0.2' and n = 1",
    ),
    (0, "sonde_store.event_ends_6h where type <> 0"),
    (
        1,
        "sonde_store.event_words_6h where type = 0 and field = 4 and n = 1 \
         and word = (select coalesce(dport, -1) from sonde_store.events where id = 1)",
    ),
    (0, "sonde_store.event_words_6h where type <> 0"),
];

/// The same of source ports, and not of stacks.
const OF_SPORTS: &[(i64, &str)] = &[
    (1, "sonde_store.event_words_6h where field = 5 and n = 1"),
    (0, "sonde_store.event_words_6h where field = 6"),
];

/// In which hours an attribute was seen is not known of what was summed up before: it may have been each.
const OF_TEXTS: &[(i64, &str)] = &[(
    1,
    "sonde_store.event_attributes where text = 'rule drop' and hours = (1 << 24) - 1",
)];

/// Slots of time have no statistics.
const OF_SLOTS: &[(i64, &str)] = &[(
    0,
    "pg_inherits i join pg_attribute a on a.attrelid = i.inhrelid and a.attnum = 1 \
     where i.inhparent in ('sonde_store.events_find'::regclass, 'sonde_store.events_slow'::regclass) and attstattarget is distinct from 0",
)];

async fn check(aggregator: &Aggregator, version: i64, expected: &[(i64, &'static str)]) {
    for (count, from) in expected {
        assert_eq!(aggregator.count(from).await, *count, "from version {version}: {from}");
    }
}

/// Each migration has what a writer of its time left, where that was something new, in `upgrade/`.
async fn database_of(version: i64) -> Database {
    let database = Database::empty().await;
    let db = database.pool();
    for step in 1..=version {
        database.migrate_to(step).await;
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/store/upgrade/{step:04}.sql"));
        if let Ok(sql) = std::fs::read_to_string(&file) {
            let run = sqlx::raw_sql(AssertSqlSafe(sql)).execute(&db).await;
            run.unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        }
    }
    db.close().await;
    database
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_of_every_earlier_version_is_brought_up_to_date_with_all_that_is_in_it() {
    for version in 1..Database::newest_version() {
        let aggregator = Aggregator::on(&database_of(version).await, Storage::default()).await;
        check(&aggregator, version, THERE).await;
        if version >= 2 {
            check(&aggregator, version, OF_PROBE).await;
        }
        if version >= 4 {
            check(&aggregator, version, OF_CLUSTER).await;
        }
        if version >= 8 {
            check(&aggregator, version, OF_TEXTS).await;
            let later = (
                i64::from(version < 15),
                "sonde_store.event_digest where sports_after = 1",
            );
            check(&aggregator, version, &[later]).await;
        }
        if version >= 12 {
            check(&aggregator, version, OF_SLOTS).await;
        }
        if version >= 13 {
            check(&aggregator, version, OF_DIGEST).await;
        }
        if version >= 15 {
            check(&aggregator, version, OF_SPORTS).await;
        }
        // Its collectors go on where they were.
        let mut collector = Collector::connect(&aggregator, hello("old-1", 1)).await.unwrap();
        assert_eq!(collector.durable, 7, "from version {version}");
        check(&aggregator, version, OF_PROBE).await;
        collector.send(7, &batch(2, 1)).await;
        collector.send(8, &batch(2, 1)).await;
        collector.acked(8).await;
        check(
            &aggregator,
            version,
            &[
                (5, "sonde.netdev where node = 'old-1'"),
                (1, "sonde.events where node = 'old-1' and id = 3 and pod = 'server'"),
                (3, "sonde.events"),
                (3, "sonde.pods"),
            ],
        )
        .await;
        let mut fresh = Collector::connect(&aggregator, hello("new", 1)).await.unwrap();
        fresh.send(1, &batch(1, 1)).await;
        fresh.acked(1).await;
        assert_eq!(aggregator.count("sonde.nodes").await, 3);
        aggregator.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schema_that_is_put_back_while_it_is_used_is_brought_up_to_date_again() {
    let newest = Database::newest_version();
    let aggregator = Aggregator::start().await;
    // As when a backup from before the last migration is restored: what it made is gone, and so is its mark.
    let mut tx = aggregator.db.begin().await.unwrap();
    for sql in [
        "drop schema sonde cascade",
        "drop schema sonde_parts cascade",
        "drop schema sonde_store cascade",
    ] {
        sqlx::query(sql).execute(&mut *tx).await.unwrap();
    }
    tx.commit().await.unwrap();
    let back = async {
        let version = "select max(version) from sonde_store.migrations";
        while sqlx::query_scalar::<_, i64>(version)
            .fetch_one(&aggregator.db)
            .await
            .ok()
            != Some(newest)
        {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(crate::fixture::PATIENCE, back)
        .await
        .expect("nobody has to ask for it");
    // Who says hello while it is at it is asked to come again.
    let mut collector = loop {
        match Collector::connect(&aggregator, hello("n1", 1)).await {
            Ok(collector) => break collector,
            Err(status) => assert_eq!(status.code(), tonic::Code::Unavailable, "{status}"),
        }
    };
    collector.send(1, &batch(1, 1)).await;
    collector.acked(1).await;
    aggregator.stop().await;
}

/// The lock that a migration takes alone: see `hold` of the store.
const VERSION_LOCK: i64 = 0x736f_6e64_6500_0003;

#[tokio::test(flavor = "multi_thread")]
async fn a_migration_waits_for_transactions_that_write_and_they_for_it() {
    let aggregator = Aggregator::start().await;
    let mut collector = Collector::connect(&aggregator, hello("n1", 1)).await.unwrap();
    let mut lock = aggregator.db.begin().await.unwrap();
    sqlx::query("select from sonde_store.event_ids for update")
        .execute(&mut *lock)
        .await
        .unwrap();
    collector.send(1, &batch(1, 1)).await;
    aggregator.writer_waits().await;
    let mut migration = aggregator.db.acquire().await.unwrap();
    let alone = |sql: &'static str| sqlx::query_scalar::<_, bool>(sql).bind(VERSION_LOCK);
    let taken = alone("select pg_try_advisory_lock($1)")
        .fetch_one(&mut *migration)
        .await
        .unwrap();
    assert!(!taken, "the schema would change under a transaction that writes");
    lock.rollback().await.unwrap();
    collector.acked(1).await;

    let taken = alone("select pg_try_advisory_lock($1)")
        .fetch_one(&mut *migration)
        .await
        .unwrap();
    assert!(taken);
    collector.send(2, &batch(1, 1)).await;
    aggregator.writer_waits().await;
    assert!(!collector.has_news());
    // What it waited for is a schema of another version now.
    sqlx::query("insert into sonde_store.migrations values (9999, 'future', now(), true, '', 0)")
        .execute(&mut *migration)
        .await
        .unwrap();
    alone("select pg_advisory_unlock($1)")
        .fetch_one(&mut *migration)
        .await
        .unwrap();
    let status = collector.refused().await;
    assert_eq!(status.code(), tonic::Code::Unavailable, "{status}");
    assert_eq!(aggregator.count("sonde.events").await, 1);
    aggregator.stop().await;
}

/// What readings of a while ago leave to be rolled up.
async fn two_hours_ago(aggregator: &Aggregator) {
    let mut collector = Collector::connect(aggregator, hello("n1", 1)).await.unwrap();
    let mut old = batch(2, 0);
    old.rows[0].time_ns -= 2 * 3_600_000_000_000;
    collector.send(1, &old).await;
    collector.acked(1).await;
}

/// As a newer binary leaves it.
async fn newer(aggregator: &Aggregator) {
    aggregator
        .execute("insert into sonde_store.migrations values (9999, 'future', now(), true, '', 0)")
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_migration_waits_for_the_roller_and_the_roller_of_an_old_binary_writes_nothing_after_it() {
    let aggregator = Aggregator::start().await;
    two_hours_ago(&aggregator).await;
    let mut lock = aggregator.db.begin().await.unwrap();
    sqlx::query("lock table sonde_store.rollup_minutes")
        .execute(&mut *lock)
        .await
        .unwrap();
    let store = aggregator.store.clone();
    let roller = tokio::spawn(async move { store.roll_up(now_ns()).await });
    aggregator.waits("roller").await;
    // It has copied an hour and not committed it.
    let mut migration = aggregator.db.acquire().await.unwrap();
    let alone = |sql: &'static str| sqlx::query_scalar::<_, bool>(sql).bind(VERSION_LOCK);
    let taken = alone("select pg_try_advisory_lock($1)")
        .fetch_one(&mut *migration)
        .await
        .unwrap();
    assert!(!taken, "the schema would change under an hour that is rolled up");
    // While it rolls up, batches are stored.
    let mut collector = Collector::connect(&aggregator, hello("n2", 1)).await.unwrap();
    collector.send(1, &batch(1, 1)).await;
    collector.acked(1).await;
    lock.rollback().await.unwrap();
    roller.await.unwrap().unwrap();
    assert_eq!(aggregator.count("sonde.netdev_1h").await, 2);

    // The other way round: it is past its first look when the migration begins.
    aggregator.execute("update sonde_store.rollup_progress set hour = hour - interval '3 hours'; \
                        insert into sonde_store.rollup_late (probe, hour, node_id) select 'netdev', date_trunc('hour', now() - interval '2 hours'), 1; \
                        delete from sonde_store.r1h_netdev; delete from sonde_store.r1m_netdev").await;
    alone("select pg_advisory_lock($1) is not null")
        .fetch_one(&mut *migration)
        .await
        .unwrap();
    let store = aggregator.store.clone();
    let roller = tokio::spawn(async move { store.roll_up(now_ns()).await });
    aggregator.waits("roller").await;
    newer(&aggregator).await;
    alone("select pg_advisory_unlock($1)")
        .fetch_one(&mut *migration)
        .await
        .unwrap();
    let error = roller.await.unwrap().unwrap_err().to_string();
    assert!(error.contains("9999"), "{error}");
    for untouched in ["sonde_store.r1h_netdev", "sonde_store.r1m_netdev"] {
        assert_eq!(aggregator.count(untouched).await, 0, "{untouched}");
    }
    assert_eq!(aggregator.count("sonde_store.rollup_late").await, 1);
    aggregator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn upkeep_of_an_old_binary_writes_nothing_into_a_newer_schema() {
    let aggregator = Aggregator::start().await;
    newer(&aggregator).await;
    let error = aggregator.store.repair_peers().await.unwrap_err().to_string();
    assert!(error.contains("9999"), "{error}");
    let error = aggregator.store.roll_up(now_ns()).await.unwrap_err().to_string();
    assert!(error.contains("9999"), "{error}");
    aggregator.stop().await;
}
