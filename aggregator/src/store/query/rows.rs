//! Readings of one probe over time, thinned out to what a chart can show. Read from the probe's view in schema `sonde`,
//! so that nothing here knows how rows are kept.

use std::collections::HashMap;

use futures::TryStreamExt as _;
use sqlx::postgres::PgRow;
use sqlx::{Postgres, QueryBuilder, Row as _};

use super::filter::Terms;
use super::pods::push_terms;
use super::{Micros, QueryError, micros, push_time};
use crate::store::Store;
use crate::store::catalogue::{Column, Definition, Kind};
use crate::store::schema::ident;

#[derive(Clone, Debug, Default)]
pub struct RowsQuery {
    pub node: Terms<String>,
    pub namespace: Terms<String>,
    pub pod: Terms<String>,
    pub from: Micros,
    pub to: Micros,
    /// Of each span of this length the last reading is taken.
    pub step: Micros,
    /// Values that an answer may have; with more it is refused.
    pub max_values: usize,
}

/// One subject and label set.
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    pub node: String,
    pub namespace: String,
    pub pod: String,
    /// In the order of the definition.
    pub labels: Vec<String>,
    pub times: Vec<Micros>,
    /// For each column that was asked for: a reading for each time.
    pub columns: Vec<Vec<Reading>>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Reading {
    /// The kernel did not have it.
    Absent,
    Number(f64),
    /// Count of each bucket (not cumulated, the last is +Inf), then the sum in the unit.
    Histogram(Vec<f64>),
}

#[derive(Debug)]
pub enum Rows {
    Read(Vec<Series>),
    /// More values than permitted.
    TooMany,
}

impl Store {
    /// `columns` are those of the definition that are wanted.
    pub async fn probe_rows(
        &self,
        probe: &str,
        definition: &Definition,
        columns: &[&Column],
        query: &RowsQuery,
    ) -> Result<Rows, QueryError> {
        let mut sql = statement(probe, definition, columns, query);
        let mut series: Vec<Series> = Vec::new();
        let mut places: HashMap<Vec<String>, usize> = HashMap::new();
        let mut values = 0;
        let mut rows = sql.build().persistent(false).fetch(self.pool());
        while let Some(row) = rows.try_next().await? {
            values += columns.iter().map(|c| c.bounds.len() + 1).sum::<usize>();
            if values > query.max_values {
                return Ok(Rows::TooMany);
            }
            let key: Vec<String> = (1..4 + definition.labels.len())
                .map(|i| row.try_get(i))
                .collect::<Result<_, _>>()?;
            let place = *places.entry(key).or_insert_with_key(|key| {
                series.push(Series {
                    node: key[0].clone(),
                    namespace: key[1].clone(),
                    pod: key[2].clone(),
                    labels: key[3..].to_vec(),
                    times: Vec::new(),
                    columns: vec![Vec::new(); columns.len()],
                });
                series.len() - 1
            });
            series[place].times.push(row.try_get(0)?);
            for (i, column) in columns.iter().enumerate() {
                let reading = reading(&row, 4 + definition.labels.len() + i, column)?;
                series[place].columns[i].push(reading);
            }
        }
        Ok(Rows::Read(series))
    }
}

/// Time, node, namespace, pod, labels, columns; in the order of series and time.
fn statement(probe: &str, definition: &Definition, columns: &[&Column], query: &RowsQuery) -> QueryBuilder<Postgres> {
    let labels: String = definition
        .labels
        .iter()
        .map(|l| format!(", {}", ident(&l.name)))
        .collect();
    let mut sql = QueryBuilder::new(concat!("select ", micros!("time"), ", node, namespace, pod"));
    sql.push(&labels);
    for column in columns {
        sql.push(", ").push(ident(&column.name));
        sql.push(if column.kind == Kind::Histogram {
            "::bigint[]"
        } else {
            "::float8"
        });
    }
    sql.push(" from (select distinct on (node, namespace, pod")
        .push(&labels);
    sql.push(", \"#step\") * from (select *, (extract(epoch from time) * 1000000)::bigint / ")
        .push_bind(query.step);
    sql.push(" as \"#step\" from sonde.")
        .push(ident(probe))
        .push(" where time >= ");
    push_time(&mut sql, query.from);
    sql.push(" and time < ");
    push_time(&mut sql, query.to);
    push_terms(&mut sql, "node", &query.node);
    push_terms(&mut sql, "namespace", &query.namespace);
    push_terms(&mut sql, "pod", &query.pod);
    sql.push(") r order by node, namespace, pod")
        .push(&labels)
        .push(", \"#step\", time desc) r");
    sql.push(" order by node, namespace, pod")
        .push(&labels)
        .push(", \"#step\"");
    sql
}

fn reading(row: &PgRow, at: usize, column: &Column) -> Result<Reading, QueryError> {
    if column.kind != Kind::Histogram {
        return Ok(row
            .try_get::<Option<f64>, _>(at)?
            .map_or(Reading::Absent, Reading::Number));
    }
    let Some(stored) = row.try_get::<Option<Vec<i64>>, _>(at)? else {
        return Ok(Reading::Absent);
    };
    let Some((sum, counts)) = stored.split_last() else {
        return Ok(Reading::Absent);
    };
    let mut values: Vec<f64> = counts.iter().map(|n| *n as f64).collect();
    values.push(*sum as f64 * column.scale);
    Ok(Reading::Histogram(values))
}
