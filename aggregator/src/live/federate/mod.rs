//! The page of `/federate`: all series that any selector wants, each once, families in order of name.
//!
//! Selectors are worked out once for each probe definition (which kinds of series of which columns), once for each node, and
//! then once for each label set, whatever the number of its series. Nothing is asked for a sample.

mod write;

use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;
use std::sync::Arc;

use sonde_common::prom::Format;

use super::LiveTable;
use super::labels::RowLabels;
use super::meta::{ColumnMeta, ProbeMeta, Shape, Suffix};
use super::selector::{ForProbe, MAX_SELECTORS, Mask, Selector};
use super::snapshot::Snapshot;
use write::Writer;

/// Takes a piece of the page; false: nobody wants more.
type Sink<'a> = &'a mut dyn FnMut(String) -> bool;

impl LiveTable {
    /// Writes what matches any selector, with the nodes' own timestamps, from what is there now: no lock is held while it is
    /// written. The first [`MAX_SELECTORS`] count. False: the sink wanted no more before the end.
    pub fn federate(&self, selectors: &[Selector], format: Format, sink: Sink<'_>) -> bool {
        let selectors = &selectors[..selectors.len().min(MAX_SELECTORS)];
        let snapshots = self.snapshots();
        let probes = wanted_probes(&snapshots, selectors, format);
        let mut families: BTreeMap<&str, Vec<Part>> = BTreeMap::new();
        for snapshot in &snapshots {
            let Some(probe) = probes.get(&Arc::as_ptr(&snapshot.meta)) else {
                continue;
            };
            let Some(rows) = probe.rows_of(snapshot) else { continue };
            let source = Rc::new(Source {
                snapshot,
                rows,
                stamp: write::stamp(format, snapshot.time_ns),
            });
            for column in &probe.columns {
                let source = Rc::clone(&source);
                families
                    .entry(&column.meta.family)
                    .or_default()
                    .push(Part { source, column });
            }
        }
        let mut writer = Writer::new(format, sink);
        families.values().all(|parts| writer.family(parts)) && writer.finish()
    }
}

/// One probe definition under all selectors, worked out once for all nodes that have it.
struct Wanted<'a> {
    /// With their places among all.
    selectors: Vec<(usize, ForProbe<'a>)>,
    columns: Vec<WantedColumn<'a>>,
}

struct WantedColumn<'a> {
    index: usize,
    meta: &'a ColumnMeta,
    /// The kinds of series that are wanted, and who wants each.
    kinds: Vec<Kind>,
    /// Of a histogram: what stands between labels and value, and who wants the bucket.
    buckets: Vec<(String, Mask)>,
    /// Whoever wants a series of a row wants all of them.
    whole: bool,
}

struct Kind {
    suffix: Suffix,
    by: Mask,
    /// What stands before the labels.
    start: String,
}

/// One column of one snapshot.
struct Part<'a> {
    source: Rc<Source<'a>>,
    column: &'a WantedColumn<'a>,
}

struct Source<'a> {
    snapshot: &'a Snapshot,
    rows: Rows,
    /// The end of each line.
    stamp: String,
}

/// Who wants each row.
enum Rows {
    All(Mask),
    Each(Vec<Mask>),
}

impl Rows {
    fn by(&self, row: usize) -> Mask {
        match self {
            Self::All(by) => *by,
            Self::Each(all) => all[row],
        }
    }
}

fn wanted_probes<'a>(
    snapshots: &'a [Arc<Snapshot>],
    selectors: &'a [Selector],
    format: Format,
) -> HashMap<*const ProbeMeta, Wanted<'a>> {
    // By name, so that of two probes that give the same series always the same one is shown.
    let mut metas: Vec<&Arc<ProbeMeta>> = snapshots.iter().map(|s| &s.meta).collect();
    metas.sort_by_key(|m| (&m.probe, Arc::as_ptr(m)));
    metas.dedup_by_key(|m| Arc::as_ptr(m));
    let mut owners = Owners::default();
    let mut out = HashMap::new();
    for meta in metas {
        let selectors: Vec<_> = selectors
            .iter()
            .enumerate()
            .filter_map(|(place, selector)| Some((place, selector.for_probe(meta)?)))
            .collect();
        let mut columns = Vec::new();
        for (index, column) in meta.columns.iter().enumerate() {
            let wanted = WantedColumn::new(index, column, &selectors, format);
            if !wanted.kinds.is_empty() && owners.admit(meta, column) {
                columns.push(wanted);
            }
        }
        if !columns.is_empty() {
            out.insert(Arc::as_ptr(meta), Wanted { selectors, columns });
        }
    }
    out
}

/// Which probe gives a name. A name that another one gives too, or with another type, would spoil the page.
#[derive(Default)]
struct Owners<'a> {
    /// Families by what OpenMetrics calls them, which is no series' name in the case of counters and histograms.
    families: HashMap<&'a str, (&'a str, &'static str)>,
    series: HashMap<String, (&'a str, &'static str)>,
}

impl<'a> Owners<'a> {
    fn admit(&mut self, meta: &'a ProbeMeta, column: &'a ColumnMeta) -> bool {
        let owner = (meta.probe.as_str(), column.kind().as_str());
        let family = column.family.strip_suffix("_total").unwrap_or(&column.family);
        *self.families.entry(family).or_insert(owner) == owner
            && column
                .series_names()
                .all(|name| *self.series.entry(name).or_insert(owner) == owner)
    }
}

impl<'a> WantedColumn<'a> {
    fn new(index: usize, meta: &'a ColumnMeta, selectors: &[(usize, ForProbe)], format: Format) -> Self {
        let who = |wants: &dyn Fn(&ForProbe) -> bool| {
            let those = selectors.iter().filter(|(_, selector)| wants(selector));
            those.fold(0, |mask, (place, _)| mask | 1 << *place)
        };
        let buckets: Vec<(String, Mask)> = match &meta.shape {
            Shape::Histogram(bounds) => bounds
                .iter()
                .map(|le| write::bound(format, le))
                .map(|le| {
                    let by = who(&|s| s.has_series(meta, Suffix::Bucket) && s.has_bucket(&le));
                    (write::bucket(&le), by)
                })
                .collect(),
            _ => Vec::new(),
        };
        let kind = |suffix: &Suffix| {
            let by: Mask = match suffix {
                Suffix::Bucket => buckets.iter().fold(0, |mask, (_, by)| mask | by),
                _ => who(&|s| s.has_series(meta, *suffix)),
            };
            let start = format!("{}{}{{", meta.family, suffix.as_str());
            (by != 0).then_some(Kind {
                suffix: *suffix,
                by,
                start,
            })
        };
        let kinds: Vec<Kind> = meta.suffixes().iter().filter_map(kind).collect();
        let all = kinds.first().map_or(0, |kind| kind.by);
        Self {
            index,
            meta,
            whole: kinds.len() == meta.suffixes().len()
                && kinds.iter().all(|kind| kind.by == all)
                && buckets.iter().all(|(_, by)| *by == all),
            kinds,
            buckets,
        }
    }
}

impl Wanted<'_> {
    /// None: no selector wants any.
    fn rows_of(&self, snapshot: &Snapshot) -> Option<Rows> {
        let on_node: Vec<_> = self.selectors.iter().filter(|(_, s)| s.has_node(snapshot)).collect();
        let (all, some): (Vec<_>, Vec<_>) = on_node.into_iter().partition(|(_, s)| s.has_all_rows());
        let always = all.iter().fold(0, |mask: Mask, (place, _)| mask | 1 << *place);
        if some.is_empty() {
            return (always != 0).then_some(Rows::All(always));
        }
        let by = |row: RowLabels<'_>| {
            let those = some.iter().filter(|(_, s)| s.has_row(row));
            those.fold(always, |mask, (place, _)| mask | 1 << *place)
        };
        let each: Vec<Mask> = (0..snapshot.rows.len()).map(|row| by(snapshot.labels(row))).collect();
        each.iter().any(|by| *by != 0).then_some(Rows::Each(each))
    }
}

#[cfg(test)]
mod tests;
