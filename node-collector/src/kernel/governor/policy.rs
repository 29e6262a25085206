//! Which probe to step down when programs pass their budget, and when to step it up again.
//!
//! Above the budget the dearest probe is stepped down, and as many more as it takes; well below it for a while, the last
//! one is stepped up again. A probe that proves too dear again waits longer each time.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::kernel::probe::KernelProbe;

/// Of the budget: below it there is room to step up.
const ROOM: f64 = 0.5;
/// How long there must have been room.
const PATIENCE: Duration = Duration::from_secs(60);
const MOST_PATIENCE: Duration = Duration::from_secs(3600);
/// A probe that stayed up for so long may be tried early again.
const FORGIVEN: Duration = Duration::from_secs(1800);
/// One in so many packets is looked at, of those that would be.
pub(super) const SAMPLED: u32 = 64;

/// How much of a probe is left. Each step includes those before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Level {
    #[default]
    Full,
    /// It counts, and tells nothing.
    NoEvents,
    /// It looks at one packet in [`SAMPLED`].
    Sampled,
    Off,
}

impl Level {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::NoEvents => "no events",
            Self::Sampled => "no events, one packet in 64",
            Self::Off => "off",
        }
    }
}

/// The steps that a probe has. What is on by default costs so little to count that counting stays; what looks at every
/// packet can be too dear even so.
pub(super) fn levels(probe: &KernelProbe) -> Vec<Level> {
    // What a sample is counted by.
    let samples = probe.maps.iter().any(|(name, _)| name.ends_with("_TURNS"));
    let mut levels = vec![Level::Full];
    if probe.signals.iter().any(|signal| !signal.buckets.is_empty()) {
        levels.push(Level::NoEvents);
    }
    if samples {
        levels.push(Level::Sampled);
    }
    if !probe.defaults.enabled {
        levels.push(Level::Off);
    }
    levels
}

/// What the programs of a probe cost, as a part of the node's CPU time.
pub(super) type Costs = BTreeMap<&'static str, f64>;

/// A step that was taken.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Move {
    pub probe: &'static str,
    pub from: Level,
    pub to: Level,
    pub why: String,
}

#[derive(Debug)]
struct Governed {
    probe: &'static str,
    levels: Vec<Level>,
    /// Place in `levels`.
    at: usize,
    /// Since when it is there.
    since: Instant,
    patience: Duration,
}

impl Governed {
    fn level(&self) -> Level {
        self.levels[self.at]
    }
}

/// Decides; what it decides is carried out elsewhere.
#[derive(Debug)]
pub(super) struct Governor {
    /// Part of the node's CPU time that all programs may take together.
    budget: f64,
    probes: Vec<Governed>,
    /// Since when there is room.
    room_since: Option<Instant>,
    /// Probes in the order in which they were stepped down.
    down: Vec<&'static str>,
    /// It was said that no probe can be stepped down any further.
    helpless: bool,
}

impl Governor {
    pub(super) fn new(budget: f64, probes: impl IntoIterator<Item = (&'static str, Vec<Level>)>, now: Instant) -> Self {
        let governed = |(probe, levels)| Governed {
            probe,
            levels,
            at: 0,
            since: now,
            patience: PATIENCE,
        };
        Self {
            budget,
            probes: probes.into_iter().map(governed).collect(),
            room_since: None,
            down: Vec::new(),
            helpless: false,
        }
    }

    pub(super) fn set_budget(&mut self, budget: f64) {
        self.budget = budget;
    }

    /// Those that are not at their full.
    pub(super) fn stepped_down(&self) -> impl Iterator<Item = (&'static str, Level)> {
        self.probes
            .iter()
            .filter(|probe| probe.at > 0)
            .map(|probe| (probe.probe, probe.level()))
    }

    /// Above its budget, with nothing left to step down.
    pub(super) fn is_helpless(&self) -> bool {
        self.helpless
    }

    pub(super) fn look(&mut self, costs: &Costs, now: Instant) -> Vec<Move> {
        let total: f64 = costs.values().sum();
        if total > self.budget {
            self.room_since = None;
            return self.step_down(costs, total, now);
        }
        self.helpless = false;
        if total > self.budget * ROOM {
            self.room_since = None;
            return Vec::new();
        }
        let since = *self.room_since.get_or_insert(now);
        self.step_up(total, since, now).into_iter().collect()
    }

    /// The dearest first, until what is left may fit: what a step saves is not known before it is taken, so each is
    /// taken to save all that its probe costs.
    fn step_down(&mut self, costs: &Costs, total: f64, now: Instant) -> Vec<Move> {
        let mut left = total;
        let mut order: Vec<usize> = (0..self.probes.len()).collect();
        let cost = |probe: &Governed| costs.get(probe.probe).copied().unwrap_or(0.0);
        order.sort_by(|a, b| cost(&self.probes[*b]).total_cmp(&cost(&self.probes[*a])));
        let mut moves = Vec::new();
        for at in order {
            let of = cost(&self.probes[at]);
            if left <= self.budget || of == 0.0 {
                break;
            }
            let probe = &mut self.probes[at];
            if probe.at + 1 == probe.levels.len() {
                continue;
            }
            let from = probe.level();
            if from == Level::Full && now - probe.since > FORGIVEN {
                probe.patience = PATIENCE;
            } else {
                probe.patience = (probe.patience * 2).min(MOST_PATIENCE);
            }
            probe.at += 1;
            probe.since = now;
            left -= of;
            self.down.push(probe.probe);
            moves.push(Move {
                probe: probe.probe,
                from,
                to: probe.level(),
                why: format!(
                    "programs take {} of the node's CPU time, this probe's {}; kernel.cpu_budget_percent allows {}",
                    percent(total),
                    percent(of),
                    percent(self.budget)
                ),
            });
        }
        self.helpless = moves.is_empty();
        moves
    }

    fn step_up(&mut self, total: f64, room_since: Instant, now: Instant) -> Option<Move> {
        let last = *self.down.last()?;
        let probe = self.probes.iter_mut().find(|probe| probe.probe == last)?;
        let waited = (now - room_since).min(now - probe.since);
        if waited < probe.patience {
            return None;
        }
        let from = probe.level();
        probe.at -= 1;
        probe.since = now;
        self.down.pop();
        // One step at a time: what it costs shows first.
        self.room_since = None;
        Some(Move {
            probe: last,
            from,
            to: probe.level(),
            why: format!(
                "programs took at most half of what kernel.cpu_budget_percent allows ({}) for {} s, now {}",
                percent(self.budget),
                waited.as_secs(),
                percent(total)
            ),
        })
    }
}

fn percent(part: f64) -> String {
    format!("{:.2} %", part * 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::probes;

    const PACKETS: &[Level] = &[Level::Full, Level::NoEvents, Level::Sampled, Level::Off];
    const LOOK_EVERY: Duration = Duration::from_secs(10);
    const DROPS: &[Level] = &[Level::Full, Level::NoEvents];

    /// A clock of its own.
    struct Scene {
        governor: Governor,
        now: Instant,
    }

    impl Scene {
        fn new() -> Self {
            let now = Instant::now();
            let probes = [("flow", PACKETS.to_vec()), ("drops", DROPS.to_vec())];
            Self {
                governor: Governor::new(0.02, probes, now),
                now,
            }
        }

        fn look(&mut self, flow: f64, drops: f64) -> Vec<(&'static str, Level)> {
            self.now += LOOK_EVERY;
            let costs = Costs::from([("flow", flow), ("drops", drops)]);
            let moves = self.governor.look(&costs, self.now);
            moves.into_iter().map(|step| (step.probe, step.to)).collect()
        }

        /// Looks until something is done, and how many.
        fn looks_until_moved(&mut self, flow: f64, drops: f64) -> (usize, Vec<(&'static str, Level)>) {
            for count in 1..10_000 {
                let moves = self.look(flow, drops);
                if !moves.is_empty() {
                    return (count, moves);
                }
            }
            panic!("nothing moves");
        }
    }

    #[test]
    fn within_the_budget_nothing_moves() {
        let mut scene = Scene::new();
        for _ in 0..100 {
            assert!(scene.look(0.012, 0.007).is_empty());
        }
        assert_eq!(scene.governor.stepped_down().count(), 0);
    }

    #[test]
    fn the_dearest_goes_first_and_counting_by_default_stays() {
        let mut scene = Scene::new();
        assert_eq!(scene.look(0.018, 0.004), [("flow", Level::NoEvents)]);
        assert_eq!(scene.look(0.017, 0.004), [("flow", Level::Sampled)]);
        assert_eq!(scene.look(0.001, 0.004), []);
        assert_eq!(scene.look(0.001, 0.040), [("drops", Level::NoEvents)]);
        // What is left of the dearest cannot be less; the other one can.
        assert_eq!(scene.look(0.001, 0.030), [("flow", Level::Off)]);
        assert_eq!(scene.look(0.0, 0.030), []);
        assert!(scene.governor.is_helpless());
        assert_eq!(scene.look(0.0, 0.010), []);
        assert!(!scene.governor.is_helpless());
    }

    #[test]
    fn far_above_the_budget_several_go_at_once() {
        let mut scene = Scene::new();
        let moves = scene.look(0.300, 0.200);
        assert_eq!(moves, [("flow", Level::NoEvents), ("drops", Level::NoEvents)]);
    }

    #[test]
    fn what_came_down_last_comes_up_first_and_later_each_time() {
        let mut scene = Scene::new();
        scene.look(0.030, 0.001);
        scene.look(0.030, 0.001);
        assert_eq!(
            scene.governor.stepped_down().collect::<Vec<_>>(),
            [("flow", Level::Sampled)]
        );
        let (first, moves) = scene.looks_until_moved(0.001, 0.001);
        assert_eq!(moves, [("flow", Level::NoEvents)]);
        // Too dear again.
        assert_eq!(scene.look(0.030, 0.001), [("flow", Level::Sampled)]);
        let (second, moves) = scene.looks_until_moved(0.001, 0.001);
        assert_eq!(moves, [("flow", Level::NoEvents)]);
        assert!(second >= first * 2 - 1, "{first} {second}");
        for _ in 0..20 {
            scene.look(0.030, 0.001);
            scene.looks_until_moved(0.001, 0.001);
        }
        let (longest, _) = scene.looks_until_moved(0.001, 0.001);
        let most = MOST_PATIENCE.as_secs() / LOOK_EVERY.as_secs();
        assert!(longest as u64 <= most + 1, "{longest}");
    }

    #[test]
    fn a_moment_without_room_begins_the_wait_anew() {
        let mut scene = Scene::new();
        scene.look(0.030, 0.001);
        let wait = (PATIENCE * 2).as_secs() / LOOK_EVERY.as_secs();
        for _ in 0..wait - 1 {
            assert_eq!(scene.look(0.001, 0.001), []);
        }
        assert_eq!(scene.look(0.011, 0.001), []);
        for _ in 0..wait {
            assert_eq!(scene.look(0.001, 0.001), []);
        }
        assert_eq!(scene.look(0.001, 0.001), [("flow", Level::Full)]);
        assert_eq!(scene.governor.stepped_down().count(), 0);
    }

    #[test]
    fn every_probe_has_a_way_down_that_fits_it() {
        for probe in probes::ALL {
            let levels = levels(probe);
            assert!(levels.is_sorted() && levels[0] == Level::Full);
            let samples = ["flow", "kernellatency", "netiftxlat"].contains(&probe.spec.name);
            assert_eq!(levels.contains(&Level::Sampled), samples, "{}", probe.spec.name);
            assert_eq!(
                levels.contains(&Level::Off),
                !probe.defaults.enabled,
                "{}",
                probe.spec.name
            );
        }
    }
}
