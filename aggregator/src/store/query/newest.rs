//! The newest reading of each probe on each node, for the live table after a restart.

use std::collections::HashMap;
use std::sync::Arc;

use futures::TryStreamExt as _;
use sonde_proto::{ABSENT, v1};
use sqlx::postgres::PgRow;
use sqlx::{Postgres, QueryBuilder, Row as _};

use super::probes::ProbeRow;
use super::{Micros, QueryError, micros, push_time};
use crate::live::{LoadedPod, LoadedRow, LoadedTable, width};
use crate::store::Store;
use crate::store::catalogue::{Column, Kind};
use crate::store::schema::ident;
use crate::store::tables::{reading_times, readings_view};

/// A node is silent after so many intervals without rows: older readings are not asked for.
const INTERVALS: i64 = 3;

impl Store {
    /// Readings that were taken within the last three intervals before `now`, one by one.
    pub async fn newest_tables(&self, now: Micros, mut take: impl FnMut(LoadedTable)) -> Result<(), QueryError> {
        let longest: Option<i64> = sqlx::query_scalar("select max(interval_ns) from sonde_store.nodes")
            .fetch_one(self.pool())
            .await?;
        let since = now - longest.unwrap_or(0) / 1000 * INTERVALS;
        let wide: Vec<String> = sqlx::query_scalar(
            "select name from sonde_store.probes where to_regclass('sonde_store.' || quote_ident('probe_' || name)) is not null",
        )
        .fetch_all(self.pool())
        .await?;
        for probe in self.probes().await? {
            let mut sql = statement(&probe, wide.contains(&probe.name), since);
            let mut rows = sql.build().persistent(false).fetch(self.pool());
            let mut tables = Tables::new(&probe);
            while let Some(row) = rows.try_next().await? {
                tables.add(&row)?.map(&mut take);
            }
            tables.reading.map(&mut take);
        }
        Ok(())
    }
}

/// Node, interval, time, pod (sandbox, namespace, name, valid from; all null for the node itself), labels, columns.
fn statement(probe: &ProbeRow, has_wide_table: bool, since: Micros) -> QueryBuilder<Postgres> {
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
    sql.push(" from (select node_id, max(time) as time from (")
        .push(reading_times(&probe.name, has_wide_table))
        .push(") times where time >= ");
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

/// Makes tables of rows, which come in the order of nodes.
struct Tables<'a> {
    probe: &'a ProbeRow,
    def: Arc<v1::ProbeDef>,
    reading: Option<LoadedTable>,
    pods: HashMap<LoadedPod, Arc<LoadedPod>>,
}

impl<'a> Tables<'a> {
    fn new(probe: &'a ProbeRow) -> Self {
        Self {
            probe,
            def: Arc::new(probe.proto()),
            reading: None,
            pods: HashMap::new(),
        }
    }

    /// A table that is complete.
    fn add(&mut self, row: &PgRow) -> Result<Option<LoadedTable>, QueryError> {
        let node: &str = row.try_get(0)?;
        let mut complete = None;
        if self.reading.as_ref().is_none_or(|t| t.node != node) {
            let interval: i64 = row.try_get(1)?;
            let time: Micros = row.try_get(2)?;
            self.pods.clear();
            complete = self.reading.replace(LoadedTable {
                node: node.to_owned(),
                interval_ns: interval.unsigned_abs(),
                def: Arc::clone(&self.def),
                time_ns: time.unsigned_abs() * 1000,
                rows: Vec::new(),
            });
        }
        let pod = pod(row)?.map(|pod| {
            let known = self.pods.entry(pod.clone());
            Arc::clone(known.or_insert_with(|| Arc::new(pod)))
        });
        let labels = 7..7 + self.probe.definition.labels.len();
        let columns = labels.end..;
        let mut values = Vec::with_capacity(self.def.columns.iter().map(width).sum());
        for (at, column) in columns.zip(self.probe.definition.newest_columns()) {
            add_values(row, at, column, &mut values)?;
        }
        let table = self.reading.as_mut().expect("made above");
        table.rows.push(LoadedRow {
            pod,
            labels: labels.map(|i| row.try_get(i)).collect::<Result<_, _>>()?,
            values,
        });
        Ok(complete)
    }
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

/// Absent where the kernel had none.
fn add_values(row: &PgRow, at: usize, column: &Column, out: &mut Vec<i64>) -> Result<(), QueryError> {
    match column.kind {
        Kind::Counter | Kind::Gauge => out.push(row.try_get::<Option<i64>, _>(at)?.unwrap_or(ABSENT)),
        Kind::Histogram => match row.try_get::<Option<Vec<Option<i64>>>, _>(at)? {
            Some(stored) if stored.len() == column.width() => {
                out.extend(stored.into_iter().map(|n| n.unwrap_or(ABSENT)));
            }
            _ => out.extend(std::iter::repeat_n(ABSENT, column.width())),
        },
    }
    Ok(())
}
