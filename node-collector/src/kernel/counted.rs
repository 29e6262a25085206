//! Maps of counts, from the kernel's per-CPU values to rows.
//!
//! A key says a network namespace and what is counted there. Keys of namespaces that ended are deleted after a last
//! reading; those of namespaces that are no pod's are forgotten when they do not grow any more.

use std::collections::{HashMap, HashSet};
use std::hash::Hash;
use std::io;
use std::time::Duration;

use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::probe::{Round, Standing};
use super::sys::{BatchBuffer, RawMap};
use crate::event::{NetnsKey, Subject};

/// Keys of namespaces that are no pod's are forgotten after this many rounds without growth.
const IDLE_ROUNDS: u32 = 60;

/// How often the map is read again where counts are moved into it meanwhile.
const PENDING_TRIES: usize = 5;

/// A key of such a map.
pub(crate) trait Key: FromBytes + IntoBytes + Immutable + Copy + Eq + Hash + Send {
    fn netns(&self) -> NetnsKey;
}

/// A value of such a map. It only ever grows.
pub(crate) trait Value: FromBytes + IntoBytes + Immutable + Copy + Default + PartialEq + Send {
    fn add(&mut self, other: &Self);
    /// How many things it counts.
    fn count(&self) -> u64;
}

/// A per-CPU hash, and what is to be remembered of it from round to round.
pub(crate) struct Counted<K, V> {
    map: RawMap<K, V>,
    buffer: BatchBuffer<K, V>,
    entries: Vec<(K, V)>,
    /// What was deleted after the last reading.
    deleted: HashSet<K>,
    /// Of keys that are no pod's: what they were at, and for how many rounds.
    idle: HashMap<K, (V, u32)>,
    /// How long any key stays that does not grow; `None`: for ever, only those of nobody go.
    idle_limit: Option<Duration>,
    /// What keys were at, and since when, if they are to go one day.
    still: HashMap<K, (u64, u64)>,
    /// What such keys that were forgotten counted.
    forgotten: u64,
    standing: Standing,
}

/// One row to be: whose, of what group, how much.
pub(crate) type Sum<G, V> = (Subject, G, V);

impl<K: Key, V: Value> Counted<K, V> {
    pub(crate) fn new(map: RawMap<K, V>) -> Self {
        Self {
            map,
            buffer: BatchBuffer::default(),
            entries: Vec::new(),
            deleted: HashSet::new(),
            idle: HashMap::new(),
            idle_limit: None,
            still: HashMap::new(),
            forgotten: 0,
            standing: Standing::default(),
        }
    }

    /// Any key that has not grown for that long goes: for keys of things that come and go while their namespace stays. Its
    /// series ends, and begins at 0 should it come back.
    pub(crate) fn forgets_idle(mut self, limit: Duration) -> Self {
        self.idle_limit = Some(limit);
        self
    }

    /// Keys of each namespace that are left in the map, by inode.
    pub(crate) fn left(&self) -> HashMap<u32, u64> {
        let mut left = HashMap::new();
        for key in self.still.keys() {
            *left.entry(key.netns().inode).or_default() += 1;
        }
        left
    }

    pub(crate) fn standing(&self) -> Standing {
        self.standing
    }

    /// Reads the whole map: sums over CPUs and over keys of one namespace and group, in the order of those. `group` is
    /// asked of each key, those of unknown namespaces included.
    pub(crate) fn read<G: Ord + Clone>(
        &mut self,
        round: &Round<'_>,
        group: impl FnMut(&K) -> G,
    ) -> io::Result<Vec<Sum<G, V>>> {
        self.read_with(round, group, || Ok(Vec::new()))
    }

    /// With counts that `pending` reads from elsewhere, where the kernel side keeps them until it moves them here. They
    /// are read before and after, so that none is seen twice or not at all.
    pub(crate) fn read_with<G: Ord + Clone>(
        &mut self,
        round: &Round<'_>,
        group: impl FnMut(&K) -> G,
        mut pending: impl FnMut() -> io::Result<Vec<(K, V)>>,
    ) -> io::Result<Vec<Sum<G, V>>> {
        let mut before = pending()?;
        for _ in 0..PENDING_TRIES {
            self.load()?;
            let after = pending()?;
            if after == before {
                break;
            }
            before = after;
        }
        put_in(&mut self.entries, before);
        self.standing.keys = self.entries.len();
        self.deleted.clear();
        let (sums, strangers) = sums(&self.entries, group, round.owner);
        self.forget(&strangers, round.gone);
        self.forget_idle(round.time_ns);
        Ok(sums)
    }

    /// Keys that were deleted after the last reading.
    pub(crate) fn deleted(&self) -> &HashSet<K> {
        &self.deleted
    }

    /// Everything it counts at this moment.
    pub(crate) fn seen(&mut self) -> io::Result<u64> {
        self.load()?;
        Ok(self.entries.iter().map(|(_, value)| value.count()).sum())
    }

    fn load(&mut self) -> io::Result<()> {
        let Self {
            map, buffer, entries, ..
        } = self;
        entries.clear();
        map.for_each(buffer, |key, copies| {
            let mut sum = V::default();
            for copy in copies {
                sum.add(copy);
            }
            entries.push((*key, sum));
        })
    }

    fn forget_idle(&mut self, now_ns: u64) {
        let Some(limit) = self.idle_limit else { return };
        let mut still = HashMap::with_capacity(self.entries.len());
        for (key, value) in &self.entries {
            let count = value.count();
            let since = match self.still.get(key) {
                Some((before, since)) if *before == count => *since,
                _ => now_ns,
            };
            let idle = u128::from(now_ns.saturating_sub(since)) >= limit.as_nanos();
            if idle && self.map.delete(key).unwrap_or(false) {
                self.deleted.insert(*key);
            } else {
                still.insert(*key, (count, since));
            }
        }
        self.still = still;
    }

    fn forget(&mut self, strangers: &[usize], gone: &[NetnsKey]) {
        let mut idle = HashMap::with_capacity(strangers.len());
        self.standing.unknown = self.forgotten;
        for at in strangers {
            let (key, value) = self.entries[*at];
            self.standing.unknown += value.count();
            let rounds = match self.idle.get(&key) {
                Some((before, rounds)) if *before == value => rounds + 1,
                _ => 0,
            };
            if rounds >= IDLE_ROUNDS && self.map.delete(&key).unwrap_or(false) {
                self.forgotten += value.count();
                self.deleted.insert(key);
            } else {
                idle.insert(key, (value, rounds));
            }
        }
        self.idle = idle;
        for (key, _) in &self.entries {
            let netns = key.netns();
            let ended = gone
                .iter()
                .any(|ended| ended.inode == netns.inode && (ended.cookie == netns.cookie || ended.cookie == 0));
            if ended && self.map.delete(key).unwrap_or(false) {
                self.deleted.insert(*key);
            }
        }
    }
}

/// Adds to what was read, to the same keys where they are there.
fn put_in<K: Key, V: Value>(entries: &mut Vec<(K, V)>, more: Vec<(K, V)>) {
    if more.is_empty() {
        return;
    }
    let at: HashMap<K, usize> = entries.iter().enumerate().map(|(at, (key, _))| (*key, at)).collect();
    for (key, value) in more {
        match at.get(&key) {
            Some(at) => entries[*at].1.add(&value),
            None => entries.push((key, value)),
        }
    }
}

/// By (namespace, group), and which entries belong to no subject.
fn sums<K: Key, V: Value, G: Ord + Clone>(
    entries: &[(K, V)],
    mut group: impl FnMut(&K) -> G,
    owner: &dyn Fn(NetnsKey) -> Subject,
) -> (Vec<Sum<G, V>>, Vec<usize>) {
    let mut subjects: HashMap<NetnsKey, Subject> = HashMap::new();
    let mut kept: Vec<((u32, u64), G, usize)> = Vec::with_capacity(entries.len());
    let mut strangers = Vec::new();
    for (at, (key, _)) in entries.iter().enumerate() {
        let netns = key.netns();
        let group = group(key);
        let subject = subjects.entry(netns).or_insert_with(|| match netns.inode {
            0 => Subject::Unknown,
            _ => owner(netns),
        });
        if matches!(subject, Subject::Unknown) {
            strangers.push(at);
        } else {
            kept.push(((netns.inode, netns.cookie), group, at));
        }
    }
    kept.sort_by(|a, b| (&a.0, &a.1).cmp(&(&b.0, &b.1)));
    let mut sums = Vec::new();
    for same in kept.chunk_by(|a, b| a.0 == b.0 && a.1 == b.1) {
        let mut sum = V::default();
        for (_, _, at) in same {
            sum.add(&entries[*at].1);
        }
        let ((inode, cookie), group, _) = &same[0];
        let netns = NetnsKey {
            inode: *inode,
            cookie: *cookie,
        };
        sums.push((subjects[&netns].clone(), group.clone(), sum));
    }
    (sums, strangers)
}

#[cfg(test)]
mod tests {
    use super::*;
    use sonde_ebpf_common::drop::{Count, CountKey, Site};

    fn entry(netns: u32, cookie: u64, location: u64, reason: u32, skbs: u64) -> (CountKey, Count) {
        let site = Site {
            location,
            reason,
            detail: 0,
        };
        (
            CountKey {
                cookie,
                site,
                netns,
                pad: 0,
            },
            Count {
                skbs,
                more_segments: skbs,
            },
        )
    }

    fn group(key: &CountKey) -> (u32, bool) {
        (key.site.reason, key.site.location == 9)
    }

    #[test]
    fn keys_of_one_namespace_and_group_are_one_row() {
        let entries = [
            entry(7, 70, 1, 3, 5),
            entry(7, 70, 2, 3, 6),
            entry(7, 70, 9, 3, 1),
            entry(8, 80, 1, 3, 2),
        ];
        let (sums, strangers) = sums(&entries, group, &|_| Subject::Node);
        assert!(strangers.is_empty());
        let seen: Vec<_> = sums
            .iter()
            .map(|(_, group, sum)| (*group, sum.skbs, sum.segments()))
            .collect();
        assert_eq!(
            seen,
            [((3, false), 11, 22), ((3, true), 1, 2), ((3, false), 2, 4)],
            "by namespace, then by group"
        );
    }

    #[test]
    fn what_is_kept_elsewhere_adds_to_its_key_or_is_one_of_its_own() {
        let mut entries = vec![entry(7, 70, 1, 3, 5), entry(8, 80, 1, 3, 2)];
        put_in(&mut entries, vec![entry(8, 80, 1, 3, 4), entry(9, 90, 1, 3, 1)]);
        let seen: Vec<_> = entries.iter().map(|(key, count)| (key.netns, count.skbs)).collect();
        assert_eq!(seen, [(7, 5), (8, 6), (9, 1)]);
    }

    #[test]
    fn namespaces_of_nobody_make_no_rows() {
        let entries = [entry(7, 70, 1, 3, 5), entry(0, 0, 1, 3, 6), entry(7, 71, 1, 3, 9)];
        let owner = |netns: NetnsKey| {
            if netns.cookie == 70 {
                Subject::Node
            } else {
                Subject::Unknown
            }
        };
        let (sums, strangers) = sums(&entries, group, &owner);
        assert_eq!(
            (sums.len(), sums[0].2.skbs),
            (1, 5),
            "the inode's next owner is somebody else"
        );
        assert_eq!(strangers, [1, 2]);
    }
}
