//! The newest reading of each probe on each node, for the live table after a restart.

use std::collections::HashMap;
use std::sync::Arc;

use sqlx::postgres::PgRow;
use sqlx::{Postgres, QueryBuilder, Row as _};

use super::probes::ProbeRow;
use super::{Micros, QueryError, micros, push_time};
use crate::live::{LoadedPod, LoadedRow, LoadedTable};
use crate::store::Store;
use crate::store::catalogue::{Column, Kind};
use crate::store::schema::ident;
use crate::store::tables::readings_view;

/// A node is silent after so many intervals without rows: older readings are not asked for.
const INTERVALS: i64 = 3;

impl Store {
    /// Readings that were taken within the last three intervals before `now`.
    pub async fn newest_tables(&self, now: Micros) -> Result<Vec<LoadedTable>, QueryError> {
        let longest: Option<i64> = sqlx::query_scalar("select max(interval_ns) from sonde_store.nodes")
            .fetch_one(self.pool())
            .await?;
        let since = now - longest.unwrap_or(0) / 1000 * INTERVALS;
        let mut tables = Vec::new();
        for probe in self.probes().await? {
            let mut sql = statement(&probe, since);
            let rows = sql.build().persistent(false).fetch_all(self.pool()).await?;
            tables.extend(tables_of(&probe, &rows)?);
        }
        Ok(tables)
    }
}

/// Node, interval, time, pod (sandbox, namespace, name, valid from; all null for the node itself), labels, columns.
fn statement(probe: &ProbeRow, since: Micros) -> QueryBuilder<Postgres> {
    let readings = readings_view(&probe.name);
    let mut sql = QueryBuilder::new(concat!(
        "select n.name, n.interval_ns, ",
        micros!("r.time"),
        ", p.sandbox, p.namespace, p.name, ",
        micros!("p.valid_from"),
    ));
    for label in &probe.definition.labels {
        sql.push(", (select text from sonde_store.strings where id = r.")
            .push(ident(&label.name))
            .push(")");
    }
    for column in probe.definition.newest_columns() {
        sql.push(", r.").push(ident(&column.name));
    }
    sql.push(" from (select node_id, max(time) as time from ")
        .push(&readings)
        .push(" where time >= ");
    push_time(&mut sql, since);
    sql.push(" group by node_id) newest join ").push(&readings);
    sql.push(" r on r.node_id = newest.node_id and r.time = newest.time and r.time >= ");
    push_time(&mut sql, since);
    sql.push(
        " join sonde_store.nodes n on n.id = r.node_id \
         left join sonde_store.pods p on p.id = r.pod_id and p.id <> 0 \
         where p.valid_to is null order by n.name, r.pod_id",
    );
    for label in &probe.definition.labels {
        sql.push(", r.").push(ident(&label.name));
    }
    sql
}

/// Rows come in the order of nodes.
fn tables_of(probe: &ProbeRow, rows: &[PgRow]) -> Result<Vec<LoadedTable>, QueryError> {
    let mut tables: Vec<LoadedTable> = Vec::new();
    let mut pods: HashMap<LoadedPod, Arc<LoadedPod>> = HashMap::new();
    for row in rows {
        let node: String = row.try_get(0)?;
        if tables.last().is_none_or(|t| t.node != node) {
            let interval: i64 = row.try_get(1)?;
            let time: Micros = row.try_get(2)?;
            tables.push(LoadedTable {
                node,
                interval_ns: interval.unsigned_abs(),
                def: probe.proto(),
                time_ns: time.unsigned_abs() * 1000,
                rows: Vec::new(),
            });
        }
        let pod = match pod(row)? {
            Some(pod) => Some(Arc::clone(pods.entry(pod.clone()).or_insert_with(|| Arc::new(pod)))),
            None => None,
        };
        let labels = 7..7 + probe.definition.labels.len();
        let columns = labels.end..;
        let table = tables.last_mut().expect("pushed above");
        table.rows.push(LoadedRow {
            pod,
            labels: labels.map(|i| row.try_get(i)).collect::<Result<_, _>>()?,
            values: columns
                .zip(probe.definition.newest_columns())
                .map(|(i, column)| values(row, i, column))
                .collect::<Result<_, _>>()?,
        });
    }
    Ok(tables)
}

fn pod(row: &PgRow) -> Result<Option<LoadedPod>, QueryError> {
    let Some(sandbox) = row.try_get(3)? else {
        return Ok(None);
    };
    let valid_from: Micros = row.try_get(6)?;
    Ok(Some(LoadedPod {
        sandbox,
        namespace: row.try_get(4)?,
        name: row.try_get(5)?,
        valid_from_ns: valid_from.unsigned_abs() * 1000,
    }))
}

/// Empty where the kernel had none.
fn values(row: &PgRow, at: usize, column: &Column) -> Result<Vec<i64>, QueryError> {
    Ok(match column.kind {
        Kind::Histogram => row.try_get::<Option<Vec<i64>>, _>(at)?.unwrap_or_default(),
        Kind::Counter | Kind::Gauge => row.try_get::<Option<i64>, _>(at)?.into_iter().collect(),
    })
}
