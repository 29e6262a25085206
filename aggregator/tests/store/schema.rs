//! Tables from the catalogue, partitions by day, and who may read what.

use sonde_aggregator::store::{self, OpenError};
use sonde_aggregator::testing::Database;
use sonde_common::config::Storage;
use sonde_common::time::{Span, now_ns};
use sonde_proto::v1;

use crate::fixture::{Aggregator, Collector, batch, column, hello};

const DAY_NS: u64 = 86_400_000_000_000;

async fn columns(aggregator: &Aggregator, view: &str) -> Vec<(String, String)> {
    sqlx::query_as(
        "select column_name::text, data_type::text from information_schema.columns \
         where table_schema = 'sonde' and table_name = $1 order by ordinal_position",
    )
    .bind(view.to_owned())
    .fetch_all(&aggregator.db)
    .await
    .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wider_catalogue_adds_columns_and_a_narrower_one_goes_on() {
    let aggregator = Aggregator::start().await;
    let mut old = Collector::connect(&aggregator, hello("old", 1)).await.unwrap();
    old.send(1, &batch(2, 0)).await;
    old.acked(1).await;

    let mut wider = hello("new", 1);
    let probe = &mut wider.catalogue.as_mut().unwrap().probes[0];
    // In other places than before: what counts is the name.
    probe
        .columns
        .insert(0, column("send_bytes", v1::Kind::Counter, "bytes", 0.0, &[]));
    probe.labels.insert(
        0,
        v1::LabelDef {
            name: "queue".into(),
            help: "its queue".into(),
        },
    );
    let mut new = Collector::connect(&aggregator, wider).await.unwrap();
    let mut body = batch(2, 0);
    body.strings.push("q7".into());
    body.rows[0].labels = vec![6, 5, 6, 5];
    body.rows[0].columns.insert(0, v1::Column { values: vec![70, 71] });
    new.send(1, &body).await;
    new.acked(1).await;
    // The older collector knows nothing of it, and its stream was open all the time.
    old.send(2, &batch(2, 0)).await;
    old.acked(2).await;

    let shown = columns(&aggregator, "netdev").await;
    let names: Vec<_> = shown.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(
        names,
        [
            "time",
            "node",
            "namespace",
            "pod",
            "device",
            "receive_bytes",
            "wait_seconds",
            "latency_seconds",
            "queue",
            "send_bytes"
        ]
    );
    assert_eq!(shown[6].1, "double precision");
    assert_eq!(
        aggregator
            .count("sonde.netdev where queue = 'q7' and device = 'eth0' and send_bytes in (70, 71)")
            .await,
        2
    );
    assert_eq!(
        aggregator
            .count("sonde.netdev where queue = '' and send_bytes is null and node = 'old'")
            .await,
        4
    );
    aggregator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_view_and_column_says_what_it_is() {
    let aggregator = Aggregator::start().await;
    Collector::connect(&aggregator, hello("n1", 1)).await.unwrap();
    let silent = "pg_class c join pg_namespace n on n.oid = c.relnamespace \
                  left join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 \
                  where n.nspname = 'sonde' and (obj_description(c.oid) is null or col_description(c.oid, a.attnum) is null)";
    assert_eq!(aggregator.count(silent).await, 0);
    let help: String = sqlx::query_scalar("select col_description('sonde.netdev'::regclass, 8)")
        .fetch_one(&aggregator.db)
        .await
        .unwrap();
    assert!(
        help.starts_with("help of latency_seconds (histogram, seconds: counts up to [0.001, 0.01] and beyond"),
        "{help}"
    );
    aggregator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_reader_role_reads_the_views_and_nothing_else() {
    let aggregator = Aggregator::start().await;
    let mut collector = Collector::connect(&aggregator, hello("n1", 1)).await.unwrap();
    collector.send(1, &batch(2, 1)).await;
    collector.acked(1).await;
    let mut reader = aggregator.db.acquire().await.unwrap();
    sqlx::query("set role sonde_reader")
        .execute(&mut *reader)
        .await
        .unwrap();
    for view in [
        "events",
        "pods",
        "nodes",
        "gaps",
        "changes",
        "services",
        "endpoints",
        "cluster_nodes",
        "netdev",
    ] {
        let sql = format!("select count(*) from sonde.{view}");
        sqlx::query(sqlx::AssertSqlSafe(sql))
            .execute(&mut *reader)
            .await
            .unwrap_or_else(|e| panic!("{view}: {e}"));
    }
    for forbidden in [
        "select count(*) from sonde_store.events",
        "select count(*) from sonde_store.key_netdev",
        "delete from sonde.events",
        "update sonde.nodes set version = ''",
        "create table sonde.mine (a int)",
        "create table public.mine (a int)",
    ] {
        let error = sqlx::query(forbidden).execute(&mut *reader).await.expect_err(forbidden);
        let code = error.as_database_error().and_then(|e| e.code()).unwrap().into_owned();
        // Insufficient privilege; or a view that nobody can write.
        assert!(["42501", "55000"].contains(&code.as_str()), "{forbidden}: {error}");
    }
    sqlx::query("reset role").execute(&mut *reader).await.unwrap();
    drop(reader);
    aggregator.stop().await;
}

async fn leaves(db: &sqlx::PgPool, table: &'static str) -> Vec<String> {
    sqlx::query_scalar(
        "select relname::text from pg_class where relkind = 'r' and relname like $1 || '\\_2%' order by 1",
    )
    .bind(table)
    .fetch_all(db)
    .await
    .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn days_get_partitions_ahead_and_by_what_arrives_and_lose_them_by_retention() {
    let database = Database::migrated().await;
    let keep = |days: u64| Storage {
        keep_rows: Span::from_secs(days * 86_400),
        keep_events: Span::from_secs((days + 2) * 86_400),
        ..Default::default()
    };
    let aggregator = Aggregator::on(&database, keep(5)).await;
    let mut collector = Collector::connect(&aggregator, hello("n1", 1)).await.unwrap();
    assert_eq!(
        leaves(&aggregator.db, "delta_netdev").await.len(),
        2,
        "today and tomorrow"
    );
    assert_eq!(leaves(&aggregator.db, "events").await.len(), 2);

    let aged = |days: u64| {
        let mut body = batch(1, 1);
        body.rows[0].time_ns -= days * DAY_NS;
        body.events[0].time_ns -= days * DAY_NS;
        body
    };
    for (sequence, days) in [0, 3, 6, 30].into_iter().enumerate() {
        collector.send(sequence as u64 + 1, &aged(days)).await;
    }
    collector.acked(4).await;
    // Six days are too old for rows, and thirty for both: accepted, counted, not stored.
    assert_eq!(aggregator.count("sonde.netdev").await, 2);
    assert_eq!(aggregator.count("sonde.events").await, 3);
    assert_eq!(aggregator.metrics.expired.get(), 3);
    assert_eq!(leaves(&aggregator.db, "delta_netdev").await.len(), 3);
    assert_eq!(leaves(&aggregator.db, "events").await.len(), 4);
    aggregator.stop().await;

    let aggregator = Aggregator::on(&database, keep(1)).await;
    assert_eq!(leaves(&aggregator.db, "delta_netdev").await.len(), 2);
    assert_eq!(leaves(&aggregator.db, "events").await.len(), 3, "kept two days longer");
    assert_eq!(
        (
            aggregator.count("sonde.netdev").await,
            aggregator.count("sonde.events").await
        ),
        (1, 2)
    );
    assert_eq!(aggregator.metrics.dropped_partitions.get(), 3);
    assert_eq!(
        aggregator
            .count("sonde_store.events where tableoid::regclass::text not like 'sonde_parts.%'")
            .await,
        0
    );
    aggregator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_table_may_not_hold_its_new_partitions_may_not_hold_either() {
    let aggregator = Aggregator::start().await;
    let check = "alter table sonde_store.events add constraint later check (dport <> 1)";
    aggregator.execute(check).await;
    let mut collector = Collector::connect(&aggregator, hello("n1", 1)).await.unwrap();
    let mut body = batch(0, 1);
    body.events[0].time_ns -= 5 * DAY_NS;
    collector.send(1, &body).await;
    collector.acked(1).await;
    let kept =
        "select count(*) from pg_constraint c join pg_inherits i on i.inhrelid = c.conrelid where c.conname = 'later'";
    let kept: i64 = sqlx::query_scalar(kept).fetch_one(&aggregator.db).await.unwrap();
    assert_eq!(kept as usize, leaves(&aggregator.db, "events").await.len());
    aggregator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gap_that_began_before_retention_is_cut() {
    let aggregator = Aggregator::start().await;
    let mut collector = Collector::connect(&aggregator, hello("n1", 1)).await.unwrap();
    let mut body = batch(0, 0);
    body.gaps.push(v1::Gap {
        cause: "collector_down".into(),
        from_ns: now_ns() - 200 * DAY_NS,
        to_ns: now_ns(),
        ..Default::default()
    });
    collector.send(1, &body).await;
    collector.acked(1).await;
    let days: f64 = sqlx::query_scalar("select extract(epoch from end_time - time)::float8 / 86400 from sonde.gaps")
        .fetch_one(&aggregator.db)
        .await
        .unwrap();
    assert!((89.9..90.1).contains(&days), "{days}");
    aggregator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_aggregators_share_a_database() {
    let database = Database::empty().await;
    // Both find nothing and migrate at the same time.
    let (a, b) = tokio::join!(
        Aggregator::on(&database, Storage::default()),
        Aggregator::on(&database, Storage::default())
    );
    let mut last = 0;
    for round in 0..5_u64 {
        for aggregator in [&a, &b] {
            let mut collector = Collector::connect(aggregator, hello("n1", 1)).await.unwrap();
            assert_eq!(collector.durable, last, "round {round}");
            last += 1;
            collector.send(last, &batch(1, 1)).await;
            collector.acked(last).await;
        }
    }
    let mut newest = a.store.newest_event();
    tokio::time::timeout(crate::fixture::PATIENCE, newest.wait_for(|id| *id == last as i64))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(b.count("sonde.events").await, last as i64);
    a.stop().await;
    b.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_of_a_newer_version_is_left_alone() {
    let database = Database::migrated().await;
    sqlx::query("insert into sonde_store.migrations values (9999, 'future', now(), true, '', 0)")
        .execute(&database.pool())
        .await
        .unwrap();
    let error = store::migrate(database.options.clone()).await.unwrap_err();
    assert!(matches!(error, OpenError::NewerSchema(9999)), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_somebody_dropped_is_made_again() {
    let aggregator = Aggregator::start().await;
    let mut collector = Collector::connect(&aggregator, hello("n1", 1)).await.unwrap();
    collector.send(1, &batch(1, 1)).await;
    collector.acked(1).await;
    sqlx::query("drop table sonde_store.key_netdev cascade")
        .execute(&aggregator.db)
        .await
        .unwrap();
    collector.send(2, &batch(1, 1)).await;
    let status = collector.refused().await;
    assert_eq!(status.code(), tonic::Code::Unavailable, "{status}");
    let mut collector = Collector::connect(&aggregator, hello("n1", 1)).await.unwrap();
    assert_eq!(collector.durable, 1);
    collector.send(2, &batch(1, 1)).await;
    collector.acked(2).await;
    assert_eq!(
        (
            aggregator.count("sonde.netdev").await,
            aggregator.count("sonde.events").await
        ),
        (1, 2)
    );
    aggregator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_column_that_changes_its_meaning_gets_a_new_version() {
    let aggregator = Aggregator::start().await;
    let mut old = Collector::connect(&aggregator, hello("old", 1)).await.unwrap();
    old.send(1, &batch(1, 0)).await;
    old.acked(1).await;
    let mut changed = hello("new", 1);
    let probe = &mut changed.catalogue.as_mut().unwrap().probes[0];
    probe.columns[0] = column("receive_bytes", v1::Kind::Gauge, "bytes", 0.0, &[]);
    let mut new = Collector::connect(&aggregator, changed).await.unwrap();
    let mut body = batch(1, 0);
    body.rows[0].columns[0].values = vec![-5];
    new.send(1, &body).await;
    new.acked(1).await;
    old.send(2, &batch(1, 0)).await;
    old.acked(2).await;
    for (count, from) in [
        (
            2,
            "sonde.netdev where node = 'old' and receive_bytes = 0 and receive_bytes_v2 is null",
        ),
        (
            1,
            "sonde.netdev where node = 'new' and receive_bytes is null and receive_bytes_v2 = -5",
        ),
        (
            1,
            "sonde.catalogue where probe = 'netdev' and column_name = 'receive_bytes_v2' and kind = 'gauge' \
             and name = 'receive_bytes' and version = 2 and not superseded",
        ),
        (
            1,
            "sonde.catalogue where probe = 'netdev' and column_name = 'receive_bytes' and kind = 'counter' and superseded",
        ),
    ] {
        assert_eq!(aggregator.count(from).await, count, "{from}");
    }
    aggregator.stop().await;
}

/// A database in which an aggregator stored one batch, and which nobody uses now.
async fn with_a_reading() -> Database {
    let database = Database::migrated().await;
    let aggregator = Aggregator::on(&database, Storage::default()).await;
    let mut collector = Collector::connect(&aggregator, hello("n1", 1)).await.unwrap();
    collector.send(1, &batch(1, 0)).await;
    collector.acked(1).await;
    aggregator.stop().await;
    database
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_an_earlier_version_stored_are_shown_until_they_expire() {
    let database = with_a_reading().await;

    // As migration 4 had it: a row for each series and reading, today and in the last days of what is kept.
    let today = jiff::Timestamp::now().strftime("%Y%m%d").to_string();
    let shape = "time timestamptz not null, node_id int not null, pod_id int not null, device int not null default 0, \
                 receive_bytes bigint, latency_seconds bigint[]";
    let sql = format!(
        "drop view sonde.netdev; drop view sonde_store.readings_netdev; \
         drop table sonde_store.key_netdev; drop table sonde_store.delta_netdev; \
         create table sonde_store.probe_netdev ({shape}) partition by range (time); \
         create table sonde_parts.probe_netdev_{today} partition of sonde_store.probe_netdev \
         for values from (current_date) to (current_date + 1); \
         insert into sonde_store.probe_netdev values (now(), 1, 0, 0, 77, array[1, 2, 3, 4])"
    );
    let mut utc = aggregator_connection(&database).await;
    sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(&mut utc).await.unwrap();

    let aggregator = Aggregator::on(&database, Storage::default()).await;
    let mut collector = Collector::connect(&aggregator, hello("n1", 1)).await.unwrap();
    collector.send(2, &batch(1, 0)).await;
    collector.acked(2).await;
    assert_eq!(aggregator.count("sonde.netdev").await, 2);
    assert_eq!(
        aggregator
            .count(
                "sonde.netdev where node = 'n1' and pod = '' and device = '' and receive_bytes = 77 \
                 and wait_seconds is null and latency_seconds = '{1,2,3,4}'"
            )
            .await,
        1
    );
    assert_eq!(aggregator.count("sonde_store.readings_netdev").await, 2);
    aggregator.stop().await;

    sqlx::raw_sql(sqlx::AssertSqlSafe(format!(
        "drop table sonde_parts.probe_netdev_{today}"
    )))
    .execute(&mut utc)
    .await
    .unwrap();
    let aggregator = Aggregator::on(&database, Storage::default()).await;
    assert_eq!(aggregator.count("pg_class where relname = 'probe_netdev'").await, 0);
    assert_eq!(aggregator.count("sonde.netdev").await, 1);
    aggregator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn views_of_an_earlier_version_are_made_again() {
    let database = with_a_reading().await;
    // Another way to compute a column, of which the readings view says nothing.
    let mut connection = aggregator_connection(&database).await;
    let definition: String = sqlx::query_scalar("select pg_get_viewdef('sonde.netdev'::regclass)")
        .fetch_one(&mut connection)
        .await
        .unwrap();
    let other = definition.trim_end_matches(';');
    let earlier = format!(
        "create or replace view sonde.netdev as select * from ({other}) o where false; \
         comment on view sonde_store.readings_netdev is null"
    );
    sqlx::raw_sql(sqlx::AssertSqlSafe(earlier))
        .execute(&mut connection)
        .await
        .unwrap();
    // Whoever stands on the view keeps it, and has what it shows now.
    sqlx::raw_sql("create view public.mine as select node from sonde.netdev")
        .execute(&mut connection)
        .await
        .unwrap();

    // A reader is not waited for, nor is it in the way of the start.
    sqlx::raw_sql("begin; select * from sonde.netdev")
        .execute(&mut connection)
        .await
        .unwrap();
    let aggregator = Aggregator::on(&database, Storage::default()).await;
    assert_eq!(aggregator.count("public.mine").await, 0);
    aggregator.stop().await;

    sqlx::raw_sql("commit").execute(&mut connection).await.unwrap();
    let aggregator = Aggregator::on(&database, Storage::default()).await;
    assert_eq!(aggregator.count("public.mine").await, 1);
    aggregator.stop().await;
}

async fn aggregator_connection(database: &Database) -> sqlx::PgConnection {
    use sqlx::ConnectOptions as _;
    let options = database.options.clone().options([("timezone", "UTC")]);
    options.connect().await.unwrap()
}
