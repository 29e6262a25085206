//! Keeps the programs of all probes within `kernel.cpu_budget_percent` of the node's CPU time.
//!
//! What programs cost is taken from the kernel's own statistics (BPF_ENABLE_STATS, Linux 5.8), for a moment every few
//! seconds: while they are on, every program of the node pays for them. `policy` decides from it; what it decides is
//! carried out as if the configuration said so.

mod policy;

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use aya::sys::{Stats, enable_stats};
use parking_lot::Mutex;
use serde::Serialize;
use sonde_common::config::Config;
use sonde_common::time::now_ns;
use sonde_proto::gap;

use super::{Changed, Kernel, probes};
use crate::event::{Gap, Subject};
use policy::{Costs, Governor, Level, Move, SAMPLED, levels};

/// How long statistics are on for one look.
const LOOK: Duration = Duration::from_millis(100);
/// From one look to the next.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// What is left out for long is told so often, should the collector die meanwhile.
const TELL_EVERY_NS: u64 = 60_000_000_000;

/// What `/status` says of it.
#[derive(Clone, Debug, Default, Serialize)]
pub struct GovernorStatus {
    /// Percent of the node's CPU time that programs may take. 0: it is off.
    pub budget_percent: f64,
    /// What they took when it looked last; absent: it has not looked yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cost_percent: Option<f64>,
    /// Probes of which something is left out, and what is left of them.
    pub stepped_down: BTreeMap<&'static str, &'static str>,
    /// Why it cannot look.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub error: String,
}

/// What the kernel side knows of it.
pub(super) struct State {
    governor: Governor,
    /// Up to when what is left out was told, by probe; Unix time.
    told_ns: BTreeMap<&'static str, u64>,
    cost: Option<f64>,
    error: String,
}

impl Default for State {
    fn default() -> Self {
        let probes = probes::ALL.iter().map(|probe| (probe.spec.name, levels(probe)));
        Self {
            governor: Governor::new(0.0, probes, Instant::now()),
            told_ns: BTreeMap::new(),
            cost: None,
            error: String::new(),
        }
    }
}

impl State {
    /// The configuration with what is left out of it.
    pub(super) fn limit(&self, asked: &Config) -> Config {
        let mut config = asked.clone();
        for (name, level) in self.governor.stepped_down() {
            let Some(probe) = probes::find(name) else { continue };
            let before = probe.settings(asked);
            let settings = config.probes.entry(name.to_owned()).or_default();
            if level >= Level::NoEvents {
                settings.events = false;
            }
            if level >= Level::Sampled {
                settings.sample = NonZeroU32::new(before.sample.saturating_mul(SAMPLED));
            }
            if level >= Level::Off {
                settings.enabled = Some(false);
            }
        }
        config
    }

    pub(super) fn is_down(&self, probe: &str) -> Option<&'static str> {
        let mut down = self.governor.stepped_down();
        down.find(|(name, _)| *name == probe).map(|(_, level)| level.name())
    }

    pub(super) fn status(&self, asked: &Config) -> GovernorStatus {
        GovernorStatus {
            budget_percent: asked.kernel.cpu_budget_percent,
            cost_percent: self.cost.map(|cost| cost * 100.0),
            stepped_down: self
                .governor
                .stepped_down()
                .map(|(probe, level)| (probe, level.name()))
                .collect(),
            error: self.error.clone(),
        }
    }

    /// What was left out of the probe since it was told last.
    fn gap(&mut self, probe: &'static str, level: Level, to_ns: u64) -> Option<Gap> {
        let from_ns = self.told_ns.insert(probe, to_ns)?;
        Some(Gap {
            probe,
            cause: gap::GOVERNOR,
            from_ns: from_ns.min(to_ns),
            to_ns,
            count: 0,
            subject: Subject::Node,
            detail: format!(
                "programs were above kernel.cpu_budget_percent, so of this probe there was left: {}",
                level.name()
            ),
        })
    }
}

impl Kernel {
    /// CPU time of the programs of each probe. Grows only while statistics are on.
    fn run_times(&self) -> BTreeMap<&'static str, u64> {
        let mut times = BTreeMap::new();
        for (signal, step, _) in &self.signals {
            let engine = self.engines.iter().find(|engine| engine.has(signal.probe));
            if let (Some(engine), Some(step)) = (engine, step) {
                *times.entry(signal.probe).or_default() += engine.program(signal, *step).run_time_ns;
            }
        }
        times
    }

    /// Steps probes down or up for what they cost. `None`: all stays as it is, and there is nothing to tell.
    fn govern(&mut self, costs: &Costs, now: Instant) -> Option<Changed> {
        let state = &mut self.governor;
        let budget = self.asked.kernel.cpu_budget_percent / 100.0;
        state.governor.set_budget(budget);
        state.cost = Some(costs.values().sum());
        state.error.clear();
        let was_helpless = state.governor.is_helpless();
        let moves = state.governor.look(costs, now);
        if state.governor.is_helpless() && !was_helpless {
            tracing::warn!(
                cost = state.cost,
                budget,
                "programs are above their budget, and no probe can be stepped down further"
            );
        }
        let time_ns = now_ns();
        let mut gaps = Vec::new();
        for Move { probe, from, to, why } in &moves {
            tracing::warn!(probe, from = from.name(), to = to.name(), %why, "probe stepped {}", if to > from { "down" } else { "up" });
            if *from != Level::Full {
                gaps.extend(state.gap(probe, *from, time_ns));
            }
            match to {
                Level::Full => drop(state.told_ns.remove(probe)),
                _ => drop(state.told_ns.insert(probe, time_ns)),
            }
        }
        let down: Vec<_> = state.governor.stepped_down().collect();
        for (probe, level) in down {
            let told = state.told_ns.get(probe).copied().unwrap_or(time_ns);
            if time_ns.saturating_sub(told) >= TELL_EVERY_NS {
                gaps.extend(state.gap(probe, level, time_ns));
            }
        }
        if moves.is_empty() {
            return (!gaps.is_empty()).then(|| Changed {
                gaps,
                ..Changed::default()
            });
        }
        let mut changed = self.make_as_limited();
        changed.gaps.extend(gaps);
        Some(changed)
    }

    /// All as the configuration has it: there is no budget any more.
    fn ungovern(&mut self) -> Option<Changed> {
        self.governor.cost = None;
        let time_ns = now_ns();
        let down: Vec<_> = self.governor.governor.stepped_down().collect();
        if down.is_empty() {
            return None;
        }
        let gaps: Vec<_> = down
            .into_iter()
            .filter_map(|(probe, level)| self.governor.gap(probe, level, time_ns))
            .collect();
        self.governor = State::default();
        let mut changed = self.make_as_limited();
        changed.gaps.extend(gaps);
        Some(changed)
    }
}

/// The thread that looks. Dropping it ends it.
#[derive(Debug)]
pub struct GovernorThread {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl GovernorThread {
    /// `tell` gets the last rows of what ends, and the gaps.
    pub fn start(kernel: Arc<Mutex<Kernel>>, tell: impl Fn(Changed) + Send + 'static) -> std::io::Result<Self> {
        let (stop, stopped) = channel();
        let thread = std::thread::Builder::new()
            .name("sonde-governor".into())
            .spawn(move || {
                let wait = |time| matches!(stopped.recv_timeout(time), Err(RecvTimeoutError::Timeout));
                while wait(LOOK_EVERY) {
                    let budget = kernel.lock().asked.kernel.cpu_budget_percent;
                    let changed = if budget > 0.0 {
                        look(&kernel, || {
                            wait(LOOK);
                        })
                    } else {
                        kernel.lock().ungovern()
                    };
                    if let Some(changed) = changed {
                        tell(changed);
                    }
                }
            })?;
        Ok(Self {
            stop: Some(stop),
            thread: Some(thread),
        })
    }
}

impl Drop for GovernorThread {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// With statistics on for as long as `wait` takes.
fn look(kernel: &Mutex<Kernel>, wait: impl FnOnce()) -> Option<Changed> {
    let statistics = match enable_stats(Stats::RunTime) {
        Ok(statistics) => statistics,
        Err(error) => {
            let why = format!(
                "what programs cost cannot be asked (needs CAP_SYS_ADMIN): {}",
                error.io_error
            );
            let mut kernel = kernel.lock();
            if kernel.governor.error != why {
                tracing::warn!(%why, "no budget is kept");
                kernel.governor.error = why;
            }
            return None;
        }
    };
    let (begun, before) = (Instant::now(), kernel.lock().run_times());
    wait();
    let mut kernel = kernel.lock();
    let (took, after) = (begun.elapsed(), kernel.run_times());
    drop(statistics);
    let cpus = nix::unistd::sysconf(nix::unistd::SysconfVar::_NPROCESSORS_ONLN);
    let cpus = cpus.ok().flatten().unwrap_or(1).max(1);
    let all_ns = took.as_nanos() as f64 * cpus as f64;
    let costs: Costs = after
        .into_iter()
        .map(|(probe, after)| {
            let before = before.get(probe).copied().unwrap_or(after);
            (probe, after.saturating_sub(before) as f64 / all_ns)
        })
        .collect();
    kernel.govern(&costs, Instant::now())
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// One look, while `meanwhile` is done.
    pub(crate) fn look_at(kernel: Kernel, meanwhile: impl FnOnce()) -> (Kernel, Option<Changed>) {
        let kernel = Mutex::new(kernel);
        let changed = look(&kernel, meanwhile);
        (kernel.into_inner(), changed)
    }

    /// As if that was what they cost, at that time.
    pub(crate) fn govern(kernel: &mut Kernel, costs: &[(&'static str, f64)], now: Instant) -> Option<Changed> {
        kernel.govern(&costs.iter().copied().collect(), now)
    }
}
