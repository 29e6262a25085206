//! Facts of the cluster and its changes: written by one aggregator, the one that holds the advisory lock.

pub(crate) mod addresses;
mod rows;

use std::collections::HashSet;
use std::sync::atomic::Ordering;

use serde::Serialize;
use serde_json::{Value, json};
use sonde_common::time::now_ns;
use sqlx::postgres::PgConnection;
use sqlx::types::Json;
use sqlx::{Connection as _, Row as _};

use super::Store;
use super::database::{self, Trouble, classify, describe};
use super::partitions::{self, Day};
use super::query::micros;
use super::transaction::Keep;
use super::{locks, schema};
use crate::store::query::Micros;

pub(crate) use rows::{Change, EndpointRow, Loaded, LoadedEndpoint, LoadedObject, ObjectRow, Round, Span, Subject};

/// Old rows that are removed at once.
const PRUNED: i64 = 10_000;

/// Why this aggregator does not write, or no longer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LeadError {
    #[error("database: {0}")]
    Away(String),
    #[error("the database refuses what was read: {0}")]
    Refused(String),
}

impl From<sqlx::Error> for LeadError {
    fn from(error: sqlx::Error) -> Self {
        match classify(&error) {
            Trouble::Data => Self::Refused(describe(&error)),
            Trouble::Away | Trouble::SchemaLost | Trouble::OtherSchema => Self::Away(describe(&error)),
        }
    }
}

/// The right to write, with the connection that holds it: it is lost with it.
#[derive(Debug)]
pub(crate) struct Leader {
    connection: PgConnection,
    store: Store,
    leaves: HashSet<Day>,
}

impl Store {
    /// `None`: another aggregator has it.
    pub(crate) async fn lead(&self) -> Result<Option<Leader>, LeadError> {
        let mut connection = database::writer_connection(&self.inner.target).await?;
        let held: bool = sqlx::query_scalar("select pg_try_advisory_lock($1)")
            .bind(locks::LEADER)
            .fetch_one(&mut connection)
            .await?;
        if !held {
            let _ = connection.close().await;
            return Ok(None);
        }
        Ok(Some(Leader {
            connection,
            store: self.clone(),
            leaves: HashSet::new(),
        }))
    }
}

impl Leader {
    /// What was there last.
    pub(crate) async fn load(&mut self) -> Result<Loaded, LeadError> {
        let db = &mut self.connection;
        let objects = sqlx::query_as(concat!(
            "select id, kind, uid, namespace, name, version, node, owner_kind, owner, owner_uid, workload_kind, \
             workload, array(select host(ip) from unnest(ips) ip) as ips, \
             case when kind = 'Service' then detail end as detail, state, digest, ",
            micros!("valid_from"),
            " as valid_from from sonde_store.cluster_objects where valid_to is null"
        ))
        .fetch_all(&mut *db)
        .await?;
        let endpoints = sqlx::query_as(
            "select id, slice_uid, namespace, service, host(ip) as ip, pod, node, ready \
             from sonde_store.cluster_endpoints where valid_to is null",
        )
        .fetch_all(&mut *db)
        .await?;
        let seen: Vec<(String, Micros)> = sqlx::query_as(concat!(
            "select scope, ",
            micros!("seen"),
            " from sonde_store.cluster_watches"
        ))
        .fetch_all(&mut *db)
        .await?;
        let last = sqlx::query(
            "select (select coalesce(max(id), 0) from sonde_store.cluster_objects) as objects, \
             (select coalesce(max(id), 0) from sonde_store.cluster_endpoints) as endpoints",
        )
        .fetch_one(&mut *db)
        .await?;
        Ok(Loaded {
            objects,
            endpoints,
            seen: seen.into_iter().collect(),
            last_object: last.get("objects"),
            last_endpoint: last.get("endpoints"),
        })
    }

    /// Writes a round, all or nothing, and gives its changes their ids.
    pub(crate) async fn write(&mut self, round: &mut Round) -> Result<(), LeadError> {
        self.discard_expired(round);
        self.make_leaves(round).await?;
        let mut tx = schema::begin(&mut self.connection).await?;
        number(&mut tx, &mut round.changes).await?;
        // Ends first: of one object only one row may hold.
        end(&mut tx, "cluster_objects", &round.ended).await?;
        put_objects(&mut tx, round).await?;
        put_states(&mut tx, round).await?;
        end(&mut tx, "cluster_endpoints", &round.ended_endpoints).await?;
        put_endpoints(&mut tx, round).await?;
        complete_pods(&mut tx, round).await?;
        put_changes(&mut tx, &round.changes).await?;
        amend_changes(&mut tx, &round.amended).await?;
        put_seen(&mut tx, round).await?;
        tx.commit().await?;
        if !round.objects.is_empty() || !round.ended.is_empty() {
            self.store.inner.facts_changed.store(true, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Changes that retention would drop at once.
    fn discard_expired(&self, round: &mut Round) {
        let oldest = Keep::oldest(self.store.inner.keep.events, now_ns()) / 1000;
        round.changes.retain(|change| change.span.at >= oldest as Micros);
    }

    async fn make_leaves(&mut self, round: &Round) -> sqlx::Result<()> {
        let days: HashSet<Day> = round
            .changes
            .iter()
            .map(|change| Day::of(change.span.at as u64 * 1000))
            .filter(|day| !self.leaves.contains(day))
            .collect();
        let wanted: Vec<_> = days.iter().map(|day| ("changes".to_owned(), *day)).collect();
        partitions::ensure(&mut self.connection, &wanted).await?;
        self.leaves.extend(days);
        Ok(())
    }

    /// Removes what ended before the oldest event that is kept: no event and no question can name it any more. These
    /// few rows are the exception to partitions; their ends are not known when they are written.
    pub(crate) async fn prune(&mut self) -> Result<(), LeadError> {
        let keep = self.store.inner.keep.events.as_secs_f64();
        for table in ["cluster_objects", "cluster_endpoints"] {
            let mut tx = schema::begin(&mut self.connection).await?;
            let sql = format!(
                "delete from sonde_store.{table} where id in (select id from sonde_store.{table} \
                 where valid_to < now() - make_interval(secs => $1) limit $2)"
            );
            sqlx::query(sqlx::AssertSqlSafe(sql))
                .bind(keep)
                .bind(PRUNED)
                .execute(&mut *tx)
                .await?;
            tx.commit().await?;
        }
        Ok(())
    }

    /// Gives the right back at once, and not when the server notices that we are gone.
    pub(crate) async fn resign(self) {
        let _ = self.connection.close().await;
    }
}

/// An instant of a JSON row.
const TIME: &str = "to_timestamp(0) + r.{} * interval '1 microsecond'";

fn time(column: &str) -> String {
    TIME.replace("{}", column)
}

async fn number(tx: &mut PgConnection, changes: &mut [Change]) -> sqlx::Result<()> {
    if changes.is_empty() {
        return Ok(());
    }
    let ids: Vec<i64> =
        sqlx::query_scalar("select nextval('sonde_store.change_ids') from generate_series(1, $1) order by 1")
            .bind(changes.len() as i64)
            .fetch_all(tx)
            .await?;
    changes.iter_mut().zip(ids).for_each(|(change, id)| change.id = id);
    Ok(())
}

async fn run<T: Serialize + Sync>(tx: &mut PgConnection, sql: String, rows: &[T]) -> sqlx::Result<()> {
    if !rows.is_empty() {
        sqlx::query(sqlx::AssertSqlSafe(sql))
            .bind(Json(rows))
            .execute(tx)
            .await?;
    }
    Ok(())
}

async fn end(tx: &mut PgConnection, table: &str, ended: &std::collections::BTreeMap<i64, Micros>) -> sqlx::Result<()> {
    let rows: Vec<Value> = ended.iter().map(|(id, at)| json!({"id": id, "at": at})).collect();
    let updated = if table == "cluster_objects" {
        ", updated = now()"
    } else {
        ""
    };
    let sql = format!(
        "update sonde_store.{table} t set valid_to = greatest(t.valid_from, {}){updated} \
         from jsonb_to_recordset($1) as r(id bigint, at bigint) where t.id = r.id",
        time("at")
    );
    run(tx, sql, &rows).await
}

async fn put_objects(tx: &mut PgConnection, round: &Round) -> sqlx::Result<()> {
    const COLUMNS: &str = "id, kind, uid, namespace, name, version, node, runtime_uid, owner_kind, owner, owner_uid, \
        workload_kind, workload, ips, labels, detail, state, digest";
    let rows: Vec<&ObjectRow> = round.objects.values().collect();
    let values: Vec<String> = COLUMNS.split(", ").map(|c| format!("r.{}", c.trim())).collect();
    let over: Vec<String> = COLUMNS
        .split(", ")
        .skip(1)
        .map(|c| format!("{0} = excluded.{0}", c.trim()))
        .collect();
    let sql = format!(
        "insert into sonde_store.cluster_objects ({COLUMNS}, valid_from, valid_to) select {}, {}, {} \
         from jsonb_to_recordset($1) as r(id bigint, kind text, uid text, namespace text, name text, version text, \
         node text, runtime_uid text, owner_kind text, owner text, owner_uid text, workload_kind text, workload text, \
         ips inet[], labels jsonb, detail jsonb, state jsonb, digest bigint, valid_from bigint, valid_to bigint) \
         on conflict (id) do update set {}, valid_from = excluded.valid_from, valid_to = excluded.valid_to, updated = now()",
        values.join(", "),
        time("valid_from"),
        time("valid_to"),
        over.join(", "),
    );
    run(tx, sql, &rows).await
}

async fn put_states(tx: &mut PgConnection, round: &Round) -> sqlx::Result<()> {
    let rows: Vec<Value> = round
        .states
        .iter()
        .map(|(id, state)| json!({"id": id, "state": state}))
        .collect();
    let sql = "update sonde_store.cluster_objects o set state = r.state, updated = now() \
               from jsonb_to_recordset($1) as r(id bigint, state jsonb) where o.id = r.id";
    run(tx, sql.into(), &rows).await?;
    let rows: Vec<Value> = round
        .workloads
        .iter()
        .map(|(id, (kind, name))| json!({"id": id, "kind": kind, "name": name}))
        .collect();
    let sql = "update sonde_store.cluster_objects o set workload_kind = r.kind, workload = r.name, updated = now() \
               from jsonb_to_recordset($1) as r(id bigint, kind text, name text) where o.id = r.id";
    run(tx, sql.into(), &rows).await
}

async fn put_endpoints(tx: &mut PgConnection, round: &Round) -> sqlx::Result<()> {
    let rows: Vec<&EndpointRow> = round.endpoints.values().collect();
    let sql = format!(
        "insert into sonde_store.cluster_endpoints (id, slice_uid, namespace, service, ip, pod, node, ready, \
         valid_from, valid_to) select id, slice_uid, namespace, service, ip, pod, node, ready, {}, {} \
         from jsonb_to_recordset($1) as r(id bigint, slice_uid text, namespace text, service text, ip inet, pod text, \
         node text, ready boolean, valid_from bigint, valid_to bigint)",
        time("valid_from"),
        time("valid_to"),
    );
    run(tx, sql, &rows).await
}

/// The API knows better what a pod belongs to; what its node said is kept beside it. The other direction, a pod that
/// its node speaks of later, is in the upsert of pods.
async fn complete_pods(tx: &mut PgConnection, round: &Round) -> sqlx::Result<()> {
    let pods = round.objects.values().filter(|row| row.kind == "Pod").map(|row| row.id);
    let ids: Vec<i64> = pods.chain(round.workloads.keys().copied()).collect();
    if ids.is_empty() {
        return Ok(());
    }
    sqlx::query(
        "update sonde_store.pods p set \
         said = coalesce(p.said, jsonb_build_object('workload_kind', p.workload_kind, 'workload', p.workload, \
             'labels', p.labels)), \
         workload_kind = case when o.workload = '' then p.workload_kind else o.workload_kind end, \
         workload = coalesce(nullif(o.workload, ''), p.workload), labels = o.labels, updated = now() \
         from sonde_store.cluster_objects o \
         where o.id = any($1) and o.runtime_uid <> '' and p.uid = o.runtime_uid and o.valid_to is null \
         and (p.said is null or p.labels <> o.labels \
              or o.workload <> '' and (p.workload, p.workload_kind) <> (o.workload, o.workload_kind))",
    )
    .bind(ids)
    .execute(tx)
    .await?;
    Ok(())
}

fn change_row(change: &Change) -> Value {
    let mut row = serde_json::to_value(&change.subject).expect("names become JSON");
    row["id"] = change.id.into();
    row["time"] = change.span.at.into();
    row["since"] = change.span.since.into();
    row["kind"] = change.kind.into();
    row["before"] = change.before.clone().into();
    row["after"] = change.after.clone().into();
    row["detail"] = change.detail.clone().into();
    row
}

async fn put_changes(tx: &mut PgConnection, changes: &[Change]) -> sqlx::Result<()> {
    let rows: Vec<Value> = changes.iter().map(change_row).collect();
    let sql = format!(
        "insert into sonde_store.changes (time, since, id, kind, node, namespace, pod, workload_kind, workload, \
         service, before, after, detail) select {}, {}, id, kind, node, namespace, pod, workload_kind, workload, \
         service, before, after, detail from jsonb_to_recordset($1) as r(id bigint, time bigint, since bigint, \
         kind text, node text, namespace text, pod text, workload_kind text, workload text, service text, \
         before text, after text, detail text)",
        time("time"),
        time("since"),
    );
    run(tx, sql, &rows).await
}

async fn amend_changes(tx: &mut PgConnection, changes: &[Change]) -> sqlx::Result<()> {
    let rows: Vec<Value> = changes.iter().map(change_row).collect();
    let sql = format!(
        "update sonde_store.changes c set after = r.after, detail = r.detail \
         from jsonb_to_recordset($1) as r(id bigint, time bigint, after text, detail text) \
         where c.id = r.id and c.time = {}",
        time("time")
    );
    run(tx, sql, &rows).await
}

async fn put_seen(tx: &mut PgConnection, round: &Round) -> sqlx::Result<()> {
    let rows: Vec<Value> = round
        .seen
        .iter()
        .map(|(scope, seen)| json!({"scope": scope, "seen": seen}))
        .collect();
    let sql = format!(
        "insert into sonde_store.cluster_watches (scope, seen) select r.scope, {} \
         from jsonb_to_recordset($1) as r(scope text, seen bigint) \
         on conflict (scope) do update set seen = greatest(cluster_watches.seen, excluded.seen)",
        time("seen")
    );
    run(tx, sql, &rows).await?;
    if !round.dropped.is_empty() {
        let scopes: Vec<&String> = round.dropped.iter().collect();
        sqlx::query("delete from sonde_store.cluster_watches where scope = any($1)")
            .bind(scopes)
            .execute(tx)
            .await?;
    }
    Ok(())
}
