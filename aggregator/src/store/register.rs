//! A collector says hello: its node gets a number, its probes get tables, its spool gets a cursor.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use sonde_common::time::now_ns;
use sonde_proto::v1;
use sqlx::Connection as _;
use sqlx::postgres::PgConnection;
use sqlx::types::Json;
use uuid::Uuid;

use super::batch::{Stream, StreamProbe};
use super::catalogue::{Conflict, Definition};
use super::database::{Trial, Trouble, classify, describe};
use super::partitions::{self, Day};
use super::rollup;
use super::tables::{self, delta_table, key_table};
use super::{Problem, ProblemKind, Store, distribution, schema};

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
    /// More than tables can have, with what other collectors said before.
    #[error("{0}")]
    TooMuch(String),
    /// Another collector of this name is connected to another aggregator.
    #[error("{0}")]
    Elsewhere(String),
    #[error("the database does not take it now: {0}")]
    Database(String),
}

/// A collector that waits longer for the answer to its hello asks another aggregator, or again.
const PATIENCE: Duration = Duration::from_secs(20);

/// A spool whose cursor was touched so long ago may still have its collector.
const ALIVE: Duration = Duration::from_secs(20);

/// Probes of all collectors together: each is a table with a partition a day.
const MOST_PROBES: usize = 1000;

/// A probe as `sonde_store.probes` has it.
type Stored = (String, String, Json<Definition>);

/// The probes that are known. Their tables are made where they are missing, as after an earlier version or a restore.
pub(super) async fn load_tables(connection: &mut PgConnection) -> sqlx::Result<HashMap<String, Arc<Definition>>> {
    let rows: Vec<Stored> = sqlx::query_as("select name, help, definition from sonde_store.probes")
        .fetch_all(&mut *connection)
        .await?;
    let there = table_columns(connection, rows.iter().map(|(name, ..)| name)).await?;
    for (name, help, Json(definition)) in &rows {
        if there[name.as_str()] != tables::column_count(definition) {
            let mut tx = connection.begin().await?;
            schema::lock(&mut tx).await?;
            tables::apply(&mut tx, name, help, definition).await?;
            tx.commit().await?;
        }
    }
    Ok(rows
        .into_iter()
        .map(|(name, _, Json(definition))| (name, Arc::new(definition)))
        .collect())
}

/// How many columns the tables of each probe have together. One question for all of them.
async fn table_columns<'a>(
    connection: &mut PgConnection,
    probes: impl Iterator<Item = &'a String>,
) -> sqlx::Result<HashMap<&'a str, usize>> {
    let probes: Vec<&str> = probes.map(String::as_str).collect();
    let tables: Vec<String> = probes.iter().flat_map(|p| [key_table(p), delta_table(p)]).collect();
    let columns: Vec<(String, i64)> = sqlx::query_as(
        "select c.relname::text, count(*) from pg_class c join pg_namespace n on n.oid = c.relnamespace \
         join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped \
         where n.nspname = 'sonde_store' and c.relname = any($1) group by 1",
    )
    .bind(&tables)
    .fetch_all(connection)
    .await?;
    let columns: HashMap<String, i64> = columns.into_iter().collect();
    let of = |table: String| columns.get(&table).copied().unwrap_or(0) as usize;
    Ok(probes
        .into_iter()
        .map(|p| (p, of(key_table(p)) + of(delta_table(p))))
        .collect())
}

impl Store {
    /// Makes tables and cursor ready. Nothing of this collector is changed when one of its probes is refused.
    pub async fn register(&self, newcomer: &Newcomer) -> Result<Registered, RegisterError> {
        let status = self.status();
        if let Some(problem) = status.problem
            && (!status.prepared || problem.kind == ProblemKind::OtherSchema)
        {
            return Err(RegisterError::Database(problem.why));
        }
        let registering = async {
            match self.try_register(newcomer).await {
                Err(Failure::Database(e)) if classify(&e) == Trouble::SchemaLost => {
                    tracing::error!(error = %describe(&e), "tables are missing, making them again");
                    let mut connection = self.inner.pools.admin.acquire().await?;
                    schema::migrate(&mut connection)
                        .await
                        .map_err(|e| Trial::error(e.to_string()))?;
                    self.try_register(newcomer).await
                }
                result => result,
            }
        };
        let registered = tokio::time::timeout(PATIENCE, registering).await;
        let registered = registered.unwrap_or_else(|_| {
            let why = format!("no answer within {} s", PATIENCE.as_secs());
            Err(Failure::Database(Trial::error(why)))
        });
        registered.map_err(|failure| match failure {
            Failure::Conflict(conflict @ Conflict::TooMany { .. }) => RegisterError::TooMuch(conflict.to_string()),
            Failure::Conflict(conflict) => RegisterError::Conflict(conflict),
            Failure::TooMuch(what) => RegisterError::TooMuch(what),
            Failure::Elsewhere(what) => RegisterError::Elsewhere(what),
            Failure::Database(e) => RegisterError::Database(describe(&e)),
        })
    }

    /// What has to be made is made to its end, also when the collector that waits for it loses its patience: it finds
    /// it there when it asks again. Hundreds of columns may take longer than that on a slow machine.
    async fn try_register(&self, newcomer: &Newcomer) -> Result<Registered, Failure> {
        let turn = Arc::clone(&self.inner.registering).acquire_owned().await;
        let mut connection = self.inner.pools.admin.acquire().await?;
        let (store, newcomer) = (self.clone(), newcomer.clone());
        let registering = tokio::spawn(async move {
            let _turn = turn;
            let result = store.register_on(&mut connection, &newcomer).await;
            if let Err(Failure::Database(e)) = &result
                && Problem::from(e).kind == ProblemKind::ReadOnly
            {
                // Opened while the database moved to another host: it must not serve the next one.
                let _ = connection.close().await;
            }
            result
        });
        registering
            .await
            .unwrap_or_else(|_| Err(Trial::error("the aggregator failed on it".into()).into()))
    }

    async fn register_on(&self, connection: &mut PgConnection, newcomer: &Newcomer) -> Result<Registered, Failure> {
        let generation = self.inner.health.generation();
        if let Some(other) = self.elsewhere(connection, newcomer).await? {
            return Err(Failure::Elsewhere(other));
        }
        let mut known = stored(connection, newcomer).await?;
        if !is_complete(connection, &known, newcomer).await? {
            let mut tx = connection.begin().await?;
            sqlx::query("set local lock_timeout = '10s'").execute(&mut *tx).await?;
            schema::lock(&mut tx).await?;
            known = stored(&mut tx, newcomer).await?;
            widen(&mut tx, &mut known, newcomer).await?;
            distribution::spread(&mut tx, self.inner.distribution).await?;
            tx.commit().await?;
        }
        let mut tx = schema::begin(connection).await?;
        let node_id = node(&mut tx, newcomer).await?;
        tx.commit().await?;
        // On its own: it may wait for a transaction of the writer.
        let mut tx = schema::begin(connection).await?;
        let (durable, claim) = claim(&mut tx, node_id, newcomer.epoch).await?;
        tx.commit().await?;
        let mut probes = HashMap::new();
        let mut tables = self.inner.tables.write();
        if self.inner.health.generation() != generation {
            return Err(Trial::error("the tables have changed meanwhile".into()).into());
        }
        for probe in &newcomer.catalogue.probes {
            let (_, definition) = known.remove(&probe.name).expect("made or read above");
            // Another stream may have widened it since we read it: columns are only added, so the longer one is newer.
            let table = tables.entry(probe.name.clone()).or_default();
            let size = |d: &Definition| d.labels.len() + d.columns.len();
            if size(&definition) >= size(table) && definition != **table {
                *table = Arc::new(definition);
            }
            // A thousand collectors of one version hold one copy of what they all say.
            let said = Definition::from_proto(probe);
            let said = if said == **table {
                Arc::clone(table)
            } else {
                Arc::new(said)
            };
            probes.insert(probe.name.clone(), StreamProbe::new(said, Arc::clone(table)));
        }
        // Nor does each hold where what it says is in the tables.
        let mut said = self.inner.said.lock();
        if **said != probes {
            *said = Arc::new(probes);
        }
        let probes = Arc::clone(&said);
        let stream = Stream::new_in(
            generation,
            &newcomer.node,
            node_id,
            (newcomer.epoch, claim),
            probes,
            durable,
        );
        Ok(Registered { stream })
    }
}

impl Store {
    /// Whether another spool under this name stores through another aggregator at this time. Of our own streams we know
    /// ourselves, also that they have ended.
    async fn elsewhere(&self, connection: &mut PgConnection, newcomer: &Newcomer) -> sqlx::Result<Option<String>> {
        let others: Vec<(Uuid, Option<Uuid>, f64)> = sqlx::query_as(
            "select c.epoch, n.boot_id, extract(epoch from now() - c.updated)::float8 from sonde_store.cursors c \
             join sonde_store.nodes n on n.id = c.node_id where n.name = $1 and c.epoch <> $2 \
             and c.updated > now() - make_interval(secs => $3) order by c.updated desc",
        )
        .bind(&newcomer.node)
        .bind(newcomer.epoch)
        .bind(ALIVE.as_secs_f64())
        .fetch_all(connection)
        .await?;
        let gone = |epoch: &Uuid| self.streams().has_left(&newcomer.node, *epoch);
        let other = others.into_iter().find(|(epoch, ..)| !gone(epoch));
        Ok(other.map(|(epoch, boot_id, age)| {
            let machine = if boot_id == Some(newcomer.boot_id) {
                "the same boot id"
            } else {
                "another boot id, so it is another machine or this one before it was started again"
            };
            format!(
                "node {} stored {age:.0} s ago through another aggregator with another spool (epoch {epoch}, {machine}): \
                 each node needs a name of its own; if that collector is gone, its place becomes free within {} s",
                newcomer.node,
                ALIVE.as_secs()
            )
        }))
    }
}

/// Inside: the database error is still needed whole.
enum Failure {
    Conflict(Conflict),
    TooMuch(String),
    Elsewhere(String),
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
    // A view may be gone while its table is there, with whatever it stood on.
    let views: Vec<&str> = newcomer.catalogue.probes.iter().map(|p| p.name.as_str()).collect();
    let gone: i64 = sqlx::query_scalar(
        "select count(*) from unnest($1::text[]) name where to_regclass('sonde.' || quote_ident(name)) is null",
    )
    .bind(views)
    .fetch_one(&mut *connection)
    .await?;
    if gone > 0 {
        return Ok(false);
    }
    // Definitions are only words: the tables must have the columns too.
    let there = table_columns(connection, newcomer.catalogue.probes.iter().map(|p| &p.name)).await?;
    let whole = |(probe, (_, definition)): (&String, &(String, Definition))| {
        there.get(probe.as_str()) == Some(&tables::column_count(definition))
    };
    Ok(known.iter().all(whole))
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
        let after = before.merged(&probe.name, &said).map_err(Failure::Conflict)?;
        merged.push((probe, after));
    }
    let others: i64 = sqlx::query_scalar("select count(*) from sonde_store.probes where name <> all($1)")
        .bind(merged.iter().map(|(probe, _)| probe.name.as_str()).collect::<Vec<_>>())
        .fetch_one(&mut *tx)
        .await?;
    let probes = merged.len() + others as usize;
    if probes > MOST_PROBES {
        return Err(Failure::TooMuch(format!(
            "catalogue: {probes} probes with those of other collectors, expected at most {MOST_PROBES}"
        )));
    }
    let today = Day::of(now_ns());
    for (probe, definition) in merged {
        tables::apply(tx, &probe.name, &probe.help, &definition).await?;
        rollup::tables::apply(tx, &probe.name, &definition).await?;
        for table in [key_table(&probe.name), delta_table(&probe.name)] {
            partitions::ensure_in(tx, &[(table.clone(), today), (table, today.next())]).await?;
        }
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

/// The last durable sequence of this spool, and the claim that its new stream has. A transaction that is storing what an
/// earlier stream sent is waited for: its row is locked.
async fn claim(connection: &mut PgConnection, node_id: i32, epoch: Uuid) -> sqlx::Result<(u64, i64)> {
    let (sequence, claim): (i64, i64) = sqlx::query_as(
        "insert into sonde_store.cursors as c (node_id, epoch, sequence, claim) values ($1, $2, 0, 1) \
         on conflict (node_id, epoch) do update set claim = c.claim + 1 returning sequence, claim",
    )
    .bind(node_id)
    .bind(epoch)
    .fetch_one(connection)
    .await?;
    Ok((sequence as u64, claim))
}
