//! Sums of counters over processes that come and go, which never go backwards.
//!
//! What a process did is kept when it ends. Its parent, once it has waited for it, has those counts in its own
//! (Linux kernel/exit.c, wait_task_zombie): what it gains that way was counted with the child already.

use std::collections::HashMap;

use crate::procfs::process::{IO_COUNTERS, IoCounters};

/// A process for good: its number is used again, its number and start are not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Id {
    pub pid: u32,
    /// Clock ticks since boot.
    pub start: u64,
}

/// One process at one time.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    pub id: Id,
    pub parent: u32,
    pub io: IoCounters,
}

/// The sum of one pod.
#[derive(Clone, Debug, Default)]
pub struct Carry {
    last: HashMap<Id, Seen>,
    total: IoCounters,
}

impl Carry {
    /// With all processes that are there now, zombies included. What a process did after it was seen last is lost
    /// with it, unless a process of the same pod waited for it.
    pub fn update(&mut self, now: &[Seen]) -> IoCounters {
        let there: HashMap<u32, Id> = now.iter().map(|seen| (seen.id.pid, seen.id)).collect();
        let mut inherited: HashMap<Id, IoCounters> = HashMap::new();
        for ended in self
            .last
            .values()
            .filter(|seen| there.get(&seen.id.pid) != Some(&seen.id))
        {
            if let Some(heir) = self.heir(ended, &there) {
                add(inherited.entry(heir).or_default(), &ended.io);
            }
        }
        for seen in now {
            let before = self.last.get(&seen.id).map_or([0; IO_COUNTERS], |before| before.io);
            let mut gained = difference(&seen.io, &before);
            if let Some(inherited) = inherited.get(&seen.id) {
                let without = difference(&gained, inherited);
                // Less than its children had: it did not wait for them (SIGCHLD is ignored), so it has none of theirs.
                if without.iter().all(|value| *value >= 0) {
                    gained = without;
                }
            }
            add(&mut self.total, &gained.map(|value| value.max(0)));
        }
        self.last = now.iter().map(|seen| (seen.id, *seen)).collect();
        self.total
    }

    /// The nearest ancestor that is still there: it waited for the process, or for a parent that had.
    fn heir(&self, ended: &Seen, there: &HashMap<u32, Id>) -> Option<Id> {
        const GENERATIONS: usize = 64;
        let mut parent = ended.parent;
        for _ in 0..GENERATIONS {
            if let Some(id) = there.get(&parent) {
                return Some(*id);
            }
            parent = self.last.values().find(|seen| seen.id.pid == parent)?.parent;
        }
        None
    }
}

fn difference(a: &IoCounters, b: &IoCounters) -> IoCounters {
    std::array::from_fn(|i| a[i].saturating_sub(b[i]))
}

fn add(sum: &mut IoCounters, values: &IoCounters) {
    for (sum, value) in sum.iter_mut().zip(values) {
        *sum = sum.saturating_add(*value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All counters the same multiple, so that one number tells them all.
    fn seen(pid: u32, start: u64, parent: u32, value: i64) -> Seen {
        Seen {
            id: Id { pid, start },
            parent,
            io: std::array::from_fn(|i| value * (i as i64 + 1)),
        }
    }

    fn totals(rounds: &[&[Seen]]) -> Vec<i64> {
        let mut carry = Carry::default();
        rounds
            .iter()
            .map(|round| {
                let total = carry.update(round);
                assert!(
                    total
                        .iter()
                        .enumerate()
                        .all(|(i, value)| *value == total[0] * (i as i64 + 1)),
                    "{total:?}"
                );
                total[0]
            })
            .collect()
    }

    #[test]
    fn what_a_process_did_is_kept_when_it_ends() {
        // The parent is outside of the pod: a container's first process, or one that was sent in.
        let rounds: [&[Seen]; 4] = [
            &[seen(1, 1, 99, 10), seen(2, 5, 99, 100)],
            &[seen(1, 1, 99, 12), seen(2, 5, 99, 150)],
            &[seen(1, 1, 99, 13)],
            &[],
        ];
        assert_eq!(totals(&rounds), [110, 162, 163, 163]);
    }

    #[test]
    fn a_child_that_was_waited_for_is_counted_once() {
        // Between the last two readings the child did 7 more, and its parent 2.
        let rounds: [&[Seen]; 3] = [
            &[seen(1, 1, 99, 10)],
            &[seen(1, 1, 99, 10), seen(2, 5, 1, 100)],
            &[seen(1, 1, 99, 10 + 2 + 107)],
        ];
        assert_eq!(totals(&rounds), [10, 110, 119]);
    }

    #[test]
    fn a_child_that_came_and_went_unseen_is_with_its_parent() {
        assert_eq!(totals(&[&[seen(1, 1, 99, 10)], &[seen(1, 1, 99, 60)]]), [10, 60]);
    }

    #[test]
    fn a_grandchild_is_with_the_nearest_ancestor() {
        let rounds: [&[Seen]; 2] = [
            &[seen(1, 1, 99, 10), seen(2, 5, 1, 20), seen(3, 6, 2, 30)],
            &[seen(1, 1, 99, 60)],
        ];
        assert_eq!(totals(&rounds), [60, 60]);
    }

    #[test]
    fn a_parent_that_does_not_wait_has_nothing_of_its_children() {
        let rounds: [&[Seen]; 3] = [
            &[seen(1, 1, 99, 10), seen(2, 5, 1, 100)],
            &[seen(1, 1, 99, 15)],
            &[seen(1, 1, 99, 20)],
        ];
        assert_eq!(totals(&rounds), [110, 115, 120]);
    }

    #[test]
    fn a_zombie_is_still_itself() {
        let rounds: [&[Seen]; 3] = [
            &[seen(1, 1, 99, 10), seen(2, 5, 1, 100)],
            &[seen(1, 1, 99, 11), seen(2, 5, 1, 103)],
            &[seen(1, 1, 99, 11 + 103)],
        ];
        assert_eq!(totals(&rounds), [110, 114, 114]);
    }

    #[test]
    fn a_number_that_is_used_again_is_another_process() {
        let rounds: [&[Seen]; 2] = [&[seen(2, 5, 99, 100)], &[seen(2, 9, 99, 30)]];
        assert_eq!(totals(&rounds), [100, 130]);
        // It is no heir of what had its number before.
        let rounds: [&[Seen]; 2] = [&[seen(2, 5, 2, 100)], &[seen(2, 9, 2, 30)]];
        assert_eq!(totals(&rounds), [100, 130]);
    }

    #[test]
    fn counters_never_go_backwards() {
        assert_eq!(totals(&[&[seen(1, 1, 99, 10)], &[seen(1, 1, 99, 4)]]), [10, 10]);
    }
}
