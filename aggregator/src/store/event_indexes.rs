//! The indexes of event searches, for partitions that are older than they are: built one at a time, newest first, while events
//! are stored. When all have them, the indexes go that they replace. New partitions have them from the start.

use sqlx::{AssertSqlSafe, PgConnection};

use super::database::{describe, waited_too_long};
use super::schema::ident;

/// The index for searches.
const SEARCH: &str = "events_find";
const CREATE: &str = "create extension if not exists btree_gin with schema sonde_store; \
     create index events_find on only sonde_store.events \
     using gin ((floor(extract(epoch from time at time zone 'UTC') / 600)::int), pod_id, node_id, type, reason, protocol, saddr, daddr, \
     sport, dport, comm, stack_id, attributes jsonb_path_ops) with (gin_pending_list_limit = 1024)";

/// What every partition is to have, and how its part is called: the partition, then this.
const WANTED: [(&str, &str); 2] = [(SEARCH, "find"), ("events_slow", "slow")];

/// Indexes that others replace, and which.
const REPLACED: [(&str, &str); 4] = [
    ("events_pod_id_time_id_idx", SEARCH),
    ("events_type_time_id_idx", SEARCH),
    ("events_search", SEARCH),
    ("events_latency", "events_slow"),
];

/// One step on the way. Whether another one is left. One caller at a time.
pub(super) async fn complete(db: &mut PgConnection) -> sqlx::Result<bool> {
    let search = make_search(db).await?;
    for (index, suffix) in WANTED {
        if index == SEARCH && !search {
            continue;
        }
        if let Some(leaf) = without(db, index).await? {
            build(db, &leaf, (index, suffix)).await?;
            return Ok(true);
        }
    }
    let replaced = REPLACED.iter().filter(|(_, by)| *by != SEARCH || search);
    drop_replaced(db, &replaced.map(|(index, _)| *index).collect::<Vec<_>>()).await?;
    Ok(false)
}

/// Whether there is the index for searches, which needs an extension.
async fn make_search(db: &mut PgConnection) -> sqlx::Result<bool> {
    let exists: bool = sqlx::query_scalar("select to_regclass('sonde_store.' || $1) is not null")
        .bind(SEARCH)
        .fetch_one(&mut *db)
        .await?;
    if exists {
        return Ok(true);
    }
    let available: bool =
        sqlx::query_scalar("select exists (select from pg_available_extensions where name = 'btree_gin')")
            .fetch_one(&mut *db)
            .await?;
    if !available {
        tracing::debug!("the extension btree_gin is not installed, event searches use fewer indexes");
        return Ok(false);
    }
    match sqlx::raw_sql(CREATE).execute(&mut *db).await {
        Ok(_) => {
            tracing::info!("event searches get an index for all filters");
            Ok(true)
        }
        Err(sqlx::Error::Database(e)) => {
            let error = describe(&sqlx::Error::Database(e));
            tracing::debug!(
                error,
                "the extension btree_gin cannot be created, event searches use fewer indexes"
            );
            Ok(false)
        }
        Err(e) => Err(e),
    }
}

/// The newest partition that has no part of the index.
async fn without(db: &mut PgConnection, index: &str) -> sqlx::Result<Option<String>> {
    sqlx::query_scalar(
        "select c.relname::text from pg_inherits i join pg_class c on c.oid = i.inhrelid \
         where i.inhparent = 'sonde_store.events'::regclass and not exists (\
             select from pg_index x join pg_inherits xi on xi.inhrelid = x.indexrelid \
             where x.indrelid = c.oid and xi.inhparent = to_regclass('sonde_store.' || $1)) \
         order by 1 desc limit 1",
    )
    .bind(index)
    .fetch_optional(db)
    .await
}

async fn build(db: &mut PgConnection, leaf: &str, (parent, suffix): (&str, &str)) -> sqlx::Result<()> {
    let name = format!("{leaf}_{suffix}");
    let index = format!("sonde_parts.{}", ident(&name));
    // What was ended in the middle leaves an index that nobody uses.
    let valid: Option<bool> = sqlx::query_scalar("select indisvalid from pg_index where indexrelid = to_regclass($1)")
        .bind(&index)
        .fetch_optional(&mut *db)
        .await?;
    if valid == Some(false) {
        run(db, &format!("drop index concurrently if exists {index}")).await?;
    }
    if valid != Some(true) {
        let columns: String = sqlx::query_scalar(
            "select substring(pg_get_indexdef(to_regclass('sonde_store.' || $1)) from ' USING .*$')",
        )
        .bind(parent)
        .fetch_one(&mut *db)
        .await?;
        let leaf = ident(leaf);
        run(
            db,
            &format!(
                "create index concurrently {} on sonde_parts.{leaf}{columns}",
                ident(&name)
            ),
        )
        .await?;
    }
    run(
        db,
        &format!("alter index sonde_store.{} attach partition {index}", ident(parent)),
    )
    .await?;
    without_statistics(db, leaf).await?;
    tracing::info!(
        partition = leaf,
        index = parent,
        "a partition of events has an index for searches now"
    );
    Ok(())
}

/// Of slots, as migration 0016 has it for partitions of its time.
pub(super) async fn without_statistics(db: &mut PgConnection, leaf: &str) -> sqlx::Result<()> {
    let indexes: Vec<String> = sqlx::query_scalar(
        "select i.inhrelid::regclass::text from pg_inherits i join pg_index x on x.indexrelid = i.inhrelid \
         join pg_attribute a on a.attrelid = i.inhrelid and a.attnum = 1 \
         where x.indrelid = to_regclass('sonde_parts.' || quote_ident($1)) and a.attstattarget is distinct from 0 \
             and i.inhparent = any(array(select to_regclass('sonde_store.' || name) from unnest($2) name))",
    )
    .bind(leaf)
    .bind(WANTED.map(|(index, _)| index))
    .fetch_all(&mut *db)
    .await?;
    for index in indexes {
        run(db, &format!("alter index {index} alter column 1 set statistics 0")).await?;
    }
    Ok(())
}

/// A reader that holds the table makes this wait for another time, not everybody behind it.
async fn drop_replaced(db: &mut PgConnection, replaced: &[&str]) -> sqlx::Result<()> {
    let there: Vec<String> = sqlx::query_scalar(
        "select relname::text from pg_class where relnamespace = 'sonde_store'::regnamespace and relname = any($1)",
    )
    .bind(replaced)
    .fetch_all(&mut *db)
    .await?;
    for index in there {
        // One list of statements is one transaction.
        let sql = format!(
            "set local lock_timeout = '1s'; drop index sonde_store.{}",
            ident(&index)
        );
        match run(db, &sql).await {
            Err(e) if waited_too_long(&e) => return Ok(()),
            result => result?,
        }
        tracing::info!(index, "dropped an index that the one for searches replaces");
    }
    Ok(())
}

async fn run(db: &mut PgConnection, sql: &str) -> sqlx::Result<()> {
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(db).await?;
    Ok(())
}
