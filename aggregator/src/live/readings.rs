//! The newest readings, for whoever sends them on: what there is of each series, row by row.

use std::sync::Arc;

use sonde_common::prom::{Number, Type};
use sonde_proto::ABSENT;

use super::LiveTable;
use super::labels::RowLabels;
use super::meta::{ColumnMeta, NAMESPACE, NODE, POD, Shape, Suffix};
use super::selector::{ForProbe, Mask, Selector};
use super::snapshot::Snapshot;

/// One probe on one node, as it was read last.
#[derive(Clone, Debug)]
pub(crate) struct Reading(pub(super) Arc<Snapshot>);

/// Of one column: its series have the name of the family, of a histogram with suffixes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Column<'a> {
    index: usize,
    meta: &'a ColumnMeta,
}

impl LiveTable {
    /// What is there now.
    pub(crate) fn readings(&self) -> Vec<Reading> {
        self.snapshots().into_iter().map(Reading).collect()
    }
}

impl Reading {
    pub(crate) fn node(&self) -> &str {
        &self.0.node
    }

    pub(crate) fn probe(&self) -> &str {
        &self.0.meta.probe
    }

    pub(crate) fn time_ns(&self) -> u64 {
        self.0.time_ns
    }

    pub(crate) fn rows(&self) -> usize {
        self.0.rows.len()
    }

    /// Labels of a row without those of the node.
    pub(crate) fn labels(&self, row: usize) -> impl Iterator<Item = (&str, &str)> {
        let labels: RowLabels<'_> = self.0.labels(row);
        let own = self.0.meta.labels.iter().enumerate();
        [(NAMESPACE, labels.namespace()), (POD, labels.name())]
            .into_iter()
            .chain(own.map(move |(place, name)| (name.as_str(), labels.value(place))))
    }

    /// With those of the node.
    pub(crate) fn all_labels(&self, row: usize) -> impl Iterator<Item = (&str, &str)> {
        [(NODE, self.node())].into_iter().chain(self.labels(row))
    }

    /// What no other row of this node and probe has.
    pub(crate) fn row_key(&self, row: usize) -> [&str; 2] {
        self.0.labels(row).text()
    }

    /// Whether the rows are those of an earlier reading, in the same order.
    pub(crate) fn has_rows_of(&self, earlier: &Self) -> bool {
        let (now, then) = (&self.0, &earlier.0);
        Arc::ptr_eq(&now.rows, &then.rows)
            && Arc::ptr_eq(&now.subjects, &then.subjects)
            && Arc::ptr_eq(&now.sets, &then.sets)
    }

    /// `None`: nothing of it. No selectors at all want everything.
    pub(crate) fn wanted<'a>(&'a self, selectors: &'a [Selector]) -> Option<Wanted<'a>> {
        let for_probe = selectors.iter().filter_map(|selector| selector.for_probe(&self.0.meta));
        let wanted = Wanted {
            selectors: for_probe.filter(|selector| selector.has_node(&self.0)).collect(),
            all: selectors.is_empty(),
        };
        (wanted.all || !wanted.selectors.is_empty()).then_some(wanted)
    }

    pub(crate) fn columns(&self) -> impl Iterator<Item = Column<'_>> {
        let columns = self.0.meta.columns.iter().enumerate();
        columns.map(|(index, meta)| Column { index, meta })
    }

    /// Calls for each row that has the column, with what it has: one value; of a histogram, the count of each bucket and then
    /// the sum.
    pub(crate) fn each<'a>(&self, column: Column<'_>, room: &'a mut Vec<i64>, mut take: impl FnMut(usize, &'a [i64])) {
        self.0.column(column.index, room);
        for (row, values) in room.chunks_exact(column.meta.width()).enumerate() {
            if !values.contains(&ABSENT) {
                take(row, values);
            }
        }
    }
}

impl<'a> Column<'a> {
    pub(crate) fn family(self) -> &'a str {
        &self.meta.family
    }

    pub(crate) fn help(self) -> &'a str {
        &self.meta.help
    }

    pub(crate) fn kind(self) -> Type {
        self.meta.kind()
    }

    /// Upper bounds of a histogram's buckets as text, `+Inf` last.
    pub(crate) fn bounds(self) -> &'a [String] {
        match &self.meta.shape {
            Shape::Histogram(bounds) => bounds,
            Shape::Counter | Shape::Gauge => &[],
        }
    }

    /// A value, or a histogram's sum, in the unit that the name tells.
    pub(crate) fn value(self, stored: i64) -> f64 {
        match self.meta.value(stored) {
            Number::Float(value) => value,
            Number::Int(value) => value as f64,
        }
    }
}

/// Which series of a reading some selector wants.
#[derive(Debug)]
pub(crate) struct Wanted<'a> {
    selectors: Vec<ForProbe<'a>>,
    /// Every series, as there is no selector.
    all: bool,
}

impl Wanted<'_> {
    /// Which of the selectors want a row.
    pub(crate) fn row(&self, reading: &Reading, row: usize) -> Mask {
        self.by(|selector| selector.has_row(reading.0.labels(row)))
    }

    /// Which want a column's series of one kind; `le`: of its buckets, this one.
    pub(crate) fn series(&self, column: Column<'_>, suffix: Suffix, le: Option<&str>) -> Mask {
        self.by(|selector| selector.has_series(column.meta, suffix) && le.is_none_or(|le| selector.has_bucket(le)))
    }

    fn by(&self, wants: impl Fn(&ForProbe<'_>) -> bool) -> Mask {
        if self.all {
            return Mask::MAX;
        }
        let places = self
            .selectors
            .iter()
            .enumerate()
            .filter(|(_, selector)| wants(selector));
        places.fold(0, |mask, (place, _)| mask | 1 << place)
    }
}
