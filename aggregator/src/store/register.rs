//! A collector says hello: its node gets a number, its probes get tables, its spool gets a cursor.

use std::collections::HashMap;
use std::sync::Arc;

use sonde_common::time::now_ns;
use sonde_proto::v1;
use sqlx::Connection as _;
use sqlx::postgres::{PgConnection, PgPool};
use sqlx::types::Json;
use uuid::Uuid;

use super::batch::{Stream, StreamProbe};
use super::catalogue::{Conflict, Definition};
use super::database::{Trouble, classify, describe};
use super::partitions::{self, Day};
use super::rollup;
use super::tables::{self, table_name};
use super::{Store, schema};

/// What a collector says of itself, checked.
#[derive(Clone, Debug)]
pub struct Newcomer {
    pub node: String,
    pub boot_id: Uuid,
    pub epoch: Uuid,
    pub version: String,
    pub kernel: String,
    pub interval_ns: u64,
    pub catalogue: v1::Catalogue,
}

/// Its stream is open.
#[derive(Clone, Debug)]
pub struct Registered {
    pub stream: Arc<Stream>,
}

#[derive(Debug, thiserror::Error)]
pub enum RegisterError {
    #[error(transparent)]
    Conflict(#[from] Conflict),
    #[error("the database does not take it now: {0}")]
    Database(String),
}

/// A probe as `sonde_store.probes` has it.
type Stored = (String, String, Json<Definition>);

pub(super) async fn load_tables(pool: &PgPool) -> sqlx::Result<HashMap<String, Arc<Definition>>> {
    let rows: Vec<Stored> = sqlx::query_as("select name, help, definition from sonde_store.probes")
        .fetch_all(pool)
        .await?;
    Ok(rows
        .into_iter()
        .map(|(name, _, Json(definition))| (name, Arc::new(definition)))
        .collect())
}

impl Store {
    /// Makes tables and cursor ready. Nothing of this collector is changed when one of its probes is refused.
    pub async fn register(&self, newcomer: &Newcomer) -> Result<Registered, RegisterError> {
        let failed = |e: sqlx::Error| RegisterError::Database(describe(&e));
        match self.try_register(newcomer).await {
            Err(Failure::Database(e)) if classify(&e) == Trouble::SchemaLost => {
                tracing::error!(error = %describe(&e), "tables are missing, making them again");
                schema::migrate(&self.inner.admin)
                    .await
                    .map_err(|e| RegisterError::Database(e.to_string()))?;
                self.try_register(newcomer).await
            }
            result => result,
        }
        .map_err(|failure| match failure {
            Failure::Conflict(conflict) => RegisterError::Conflict(conflict),
            Failure::Database(e) => failed(e),
        })
    }

    async fn try_register(&self, newcomer: &Newcomer) -> Result<Registered, Failure> {
        let _turn = self.inner.registering.acquire().await;
        let mut connection = self.inner.admin.acquire().await?;
        let mut known = stored(&mut connection, newcomer).await?;
        if !is_complete(&mut connection, &known, newcomer).await? {
            let mut tx = connection.begin().await?;
            sqlx::query("set local lock_timeout = '10s'").execute(&mut *tx).await?;
            schema::lock(&mut tx).await?;
            known = stored(&mut tx, newcomer).await?;
            widen(&mut tx, &mut known, newcomer).await?;
            tx.commit().await?;
        }
        let node_id = node(&mut connection, newcomer).await?;
        let durable = cursor(&mut connection, node_id, newcomer.epoch).await?;
        let mut probes = HashMap::new();
        let mut tables = self.inner.tables.write();
        for probe in &newcomer.catalogue.probes {
            let (_, definition) = known.remove(&probe.name).expect("made or read above");
            // Another stream may have widened it since we read it: columns are only added, so the longer one is newer.
            let table = tables.entry(probe.name.clone()).or_default();
            let size = |d: &Definition| d.labels.len() + d.columns.len();
            if size(&definition) >= size(table) {
                *table = Arc::new(definition);
            }
            let said = Definition::from_proto(probe);
            probes.insert(probe.name.clone(), StreamProbe::new(said, Arc::clone(table)));
        }
        let stream = Stream::new(&newcomer.node, node_id, newcomer.epoch, probes, durable);
        Ok(Registered { stream })
    }
}

/// Inside: the database error is still needed whole.
enum Failure {
    Conflict(Conflict),
    Database(sqlx::Error),
}

impl From<sqlx::Error> for Failure {
    fn from(e: sqlx::Error) -> Self {
        Self::Database(e)
    }
}

/// Help and definition by probe, of those that the newcomer speaks of.
type Known = HashMap<String, (String, Definition)>;

async fn stored(connection: &mut PgConnection, newcomer: &Newcomer) -> sqlx::Result<Known> {
    let names: Vec<&str> = newcomer.catalogue.probes.iter().map(|p| p.name.as_str()).collect();
    let rows: Vec<Stored> =
        sqlx::query_as("select name, help, definition from sonde_store.probes where name = any($1)")
            .bind(names)
            .fetch_all(connection)
            .await?;
    Ok(rows
        .into_iter()
        .map(|(name, help, Json(definition))| (name, (help, definition)))
        .collect())
}

/// Whether nothing has to be made: the usual case when a collector connects again.
async fn is_complete(connection: &mut PgConnection, known: &Known, newcomer: &Newcomer) -> Result<bool, Failure> {
    for probe in &newcomer.catalogue.probes {
        let Some((help, definition)) = known.get(&probe.name) else {
            return Ok(false);
        };
        let merged = definition
            .merged(&probe.name, &Definition::from_proto(probe))
            .map_err(Failure::Conflict)?;
        if merged != *definition || *help != probe.help {
            return Ok(false);
        }
    }
    // Definitions are only words: the tables must have the columns too. One question for all of them.
    let tables: Vec<String> = newcomer.catalogue.probes.iter().map(|p| table_name(&p.name)).collect();
    let columns: Vec<(String, i64)> = sqlx::query_as(
        "select c.relname::text, count(*) from pg_class c join pg_namespace n on n.oid = c.relnamespace \
         join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped \
         where n.nspname = 'sonde_store' and c.relname = any($1) group by 1",
    )
    .bind(&tables)
    .fetch_all(connection)
    .await?;
    let columns: HashMap<String, i64> = columns.into_iter().collect();
    Ok(newcomer.catalogue.probes.iter().all(|probe| {
        let (_, definition) = &known[&probe.name];
        let wanted = 3 + definition.labels.len() + definition.columns.len();
        columns.get(&table_name(&probe.name)).copied() == Some(wanted as i64)
    }))
}

/// Makes and widens tables, views and today's partitions. All checks come before the first change.
async fn widen(tx: &mut PgConnection, known: &mut Known, newcomer: &Newcomer) -> Result<(), Failure> {
    let mut merged = Vec::new();
    for probe in &newcomer.catalogue.probes {
        let said = Definition::from_proto(probe);
        let before = known
            .get(&probe.name)
            .map(|(_, definition)| definition.clone())
            .unwrap_or_default();
        merged.push((probe, before.merged(&probe.name, &said).map_err(Failure::Conflict)?));
    }
    let today = Day::of(now_ns());
    for (probe, definition) in merged {
        tables::apply(tx, &probe.name, &probe.help, &definition).await?;
        rollup::tables::apply(tx, &probe.name, &definition).await?;
        let table = table_name(&probe.name);
        partitions::ensure_in(tx, &[(table.clone(), today), (table, today.next())]).await?;
        sqlx::query(
            "insert into sonde_store.probes (name, help, definition) values ($1, $2, $3) \
             on conflict (name) do update set help = excluded.help, definition = excluded.definition, updated = now()",
        )
        .bind(&probe.name)
        .bind(&probe.help)
        .bind(Json(&definition))
        .execute(&mut *tx)
        .await?;
        known.insert(probe.name.clone(), (probe.help.clone(), definition));
    }
    Ok(())
}

async fn node(connection: &mut PgConnection, newcomer: &Newcomer) -> sqlx::Result<i32> {
    sqlx::query_scalar(
        "insert into sonde_store.nodes (name, boot_id, version, kernel, interval_ns) values ($1, $2, $3, $4, $5) \
         on conflict (name) do update set boot_id = excluded.boot_id, version = excluded.version, \
         kernel = excluded.kernel, interval_ns = excluded.interval_ns, last_seen = now() returning id",
    )
    .bind(&newcomer.node)
    .bind(newcomer.boot_id)
    .bind(&newcomer.version)
    .bind(&newcomer.kernel)
    .bind(newcomer.interval_ns as i64)
    .fetch_one(connection)
    .await
}

/// The last durable sequence of this spool.
async fn cursor(connection: &mut PgConnection, node_id: i32, epoch: Uuid) -> sqlx::Result<u64> {
    sqlx::query("insert into sonde_store.cursors (node_id, epoch, sequence) values ($1, $2, 0) on conflict do nothing")
        .bind(node_id)
        .bind(epoch)
        .execute(&mut *connection)
        .await?;
    let sequence: i64 =
        sqlx::query_scalar("select sequence from sonde_store.cursors where node_id = $1 and epoch = $2")
            .bind(node_id)
            .bind(epoch)
            .fetch_one(connection)
            .await?;
    Ok(sequence as u64)
}
