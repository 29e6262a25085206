//! At most so many series: what is beyond is added up in series of pod `__overflow__`.
//!
//! A series that is shown is shown until it ends, and one that is added up stays added up, so no series comes and goes with
//! the number of the others. Counters of an overflow series never fall: what a series had when it ended stays in the sum.
//! Gauges are left out: a sum of them would be none of their kind. Nothing is kept of a series that has ended, and
//! nothing of an overflow series once no series is in it.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;

use sonde_common::config::MaxSeries;
use sonde_common::prom::write_labels;

use super::group::{Group, NONE, Series, add};
use super::owners::Owner;

/// Name of the pod, and where the probe's own budget is spent of the namespace too.
pub(super) const OVERFLOW: &str = "__overflow__";

/// What one group had on the page before.
#[derive(Debug, Default)]
pub(super) struct Budget {
    hasher: RandomState,
    /// Hashes of series.
    shown: HashSet<u64>,
    folded: HashMap<u64, Folded>,
    /// By namespace.
    sums: BTreeMap<Box<str>, Sum>,
    /// Series that came too late so far, as Prometheus counts them.
    pub over_total: u64,
}

#[derive(Debug)]
struct Folded {
    into: Box<str>,
    last: Box<[i128]>,
}

/// What is added up in one place.
#[derive(Debug)]
struct Sum {
    /// Of series that ended or began anew.
    ended: Box<[i128]>,
}

impl Budget {
    /// Puts overflow series in place of what is beyond the limits. `owner` makes the owner of one.
    pub(super) fn apply(&mut self, group: &mut Group<'_>, limits: &MaxSeries, owner: impl Fn(&str) -> Owner) {
        let each = group.series_each();
        let series = std::mem::take(&mut group.series);
        let keys: Vec<u64> = series.iter().map(|series| self.key(series)).collect();
        let mut used = Used::default();
        for (series, key) in series.iter().zip(&keys) {
            if self.shown.contains(key) {
                used.add(&series.owner.namespace, each);
            }
        }
        let mut shown = HashSet::with_capacity(keys.len());
        let mut folded = HashMap::new();
        for (series, key) in series.into_iter().zip(keys) {
            let into = match self.folded.get(&key) {
                Some(folded) => Some(folded.into.clone()),
                None if self.shown.contains(&key) => None,
                None => {
                    let into = used.place(&series.owner.namespace, each, limits);
                    match into {
                        Some(_) => self.over_total += each as u64,
                        None => used.add(&series.owner.namespace, each),
                    }
                    into
                }
            };
            match into {
                None => {
                    shown.insert(key);
                    group.series.push(series);
                }
                Some(into) => {
                    let now = group.addable(&series);
                    folded.insert(key, self.fold(group, key, into, now));
                }
            }
        }
        self.shown = shown;
        let gone = std::mem::replace(&mut self.folded, folded);
        self.end(gone);
        let own = overflow_labels(group);
        let sums = self.total();
        group.series.extend(sums.into_iter().map(|(namespace, cells)| {
            let owner = Arc::new(owner(&namespace));
            Series::new(owner, own.clone(), cells)
        }));
    }

    /// Adds up all series under one owner: those that do not tell them apart by pod.
    pub(super) fn fold_all(&mut self, group: &mut Group<'_>, owner: &Arc<Owner>, own: &str) {
        let mut folded = HashMap::new();
        for series in std::mem::take(&mut group.series) {
            let key = self.key(&series);
            let now = group.addable(&series);
            folded.insert(key, self.fold(group, key, "".into(), now));
        }
        for (_, old) in std::mem::replace(&mut self.folded, folded) {
            self.retire(old);
        }
        let all = self.total().into_iter();
        group
            .series
            .extend(all.map(|(_, cells)| Series::new(Arc::clone(owner), own.into(), cells)));
    }

    /// Series that are added up now.
    pub(super) fn folded(&self) -> usize {
        self.folded.len()
    }

    fn key(&self, series: &Series) -> u64 {
        self.hasher
            .hash_one((&*series.owner.namespace, &*series.owner.pod, &*series.own))
    }

    /// Takes the series out of those before.
    fn fold(&mut self, group: &Group<'_>, key: u64, into: Box<str>, now: Box<[i128]>) -> Folded {
        let width = now.len();
        let sum = self.sums.entry(into.clone()).or_insert_with(|| Sum {
            ended: vec![NONE; width].into_boxed_slice(),
        });
        let Some(mut folded) = self.folded.remove(&key) else {
            return Folded { into, last: now };
        };
        for cells in group.cells() {
            let (last, now) = (&mut folded.last[cells.clone()], &now[cells.clone()]);
            if now.contains(&NONE) {
                continue;
            }
            if now.iter().zip(last.iter()).any(|(now, last)| now < last) {
                // It began anew.
                add(&mut sum.ended[cells], last.iter().copied());
            }
            last.copy_from_slice(now);
        }
        folded
    }

    fn end(&mut self, gone: HashMap<u64, Folded>) {
        for (_, old) in gone {
            self.retire(old);
        }
        let live: HashSet<&str> = self.folded.values().map(|folded| &*folded.into).collect();
        self.sums.retain(|into, _| live.contains(&**into));
    }

    fn retire(&mut self, old: Folded) {
        if let Some(sum) = self.sums.get_mut(&old.into) {
            add(&mut sum.ended, old.last.iter().copied());
        }
    }

    fn total(&self) -> BTreeMap<Box<str>, Box<[i128]>> {
        let mut all: BTreeMap<Box<str>, Box<[i128]>> = self
            .sums
            .iter()
            .map(|(into, sum)| (into.clone(), sum.ended.clone()))
            .collect();
        for folded in self.folded.values() {
            if let Some(cells) = all.get_mut(&folded.into) {
                add(cells, folded.last.iter().copied());
            }
        }
        all
    }
}

/// What the series shown take.
#[derive(Default)]
struct Used {
    probe: usize,
    namespaces: HashMap<Box<str>, usize>,
}

impl Used {
    fn add(&mut self, namespace: &str, each: usize) {
        self.probe += each;
        match self.namespaces.get_mut(namespace) {
            Some(used) => *used += each,
            None => _ = self.namespaces.insert(namespace.into(), each),
        }
    }

    /// Where a new series goes that has no room.
    fn place(&self, namespace: &str, each: usize, limits: &MaxSeries) -> Option<Box<str>> {
        let of_namespace = self.namespaces.get(namespace).copied().unwrap_or(0);
        if self.probe + each > limits.per_probe {
            Some(OVERFLOW.into())
        } else if of_namespace + each > limits.per_namespace {
            Some(namespace.into())
        } else {
            None
        }
    }
}

/// The probe's own labels of an overflow series.
fn overflow_labels(group: &Group<'_>) -> Box<str> {
    let mut own = String::new();
    if !group.labels.is_empty() {
        own.push(',');
        write_labels(&mut own, group.labels.iter().map(|label| (*label, OVERFLOW)));
    }
    own.into()
}
