//! `storage.distribution: citus`: which statements are made. Functions stand in for the extension and write down what they
//! are called with: whether Citus does with the tables what it is asked is not shown by this.

use sonde_aggregator::store::ProblemKind;
use sonde_aggregator::testing::Database;
use sonde_common::config::{Distribution, Storage};
use sonde_proto::v1;

use crate::fixture::{Aggregator, Collector, batch, hello};
use crate::hellos::probe;

const STAND_IN: &str = "
    create table calls (id int generated always as identity, what text);
    create table pg_dist_partition (logicalrelid regclass);
    create function create_reference_table(name regclass) returns void language sql as $$
        insert into calls (what) values ('reference ' || name);
        insert into pg_dist_partition values (name) $$;
    create function create_distributed_table(name regclass, by text) returns void language sql as $$
        insert into calls (what) values ('distributed ' || name || ' by ' || by);
        insert into pg_dist_partition values (name) $$;";

fn citus() -> Storage {
    Storage {
        distribution: Distribution::Citus,
        ..Storage::default()
    }
}

async fn calls(aggregator: &Aggregator) -> Vec<String> {
    let calls = sqlx::query_scalar("select what from calls order by id");
    calls.fetch_all(&aggregator.db).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn fixed_tables_and_those_of_probes_are_spread_once() {
    let database = Database::empty().await;
    let db = database.pool();
    sqlx::raw_sql(STAND_IN).execute(&db).await.unwrap();
    let aggregator = Aggregator::on(&database, citus()).await;
    let fixed = calls(&aggregator).await;
    let reference = ["nodes", "pods", "strings", "stacks", "cluster_objects"];
    let expected: Vec<_> = reference.iter().map(|t| format!("reference sonde_store.{t}")).collect();
    assert_eq!(fixed[..5], expected);
    for table in ["events", "gaps"] {
        let call = format!("distributed sonde_store.{table} by node_id");
        assert!(fixed[5..].contains(&call), "{call}: {fixed:?}");
    }
    let mut collector = Collector::connect(&aggregator, hello("n1", 1)).await.unwrap();
    let made = calls(&aggregator).await;
    for table in ["key_netdev", "delta_netdev", "r1m_netdev", "r1h_netdev"] {
        let call = format!("distributed sonde_store.{table} by node_id");
        assert!(made[fixed.len()..].contains(&call), "{call}: {made:?}");
    }
    collector.send(1, &batch(2, 1)).await;
    collector.acked(1).await;

    // A wider catalogue and another aggregator find them spread.
    let mut wider = hello("n2", 1);
    probe(&mut wider).columns.push(v1::ColumnDef {
        name: "more".into(),
        kind: v1::Kind::Gauge.into(),
        ..Default::default()
    });
    Collector::connect(&aggregator, wider).await.unwrap();
    let second = Aggregator::on(&database, citus()).await;
    assert_eq!(calls(&second).await, made);
    aggregator.stop().await;
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_without_the_extension_is_named_and_waited_for() {
    let database = Database::migrated().await;
    let aggregator = Aggregator::at(database.options.clone(), database.pool(), citus()).await;
    let why = aggregator.problem(ProblemKind::Away).await;
    assert!(
        why.starts_with("storage.distribution: `citus`: the database has no extension citus;"),
        "{why}"
    );
    aggregator.execute(STAND_IN).await;
    aggregator.up().await;
    aggregator.stop().await;
}
