//! The series of one probe under one scheme of names: columns, and for each series whose it is and where its values are.
//!
//! A series is named by its owner and the probe's own labels, not by sandbox. Where two sandboxes of one pod are there at
//! once, counters and histograms are their sum, and of gauges the younger sandbox's is told.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

use sonde_common::budget::{NONE, add};
use sonde_common::config::MetricNames;
use sonde_common::prom::{Scale, Type, write_labels};
use sonde_proto::names;

use super::owners::{Owner, Subjects};
use crate::catalogue::{Kind, ProbeSpec};
use crate::event::Subject;
use crate::table::{ABSENT, Table};

#[derive(Debug)]
pub(super) struct Group<'a> {
    pub spec: &'static ProbeSpec,
    pub names: MetricNames,
    /// Names of the labels that stand behind the owner's.
    pub labels: Vec<&'static str>,
    pub columns: Vec<Column>,
    tables: Vec<&'a Table>,
    /// In the order of namespace and pod, then of the probe.
    pub series: Vec<Series>,
}

/// How a column is told.
#[derive(Debug)]
pub(super) struct Column {
    /// With `_total`, if it has one.
    pub name: Cow<'static, str>,
    pub kind: Type,
    pub help: Cow<'static, str>,
    pub unit: &'static str,
    pub scale: Scale,
    pub bounds: &'static [f64],
    /// Whether values of several subjects may be added up.
    pub adds: bool,
    /// Of its first value among all values of a series.
    place: usize,
    pub width: usize,
}

#[derive(Debug)]
pub(super) struct Series {
    pub owner: Arc<Owner>,
    /// `,device="eth0"`
    pub own: Box<str>,
    values: Values,
}

#[derive(Debug)]
enum Values {
    /// Those of a row, and they stay in its table.
    Row(Row),
    /// Worked out, for all columns; [`NONE`] where there is no value. The row is one that has its labels.
    Sums(Box<[i128]>, Option<Row>),
}

#[derive(Clone, Copy, Debug)]
struct Row {
    table: usize,
    row: usize,
}

impl Column {
    pub(super) fn new(name: Cow<'static, str>, kind: Type, help: Cow<'static, str>, adds: bool) -> Self {
        Self {
            name,
            kind,
            help,
            unit: "",
            scale: Scale::One,
            bounds: &[],
            adds,
            place: 0,
            width: 1,
        }
    }

    /// How many series Prometheus makes of one.
    pub(super) fn series(&self) -> usize {
        match self.kind {
            Type::Histogram => self.bounds.len() + 3,
            _ => 1,
        }
    }

    fn cells(&self) -> std::ops::Range<usize> {
        self.place..self.place + self.width
    }
}

impl Series {
    pub(super) fn new(owner: Arc<Owner>, own: Box<str>, sums: Box<[i128]>) -> Self {
        Self {
            owner,
            own,
            values: Values::Sums(sums, None),
        }
    }

    fn row(&self) -> Option<Row> {
        match self.values {
            Values::Row(row) => Some(row),
            Values::Sums(_, row) => row,
        }
    }
}

impl<'a> Group<'a> {
    /// A group whose values are all worked out.
    pub(super) fn of_sums(
        spec: &'static ProbeSpec,
        names: MetricNames,
        labels: Vec<&'static str>,
        columns: Vec<Column>,
        series: Vec<Series>,
    ) -> Self {
        Self {
            spec,
            names,
            labels,
            columns: placed(columns),
            tables: Vec::new(),
            series,
        }
    }

    /// The tables of one probe under Sonde's names.
    pub(super) fn new(spec: &'static ProbeSpec, tables: Vec<&'a Table>, subjects: &Subjects) -> Self {
        let columns = spec
            .columns
            .iter()
            .map(|column| Column {
                unit: column.unit,
                scale: Scale::new(column.scale),
                bounds: column.bounds,
                width: column.width(),
                ..Column::new(
                    names::metric(spec.name, &column.to_proto()).into(),
                    match column.kind {
                        Kind::Histogram => Type::Histogram,
                        Kind::Gauge => Type::Gauge,
                        Kind::Counter | Kind::Unspecified => Type::Counter,
                    },
                    column.help.into(),
                    column.kind != Kind::Gauge,
                )
            })
            .collect();
        let mut group = Self {
            spec,
            names: MetricNames::Sonde,
            labels: spec.labels.iter().map(|label| label.name).collect(),
            columns: placed(columns),
            tables,
            series: Vec::new(),
        };
        group.series = group.collect(subjects);
        group
    }

    fn collect(&self, subjects: &Subjects) -> Vec<Series> {
        struct Found {
            rank: usize,
            own: Box<str>,
            first: Row,
            more: Vec<Row>,
        }
        let mut all: Vec<Found> = Vec::with_capacity(self.tables.iter().map(|t| t.len()).sum());
        let mut places: HashMap<(usize, Box<str>), usize> = HashMap::with_capacity(all.capacity());
        let mut own = String::new();
        for (t, table) in self.tables.iter().enumerate() {
            for (r, subject) in table.subjects.iter().enumerate() {
                let Some(rank) = subjects.rank(subject) else { continue };
                let row = Row { table: t, row: r };
                own.clear();
                self.write_own(&mut own, row);
                match places.entry((rank, own.as_str().into())) {
                    std::collections::hash_map::Entry::Occupied(place) => all[*place.get()].more.push(row),
                    std::collections::hash_map::Entry::Vacant(place) => {
                        place.insert(all.len());
                        all.push(Found {
                            rank,
                            own: own.as_str().into(),
                            first: row,
                            more: Vec::new(),
                        });
                    }
                }
            }
        }
        all.sort_by_key(|found| found.rank);
        all.into_iter()
            .map(|found| Series {
                owner: Arc::clone(subjects.owner(found.rank)),
                own: found.own,
                values: if found.more.is_empty() {
                    Values::Row(found.first)
                } else {
                    let mut rows = found.more;
                    rows.push(found.first);
                    Values::Sums(self.merged(&mut rows), Some(found.first))
                },
            })
            .collect()
    }

    fn write_own(&self, out: &mut String, row: Row) {
        if !self.labels.is_empty() {
            out.push(',');
            write_labels(out, self.labels.iter().copied().zip(self.labels_of(row)));
        }
    }

    fn labels_of(&self, row: Row) -> impl Iterator<Item = &str> {
        let width = self.spec.labels.len();
        self.tables[row.table].labels[row.row * width..][..width]
            .iter()
            .map(|label| &**label)
    }

    /// One row of several.
    fn merged(&self, rows: &mut [Row]) -> Box<[i128]> {
        rows.sort_by_key(|row| std::cmp::Reverse(since(&self.tables[row.table].subjects[row.row])));
        let mut sums = vec![NONE; self.width()].into_boxed_slice();
        for (i, column) in self.columns.iter().enumerate() {
            let sum = &mut sums[column.cells()];
            for row in rows.iter() {
                let values = self.stored(*row, i, column);
                if values.contains(&ABSENT) || (!column.adds && sum[0] != NONE) {
                    continue;
                }
                add(sum, values.iter().map(|value| i128::from(*value)));
            }
        }
        sums
    }

    fn stored(&self, row: Row, index: usize, column: &Column) -> &[i64] {
        &self.tables[row.table].columns[index][row.row * column.width..][..column.width]
    }

    fn width(&self) -> usize {
        self.columns.iter().map(|column| column.width).sum()
    }

    /// Values of a label, where the series has the probe's own.
    pub(super) fn label(&self, series: &Series, label: usize) -> Option<&str> {
        self.labels_of(series.row()?).nth(label)
    }

    /// A value as it is stored. Of a histogram, none.
    pub(super) fn value(&self, series: &Series, index: usize) -> Option<i128> {
        let column = &self.columns[index];
        match &series.values {
            Values::Row(row) => match self.tables[row.table].columns[index].get(row.row * column.width) {
                Some(&ABSENT) | None => None,
                Some(value) => Some((*value).into()),
            },
            Values::Sums(sums, _) => Some(sums[column.place]).filter(|value| *value != NONE),
        }
    }

    /// The counts of a histogram's buckets, not cumulated, and the sum; false where there are none.
    pub(super) fn buckets(&self, series: &Series, index: usize, into: &mut Vec<i128>) -> bool {
        let column = &self.columns[index];
        into.clear();
        match &series.values {
            Values::Row(row) => {
                let stored = self.stored(*row, index, column);
                if !stored.contains(&ABSENT) {
                    into.extend(stored.iter().map(|value| i128::from(*value)));
                }
            }
            Values::Sums(sums, _) => into.extend(sums[column.cells()].iter().filter(|value| **value != NONE)),
        }
        into.len() == column.width
    }

    /// All values that may be added to those of others; [`NONE`] for the rest.
    pub(super) fn addable(&self, series: &Series) -> Box<[i128]> {
        let mut cells = vec![NONE; self.width()].into_boxed_slice();
        let mut buckets = Vec::new();
        for (i, column) in self.columns.iter().enumerate().filter(|(_, column)| column.adds) {
            if column.width > 1 {
                if self.buckets(series, i, &mut buckets) {
                    cells[column.cells()].copy_from_slice(&buckets);
                }
            } else if let Some(value) = self.value(series, i) {
                cells[column.place] = value;
            }
        }
        cells
    }

    /// The cells of each column, in order.
    pub(super) fn cells(&self) -> impl Iterator<Item = std::ops::Range<usize>> {
        self.columns.iter().map(Column::cells)
    }

    /// How many series Prometheus makes of one of ours.
    pub(super) fn series_each(&self) -> usize {
        self.columns.iter().map(Column::series).sum()
    }
}

fn placed(mut columns: Vec<Column>) -> Vec<Column> {
    let mut place = 0;
    for column in &mut columns {
        column.place = place;
        place += column.width;
    }
    columns
}

fn since(subject: &Subject) -> (u64, &str) {
    match subject {
        Subject::Pod(pod) => (pod.valid_from_ns, &pod.sandbox),
        Subject::Node | Subject::Unknown => (0, ""),
    }
}
