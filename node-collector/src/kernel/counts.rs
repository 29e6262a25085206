//! The counts of drops, from the kernel's map to rows.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use sonde_ebpf_common::drop::{Count, CountKey};

use super::sites::{Known, Sites};
use super::sys::{BatchBuffer, RawMap};
use crate::event::{NetnsKey, Subject};
use crate::probes::packetloss::{Class, SPEC};
use crate::table::Table;

/// Keys of namespaces that are no pod's are forgotten after this many rounds without a new drop.
const IDLE_ROUNDS: u32 = 60;

pub(super) struct Counts {
    map: RawMap<CountKey, Count>,
    buffer: BatchBuffer<CountKey, Count>,
    entries: Vec<(CountKey, Count)>,
    /// Of keys that are no pod's: what they were at, and for how many rounds.
    idle: HashMap<CountKey, (u64, u32)>,
    /// Drops of such keys that were forgotten.
    forgotten: Count,
    /// Drops in namespaces that are no pod's, as of the last reading.
    pub unknown: Count,
    pub keys: usize,
}

impl Counts {
    pub(super) fn new(map: RawMap<CountKey, Count>) -> Self {
        Self {
            map,
            buffer: BatchBuffer::default(),
            entries: Vec::new(),
            idle: HashMap::new(),
            forgotten: Count::default(),
            unknown: Count::default(),
            keys: 0,
        }
    }

    /// Reads the whole map. `gone` names namespaces that are read for the last time.
    pub(super) fn read(
        &mut self,
        time_ns: u64,
        sites: &Sites,
        gone: &[NetnsKey],
        subject_of: impl Fn(NetnsKey) -> Subject,
    ) -> io::Result<Table> {
        let Self {
            map, buffer, entries, ..
        } = self;
        entries.clear();
        map.for_each(buffer, |key, copies| {
            let mut sum = Count::default();
            for copy in copies {
                sum.add(copy);
            }
            entries.push((*key, sum));
        })?;
        self.keys = self.entries.len();
        let (table, strangers) = rows(time_ns, &self.entries, |site| sites.learn(site), subject_of);
        self.forget(&strangers, gone);
        Ok(table)
    }

    fn forget(&mut self, strangers: &[usize], gone: &[NetnsKey]) {
        let mut idle = HashMap::with_capacity(strangers.len());
        self.unknown = self.forgotten;
        for at in strangers {
            let (key, count) = self.entries[*at];
            self.unknown.add(&count);
            let rounds = match self.idle.get(&key) {
                Some((skbs, rounds)) if *skbs == count.skbs => rounds + 1,
                _ => 0,
            };
            if rounds >= IDLE_ROUNDS && self.map.delete(&key).unwrap_or(false) {
                self.forgotten.add(&count);
            } else {
                idle.insert(key, (count.skbs, rounds));
            }
        }
        self.idle = idle;
        for (key, _) in &self.entries {
            let ended = gone
                .iter()
                .any(|ended| ended.inode == key.netns && (ended.cookie == key.cookie || ended.cookie == 0));
            if ended {
                let _ = self.map.delete(key);
            }
        }
    }
}

/// Rows by (namespace, reason, class), and which entries belong to no subject.
fn rows(
    time_ns: u64,
    entries: &[(CountKey, Count)],
    mut learn: impl FnMut(sonde_ebpf_common::drop::Site) -> Known,
    subject_of: impl Fn(NetnsKey) -> Subject,
) -> (Table, Vec<usize>) {
    let mut subjects: HashMap<NetnsKey, Subject> = HashMap::new();
    let mut sums: HashMap<(NetnsKey, Arc<str>, Class), Count> = HashMap::new();
    let mut strangers = Vec::new();
    for (at, (key, count)) in entries.iter().enumerate() {
        let netns = NetnsKey {
            inode: key.netns,
            cookie: key.cookie,
        };
        let known = learn(key.site);
        let subject = subjects.entry(netns).or_insert_with(|| match netns.inode {
            0 => Subject::Unknown,
            _ => subject_of(netns),
        });
        if matches!(subject, Subject::Unknown) {
            strangers.push(at);
            continue;
        }
        let sum = sums.entry((netns, known.reason, known.class)).or_default();
        sum.add(count);
    }
    let mut table = Table::new(&SPEC, time_ns);
    let mut sums: Vec<_> = sums.into_iter().collect();
    sums.sort_by(|((a, reason_a, _), _), ((b, reason_b, _), _)| {
        (a.inode, a.cookie, reason_a).cmp(&(b.inode, b.cookie, reason_b))
    });
    for ((netns, reason, class), count) in sums {
        let values = [count.skbs as i64, count.segments() as i64];
        table.push(subjects[&netns].clone(), [reason, class.name().into()], &values);
    }
    (table, strangers)
}

#[cfg(test)]
mod tests {
    use super::*;
    use sonde_ebpf_common::drop::Site;

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

    fn learn(site: Site) -> Known {
        let class = if site.location == 9 {
            Class::Protocol
        } else {
            Class::Suspect
        };
        Known {
            class,
            reason: format!("R{}", site.reason).into(),
        }
    }

    #[test]
    fn places_of_one_reason_and_class_are_one_row() {
        let entries = [
            entry(7, 70, 1, 3, 5),
            entry(7, 70, 2, 3, 6),
            entry(7, 70, 9, 3, 1),
            entry(8, 80, 1, 3, 2),
        ];
        let (table, strangers) = rows(1, &entries, learn, |_| Subject::Node);
        assert!(strangers.is_empty());
        assert_eq!(table.columns[0].iter().sum::<i64>(), 14);
        let mut drops: Vec<_> = table
            .labels
            .chunks(2)
            .zip(&table.columns[0])
            .map(|(l, n)| (l[1].to_string(), *n))
            .collect();
        drops.sort();
        assert_eq!(
            drops,
            [("protocol".into(), 1), ("suspect".into(), 2), ("suspect".into(), 11)]
        );
        assert_eq!(table.columns[1].iter().sum::<i64>(), 28);
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
        let (table, strangers) = rows(1, &entries, learn, owner);
        assert_eq!(
            (table.len(), table.columns[0][0]),
            (1, 5),
            "the inode's next owner is somebody else"
        );
        assert_eq!(strangers, [1, 2]);
    }
}
