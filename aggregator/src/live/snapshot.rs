//! The newest rows of one probe on one node. Immutable: a page in the making keeps what it began with.

use std::borrow::Cow;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use sonde_common::budget::Budget;
use sonde_common::config::MaxSeries;
use sonde_proto::v1;

use super::fold::{Held, hold};
use super::labels::{LabelSet, Row, RowLabels, Sets, SubjectList};
use super::meta::{ColumnMeta, ProbeMeta};
use crate::packed::{Packed, Packer};

#[derive(Debug)]
pub(super) struct Snapshot {
    pub meta: Arc<ProbeMeta>,
    pub node: Arc<str>,
    /// When the rows were read, by the node's clock.
    pub time_ns: u64,
    /// The node is silent from here on, by our own clock.
    pub ends: Instant,
    pub rows: Arc<[Row]>,
    pub subjects: Arc<SubjectList>,
    pub sets: Arc<[Arc<LabelSet>]>,
    /// As in the catalogue, each with its width of values for a row.
    columns: Packed,
    /// What was shown and added up so far; goes from reading to reading. `None`: there was always room for all.
    pub budget: Option<Arc<Mutex<Budget>>>,
}

/// Rows whose parts do not fit together: ingest lets none through, so this only guards against our own faults.
#[derive(Debug, thiserror::Error)]
#[error("rows of probe `{0}` do not fit its catalogue")]
pub(super) struct Misfit(pub String);

/// Rows as they came.
pub(super) struct Read<'a> {
    pub rows: &'a v1::Rows,
    pub body: &'a v1::BatchBody,
    pub subjects: Arc<SubjectList>,
}

impl Snapshot {
    /// The rows of a message. `old` lends what goes on.
    pub(super) fn from_rows(
        node: &Arc<str>,
        meta: Arc<ProbeMeta>,
        read: Read<'_>,
        lifetime: Duration,
        old: Option<&Self>,
        (limits, packer): (&MaxSeries, &mut Packer),
    ) -> Result<Self, Misfit> {
        let Read { rows, body, subjects } = read;
        let columns = Columns::of(&meta, rows)?;
        let old = old.filter(|old| old.meta == meta);
        let misfit = || Misfit(rows.probe.clone());
        let mut sets = Sets::new(&meta, body, old.map_or(&[][..], |old| &old.sets));
        let mut picked = Picked::default();
        let width = meta.labels.len();
        for (i, &subject) in rows.subjects.iter().enumerate() {
            if let Some(pod) = subject.checked_sub(1) {
                let pod = body.pods.get(pod as usize).ok_or_else(misfit)?;
                if pod.valid_to_ns != 0 {
                    continue;
                }
            }
            let numbers = rows.labels.get(i * width..(i + 1) * width).ok_or_else(misfit)?;
            let set = sets.place(numbers).ok_or_else(misfit)?;
            picked.add(Row { subject, set }, i);
        }
        let sets = sets.finish();
        let (rows_kept, indexes) = picked.finish(&subjects);
        let mut held = Held {
            rows: rows_kept,
            subjects,
            sets,
            columns,
        };
        held.columns.keep(&indexes, rows.subjects.len());
        let budget = hold(limits, node, &meta, old, &mut held);
        let Held {
            rows: shown,
            subjects,
            sets,
            columns,
        } = held;
        Ok(Self {
            node: node.clone(),
            time_ns: rows.time_ns,
            ends: Instant::now() + lifetime,
            columns: columns.pack(packer),
            rows: shared(old.map(|old| &old.rows), shown, |old, new| old == new),
            sets: shared(old.map(|old| &old.sets), sets, Arc::ptr_eq),
            subjects,
            budget,
            meta,
        })
    }

    pub(super) fn labels(&self, row: usize) -> RowLabels<'_> {
        let Row { subject, set } = self.rows[row];
        RowLabels {
            subject: self.subjects.get(subject),
            set: &self.sets[set as usize],
        }
    }

    pub(super) fn has_pod(&self, ended: &dyn Fn(&str) -> bool) -> bool {
        (0..self.rows.len()).any(|row| self.is_of(row, ended))
    }

    /// Whether a row is a pod's, and which.
    fn is_of(&self, row: usize, which: &dyn Fn(&str) -> bool) -> bool {
        let sandbox = &self.subjects.get(self.rows[row].subject).sandbox;
        !sandbox.is_empty() && which(sandbox)
    }

    /// The same without the series of ended pods.
    pub(super) fn without_pods(&self, ended: &dyn Fn(&str) -> bool, packer: &mut Packer) -> Self {
        let all = self.rows.len();
        let stays: Vec<usize> = (0..all).filter(|row| !self.is_of(*row, ended)).collect();
        let values = (0..self.meta.columns.len()).map(|column| {
            let mut values = Vec::new();
            self.column(column, &mut values);
            Cow::Owned(values)
        });
        let mut columns = Columns {
            values: values.collect(),
            widths: widths(&self.meta),
        };
        columns.keep(&stays, all);
        Self {
            meta: self.meta.clone(),
            node: self.node.clone(),
            time_ns: self.time_ns,
            ends: self.ends,
            rows: stays.iter().map(|row| self.rows[*row]).collect(),
            subjects: Arc::clone(&self.subjects),
            sets: Arc::clone(&self.sets),
            columns: columns.pack(packer),
            budget: self.budget.clone(),
        }
    }

    /// The integers of a column, row by row, in place of what is in `out`.
    pub(super) fn column(&self, column: usize, out: &mut Vec<i64>) {
        out.clear();
        let width = self.meta.columns[column].width();
        self.columns.unpack(column, self.rows.len() * width, out);
    }
}

/// The list of before where it is the same.
fn shared<T>(old: Option<&Arc<[T]>>, new: Vec<T>, same: impl Fn(&T, &T) -> bool) -> Arc<[T]> {
    match old {
        Some(old) if old.len() == new.len() && old.iter().zip(&new).all(|(old, new)| same(old, new)) => Arc::clone(old),
        _ => new.into(),
    }
}

pub(super) fn widths(meta: &ProbeMeta) -> Vec<usize> {
    meta.columns.iter().map(ColumnMeta::width).collect()
}

/// One row for each label set. Two sandboxes of one pod (the old one is still ending) have the same labels: the
/// younger one counts.
#[derive(Default)]
struct Picked {
    rows: Vec<Row>,
    indexes: Vec<usize>,
}

impl Picked {
    fn add(&mut self, row: Row, index: usize) {
        self.rows.push(row);
        self.indexes.push(index);
    }

    /// Rows, and their places in the message.
    fn finish(self, subjects: &SubjectList) -> (Vec<Row>, Vec<usize>) {
        // The usual case: each subject once, and in their order.
        if !subjects.has_namesakes() && self.rows.is_sorted_by(|a, b| a < b) {
            return (self.rows, self.indexes);
        }
        let (mut rows, mut indexes): (Vec<Row>, Vec<usize>) = Default::default();
        let mut places = HashMap::with_capacity(self.rows.len());
        for (row, index) in self.rows.into_iter().zip(self.indexes) {
            let key = Row {
                subject: subjects.first_of_name(row.subject),
                set: row.set,
            };
            match places.entry(key) {
                Entry::Vacant(place) => {
                    place.insert(rows.len());
                    rows.push(row);
                    indexes.push(index);
                }
                Entry::Occupied(place) => {
                    let age = |row: Row| subjects.get(row.subject).valid_from_ns;
                    let held = *place.get();
                    if age(row) >= age(rows[held]) {
                        rows[held] = row;
                        indexes[held] = index;
                    }
                }
            }
        }
        (rows, indexes)
    }
}

/// Values of rows on their way into a snapshot; empty = absent in all rows.
pub(super) struct Columns<'a> {
    pub widths: Vec<usize>,
    pub values: Vec<Cow<'a, [i64]>>,
}

impl<'a> Columns<'a> {
    fn of(meta: &ProbeMeta, rows: &'a v1::Rows) -> Result<Self, Misfit> {
        let widths = widths(meta);
        if rows.columns.len() > widths.len() {
            return Err(Misfit(rows.probe.clone()));
        }
        let mut values = Vec::with_capacity(widths.len());
        for (i, width) in widths.iter().enumerate() {
            let column = rows.columns.get(i).map_or(&[][..], |c| &c.values);
            if !column.is_empty() && column.len() != rows.subjects.len() * width {
                return Err(Misfit(rows.probe.clone()));
            }
            values.push(Cow::Borrowed(column));
        }
        Ok(Self { widths, values })
    }

    /// Keeps these of `all` rows, in this order.
    pub(super) fn keep(&mut self, rows: &[usize], all: usize) {
        if rows.len() == all && rows.iter().enumerate().all(|(i, row)| i == *row) {
            return;
        }
        for (values, width) in self.values.iter_mut().zip(&self.widths) {
            if !values.is_empty() {
                let kept = rows.iter().flat_map(|row| &values[row * width..(row + 1) * width]);
                *values = Cow::Owned(kept.copied().collect());
            }
        }
    }

    fn pack(&self, packer: &mut Packer) -> Packed {
        for values in &self.values {
            if values.is_empty() {
                packer.absent();
            } else {
                packer.column(values);
            }
        }
        packer.finish()
    }
}
