//! The rows of one probe at one time, by columns, as they go on the wire and to `/metrics`.

use std::sync::Arc;

use crate::catalogue::ProbeSpec;
use crate::event::Subject;

pub use sonde_proto::ABSENT;

#[derive(Clone, Debug)]
pub struct Table {
    pub spec: &'static ProbeSpec,
    /// Unix time of the reading.
    pub time_ns: u64,
    pub subjects: Vec<Subject>,
    /// Label values, row by row, `spec.labels.len()` each.
    pub labels: Vec<Arc<str>>,
    /// One for each column of the spec, rows times [`crate::catalogue::ColumnSpec::width`] values; [`ABSENT`] where the kernel had none.
    pub columns: Vec<Vec<i64>>,
}

impl Table {
    pub fn new(spec: &'static ProbeSpec, time_ns: u64) -> Self {
        Self {
            spec,
            time_ns,
            subjects: Vec::new(),
            labels: Vec::new(),
            columns: vec![Vec::new(); spec.columns.len()],
        }
    }

    /// Room for as many rows as the round before had.
    pub fn with_capacity(spec: &'static ProbeSpec, time_ns: u64, rows: usize) -> Self {
        Self {
            spec,
            time_ns,
            subjects: Vec::with_capacity(rows),
            labels: Vec::with_capacity(rows * spec.labels.len()),
            columns: spec
                .columns
                .iter()
                .map(|column| Vec::with_capacity(rows * column.width()))
                .collect(),
        }
    }

    /// Adds a row. `values` has the columns one after another; histograms take their whole width.
    pub fn push(&mut self, subject: Subject, labels: impl IntoIterator<Item = Arc<str>>, values: &[i64]) {
        self.subjects.push(subject);
        self.labels.extend(labels);
        debug_assert_eq!(
            self.labels.len(),
            self.subjects.len() * self.spec.labels.len(),
            "{}",
            self.spec.name
        );
        let mut rest = values;
        for (column, spec) in self.columns.iter_mut().zip(self.spec.columns) {
            let (mine, others) = rest.split_at(spec.width());
            column.extend_from_slice(mine);
            rest = others;
        }
        debug_assert!(rest.is_empty(), "{}: more values than columns", self.spec.name);
    }

    pub fn len(&self) -> usize {
        self.subjects.len()
    }

    pub fn is_empty(&self) -> bool {
        self.subjects.is_empty()
    }
}
