//! The indexes of events: of a new database, and of one that is older than the index for searches.

use sonde_aggregator::store::Rolled;
use sonde_common::time::now_ns;
use sqlx::PgPool;

use crate::fixture::{Aggregator, Collector, batch, hello};

/// Indexes of the table and of each partition, by what they are on; whether the one for searches is valid.
async fn indexes(db: &PgPool) -> (Vec<String>, Vec<i64>, Option<bool>) {
    let parent: Vec<String> = sqlx::query_scalar(
        "select substring(pg_get_indexdef(indexrelid) from 'USING (.*?\\))( WITH|$)') from pg_index \
         where indrelid = 'sonde_store.events'::regclass order by 1",
    )
    .fetch_all(db)
    .await
    .unwrap();
    let leaves: Vec<i64> = sqlx::query_scalar(
        "select count(x) from pg_inherits i left join pg_index x on x.indrelid = i.inhrelid and x.indisvalid \
         where inhparent = 'sonde_store.events'::regclass group by i.inhrelid",
    )
    .fetch_all(db)
    .await
    .unwrap();
    let valid =
        sqlx::query_scalar("select indisvalid from pg_index where indexrelid = to_regclass('sonde_store.events_find')")
            .fetch_optional(db)
            .await
            .unwrap();
    (parent, leaves, valid)
}

/// Parts of indexes of slots of time for which the planner gets statistics, and all.
async fn slots_with_statistics(db: &PgPool) -> (i64, i64) {
    sqlx::query_as(
        "select count(*) filter (where a.attstattarget is distinct from 0), count(*) from pg_inherits i \
         join pg_attribute a on a.attrelid = i.inhrelid and a.attnum = 1 \
         where i.inhparent in ('sonde_store.events_find'::regclass, 'sonde_store.events_slow'::regclass)",
    )
    .fetch_one(db)
    .await
    .unwrap()
}

const SLOT: &str = "(floor((EXTRACT(epoch FROM (\"time\" AT TIME ZONE 'UTC'::text)) / (600)::numeric)))::integer";

/// Those of the table, in the order of the alphabet.
fn wanted() -> [String; 4] {
    [
        "brin (id)".to_owned(),
        "btree (\"time\", id)".to_owned(),
        format!("btree (({SLOT}), latency_ns) WHERE (latency_ns IS NOT NULL)"),
        format!(
            "gin (({SLOT}), pod_id, node_id, type, reason, protocol, saddr, daddr, sport, dport, comm, stack_id, \
             attributes jsonb_path_ops)"
        ),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn partitions_of_a_new_database_have_one_index_for_searches() {
    let aggregator = Aggregator::start().await;
    let (parent, leaves, valid) = indexes(&aggregator.db).await;
    assert_eq!(parent, wanted());
    assert_eq!(leaves, [4, 4], "today and tomorrow");
    assert_eq!(valid, Some(true));
    assert_eq!(slots_with_statistics(&aggregator.db).await, (0, 4));
    aggregator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn partitions_that_are_older_get_it_one_by_one_and_lose_what_it_replaces() {
    let aggregator = Aggregator::start().await;
    let db = &aggregator.db;
    // As it was before, with an index that was left half made.
    sqlx::raw_sql(
        "drop index sonde_store.events_find, sonde_store.events_slow; drop extension btree_gin; \
         create index events_slow on only sonde_store.events \
             ((floor(extract(epoch from time at time zone 'UTC') / 600)::int), latency_ns) where latency_ns is not null; \
         create index events_latency on sonde_store.events (latency_ns) where latency_ns is not null; \
         create index events_pod_id_time_id_idx on sonde_store.events (pod_id, time, id); \
         create index events_type_time_id_idx on sonde_store.events (type, time, id)",
    )
    .execute(db)
    .await
    .unwrap();
    let mut collector = Collector::connect(&aggregator, hello("n1", 1)).await.unwrap();
    collector.send(1, &batch(0, 50)).await;
    collector.acked(1).await;
    let roll = || async { assert_eq!(aggregator.store.roll_up(now_ns()).await.unwrap(), Rolled::Up) };
    roll().await;
    let (parent, mut leaves, valid) = indexes(db).await;
    assert_eq!((parent.len(), valid), (7, Some(false)), "{parent:?}");
    leaves.sort_unstable();
    assert_eq!(leaves, [5, 6], "one of two has it");
    let half = "do $$ begin execute format('create index %I on sonde_parts.%I (type)', n || '_find', n); \
         update pg_index set indisvalid = false where indexrelid = ('sonde_parts.' || n || '_find')::regclass; end $$";
    let today: String =
        sqlx::query_scalar("select min(relname)::text from pg_class where relname like 'events_2%' and relkind = 'r'")
            .fetch_one(db)
            .await
            .unwrap();
    sqlx::raw_sql(sqlx::AssertSqlSafe(
        half.replace("n ||", &format!("'{today}' ||"))
            .replace(", n)", &format!(", '{today}')")),
    ))
    .execute(db)
    .await
    .unwrap();
    for _ in 0..4 {
        roll().await;
    }
    let (parent, leaves, valid) = indexes(db).await;
    assert_eq!(parent, wanted());
    assert_eq!((leaves, valid), (vec![4, 4], Some(true)));
    assert_eq!(slots_with_statistics(db).await, (0, 4));
    assert_eq!(aggregator.count("sonde.events where type = 'PACKETLOSS'").await, 50);
    aggregator.stop().await;
}
