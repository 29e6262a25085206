//! The tables on a Citus cluster (`storage.distribution: citus`): what is measured is spread over the workers by node, what it
//! is joined with is on each of them, and everything else stays where it is made. All statements of Citus are here.

use sonde_common::config::Distribution;
use sqlx::postgres::PgConnection;

use super::database::Trial;
use super::schema::ident;

/// What views join with rows and events, referenced ones first. Small, and read much more often than written.
const ON_EVERY_WORKER: [&str; 5] = ["nodes", "pods", "strings", "stacks", "cluster_objects"];

/// Spreads the tables that are not spread yet. Inside a transaction that holds the schema lock.
pub(super) async fn spread(tx: &mut PgConnection, distribution: Distribution) -> sqlx::Result<()> {
    if distribution == Distribution::None {
        return Ok(());
    }
    let functions: i64 = sqlx::query_scalar(
        "select count(distinct proname) from pg_proc where pg_function_is_visible(oid) \
         and proname in ('create_distributed_table', 'create_reference_table')",
    )
    .fetch_one(&mut *tx)
    .await?;
    if functions < 2 {
        let why = "storage.distribution: `citus`: the database has no extension citus; expected one where \
                   `create extension citus` was done, or `none`";
        return Err(Trial::error(why.into()));
    }
    let reference: Vec<String> = sqlx::query_scalar(
        "select name from unnest($1::text[]) with ordinality as wanted(name, place) \
         join pg_class c on c.oid = to_regclass('sonde_store.' || quote_ident(name)) \
         where not exists (select from pg_dist_partition d where d.logicalrelid = c.oid) order by place",
    )
    .bind(ON_EVERY_WORKER.map(String::from).to_vec())
    .fetch_all(&mut *tx)
    .await?;
    for table in reference {
        sqlx::query("select create_reference_table($1::text::regclass)")
            .bind(format!("sonde_store.{}", ident(&table)))
            .execute(&mut *tx)
            .await?;
    }
    // Their partitions go with them, those that are attached later too.
    let by_node: Vec<String> = sqlx::query_scalar(
        "select c.relname::text from pg_class c join pg_namespace n on n.oid = c.relnamespace \
         join pg_attribute a on a.attrelid = c.oid and a.attname = 'node_id' and not a.attisdropped \
         where n.nspname = 'sonde_store' and c.relkind = 'p' and not c.relispartition \
         and not exists (select from pg_dist_partition d where d.logicalrelid = c.oid) order by 1",
    )
    .fetch_all(&mut *tx)
    .await?;
    for table in by_node {
        sqlx::query("select create_distributed_table($1::text::regclass, 'node_id')")
            .bind(format!("sonde_store.{}", ident(&table)))
            .execute(&mut *tx)
            .await?;
    }
    Ok(())
}
