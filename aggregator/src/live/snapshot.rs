//! The newest rows of one probe on one node. Immutable: a page in the making keeps what it began with.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use sonde_common::budget::Budget;
use sonde_common::config::MaxSeries;
use sonde_common::prom::write_labels;
use sonde_proto::v1;

use super::fold::hold;
use super::meta::{NAMESPACE, NODE, POD, ProbeMeta};

#[derive(Debug)]
pub(super) struct Snapshot {
    pub meta: Arc<ProbeMeta>,
    pub node: Arc<str>,
    /// When the rows were read, by the node's clock.
    pub time_ns: u64,
    /// The node is silent from here on, by our own clock.
    pub ends: Instant,
    pub rows: Vec<Arc<RowLabels>>,
    /// As in the catalogue; empty = absent in all rows. Rows times the column's width values.
    pub columns: Vec<Vec<i64>>,
    /// What was shown and added up so far; goes from reading to reading.
    pub budget: Arc<Mutex<Budget>>,
}

/// Whose series these are and how they are written; lives as long as the series.
#[derive(Debug, PartialEq)]
pub(super) struct RowLabels {
    /// None: the node itself.
    pub pod: Option<Arc<PodId>>,
    /// Values of the probe's own labels.
    pub values: Vec<Box<str>>,
    /// All labels as they stand between the braces.
    pub text: Box<str>,
}

#[derive(Debug, PartialEq)]
pub(super) struct PodId {
    pub sandbox: Box<str>,
    pub namespace: Box<str>,
    pub name: Box<str>,
    /// Unix time.
    pub valid_from_ns: u64,
}

impl RowLabels {
    pub(super) fn new(node: &str, pod: Option<Arc<PodId>>, meta: &ProbeMeta, values: Vec<Box<str>>) -> Self {
        let (namespace, name) = pod.as_ref().map_or(("", ""), |p| (&*p.namespace, &*p.name));
        let mut text = String::new();
        let fixed = [(NODE, node), (NAMESPACE, namespace), (POD, name)];
        let own = meta
            .labels
            .iter()
            .zip(&values)
            .map(|(label, value)| (label.as_str(), &**value));
        write_labels(&mut text, fixed.into_iter().chain(own));
        Self {
            pod,
            values,
            text: text.into(),
        }
    }

    fn sandbox(&self) -> Option<&str> {
        self.pod.as_ref().map(|p| &*p.sandbox)
    }

    fn valid_from_ns(&self) -> u64 {
        self.pod.as_ref().map_or(0, |p| p.valid_from_ns)
    }

    pub(super) fn namespace(&self) -> &str {
        self.pod.as_ref().map_or("", |p| &p.namespace)
    }

    pub(super) fn name(&self) -> &str {
        self.pod.as_ref().map_or("", |p| &p.name)
    }
}

/// Rows whose parts do not fit together: ingest lets none through, so this only guards against our own faults.
#[derive(Debug, thiserror::Error)]
#[error("rows of probe `{0}` do not fit its catalogue")]
pub(super) struct Misfit(pub String);

impl Snapshot {
    /// The rows of a message. `old` lends the labels of series that go on.
    pub(super) fn from_rows(
        node: &Arc<str>,
        meta: Arc<ProbeMeta>,
        rows: &v1::Rows,
        body: &v1::BatchBody,
        lifetime: Duration,
        old: Option<&Snapshot>,
        limits: &MaxSeries,
    ) -> Result<Self, Misfit> {
        let mut columns = Columns::of(&meta, rows)?;
        let old = old.filter(|old| old.meta == meta);
        let mut known = Known::new(old);
        let mut pods: HashMap<u32, Arc<PodId>> = HashMap::new();
        let mut picked = Picked::default();
        for (i, &subject) in rows.subjects.iter().enumerate() {
            let misfit = || Misfit(rows.probe.clone());
            let pod = match subject.checked_sub(1) {
                None => None,
                Some(index) => {
                    let pod = body.pods.get(index as usize).ok_or_else(misfit)?;
                    if pod.valid_to_ns != 0 {
                        continue;
                    }
                    Some(pod)
                }
            };
            let labels = labels_of(rows, body, i, meta.labels.len()).ok_or_else(misfit)?;
            let row = known
                .take(i, pod.map(|p| p.sandbox.as_str()), &labels)
                .unwrap_or_else(|| {
                    let pod = pod.map(|p| pods.entry(subject).or_insert_with(|| Arc::new(PodId::from(p))).clone());
                    Arc::new(RowLabels::new(
                        node,
                        pod,
                        &meta,
                        labels.iter().map(|l| Box::from(*l)).collect(),
                    ))
                });
            picked.add(row, i);
        }
        let (mut rows_kept, indexes) = picked.finish();
        columns.keep(&indexes, rows.subjects.len());
        let budget = old.map(|old| Arc::clone(&old.budget)).unwrap_or_default();
        hold(&mut budget.lock(), limits, node, &meta, &mut rows_kept, &mut columns);
        Ok(Self {
            meta,
            node: node.clone(),
            time_ns: rows.time_ns,
            ends: Instant::now() + lifetime,
            rows: rows_kept,
            columns: columns.values,
            budget,
        })
    }

    pub(super) fn has_pod(&self, ended: &dyn Fn(&str) -> bool) -> bool {
        self.rows.iter().any(|row| row.sandbox().is_some_and(ended))
    }

    /// The same without the series of ended pods.
    pub(super) fn without_pods(&self, ended: &dyn Fn(&str) -> bool) -> Self {
        let stays: Vec<usize> = (0..self.rows.len())
            .filter(|i| !self.rows[*i].sandbox().is_some_and(ended))
            .collect();
        let mut columns = Columns {
            widths: self.widths(),
            values: self.columns.clone(),
        };
        columns.keep(&stays, self.rows.len());
        Self {
            meta: self.meta.clone(),
            node: self.node.clone(),
            time_ns: self.time_ns,
            ends: self.ends,
            rows: stays.iter().map(|i| self.rows[*i].clone()).collect(),
            columns: columns.values,
            budget: Arc::clone(&self.budget),
        }
    }

    fn widths(&self) -> Vec<usize> {
        self.meta.columns.iter().map(super::meta::ColumnMeta::width).collect()
    }

    /// The integers of a row's column; None where the kernel had none.
    pub(super) fn values(&self, column: usize, row: usize) -> Option<&[i64]> {
        let width = self.meta.columns[column].width();
        let values = self.columns[column].get(row * width..(row + 1) * width)?;
        (!values.contains(&sonde_proto::ABSENT)).then_some(values)
    }
}

impl From<&v1::Pod> for PodId {
    fn from(pod: &v1::Pod) -> Self {
        Self {
            sandbox: pod.sandbox.as_str().into(),
            namespace: pod.namespace.as_str().into(),
            name: pod.name.as_str().into(),
            valid_from_ns: pod.valid_from_ns,
        }
    }
}

fn labels_of<'a>(rows: &v1::Rows, body: &'a v1::BatchBody, row: usize, width: usize) -> Option<Vec<&'a str>> {
    let ids = rows.labels.get(row * width..(row + 1) * width)?;
    ids.iter()
        .map(|id| body.strings.get(*id as usize).map(String::as_str))
        .collect()
}

/// Sandbox, and the probe's own labels.
type RowKey<'a> = (Option<&'a str>, Vec<&'a str>);

/// Labels of the series that were there before, found by place (the usual case) or by name.
struct Known<'a> {
    old: Option<&'a Snapshot>,
    by_name: Option<HashMap<RowKey<'a>, &'a Arc<RowLabels>>>,
}

impl<'a> Known<'a> {
    fn new(old: Option<&'a Snapshot>) -> Self {
        Self { old, by_name: None }
    }

    fn take(&mut self, i: usize, sandbox: Option<&str>, labels: &[&str]) -> Option<Arc<RowLabels>> {
        let old = self.old?;
        if let Some(row) = old.rows.get(i)
            && row.sandbox() == sandbox
            && row.values.iter().map(|v| &**v).eq(labels.iter().copied())
        {
            return Some(row.clone());
        }
        let by_name = self.by_name.get_or_insert_with(|| {
            let key = |row: &'a Arc<RowLabels>| (row.sandbox(), row.values.iter().map(|v| &**v).collect());
            old.rows.iter().map(|row| (key(row), row)).collect()
        });
        by_name.get(&(sandbox, labels.to_vec())).map(|row| (*row).clone())
    }
}

/// One row for each label set. Two sandboxes of one pod (the old one is still ending) have the same labels: the
/// younger one counts.
#[derive(Default)]
struct Picked {
    rows: Vec<(Arc<RowLabels>, usize)>,
    place: HashMap<ByText, usize>,
}

/// Equal when the labels are.
struct ByText(Arc<RowLabels>);

impl PartialEq for ByText {
    fn eq(&self, other: &Self) -> bool {
        self.0.text == other.0.text
    }
}

impl Eq for ByText {}

impl Hash for ByText {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.text.hash(state);
    }
}

impl Picked {
    fn add(&mut self, row: Arc<RowLabels>, index: usize) {
        match self.place.entry(ByText(row.clone())) {
            Entry::Vacant(place) => {
                place.insert(self.rows.len());
                self.rows.push((row, index));
            }
            Entry::Occupied(place) => {
                let held = &mut self.rows[*place.get()];
                if row.valid_from_ns() >= held.0.valid_from_ns() {
                    *held = (row, index);
                }
            }
        }
    }

    fn finish(self) -> (Vec<Arc<RowLabels>>, Vec<usize>) {
        self.rows.into_iter().unzip()
    }
}

pub(super) struct Columns {
    pub widths: Vec<usize>,
    pub values: Vec<Vec<i64>>,
}

impl Columns {
    fn of(meta: &ProbeMeta, rows: &v1::Rows) -> Result<Self, Misfit> {
        let widths: Vec<_> = meta.columns.iter().map(super::meta::ColumnMeta::width).collect();
        if rows.columns.len() > widths.len() {
            return Err(Misfit(rows.probe.clone()));
        }
        let mut values = Vec::with_capacity(widths.len());
        for (i, width) in widths.iter().enumerate() {
            let column = rows.columns.get(i).map_or(&[][..], |c| &c.values);
            if !column.is_empty() && column.len() != rows.subjects.len() * width {
                return Err(Misfit(rows.probe.clone()));
            }
            values.push(column.to_vec());
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
                *values = rows
                    .iter()
                    .flat_map(|row| &values[row * width..(row + 1) * width])
                    .copied()
                    .collect();
            }
        }
    }
}
