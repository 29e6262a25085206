//! Whether connection tracking dropped a packet as it had no room for its connection: by the namespace's own counter,
//! read before and after the drop. The packet itself does not tell.

use std::collections::VecDeque;
use std::fs;

use sonde_common::paths::HostPaths;

use crate::kernel::monotonic_ns;
use crate::procfs::per_cpu::PerCpu;
use crate::procfs::{NetFile, sysctl};
use crate::table::ABSENT;

/// Readings that are kept of one namespace.
const KEPT: usize = 64;
const NS_PER_MS: u64 = 1_000_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Reading {
    at_ns: u64,
    /// Packets whose connection could not be tracked, since the namespace was made; 32 bits a CPU.
    drops: i64,
    entries: i64,
    limit: i64,
}

/// The readings of one namespace, oldest first.
#[derive(Debug, Default)]
pub(super) struct Readings(VecDeque<Reading>);

/// What the readings say of a drop: name and value of an attribute.
type Told = (&'static str, String);

pub(super) const TABLE_FULL: &str = "conntrack_table_full";
pub(super) const DROPS: &str = "conntrack_drops";

impl Readings {
    /// One more, of the namespace that the calling thread is in. Where the kernel tells none, none is added.
    pub(super) fn read(&mut self, paths: &HostPaths) {
        let file = |file: NetFile| fs::read(file.path(paths)).ok();
        let mut values = [ABSENT; 2];
        let parsed = file(NetFile::Conntrack).map(|text| PerCpu::new(&["entries", "drop"]).parse(&text, &mut values));
        let limit = file(NetFile::ConntrackMax).and_then(|text| sysctl::numbers::<1>(&text).ok());
        let (Some(Ok(true)), Some([limit])) = (parsed, limit) else {
            return;
        };
        let [entries, drops] = values;
        if values.contains(&ABSENT) {
            return;
        }
        self.add(Reading {
            at_ns: monotonic_ns(),
            drops,
            entries,
            limit,
        });
    }

    fn add(&mut self, reading: Reading) {
        if self.0.len() == KEPT {
            self.0.pop_front();
        }
        self.0.push_back(reading);
    }

    /// Of a drop at that time (CLOCK_MONOTONIC). `None`: the counter did not move around it, or nobody knows.
    pub(super) fn tell(&self, at_ns: u64) -> Option<Told> {
        let after = self.0.iter().find(|reading| reading.at_ns >= at_ns)?;
        let before = self.0.iter().rev().find(|reading| reading.at_ns < at_ns);
        let is_full = after.entries >= after.limit;
        let Reading {
            drops, entries, limit, ..
        } = after;
        let later = (after.at_ns - at_ns).div_ceil(NS_PER_MS);
        match before {
            Some(before) if *drops > before.drops => {
                let moved = drops - before.drops;
                let sooner = (at_ns - before.at_ns).div_ceil(NS_PER_MS);
                let name = if is_full { TABLE_FULL } else { DROPS };
                Some((
                    name,
                    format!(
                        "{moved} not tracked between {sooner} ms before and {later} ms after, {entries} of {limit} entries"
                    ),
                ))
            }
            Some(_) => None,
            None if *drops > 0 && is_full => Some((
                TABLE_FULL,
                format!("{drops} not tracked by {later} ms after, not read before, {entries} of {limit} entries"),
            )),
            None => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn readings(all: &[(u64, i64, i64)]) -> Readings {
        let mut readings = Readings::default();
        for (at_ms, drops, entries) in all {
            readings.add(Reading {
                at_ns: at_ms * NS_PER_MS,
                drops: *drops,
                entries: *entries,
                limit: 8,
            });
        }
        readings
    }

    fn told(all: &[(u64, i64, i64)], at_ms: u64) -> Option<Told> {
        readings(all).tell(at_ms * NS_PER_MS)
    }

    #[test]
    fn the_counter_must_have_moved_around_the_drop() {
        let all = [(100, 5, 8), (200, 5, 8), (300, 7, 8), (400, 9, 3)];
        assert_eq!(told(&all, 150), None, "it stood still");
        assert_eq!(
            told(&all, 290),
            Some((
                TABLE_FULL,
                "2 not tracked between 90 ms before and 10 ms after, 8 of 8 entries".into()
            ))
        );
        assert_eq!(told(&all, 350).map(|told| told.0), Some(DROPS), "not full any more");
        assert_eq!(told(&all, 401), None, "no reading after it");
    }

    #[test]
    fn without_a_reading_before_only_a_full_table_counts() {
        assert_eq!(
            told(&[(100, 2, 8)], 90),
            Some((
                TABLE_FULL,
                "2 not tracked by 10 ms after, not read before, 8 of 8 entries".into()
            ))
        );
        assert_eq!(told(&[(100, 2, 7)], 90), None);
        assert_eq!(told(&[(100, 0, 8)], 90), None);
    }

    #[test]
    fn old_readings_go() {
        let all: Vec<_> = (0..100).map(|n| (n, n as i64, 8)).collect();
        assert_eq!(readings(&all).0.len(), KEPT);
    }
}
