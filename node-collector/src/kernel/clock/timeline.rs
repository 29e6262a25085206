//! What UTC was at a moment of CLOCK_MONOTONIC, also before a step of the clock. Here are no clocks, only what they said.
//!
//! Both clocks are slewed alike, so UTC minus CLOCK_MONOTONIC stays what it is until somebody sets the clock (by hand, NTP,
//! a leap second) or the machine sleeps, for which CLOCK_MONOTONIC stands still and CLOCK_BOOTTIME does not.

use std::collections::VecDeque;

use sonde_proto::gap;

use crate::event::{Gap, Subject};

/// A smaller step is followed, and not told.
const TOLD_NS: u64 = 1_000_000;
/// How many steps are remembered: the records of a ring are seconds old at most.
const PIECES: usize = 16;

/// The clocks at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sample {
    pub(crate) monotonic_ns: u64,
    pub(crate) boot_ns: u64,
    pub(crate) utc_ns: u64,
    /// How far they may be apart: the time that the reading took.
    pub(crate) slack_ns: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Piece {
    /// CLOCK_MONOTONIC.
    from_ns: u64,
    /// UTC minus CLOCK_MONOTONIC.
    offset_ns: i64,
    /// CLOCK_BOOTTIME minus CLOCK_MONOTONIC.
    slept_ns: i64,
    slack_ns: u64,
}

/// A moment at which UTC did not go on as before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Step {
    /// UTC as it would be without it, and as it is.
    pub(crate) before_ns: u64,
    pub(crate) after_ns: u64,
    /// How much of that the machine slept.
    pub(crate) slept_ns: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Timeline {
    /// Ascending, never empty.
    pieces: VecDeque<Piece>,
}

impl Timeline {
    pub(crate) fn new(now: Sample) -> Self {
        // What happened before is as far from it as what happens now.
        let first = Piece {
            from_ns: 0,
            ..now.piece()
        };
        Self {
            pieces: VecDeque::from([first]),
        }
    }

    /// UTC at a moment of CLOCK_MONOTONIC, by the clock as it was then.
    pub(crate) fn utc_ns(&self, ktime_ns: u64) -> u64 {
        let piece = self.pieces.iter().rev().find(|piece| piece.from_ns <= ktime_ns);
        let offset_ns = piece.or(self.pieces.front()).map_or(0, |piece| piece.offset_ns);
        ktime_ns.saturating_add_signed(offset_ns)
    }

    /// Takes in what the clocks say now. `Some`: there was a step since the last time, to be told.
    pub(crate) fn observe(&mut self, now: Sample) -> Option<Step> {
        let piece = now.piece();
        let last = self.pieces.back_mut()?;
        let change = piece.offset_ns.saturating_sub(last.offset_ns);
        if change.unsigned_abs() <= piece.slack_ns + last.slack_ns {
            if piece.slack_ns < last.slack_ns {
                (last.offset_ns, last.slack_ns) = (piece.offset_ns, piece.slack_ns);
            }
            return None;
        }
        let slept_ns = u64::try_from(piece.slept_ns.saturating_sub(last.slept_ns)).unwrap_or(0);
        let step = Step {
            before_ns: now.monotonic_ns.saturating_add_signed(last.offset_ns),
            after_ns: now.utc_ns,
            slept_ns: if slept_ns > TOLD_NS { slept_ns } else { 0 },
        };
        if self.pieces.len() == PIECES {
            self.pieces.pop_front();
        }
        self.pieces.push_back(piece);
        (change.unsigned_abs() > TOLD_NS + piece.slack_ns).then_some(step)
    }
}

impl Sample {
    fn piece(self) -> Piece {
        let since = |clock: u64| (clock as i64).wrapping_sub(self.monotonic_ns as i64);
        Piece {
            from_ns: self.monotonic_ns,
            offset_ns: since(self.utc_ns),
            slept_ns: since(self.boot_ns),
            slack_ns: self.slack_ns,
        }
    }
}

impl Step {
    /// The span of UTC that never was, or that was twice.
    pub(crate) fn gap(self) -> Gap {
        let Self {
            before_ns,
            after_ns,
            slept_ns,
        } = self;
        let set_ns = after_ns as i64 - before_ns as i64 - slept_ns as i64;
        let seconds = |ns: u64| format!("{:.3} s", ns as f64 / 1e9);
        let mut parts = Vec::new();
        if slept_ns > 0 {
            parts.push(format!("the machine slept for {}", seconds(slept_ns)));
        }
        if set_ns.unsigned_abs() > TOLD_NS {
            let way = if set_ns > 0 { "forward" } else { "back" };
            parts.push(format!("the clock was set {way} by {}", seconds(set_ns.unsigned_abs())));
        }
        Gap {
            probe: "",
            cause: gap::CLOCK_STEP,
            from_ns: before_ns.min(after_ns),
            to_ns: before_ns.max(after_ns),
            count: 0,
            subject: Subject::Node,
            detail: parts.join(", "),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: u64 = 1_000_000_000;
    /// UTC when the machine of these tests was started.
    const START: u64 = 1_700_000_000 * S;

    /// Clocks that have run for `monotonic` and slept for `slept` seconds, and were set by `set` in between.
    fn sample(monotonic: u64, slept: u64, set: i64) -> Sample {
        Sample {
            monotonic_ns: monotonic * S,
            boot_ns: (monotonic + slept) * S,
            utc_ns: (START + (monotonic + slept) * S).saturating_add_signed(set * S as i64),
            slack_ns: 100,
        }
    }

    fn told(step: Option<Step>) -> (u64, u64, String) {
        let gap = step.expect("a step").gap();
        assert_eq!((gap.cause, gap.count), (gap::CLOCK_STEP, 0));
        (gap.from_ns, gap.to_ns, gap.detail)
    }

    #[test]
    fn events_on_both_sides_of_a_step_have_the_time_of_the_clock_then() {
        let mut timeline = Timeline::new(sample(100, 0, 0));
        assert_eq!(timeline.observe(sample(101, 0, 0)), None);
        // Between these two somebody put it back by an hour.
        let step = timeline.observe(sample(102, 0, -3600));
        let (now, hour) = (START + 102 * S, 3600 * S);
        assert_eq!(
            told(step),
            (now - hour, now, "the clock was set back by 3600.000 s".into())
        );
        // A record from before it that is read only now, and one from after it.
        assert_eq!(timeline.utc_ns(101 * S + 7), START + 101 * S + 7);
        assert_eq!(timeline.utc_ns(103 * S), START + 103 * S - hour);
        assert_eq!(timeline.observe(sample(103, 0, -3600)), None);
        // And right again, by a bit more than it was wrong.
        let (from, to, detail) = told(timeline.observe(sample(110, 0, 2)));
        assert_eq!((from, to), (START + 110 * S - hour, START + 112 * S));
        assert_eq!(detail, "the clock was set forward by 3602.000 s");
        for (at, offset) in [(50, 0), (101, 0), (102, -3600), (109, -3600), (110, 2), (500, 2)] {
            let expected = (START + at * S).saturating_add_signed(offset * S as i64);
            assert_eq!(timeline.utc_ns(at * S), expected, "at {at}");
        }
    }

    #[test]
    fn a_sleep_is_told_apart_from_a_clock_that_was_set() {
        let mut timeline = Timeline::new(sample(100, 0, 0));
        let (from, to, detail) = told(timeline.observe(sample(101, 60, 0)));
        assert_eq!((from, to), (START + 101 * S, START + 161 * S));
        assert_eq!(detail, "the machine slept for 60.000 s");
        assert_eq!(timeline.utc_ns(102 * S), START + 162 * S);
        let (.., detail) = told(timeline.observe(sample(103, 70, -4)));
        assert_eq!(
            detail,
            "the machine slept for 10.000 s, the clock was set back by 4.000 s"
        );
        // Set by exactly what was slept: UTC goes on as if nothing had been, and so do we.
        assert_eq!(timeline.observe(sample(104, 75, -9)), None);
    }

    #[test]
    fn a_reading_that_took_long_is_no_step_and_makes_nothing_worse() {
        let mut timeline = Timeline::new(sample(100, 0, 0));
        let mut late = sample(101, 0, 0);
        late.utc_ns += 40_000_000;
        late.slack_ns = 50_000_000;
        assert_eq!(timeline.observe(late), None);
        assert_eq!(timeline.utc_ns(102 * S), START + 102 * S);
        // The other way round, the better reading goes.
        let mut timeline = Timeline::new(late);
        assert_eq!(timeline.observe(sample(102, 0, 0)), None);
        assert_eq!(timeline.utc_ns(103 * S), START + 103 * S);
    }

    #[test]
    fn small_steps_are_followed_and_not_told() {
        let mut timeline = Timeline::new(sample(100, 0, 0));
        for at in 1..=100 {
            let mut now = sample(100 + at, 0, 0);
            now.utc_ns += at * 900_000;
            assert_eq!(timeline.observe(now), None);
            assert_eq!(timeline.utc_ns(now.monotonic_ns), now.utc_ns);
        }
        assert_eq!(timeline.pieces.len(), PIECES);
    }
}
