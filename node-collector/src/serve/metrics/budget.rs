//! Groups held to the limits of `metrics.max_series`.

use std::hash::Hash;
use std::ops::Range;
use std::sync::Arc;

use sonde_common::budget::{Budget, OVERFLOW, Rows, Split};
use sonde_common::config::MaxSeries;
use sonde_common::prom::write_labels;

use super::group::{Group, Series};
use super::owners::Owner;

impl Rows for Group<'_> {
    fn len(&self) -> usize {
        self.series.len()
    }
    fn key(&self, row: usize) -> impl Hash {
        let series = &self.series[row];
        (&*series.owner.namespace, &*series.owner.pod, &*series.own)
    }
    fn namespace(&self, row: usize) -> &str {
        &self.series[row].owner.namespace
    }
    fn series_each(&self) -> usize {
        self.series_each()
    }
    fn addable(&self, row: usize) -> Box<[i128]> {
        self.addable(&self.series[row])
    }
    fn columns(&self) -> Vec<Range<usize>> {
        self.cells().collect()
    }
}

/// Puts overflow series in place of what is beyond the limits. `owner` makes the owner of one, by namespace.
pub(super) fn hold(group: &mut Group<'_>, budget: &mut Budget, limits: &MaxSeries, owner: impl Fn(&str) -> Owner) {
    let Split { shown, sums } = budget.split(group, limits);
    if shown.len() < group.series.len() {
        let mut shown = shown.into_iter().peekable();
        let mut row = 0;
        group.series.retain(|_| {
            let stays = shown.next_if_eq(&row).is_some();
            row += 1;
            stays
        });
    }
    let own = overflow_labels(group);
    group.series.extend(sums.into_iter().map(|(namespace, cells)| {
        let owner = Arc::new(owner(&namespace));
        Series::new(owner, own.clone(), cells)
    }));
}

/// Adds up all series under one owner: those that are not told apart by pod.
pub(super) fn sum_up(group: &mut Group<'_>, budget: &mut Budget, owner: &Arc<Owner>, own: &str) {
    let sum = budget.sum(group);
    group.series.clear();
    group
        .series
        .extend(sum.map(|cells| Series::new(Arc::clone(owner), own.into(), cells)));
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
