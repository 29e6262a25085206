//! What could not be seen or had to be held back between two rounds, as gaps.

use sonde_ebpf_common::limit::{PACKETLOSS, PACKETLOSS_NEW_SITE};
use sonde_proto::gap;

use super::listing::HeldBack;
use crate::event::{Gap, NetnsKey, Subject};
use crate::probes::packetloss::SPEC;

/// Counters of losses as of one round. All only grow.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Totals {
    /// Unix time; 0: no round yet.
    pub read_at_ns: u64,
    pub uncounted: u64,
    pub ring_lost: u64,
    pub bad_records: u64,
    pub count_misses: u64,
    pub event_misses: u64,
    pub suppressed: u64,
}

pub(super) struct Gaps {
    from_ns: u64,
    to_ns: u64,
    gaps: Vec<Gap>,
    /// Events in all `rate_limited` gaps of this round.
    pub suppressed: u64,
}

impl Gaps {
    /// The first round speaks of the moment before it only: it is not known when the counters began.
    pub(super) const fn new(last_ns: u64, now_ns: u64) -> Self {
        let from_ns = if last_ns == 0 || last_ns > now_ns {
            now_ns
        } else {
            last_ns
        };
        Self {
            from_ns,
            to_ns: now_ns,
            gaps: Vec::new(),
            suppressed: 0,
        }
    }

    fn push(&mut self, cause: &'static str, count: u64, subject: Subject, detail: &str) {
        let Self { from_ns, to_ns, .. } = *self;
        let detail = detail.to_owned();
        self.gaps.push(Gap {
            probe: SPEC.name,
            cause,
            from_ns,
            to_ns,
            count,
            subject,
            detail,
        });
    }

    pub(super) fn read_failed(&mut self, error: &std::io::Error) {
        self.push(
            gap::READ_FAILED,
            0,
            Subject::Node,
            &format!("the kernel's counts could not be read: {error}"),
        );
    }

    pub(super) fn compare(&mut self, before: &Totals, now: &Totals) {
        let causes = [
            (
                gap::MAP_FULL,
                before.uncounted,
                now.uncounted,
                "drops that are in no row: the map of counts was full",
            ),
            (
                gap::RING_FULL,
                before.ring_lost,
                now.ring_lost,
                "events that did not fit into the ring",
            ),
            (
                gap::BAD_RECORD,
                before.bad_records,
                now.bad_records,
                "records of the kernel side that make no sense",
            ),
            (
                gap::PROGRAM_SKIPPED,
                before.count_misses,
                now.count_misses,
                "drops that were not counted",
            ),
            (
                gap::PROGRAM_SKIPPED,
                before.event_misses,
                now.event_misses,
                "drops that could make no event",
            ),
        ];
        for (cause, before, now, detail) in causes {
            if now > before {
                self.push(cause, now - before, Subject::Node, detail);
            }
        }
    }

    pub(super) fn held_back(&mut self, held: &[HeldBack], owner: impl Fn(NetnsKey) -> Subject) {
        for HeldBack { netns, events } in held {
            let subject = || netns.map_or(Subject::Unknown, &owner);
            let kinds = [
                (events[PACKETLOSS], "events beyond events.rate"),
                (
                    events[PACKETLOSS_NEW_SITE],
                    "drops of a kind that was not known yet, beyond events.rate",
                ),
            ];
            for (count, detail) in kinds.into_iter().filter(|(count, _)| *count != 0) {
                self.suppressed += count;
                self.push(gap::RATE_LIMITED, count, subject(), detail);
            }
        }
    }

    pub(super) fn finish(self) -> Vec<Gap> {
        self.gaps
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_tells_what_grew_since_the_one_before() {
        let before = Totals {
            read_at_ns: 10,
            ring_lost: 5,
            ..Totals::default()
        };
        let now = Totals {
            read_at_ns: 20,
            ring_lost: 7,
            count_misses: 3,
            event_misses: 4,
            ..Totals::default()
        };
        let mut gaps = Gaps::new(before.read_at_ns, now.read_at_ns);
        gaps.compare(&before, &now);
        let gaps = gaps.finish();
        let told: Vec<_> = gaps.iter().map(|g| (g.cause, g.count, g.from_ns, g.to_ns)).collect();
        assert_eq!(
            told,
            [
                ("ring_full", 2, 10, 20),
                ("program_skipped", 3, 10, 20),
                ("program_skipped", 4, 10, 20)
            ]
        );
        let mut quiet = Gaps::new(20, 30);
        quiet.compare(&now, &now);
        assert!(quiet.finish().is_empty());
    }

    #[test]
    fn a_clock_that_was_set_back_makes_no_gap_that_ends_before_it_begins() {
        let mut gaps = Gaps::new(100, 50);
        gaps.compare(
            &Totals::default(),
            &Totals {
                uncounted: 1,
                ..Totals::default()
            },
        );
        assert_eq!(
            gaps.finish().iter().map(|g| (g.from_ns, g.to_ns)).collect::<Vec<_>>(),
            [(50, 50)]
        );
    }

    #[test]
    fn what_buckets_held_back_is_told_for_each_namespace() {
        let key = NetnsKey { inode: 7, cookie: 70 };
        let held = [
            HeldBack {
                netns: Some(key),
                events: [10, 0],
            },
            HeldBack {
                netns: None,
                events: [1, 2],
            },
        ];
        let mut gaps = Gaps::new(1, 2);
        gaps.held_back(&held, |_| Subject::Node);
        assert_eq!(gaps.suppressed, 13);
        let subjects: Vec<_> = gaps.finish().into_iter().map(|g| (g.count, g.subject)).collect();
        assert_eq!(
            subjects,
            [(10, Subject::Node), (1, Subject::Unknown), (2, Subject::Unknown)]
        );
    }
}
