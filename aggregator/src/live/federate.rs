//! The page of `/federate`: all series that any selector wants, each once, families in order of name.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::rc::Rc;
use std::sync::Arc;

use sonde_common::prom::{Number, escape_help};
use sonde_proto::ABSENT;

use super::LiveTable;
use super::meta::{ColumnMeta, ProbeMeta, Shape, Suffix};
use super::selector::{ForProbe, Selector};
use super::snapshot::Snapshot;

/// The page goes out in pieces of about this size, so that its length costs no memory.
const PIECE: usize = 128 << 10;

/// Takes a piece of the page; false: nobody wants more.
type Sink<'a> = &'a mut dyn FnMut(String) -> bool;

impl LiveTable {
    /// Writes what matches any selector, in the text format with the nodes' own timestamps.
    pub fn federate(&self, selectors: &[Selector], sink: Sink<'_>) {
        let snapshots = self.snapshots();
        let probes = wanted_probes(&snapshots, selectors);
        let mut families: BTreeMap<&str, Vec<Part>> = BTreeMap::new();
        for snapshot in &snapshots {
            let Some(probe) = probes.get(&Arc::as_ptr(&snapshot.meta)) else {
                continue;
            };
            let Some(rows) = probe.rows_of(snapshot) else { continue };
            let rows = Rc::new(rows);
            for column in &probe.columns {
                let part = Part {
                    snapshot,
                    selectors: &probe.selectors,
                    column,
                    rows: rows.clone(),
                };
                families.entry(&column.meta.family).or_default().push(part);
            }
        }
        let mut writer = Writer {
            piece: String::with_capacity(PIECE + 4096),
            begun: None,
            values: Vec::new(),
            sink,
        };
        for parts in families.values() {
            if !writer.family(parts) {
                return;
            }
        }
        writer.flush();
    }
}

/// One probe definition under all selectors, worked out once for all nodes that have it.
struct Wanted<'a> {
    selectors: Vec<ForProbe<'a>>,
    columns: Vec<WantedColumn<'a>>,
}

struct WantedColumn<'a> {
    index: usize,
    meta: &'a ColumnMeta,
    /// The kinds of series that are wanted, each with the places of the selectors that want it.
    kinds: Vec<(Suffix, Vec<usize>)>,
}

/// One column of one snapshot.
struct Part<'a> {
    snapshot: &'a Snapshot,
    selectors: &'a [ForProbe<'a>],
    column: &'a WantedColumn<'a>,
    rows: Rc<RowsWanted>,
}

/// For each row: which selectors want it, if any does.
struct RowsWanted(Vec<Option<Box<[bool]>>>);

fn wanted_probes<'a>(
    snapshots: &'a [Arc<Snapshot>],
    selectors: &'a [Selector],
) -> HashMap<*const ProbeMeta, Wanted<'a>> {
    // By name, so that of two probes that give the same series always the same one is shown.
    let mut metas: Vec<&Arc<ProbeMeta>> = snapshots.iter().map(|s| &s.meta).collect();
    metas.sort_by_key(|m| (&m.probe, Arc::as_ptr(m)));
    metas.dedup_by_key(|m| Arc::as_ptr(m));
    let mut owners: HashMap<String, (&str, &str)> = HashMap::new();
    let mut out = HashMap::new();
    for meta in metas {
        let compiled: Vec<_> = selectors.iter().filter_map(|s| s.for_probe(meta)).collect();
        let mut columns = Vec::new();
        for (index, column) in meta.columns.iter().enumerate() {
            let kinds = kinds_wanted(column, &compiled);
            let owner = (meta.probe.as_str(), column.kind().as_str());
            if !kinds.is_empty()
                && column
                    .series_names()
                    .all(|name| *owners.entry(name).or_insert(owner) == owner)
            {
                columns.push(WantedColumn {
                    index,
                    meta: column,
                    kinds,
                });
            }
        }
        if !columns.is_empty() {
            out.insert(
                Arc::as_ptr(meta),
                Wanted {
                    selectors: compiled,
                    columns,
                },
            );
        }
    }
    out
}

fn kinds_wanted(column: &ColumnMeta, selectors: &[ForProbe]) -> Vec<(Suffix, Vec<usize>)> {
    let by = |suffix: Suffix| -> Vec<usize> {
        (0..selectors.len())
            .filter(|i| selectors[*i].has_series(column, suffix))
            .collect()
    };
    column
        .suffixes()
        .iter()
        .map(|suffix| (*suffix, by(*suffix)))
        .filter(|(_, by)| !by.is_empty())
        .collect()
}

impl Wanted<'_> {
    fn rows_of(&self, snapshot: &Snapshot) -> Option<RowsWanted> {
        let on_node: Vec<bool> = self.selectors.iter().map(|s| s.has_node(snapshot)).collect();
        if !on_node.contains(&true) {
            return None;
        }
        let rows = (0..snapshot.rows.len()).map(|row| {
            let by: Box<[bool]> = self
                .selectors
                .iter()
                .zip(&on_node)
                .map(|(s, on)| *on && s.has_row(snapshot.labels(row)))
                .collect();
            by.contains(&true).then_some(by)
        });
        Some(RowsWanted(rows.collect()))
    }
}

struct Writer<'a, 'p> {
    piece: String,
    /// A family whose head is written with its first sample.
    begun: Option<&'p ColumnMeta>,
    /// Of the column that is being written.
    values: Vec<i64>,
    sink: Sink<'a>,
}

impl<'p> Writer<'_, 'p> {
    /// One family with all its samples; nothing at all if there are none. False: nobody wants more.
    fn family(&mut self, parts: &[Part<'p>]) -> bool {
        self.begun = parts.first().map(|part| part.column.meta);
        for part in parts {
            let mut values = std::mem::take(&mut self.values);
            part.snapshot.column(part.column.index, &mut values);
            let rows = values.chunks_exact(part.column.meta.width());
            for (row, (by, values)) in part.rows.0.iter().zip(rows).enumerate() {
                if let Some(by) = by
                    && !values.contains(&ABSENT)
                {
                    self.row(part, row, by, values);
                }
            }
            self.values = values;
            if self.piece.len() >= PIECE && !self.flush() {
                return false;
            }
        }
        true
    }

    fn row(&mut self, part: &Part, row: usize, by: &[bool], values: &[i64]) {
        let column = part.column.meta;
        let mut line = |suffix, le, value| self.sample(part.snapshot, row, column, suffix, le, value);
        for (suffix, who) in &part.column.kinds {
            if !who.iter().any(|i| by[*i]) {
                continue;
            }
            match (&column.shape, suffix) {
                (Shape::Histogram(bounds), Suffix::Bucket) => {
                    let mut count: i64 = 0;
                    for (le, in_bucket) in bounds.iter().zip(values) {
                        count = count.saturating_add(*in_bucket);
                        if who.iter().any(|i| by[*i] && part.selectors[*i].has_bucket(le)) {
                            line(*suffix, Some(le), Number::from(count));
                        }
                    }
                }
                (Shape::Histogram(bounds), Suffix::Count) => {
                    let count = values[..bounds.len()]
                        .iter()
                        .fold(0_i64, |sum, v| sum.saturating_add(*v));
                    line(*suffix, None, Number::from(count));
                }
                (Shape::Histogram(bounds), _) => line(*suffix, None, column.value(values[bounds.len()])),
                _ => line(*suffix, None, column.value(values[0])),
            }
        }
    }

    fn sample(
        &mut self,
        snapshot: &Snapshot,
        row: usize,
        column: &ColumnMeta,
        suffix: Suffix,
        le: Option<&String>,
        value: Number,
    ) {
        let out = &mut self.piece;
        if let Some(column) = self.begun.take() {
            let _ = write!(out, "# HELP {} ", column.family);
            escape_help(out, &column.help);
            let _ = writeln!(out, "\n# TYPE {} {}", column.family, column.kind().as_str());
        }
        let [of_subject, of_row] = snapshot.labels(row).text();
        for text in [&column.family, suffix.as_str(), "{", of_subject, of_row] {
            out.push_str(text);
        }
        if let Some(le) = le {
            let _ = write!(out, ",le=\"{le}\"");
        }
        out.push_str("} ");
        value.write(out);
        let _ = writeln!(out, " {}", snapshot.time_ns / 1_000_000);
    }

    fn flush(&mut self) -> bool {
        self.piece.is_empty() || (self.sink)(std::mem::replace(&mut self.piece, String::with_capacity(PIECE + 4096)))
    }
}
