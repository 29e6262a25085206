//! Readings of one probe over a long time: from its rollups, and from readings where these are not rolled up yet.
//!
//! Counters stand at what they rose by since the beginning of the answer: the difference of two points is the increase
//! between them, as it is of readings, but for resets, which do not show. Gauges are averages.

use std::collections::{BTreeMap, HashMap};

use futures::TryStreamExt as _;
use sqlx::{Postgres, QueryBuilder, Row as _};

use super::pods::push_terms;
use super::rows::{Reading, Rows, RowsQuery, Series};
use super::{HOUR, MINUTE, Micros, QueryError, micros, push_time};
use crate::store::Store;
use crate::store::catalogue::{Column, Definition, Kind};
use crate::store::rollup::tables::{Length, names};
use crate::store::schema::ident;

/// From here on a range is long.
const LONG: Micros = 6 * HOUR;
/// What a counter stood at before the first reading that is not rolled up is looked for in this time before it.
const BEFORE: Micros = 10 * MINUTE;

/// Where the points of a chart come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    Readings,
    Minutes,
    Hours,
}

impl Source {
    pub fn span(self) -> Micros {
        match self {
            Self::Readings => 1,
            Self::Minutes => MINUTE,
            Self::Hours => HOUR,
        }
    }
}

impl Store {
    /// For points `step` apart: rollups where the range is long or older than readings are kept, the coarsest that is no
    /// coarser than the step, or that is still kept.
    pub fn source(&self, from: Micros, to: Micros, step: Micros, now: Micros) -> Source {
        let keep = &self.inner.keep;
        let since = |kept: std::time::Duration| now - kept.as_micros() as Micros;
        let old = from < since(keep.rows);
        if !old && (to - from <= LONG || step < MINUTE) {
            Source::Readings
        } else if step >= HOUR || from < since(keep.rollups_1m) {
            Source::Hours
        } else {
            Source::Minutes
        }
    }

    /// The same as [`Store::probe_rows`], from rollups. Each point is at the end of its step.
    pub async fn rolled_rows(
        &self,
        probe: &str,
        definition: &Definition,
        columns: &[&Column],
        query: &RowsQuery,
        source: Source,
    ) -> Result<Rows, QueryError> {
        let until: Option<Micros> = sqlx::query_scalar(concat!(
            "select ",
            micros!("hour"),
            " from sonde_store.rollup_progress where probe = $1"
        ))
        .bind(probe)
        .fetch_optional(self.pool())
        .await?;
        let until = until.unwrap_or(query.from);
        let mut steps = Steps::new(columns, query.step);
        if until > query.from {
            let length = if source == Source::Hours {
                Length::Hour
            } else {
                Length::Minute
            };
            let mut sql = statement(length, probe, definition, columns, query, until);
            let mut rows = sql.build().persistent(false).fetch(self.pool());
            while let Some(row) = rows.try_next().await? {
                let labels = definition.labels.len();
                let key: Vec<String> = (1..4 + labels).map(|i| row.try_get(i)).collect::<Result<_, _>>()?;
                let weight = f64::from(row.try_get::<i32, _>(4 + labels)?);
                let values: Vec<Option<Vec<f64>>> = columns
                    .iter()
                    .enumerate()
                    .map(|(i, column)| match column.kind {
                        Kind::Histogram => row
                            .try_get::<Option<Vec<i64>>, _>(5 + labels + i)
                            .map(|v| scaled(column, v)),
                        _ => row
                            .try_get::<Option<f64>, _>(5 + labels + i)
                            .map(|v| v.map(|v| vec![v])),
                    })
                    .collect::<Result<_, _>>()?;
                steps.add(key, row.try_get(0)?, weight, &values);
                if steps.values > query.max_values {
                    return Ok(Rows::TooMany);
                }
            }
        }
        if until < query.to {
            let from = until.max(query.from);
            let tail = RowsQuery {
                from: from - BEFORE,
                step: MINUTE.min(query.step),
                ..query.clone()
            };
            let Rows::Read(series) = self.probe_rows(probe, definition, columns, &tail).await? else {
                return Ok(Rows::TooMany);
            };
            series.into_iter().for_each(|series| steps.add_readings(series, from));
        }
        if steps.values > query.max_values {
            return Ok(Rows::TooMany);
        }
        Ok(Rows::Read(steps.finish(query.to)))
    }
}

/// Time, node, namespace, pod, labels, readings, columns.
fn statement(
    length: Length,
    probe: &str,
    definition: &Definition,
    columns: &[&Column],
    query: &RowsQuery,
    until: Micros,
) -> QueryBuilder<Postgres> {
    let mut sql = QueryBuilder::new(concat!("select ", micros!("time"), ", node, namespace, pod"));
    for label in &definition.labels {
        sql.push(", ").push(ident(&label.name));
    }
    sql.push(", readings");
    let names = names(length, definition);
    for column in columns {
        let at = definition.columns.iter().position(|c| c.name == column.name);
        let name = ident(&names[at.expect("a column of the definition")]);
        sql.push(", ").push(name);
        sql.push(if column.kind == Kind::Histogram {
            "::bigint[]"
        } else {
            "::float8"
        });
    }
    sql.push(" from sonde.")
        .push(ident(&length.view(probe)))
        .push(" where time >= ");
    push_time(&mut sql, query.from);
    sql.push(" and time < ");
    push_time(&mut sql, query.to.min(until));
    push_terms(&mut sql, "node", &query.node);
    push_terms(&mut sql, "namespace", &query.namespace);
    push_terms(&mut sql, "pod", &query.pod);
    sql
}

fn scaled(column: &Column, kept: Option<Vec<i64>>) -> Option<Vec<f64>> {
    let mut values: Vec<f64> = kept?.into_iter().map(|n| n as f64).collect();
    if let Some(sum) = values.last_mut() {
        *sum *= column.scale;
    }
    Some(values)
}

/// What comes together in the steps of each series.
struct Steps<'a> {
    columns: &'a [&'a Column],
    step: Micros,
    series: HashMap<Vec<String>, BTreeMap<Micros, Vec<Sum>>>,
    values: usize,
}

/// Of a counter or histogram what it rose by, of a gauge the weighted sum.
#[derive(Clone, Default)]
struct Sum {
    values: Option<Vec<f64>>,
    weight: f64,
}

impl<'a> Steps<'a> {
    fn new(columns: &'a [&'a Column], step: Micros) -> Self {
        Self {
            columns,
            step,
            series: HashMap::new(),
            values: 0,
        }
    }

    fn add(&mut self, key: Vec<String>, time: Micros, weight: f64, values: &[Option<Vec<f64>>]) {
        let steps = self.series.entry(key).or_default();
        let sums = steps.entry(time.div_euclid(self.step)).or_insert_with(|| {
            self.values += self.columns.iter().map(|c| c.bounds.len() + 1).sum::<usize>();
            vec![Sum::default(); self.columns.len()]
        });
        for ((sum, values), column) in sums.iter_mut().zip(values).zip(self.columns) {
            let Some(values) = values else { continue };
            let weight = if column.kind == Kind::Gauge { weight } else { 1.0 };
            sum.weight += weight;
            let sums = sum.values.get_or_insert_with(|| vec![0.0; values.len()]);
            sums.iter_mut()
                .zip(values)
                .for_each(|(sum, value)| *sum += value * weight);
        }
    }

    /// Readings as they stood. Those before `from` only tell what counters stood at.
    fn add_readings(&mut self, series: Series, from: Micros) {
        let mut key = vec![series.node, series.namespace, series.pod];
        key.extend(series.labels);
        let mut last: Vec<Option<Vec<f64>>> = vec![None; self.columns.len()];
        for (at, time) in series.times.iter().enumerate() {
            let mut values = Vec::with_capacity(self.columns.len());
            for (i, column) in self.columns.iter().enumerate() {
                let now = match &series.columns[i][at] {
                    Reading::Absent => None,
                    Reading::Number(value) => Some(vec![*value]),
                    Reading::Histogram(values) => Some(values.clone()),
                };
                values.push(match (column.kind, now) {
                    (_, None) => None,
                    (Kind::Gauge, now) => now,
                    (_, Some(now)) => {
                        let before = last[i].replace(now.clone());
                        before.map(|before| rise(&before, &now))
                    }
                });
            }
            if *time >= from {
                self.add(key.clone(), *time, 1.0, &values);
            }
        }
    }

    fn finish(self, to: Micros) -> Vec<Series> {
        let mut all: Vec<_> = self.series.into_iter().collect();
        all.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        let series = |(key, steps): (Vec<String>, BTreeMap<Micros, Vec<Sum>>)| {
            let times = steps.keys().map(|at| ((at + 1) * self.step).min(to)).collect();
            let mut columns: Vec<Vec<Reading>> = vec![Vec::with_capacity(steps.len()); self.columns.len()];
            let mut risen: Vec<Option<Vec<f64>>> = vec![None; self.columns.len()];
            for sums in steps.into_values() {
                for (i, sum) in sums.into_iter().enumerate() {
                    columns[i].push(match (self.columns[i].kind, sum.values) {
                        (_, None) => Reading::Absent,
                        (Kind::Gauge, Some(values)) => Reading::Number(values[0] / sum.weight),
                        (kind, Some(values)) => {
                            let all = risen[i].get_or_insert_with(|| vec![0.0; values.len()]);
                            all.iter_mut().zip(values).for_each(|(all, value)| *all += value);
                            match kind {
                                Kind::Histogram => Reading::Histogram(all.clone()),
                                _ => Reading::Number(all[0]),
                            }
                        }
                    });
                }
            }
            Series {
                node: key[0].clone(),
                namespace: key[1].clone(),
                pod: key[2].clone(),
                labels: key[3..].to_vec(),
                times,
                columns,
            }
        };
        all.into_iter().map(series).collect()
    }
}

/// As rollups have it: what falls begins again at 0, a histogram as a whole.
fn rise(before: &[f64], now: &[f64]) -> Vec<f64> {
    let counts = now.len().max(2) - 1;
    let reset = before.iter().zip(now).take(counts).any(|(before, now)| now < before);
    let each = |(before, now): (&f64, &f64)| if reset { *now } else { now - before };
    before.iter().zip(now).map(each).collect()
}
