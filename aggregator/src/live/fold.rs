//! Rows of one probe on one node held to `metrics.max_series`, as the collector does on its own page.

use std::hash::Hash;
use std::ops::Range;
use std::sync::Arc;

use parking_lot::Mutex;
use sonde_common::budget::{Budget, NONE, OVERFLOW, Rows, Split};
use sonde_common::config::MaxSeries;
use sonde_proto::ABSENT;

use super::labels::{LabelSet, Row, RowLabels, Subject, SubjectList};
use super::meta::{ProbeMeta, Shape};
use super::snapshot::{Columns, Snapshot};

/// Rows on their way into a snapshot.
pub(super) struct Held<'a> {
    pub rows: Vec<Row>,
    pub subjects: Arc<SubjectList>,
    pub sets: Vec<Arc<LabelSet>>,
    pub columns: Columns<'a>,
}

struct Picked<'a> {
    meta: &'a ProbeMeta,
    held: &'a Held<'a>,
}

impl Held<'_> {
    fn labels(&self, row: usize) -> RowLabels<'_> {
        let Row { subject, set } = self.rows[row];
        RowLabels {
            subject: self.subjects.get(subject),
            set: &self.sets[set as usize],
        }
    }
}

impl Rows for Picked<'_> {
    fn len(&self) -> usize {
        self.held.rows.len()
    }
    fn key(&self, row: usize) -> impl Hash {
        self.held.labels(row).text()
    }
    fn namespace(&self, row: usize) -> &str {
        &self.held.subjects.get(self.held.rows[row].subject).namespace
    }
    fn series_each(&self) -> usize {
        series_of_a_row(self.meta)
    }
    fn addable(&self, row: usize) -> Box<[i128]> {
        let mut cells = Vec::new();
        for ((values, width), column) in self
            .held
            .columns
            .values
            .iter()
            .zip(&self.held.columns.widths)
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
        let widths = self.held.columns.widths.iter();
        widths
            .map(|width| {
                end += width;
                end - width..end
            })
            .collect()
    }
}

fn series_of_a_row(meta: &ProbeMeta) -> usize {
    let series = meta.columns.iter().map(|column| match &column.shape {
        Shape::Histogram(bounds) => bounds.len() + 2,
        Shape::Counter | Shape::Gauge => 1,
    });
    series.sum()
}

/// Puts rows of pod `__overflow__` in place of what is beyond the limits. What was shown and added up so far goes on from
/// the snapshot before, and is not kept where there is room for all.
pub(super) fn hold(
    limits: &MaxSeries,
    node: &str,
    meta: &ProbeMeta,
    old: Option<&Snapshot>,
    held: &mut Held<'_>,
) -> Option<Arc<Mutex<Budget>>> {
    let room = limits.per_probe.min(limits.per_namespace);
    let has_room = held.rows.len() * series_of_a_row(meta) <= room;
    let budget = match old.and_then(|old| old.budget.clone()) {
        Some(budget) => budget,
        None if has_room => return None,
        None => {
            let mut budget = Budget::default();
            if let Some(old) = old {
                budget.show((0..old.rows.len()).map(|row| old.labels(row).text()));
            }
            Arc::new(Mutex::new(budget))
        }
    };
    let Split { shown, sums } = budget.lock().split(&Picked { meta, held }, limits);
    if shown.len() < held.rows.len() {
        held.columns.keep(&shown, held.rows.len());
        held.rows = shown.into_iter().map(|row| held.rows[row]).collect();
    }
    if sums.is_empty() {
        return (!has_room).then_some(budget);
    }
    let values = vec![OVERFLOW; meta.labels.len()];
    let set = held.sets.len() as u32;
    held.sets.push(Arc::new(LabelSet::new(meta, &values)));
    for (namespace, cells) in sums {
        let subject = held.subjects.len() as u32;
        let pod = Subject::new(node, "", &namespace, OVERFLOW, 0);
        held.subjects = Arc::new(held.subjects.and(pod));
        held.columns.push(held.rows.len(), &cells);
        held.rows.push(Row { subject, set });
    }
    Some(budget)
}

impl Columns<'_> {
    /// One row more than `rows`.
    fn push(&mut self, rows: usize, mut cells: &[i128]) {
        for (values, width) in self.values.iter_mut().zip(&self.widths) {
            let (mine, rest) = cells.split_at(*width);
            cells = rest;
            let absent = mine.contains(&NONE);
            if values.is_empty() && absent {
                // Absent in all rows so far, and it may stay so.
                continue;
            }
            let values = values.to_mut();
            if values.is_empty() {
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
