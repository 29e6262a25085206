//! Rows of one probe on one node held to `metrics.max_series`, as the collector does on its own page.

use std::hash::Hash;
use std::ops::Range;
use std::sync::Arc;

use sonde_common::budget::{Budget, NONE, OVERFLOW, Rows, Split};
use sonde_common::config::MaxSeries;
use sonde_proto::ABSENT;

use super::meta::{ProbeMeta, Shape};
use super::snapshot::{Columns, PodId, RowLabels};

struct Picked<'a> {
    meta: &'a ProbeMeta,
    rows: &'a [Arc<RowLabels>],
    columns: &'a Columns,
}

impl Rows for Picked<'_> {
    fn len(&self) -> usize {
        self.rows.len()
    }
    fn key(&self, row: usize) -> impl Hash {
        &*self.rows[row].text
    }
    fn namespace(&self, row: usize) -> &str {
        self.rows[row].namespace()
    }
    fn series_each(&self) -> usize {
        let series = self.meta.columns.iter().map(|column| match &column.shape {
            Shape::Histogram(bounds) => bounds.len() + 2,
            Shape::Counter | Shape::Gauge => 1,
        });
        series.sum()
    }
    fn addable(&self, row: usize) -> Box<[i128]> {
        let mut cells = Vec::new();
        for ((values, width), column) in self
            .columns
            .values
            .iter()
            .zip(&self.columns.widths)
            .zip(&self.meta.columns)
        {
            match values.get(row * width..(row + 1) * width) {
                Some(values) if column.shape != Shape::Gauge && !values.contains(&ABSENT) => {
                    cells.extend(values.iter().map(|value| i128::from(*value)));
                }
                _ => cells.extend(std::iter::repeat_n(NONE, *width)),
            }
        }
        cells.into()
    }
    fn columns(&self) -> Vec<Range<usize>> {
        let mut end = 0;
        let widths = self.columns.widths.iter();
        widths
            .map(|width| {
                end += width;
                end - width..end
            })
            .collect()
    }
}

/// Puts rows of pod `__overflow__` in place of what is beyond the limits.
pub(super) fn hold(
    budget: &mut Budget,
    limits: &MaxSeries,
    node: &str,
    meta: &ProbeMeta,
    rows: &mut Vec<Arc<RowLabels>>,
    columns: &mut Columns,
) {
    let picked = Picked { meta, rows, columns };
    let Split { shown, sums } = budget.split(&picked, limits);
    if shown.len() < rows.len() {
        columns.keep(&shown, rows.len());
        *rows = shown.into_iter().map(|row| Arc::clone(&rows[row])).collect();
    }
    for (namespace, cells) in sums {
        let pod = PodId {
            sandbox: "".into(),
            namespace,
            name: OVERFLOW.into(),
            valid_from_ns: 0,
        };
        let values = meta.labels.iter().map(|_| OVERFLOW.into()).collect();
        columns.push(rows.len(), &cells);
        rows.push(Arc::new(RowLabels::new(node, Some(Arc::new(pod)), meta, values)));
    }
}

impl Columns {
    /// One row more than `rows`.
    fn push(&mut self, rows: usize, mut cells: &[i128]) {
        for (values, width) in self.values.iter_mut().zip(&self.widths) {
            let (mine, rest) = cells.split_at(*width);
            cells = rest;
            let absent = mine.contains(&NONE);
            if values.is_empty() {
                // Absent in all rows so far, and it may stay so.
                if absent {
                    continue;
                }
                values.resize(rows * width, ABSENT);
            }
            let stored = |cell: &i128| i64::try_from(*cell).unwrap_or(i64::MAX);
            match absent {
                true => values.extend(std::iter::repeat_n(ABSENT, *width)),
                false => values.extend(mine.iter().map(stored)),
            }
        }
    }
}
