//! At most so many series: what is beyond is added up in series of pod `__overflow__`.
//!
//! A series that is shown is shown until it ends, and one that is added up stays added up, so no series comes and goes with
//! the number of the others. Counters of an overflow series never fall: what a series had when it ended stays in the sum.
//! Nothing is kept of a series that has ended, and nothing of an overflow series once no series is in it.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::{BuildHasher as _, Hash, RandomState};
use std::ops::Range;

use crate::config::MaxSeries;

/// Name of the pod, and where the probe's own budget is spent of the namespace too.
pub const OVERFLOW: &str = "__overflow__";
/// No value, among values that are added up.
pub const NONE: i128 = i128::MIN;

/// What one probe showed before.
#[derive(Debug, Default)]
pub struct Budget {
    hasher: RandomState,
    shown: HashSet<Key>,
    folded: HashMap<Key, Folded>,
    /// Of series that ended or began anew, by namespace.
    ended: BTreeMap<Box<str>, Box<[i128]>>,
    over_total: u64,
}

/// Hash of a series. Two that meet would be counted as one; of a million that is once in 30 million tries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key(u64);

#[derive(Debug)]
struct Folded {
    into: Box<str>,
    last: Box<[i128]>,
}

/// Rows of one probe.
pub trait Rows {
    fn len(&self) -> usize;
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// What tells a row from others, whatever its place.
    fn key(&self, row: usize) -> impl Hash;
    fn namespace(&self, row: usize) -> &str;
    /// How many series Prometheus makes of a row.
    fn series_each(&self) -> usize;
    /// All values of a row that may be added to those of others; [`NONE`] for the rest.
    fn addable(&self, row: usize) -> Box<[i128]>;
    /// Which of these belong to one column: a histogram has several.
    fn columns(&self) -> Vec<Range<usize>>;
}

/// What to show.
#[derive(Debug, Default)]
pub struct Split {
    /// Rows, in their order.
    pub shown: Vec<usize>,
    /// By namespace, what is added up there.
    pub sums: Vec<(Box<str>, Box<[i128]>)>,
}

impl Budget {
    /// Holds rows to the limits.
    pub fn split(&mut self, rows: &impl Rows, limits: &MaxSeries) -> Split {
        let each = rows.series_each();
        let keys: Vec<Key> = (0..rows.len()).map(|row| self.key(rows, row)).collect();
        let mut used = Used::default();
        for (row, key) in keys.iter().enumerate() {
            if self.shown.contains(key) {
                used.add(rows.namespace(row), each);
            }
        }
        let mut split = Split::default();
        let mut shown = HashSet::with_capacity(keys.len());
        let mut folded = HashMap::new();
        for (row, key) in keys.into_iter().enumerate() {
            let namespace = rows.namespace(row);
            let into = match self.folded.get(&key) {
                Some(folded) => Some(folded.into.clone()),
                None if self.shown.contains(&key) => None,
                None => {
                    let into = used.place(namespace, each, limits);
                    match into {
                        Some(_) => self.over_total += each as u64,
                        None => used.add(namespace, each),
                    }
                    into
                }
            };
            match into {
                Some(into) => _ = folded.insert(key, self.fold(rows, row, key, into)),
                None => {
                    shown.insert(key);
                    split.shown.push(row);
                }
            }
        }
        self.shown = shown;
        self.retire(folded);
        let live: HashSet<&str> = self.folded.values().map(|folded| &*folded.into).collect();
        self.ended.retain(|into, _| live.contains(&**into));
        split.sums = self.sums();
        split
    }

    /// Series that were shown before anything was counted, by what tells one from others.
    pub fn show(&mut self, keys: impl IntoIterator<Item: Hash>) {
        let keys = keys.into_iter().map(|key| Key(self.hasher.hash_one(key)));
        self.shown.extend(keys);
    }

    /// Adds up all rows, for good: the sum outlives them. `None` while there never was one.
    pub fn sum(&mut self, rows: &impl Rows) -> Option<Box<[i128]>> {
        let mut folded = HashMap::new();
        for row in 0..rows.len() {
            let key = self.key(rows, row);
            folded.insert(key, self.fold(rows, row, key, "".into()));
        }
        self.retire(folded);
        self.sums().pop().map(|(_, sum)| sum)
    }

    /// Rows that are added up now.
    pub fn folded(&self) -> usize {
        self.folded.len()
    }

    /// Series that came too late so far, as Prometheus counts them.
    pub fn over_total(&self) -> u64 {
        self.over_total
    }

    fn key(&self, rows: &impl Rows, row: usize) -> Key {
        Key(self.hasher.hash_one(rows.key(row)))
    }

    /// Takes the row out of those before.
    fn fold(&mut self, rows: &impl Rows, row: usize, key: Key, into: Box<str>) -> Folded {
        let now = rows.addable(row);
        let ended = self
            .ended
            .entry(into.clone())
            .or_insert_with(|| vec![NONE; now.len()].into());
        let Some(mut folded) = self.folded.remove(&key) else {
            return Folded { into, last: now };
        };
        for cells in rows.columns() {
            let (last, now) = (&mut folded.last[cells.clone()], &now[cells.clone()]);
            if now.contains(&NONE) {
                continue;
            }
            if now.iter().zip(last.iter()).any(|(now, last)| now < last) {
                // It began anew.
                add(&mut ended[cells], last.iter().copied());
            }
            last.copy_from_slice(now);
        }
        folded
    }

    /// Goes on with these; what others had at last stays in the sums.
    fn retire(&mut self, folded: HashMap<Key, Folded>) {
        for old in std::mem::replace(&mut self.folded, folded).into_values() {
            if let Some(sum) = self.ended.get_mut(&old.into) {
                add(sum, old.last.iter().copied());
            }
        }
    }

    fn sums(&self) -> Vec<(Box<str>, Box<[i128]>)> {
        let mut all = self.ended.clone();
        for folded in self.folded.values() {
            if let Some(sum) = all.get_mut(&folded.into) {
                add(sum, folded.last.iter().copied());
            }
        }
        all.into_iter().collect()
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

/// Adds values to sums of which some may not be there yet.
pub fn add(sums: &mut [i128], values: impl IntoIterator<Item = i128>) {
    for (sum, value) in sums.iter_mut().zip(values) {
        if value != NONE {
            *sum = if *sum == NONE { value } else { *sum + value };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Namespace, name, counter, gauge that is not added up.
    struct Few(Vec<(&'static str, u32, i128)>);

    impl Rows for Few {
        fn len(&self) -> usize {
            self.0.len()
        }
        fn key(&self, row: usize) -> impl Hash {
            (self.0[row].0, self.0[row].1)
        }
        fn namespace(&self, row: usize) -> &str {
            self.0[row].0
        }
        fn series_each(&self) -> usize {
            2
        }
        fn addable(&self, row: usize) -> Box<[i128]> {
            [self.0[row].2, NONE].into()
        }
        fn columns(&self) -> Vec<Range<usize>> {
            vec![0..1, 1..2]
        }
    }

    fn limits(per_probe: usize, per_namespace: usize) -> MaxSeries {
        MaxSeries {
            per_probe,
            per_namespace,
        }
    }

    fn sums(split: &Split) -> Vec<(&str, i128)> {
        split.sums.iter().map(|(into, cells)| (&**into, cells[0])).collect()
    }

    #[test]
    fn one_namespace_does_not_take_the_room_of_others() {
        let mut budget = Budget::default();
        let rows = Few(vec![("a", 1, 1), ("a", 2, 2), ("a", 3, 3), ("b", 1, 4), ("c", 1, 5)]);
        let split = budget.split(&rows, &limits(7, 4));
        assert_eq!(split.shown, [0, 1, 3]);
        assert_eq!(sums(&split), [(OVERFLOW, 5), ("a", 3)]);
        assert_eq!((budget.folded(), budget.over_total()), (2, 4));
        assert!(split.sums.iter().all(|(_, cells)| cells[1] == NONE));
    }

    #[test]
    fn a_sum_never_falls_and_ends_with_the_last_series_in_it() {
        let mut budget = Budget::default();
        let mut at = |rows: &[(&'static str, u32, i128)]| {
            let split = budget.split(&Few(rows.to_vec()), &limits(100, 2));
            sums(&split).first().map(|(_, sum)| *sum)
        };
        assert_eq!(at(&[("a", 1, 9), ("a", 2, 10), ("a", 3, 5)]), Some(15));
        assert_eq!(
            at(&[("a", 1, 9), ("a", 2, 12), ("a", 3, 1)]),
            Some(18),
            "the third began anew"
        );
        assert_eq!(
            at(&[("a", 1, 9), ("a", 3, NONE)]),
            Some(18),
            "the second ended, the third tells nothing"
        );
        assert_eq!(at(&[("a", 1, 9), ("a", 3, 3), ("a", 4, 1)]), Some(21));
        assert_eq!(at(&[("a", 1, 9)]), None);
        assert_eq!(at(&[("a", 1, 9), ("a", 5, 1)]), Some(1));
    }

    #[test]
    fn a_sum_of_all_outlives_them() {
        let mut budget = Budget::default();
        assert!(budget.sum(&Few(vec![])).is_none());
        assert_eq!(budget.sum(&Few(vec![("a", 1, 1), ("b", 1, 2)])).unwrap()[0], 3);
        assert_eq!(budget.sum(&Few(vec![("b", 1, 4)])).unwrap()[0], 5);
        assert_eq!(budget.sum(&Few(vec![])).unwrap()[0], 5);
    }
}
