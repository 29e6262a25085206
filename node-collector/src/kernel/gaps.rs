//! What could not be seen or had to be held back between two rounds, as gaps.

use std::collections::BTreeMap;

use sonde_ebpf_common::limit::TYPES;
use sonde_ebpf_common::lost::COUNTERS;
use sonde_proto::gap;

use super::listing::HeldBack;
use super::plan::Bucket;
use super::probes;
use crate::event::{Gap, NetnsKey, Subject};

/// Counters of losses as of one round. All only grow.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Totals {
    /// Unix time; 0: no round yet.
    pub read_at_ns: u64,
    /// By position in `sonde_ebpf_common::lost`.
    pub uncounted: [u64; COUNTERS],
    /// By position in `sonde_ebpf_common::limit`, and so in `suppressed`.
    pub ring_lost: [u64; TYPES],
    pub suppressed: [u64; TYPES],
    /// By probe; those of no known kind under the empty name.
    pub bad_records: BTreeMap<&'static str, u64>,
    /// By signal.
    pub misses: BTreeMap<&'static str, u64>,
}

pub(super) struct Gaps {
    from_ns: u64,
    to_ns: u64,
    gaps: Vec<Gap>,
    /// Events in all `rate_limited` gaps of this round, by type.
    pub suppressed: [u64; TYPES],
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
            suppressed: [0; TYPES],
        }
    }

    fn push(&mut self, probe: &'static str, cause: &'static str, count: u64, subject: Subject, detail: &str) {
        let Self { from_ns, to_ns, .. } = *self;
        let detail = detail.to_owned();
        self.gaps.push(Gap {
            probe,
            cause,
            from_ns,
            to_ns,
            count,
            subject,
            detail,
        });
    }

    /// `probe` is empty for what all have in common.
    pub(super) fn read_failed(&mut self, probe: &'static str, error: &std::io::Error) {
        let detail = format!("the kernel's counts could not be read: {error}");
        self.push(probe, gap::READ_FAILED, 0, Subject::Node, &detail);
    }

    pub(super) fn missed(&mut self, probe: &'static str, whose: Subject, detail: &str) {
        self.push(probe, gap::PROGRAM_SKIPPED, 0, whose, detail);
    }

    fn grown(&mut self, probe: &'static str, cause: &'static str, before: u64, now: u64, detail: &str) {
        if now > before {
            self.push(probe, cause, now - before, Subject::Node, detail);
        }
    }

    pub(super) fn compare(&mut self, before: &Totals, now: &Totals) {
        for probe in probes::ALL {
            if let Some((at, detail)) = probe.uncounted {
                self.grown(
                    probe.spec.name,
                    gap::MAP_FULL,
                    before.uncounted[at],
                    now.uncounted[at],
                    detail,
                );
            }
        }
        for (probe, bucket) in buckets() {
            let at = bucket.position;
            let (before, now) = (before.ring_lost[at], now.ring_lost[at]);
            self.grown(
                probe,
                gap::RING_FULL,
                before,
                now,
                "events that did not fit into the ring",
            );
        }
        for (probe, now) in &now.bad_records {
            let before = before.bad_records.get(probe).copied().unwrap_or(0);
            let detail = "records of the kernel side that make no sense";
            self.grown(probe, gap::BAD_RECORD, before, *now, detail);
        }
        for signal in probes::signals() {
            let [before, now] = [before, now].map(|totals| totals.misses.get(signal.name).copied().unwrap_or(0));
            self.grown(signal.probe, gap::PROGRAM_SKIPPED, before, now, signal.missed);
        }
    }

    pub(super) fn held_back(&mut self, held: &[HeldBack], owner: impl Fn(NetnsKey) -> Subject) {
        for HeldBack { netns, events } in held {
            for (probe, bucket) in buckets() {
                let count = events[bucket.position];
                if count != 0 {
                    self.suppressed[bucket.position] += count;
                    let subject = netns.map_or(Subject::Unknown, &owner);
                    self.push(probe, gap::RATE_LIMITED, count, subject, bucket.held);
                }
            }
        }
    }

    pub(super) fn finish(self) -> Vec<Gap> {
        self.gaps
    }
}

/// All types of events, with their probes.
fn buckets() -> impl Iterator<Item = (&'static str, &'static Bucket)> {
    probes::signals().flat_map(|signal| signal.buckets.iter().map(|bucket| (signal.probe, bucket)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use sonde_ebpf_common::limit::{PACKETLOSS, PACKETLOSS_NEW_SITE};

    #[test]
    fn a_round_tells_what_grew_since_the_one_before() {
        let mut before = Totals {
            read_at_ns: 10,
            bad_records: BTreeMap::from([("", 1)]),
            ..Totals::default()
        };
        before.ring_lost[PACKETLOSS] = 5;
        let mut now = Totals {
            read_at_ns: 20,
            bad_records: BTreeMap::from([("", 1), ("packetloss", 9)]),
            misses: BTreeMap::from([("packetloss.count", 3), ("packetloss.events", 4)]),
            ..Totals::default()
        };
        now.ring_lost[PACKETLOSS] = 7;
        let mut gaps = Gaps::new(before.read_at_ns, now.read_at_ns);
        gaps.compare(&before, &now);
        let gaps = gaps.finish();
        assert!(gaps.iter().all(|gap| gap.probe == "packetloss"), "{gaps:?}");
        let told: Vec<_> = gaps.iter().map(|g| (g.cause, g.count, g.from_ns, g.to_ns)).collect();
        assert_eq!(
            told,
            [
                ("ring_full", 2, 10, 20),
                ("bad_record", 9, 10, 20),
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
                uncounted: [1; COUNTERS],
                ..Totals::default()
            },
        );
        assert_eq!(
            gaps.finish().iter().map(|g| (g.from_ns, g.to_ns)).collect::<Vec<_>>(),
            [(50, 50); COUNTERS]
        );
    }

    #[test]
    fn what_buckets_held_back_is_told_for_each_namespace() {
        let key = NetnsKey { inode: 7, cookie: 70 };
        let held_back = |netns, drops, new_sites| {
            let mut events = [0; TYPES];
            (events[PACKETLOSS], events[PACKETLOSS_NEW_SITE]) = (drops, new_sites);
            HeldBack { netns, events }
        };
        let held = [held_back(Some(key), 10, 0), held_back(None, 1, 2)];
        let mut gaps = Gaps::new(1, 2);
        gaps.held_back(&held, |_| Subject::Node);
        assert_eq!(gaps.suppressed.iter().sum::<u64>(), 13);
        let subjects: Vec<_> = gaps.finish().into_iter().map(|g| (g.count, g.subject)).collect();
        assert_eq!(
            subjects,
            [(10, Subject::Node), (1, Subject::Unknown), (2, Subject::Unknown)]
        );
    }
}
