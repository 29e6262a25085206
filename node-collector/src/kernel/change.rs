//! A new configuration while programs run.
//!
//! Thresholds, samples, stacks and rates are numbers that programs read: they change in place, and nothing that is counted
//! is touched. Signals are attached or detached each by itself, and a probe that comes on gets maps, rings and a thread of
//! its own, so the others go on as if nothing was. What was off is a gap once it is on again.

use sonde_common::config::Config;
use sonde_common::time::now_ns;

use super::plan::{Decision, Signal, off_by_choice, plan};
use super::probe::KernelProbe;
use super::{Kernel, SignalStatus, facts, probes, status_of, with_status};
use crate::event::Gap;
use crate::switched::{Switched, What, was_off};
use crate::table::Table;

/// Notes what is off with `config`, and gives what came on as gaps.
pub(super) fn note(switched: &mut Switched, config: &Config, now_ns: u64) -> Vec<Gap> {
    let mut gaps = Vec::new();
    for probe in probes::ALL {
        let settings = probe.settings(config);
        let makes = probe.signals.iter().any(|signal| !signal.buckets.is_empty());
        let events_off = makes && settings.enabled && !settings.events;
        for (what, off) in [(What::Probe, !settings.enabled), (What::Events, events_off)] {
            gaps.extend(switched.note(probe.spec.name, what, off, now_ns));
        }
    }
    gaps
}

/// What became of a new configuration.
#[derive(Debug, Default)]
pub struct Changed {
    /// Of all signals.
    pub signals: Vec<SignalStatus>,
    /// The last rows of what ended.
    pub tables: Vec<Table>,
    pub gaps: Vec<Gap>,
    /// What could not be changed.
    pub error: Option<String>,
}

impl Kernel {
    /// Makes the kernel side as `config` has it.
    pub fn apply(&mut self, config: &Config) -> Changed {
        self.asked = config.clone();
        self.make_as_limited()
    }

    /// As the configuration has it, less what the governor leaves out.
    pub(super) fn make_as_limited(&mut self) -> Changed {
        let config = &self.governor.limit(&self.asked);
        let index = std::sync::Arc::clone(&self.index);
        // What was counted until now is told by those who counted it.
        let (tables, mut gaps) = self.read(now_ns(), &index);
        let before = std::mem::replace(&mut self.config, config.clone());
        let anew: Vec<&str> = probes::ALL
            .iter()
            .filter(|probe| is_other(probe, &before, config))
            .map(|probe| probe.spec.name)
            .collect();
        let ended_ns = now_ns();
        self.end_unwanted(config, &anew);
        let error = self
            .engines
            .iter()
            .filter_map(|engine| engine.set_live(config).err())
            .map(|error| error.to_string())
            .next();
        self.begin_wanted(&before, config, &anew);
        gaps.extend(note(&mut self.switched, &self.asked, now_ns()));
        self.say_who_limits();
        let again = probes::ALL.iter().filter(|probe| anew.contains(&probe.spec.name));
        let again = again.filter(|probe| probe.settings(&before).enabled && probe.settings(config).enabled);
        gaps.extend(again.map(|probe| was_off(probe.spec.name, What::Anew, ended_ns, now_ns())));
        Changed {
            signals: self.statuses(),
            tables,
            gaps,
            error,
        }
    }

    /// What is off for want of CPU time is not off as the configuration has it so.
    fn say_who_limits(&mut self) {
        for (signal, step, status) in &mut self.signals {
            let down = self.governor.is_down(signal.probe);
            if let Some(left) = down.filter(|_| step.is_none() && off_by_choice(signal, &self.asked).is_none()) {
                status.reason = format!("stepped down by the governor; of its probe there is left: {left}");
            }
        }
    }

    fn end_unwanted(&mut self, config: &Config, anew: &[&str]) {
        let mut ended = Vec::new();
        for (signal, step, status) in &mut self.signals {
            let choice = off_by_choice(signal, config);
            if choice.is_none() && !anew.contains(&signal.probe) {
                continue;
            }
            ended.extend(step.take().map(|step| (*signal, step)));
            *status = status_of(signal, None, choice.unwrap_or_default(), true);
        }
        if ended.is_empty() {
            return;
        }
        let signals = &self.signals;
        let runs = |probe: &str| {
            signals
                .iter()
                .any(|(signal, step, _)| signal.probe == probe && step.is_some())
        };
        for engine in &mut self.engines {
            let own: Vec<_> = ended
                .iter()
                .copied()
                .filter(|(signal, _)| engine.has(signal.probe))
                .collect();
            if !own.is_empty() {
                engine.remove(&own, runs);
            }
        }
        // With it goes its thread, which reads what is still in its rings.
        self.engines.retain(|engine| !engine.is_idle());
    }

    fn begin_wanted(&mut self, before: &Config, config: &Config, anew: &[&str]) {
        let comes = |signal: &Signal| {
            let is_new = !is_wanted(signal, before) || anew.contains(&signal.probe);
            is_new && is_wanted(signal, config)
        };
        if !probes::signals().any(comes) {
            return;
        }
        let (facts, btf) = facts::gather(config);
        let (mut new, mut more) = (Vec::new(), Vec::<(&'static Signal, Decision)>::new());
        let mut results = Vec::new();
        for signal in probes::signals().filter(|signal| comes(signal)) {
            let decision = plan(signal, &facts, config);
            if decision.candidates.is_empty() {
                let status = status_of(signal, None, decision.reason(signal, None), decision.chosen);
                results.push((signal, None, status));
            } else if self.engines.iter().any(|engine| engine.has(signal.probe)) {
                more.push((signal, decision));
            } else {
                new.push((signal, decision));
            }
        }
        for engine in &mut self.engines {
            let (own, others) = more.into_iter().partition(|(signal, _)| engine.has(signal.probe));
            more = others;
            results.extend(engine.add(own).into_iter().map(with_status));
        }
        results.extend(self.begin(config, &facts, btf, new));
        for result in results {
            if let Some(place) = self
                .signals
                .iter_mut()
                .find(|(signal, _, _)| signal.name == result.0.name)
            {
                *place = result;
            }
        }
    }
}

/// Whether the configuration wants it, be there a way to it or not.
fn is_wanted(signal: &Signal, config: &Config) -> bool {
    off_by_choice(signal, config).is_none()
}

/// Whether it counts by another key from now on, or in other places: it ends, and begins anew. The programs have both as
/// constants: a packet is not to pay for what is seldom changed.
fn is_other(probe: &KernelProbe, before: &Config, now: &Config) -> bool {
    let asked = |config: &Config| {
        let settings = config.probes.get(probe.spec.name);
        settings.map_or((false, false), |settings| (settings.ports, settings.tc))
    };
    asked(before) != asked(now)
}
