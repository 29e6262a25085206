//! Which rung of its ladder each signal takes: a pure function of facts and configuration.

pub(crate) use sonde_common::config::Rung;
use sonde_common::config::{Config, Switch};

use super::facts::{Answer, BtfFacts, CAP_BPF, CAP_PERFMON, CAP_SYS_ADMIN, CAP_SYS_RESOURCE, Facts, Release};
use super::probe::ProbeSettings;
use super::probes;

/// Where a program is attached. Functions are given by all names that kernels have for them: the first that is there
/// is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Attach {
    TpBtf(&'static str),
    RawTracepoint(&'static str),
    Fentry(&'static [&'static str]),
    Fexit(&'static [&'static str]),
    Kprobe(&'static [&'static str]),
    Kretprobe(&'static [&'static str]),
    /// Only loaded: who reads the probe's maps attaches it to devices as they come. So with the next.
    Tcx,
    Clsact,
}

/// A program of the object by name, and where it goes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Hook(pub &'static str, pub Attach);

/// One way to a signal: all its programs, or none of them.
#[derive(Debug)]
pub(crate) struct Step {
    pub rung: Rung,
    pub hooks: &'static [Hook],
    /// Fields and arguments without which this way would say wrong things.
    pub needs: &'static [&'static str],
    /// What else stands against it on this host; `None`: nothing.
    pub unfit: fn(&Facts) -> Option<String>,
}

impl Step {
    pub(crate) const fn new(rung: Rung, hooks: &'static [Hook]) -> Self {
        Self {
            rung,
            hooks,
            needs: &[],
            unfit: |_| None,
        }
    }
}

/// A type of events that a signal makes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bucket {
    /// Position in `sonde_ebpf_common::limit`.
    pub position: usize,
    /// What is missing when its token bucket held some back, for gaps.
    pub held: &'static str,
}

/// Something to learn from the kernel, and the ways to it, best first.
#[derive(Debug)]
pub(crate) struct Signal {
    pub name: &'static str,
    pub probe: &'static str,
    /// Whether rows come from it.
    pub rows: bool,
    /// Events that it makes. With some and no rows, `probes.NAME.events` turns it off.
    pub buckets: &'static [Bucket],
    pub steps: &'static [Step],
    /// Fields and arguments that every step needs.
    pub needs: &'static [&'static str],
    /// Why no step is on a tracepoint, where functions are all there is.
    pub no_tracepoint: Option<&'static str>,
    /// What is missing when the kernel skipped a run of it, for gaps.
    pub missed: &'static str,
    /// Makes it happen on this host, for `doctor`; its reader must then see something.
    pub provoke: Option<fn() -> std::io::Result<()>>,
    /// Signal of the same probe, listed before it, to which it only adds: without that one it does not run.
    pub after: Option<&'static str>,
    /// Why it can never happen on this host: then nothing is missing.
    pub idle: fn(&Facts) -> Option<String>,
    /// The key under `probes.NAME` without which it is off, and whether that says so.
    pub option: Option<Choice>,
}

pub(crate) type Choice = (&'static str, fn(&Config) -> bool);

impl Signal {
    /// What a signal leaves out.
    pub(crate) const PLAIN: Self = Self {
        name: "",
        probe: "",
        rows: false,
        buckets: &[],
        steps: &[],
        needs: &[],
        no_tracepoint: None,
        missed: "",
        provoke: None,
        after: None,
        idle: |_| None,
        option: None,
    };

    /// It makes events and nothing else.
    pub(super) const fn only_events(&self) -> bool {
        !self.rows && !self.buckets.is_empty()
    }

    pub(super) fn settings(&self, config: &Config) -> ProbeSettings {
        let defaults = probes::find(self.probe).map_or(super::probe::Defaults::ON, |probe| probe.defaults);
        defaults.with(config, self.probe)
    }
}

/// What was decided for a signal. Steps by their place in [`Signal::steps`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Decision {
    /// Steps to try in this order. Empty: off.
    pub candidates: Vec<usize>,
    /// Steps not to be tried, and why.
    pub rejected: Vec<(usize, String)>,
    /// Why no step can be had at all, before any is looked at.
    pub off: Option<String>,
    /// It is off as the configuration has it so, and not for want of anything.
    pub chosen: bool,
}

impl Decision {
    fn off(why: impl Into<String>) -> Self {
        Self {
            candidates: Vec::new(),
            rejected: Vec::new(),
            off: Some(why.into()),
            chosen: false,
        }
    }

    fn off_by_choice(why: impl Into<String>) -> Self {
        Self {
            chosen: true,
            ..Self::off(why)
        }
    }

    /// The kernel did not take it.
    pub(super) fn reject(&mut self, at: usize, why: String) {
        let place = self.rejected.partition_point(|(other, _)| *other < at);
        self.rejected.insert(place, (at, why));
    }

    /// One line for why a better step than `taken` was not to be had, or none at all.
    pub(super) fn reason(&self, signal: &Signal, taken: Option<usize>) -> String {
        if let Some(why) = &self.off {
            return why.clone();
        }
        let better = self
            .rejected
            .iter()
            .filter(|(at, _)| taken.is_none_or(|taken| *at < taken));
        let mut better: Vec<_> = better
            .map(|(at, why)| format!("{}: {why}", signal.steps[*at].rung.name()))
            .collect();
        if taken.is_none() && !better.is_empty() {
            better.extend(signal.no_tracepoint.map(|why| format!("tracepoints: {why}")));
        }
        better.join("; ")
    }
}

/// Why the configuration does not want it; `None`: it does.
pub(super) fn off_by_choice(signal: &Signal, config: &Config) -> Option<String> {
    if config.kernel.ebpf == Switch::Off {
        return Some("kernel.ebpf is off".to_owned());
    }
    let probe = signal.settings(config);
    if !probe.enabled {
        let said = config
            .probes
            .get(signal.probe)
            .is_some_and(|said| said.enabled.is_some());
        return Some(match said {
            true => format!("probes.{}.enabled is false", signal.probe),
            false => format!("probes.{}.enabled is not set, and it is off by default", signal.probe),
        });
    }
    if let Some((key, _)) = signal.option.filter(|(_, is_on)| !is_on(config)) {
        return Some(format!("probes.{}.{key} is false", signal.probe));
    }
    let no_events = signal.only_events() && !probe.events;
    no_events.then(|| format!("probes.{}.events is false", signal.probe))
}

pub(super) fn plan(signal: &Signal, facts: &Facts, config: &Config) -> Decision {
    if let Some(why) = off_by_choice(signal, config) {
        return Decision::off_by_choice(why);
    }
    if let Some(why) = (signal.idle)(facts) {
        return Decision::off_by_choice(why);
    }
    let may_be_taken = |step: &Step| config.kernel.rungs.contains(&step.rung);
    if !signal.steps.iter().any(may_be_taken) {
        return Decision::off_by_choice("kernel.rungs leaves out every way to it");
    }
    if let Some(why) = forbidden(facts) {
        return Decision::off(why);
    }
    let btf = match &facts.btf {
        Ok(btf) => btf,
        Err(why) => {
            return Decision::off(format!(
                "no BTF to find kernel fields by: {why} (kernel.btf_path may name a file)"
            ));
        }
    };
    if let Some(why) = misses(btf, signal.needs) {
        return Decision::off(why);
    }
    let mut decision = Decision {
        candidates: Vec::new(),
        rejected: Vec::new(),
        off: None,
        chosen: false,
    };
    for (at, step) in signal.steps.iter().enumerate() {
        let left_out = || (!may_be_taken(step)).then(|| "kernel.rungs leaves it out".to_owned());
        match left_out().or_else(|| unfit(step, btf, facts)) {
            None => decision.candidates.push(at),
            Some(why) => decision.rejected.push((at, why)),
        }
    }
    decision
}

/// What keeps every program from loading. Only a certain "no" counts; where it is unknown, the kernel is asked by trying.
fn forbidden(facts: &Facts) -> Option<String> {
    if facts.release.is_some_and(|release| release < OLDEST) {
        let Release(major, minor) = OLDEST;
        return Some(format!(
            "Linux {} is older than {major}.{minor}, which brought the ring buffer",
            facts.release_text
        ));
    }
    if let Answer::No(why) = &facts.lockdown {
        return Some(why.clone());
    }
    let has = |capability| facts.has(capability) != Some(false);
    let enough = has(CAP_SYS_ADMIN) || has(CAP_BPF) && has(CAP_PERFMON);
    if !enough {
        return Some("no permission: loading programs needs CAP_BPF and CAP_PERFMON, or CAP_SYS_ADMIN".into());
    }
    let bounded_memory = facts.release.is_some_and(|release| release < Release(5, 11));
    if bounded_memory
        && let Answer::No(why) = &facts.memlock
        && facts.has(CAP_SYS_RESOURCE) == Some(false)
    {
        return Some(format!(
            "{why}, and Linux {} counts maps against it: needs CAP_SYS_RESOURCE",
            facts.release_text
        ));
    }
    None
}

/// The ring buffer, and `bpf_probe_read_kernel` with typed tracepoints shortly before it.
const OLDEST: Release = Release(5, 8);

fn misses(btf: &BtfFacts, needs: &[&str]) -> Option<String> {
    let (_, why) = btf.absent.iter().find(|(symbol, _)| needs.contains(symbol))?;
    Some(format!("the kernel's types are not as expected: {why}"))
}

fn unfit(step: &Step, btf: &BtfFacts, facts: &Facts) -> Option<String> {
    step.hooks
        .iter()
        .find_map(|hook| cannot_hook(hook.1, btf, facts))
        .or_else(|| misses(btf, step.needs))
        .or_else(|| (step.unfit)(facts))
}

/// Only a certain "no". Whether the kernel takes programs at functions is told by trying.
fn cannot_hook(attach: Attach, btf: &BtfFacts, facts: &Facts) -> Option<String> {
    let typed = || match &facts.kernel_btf {
        Answer::No(why) => Some(format!("the kernel has no BTF of its own: {why}")),
        _ => None,
    };
    let tracepoint = |name| {
        let absent = !btf.tracepoints.contains(&name);
        absent.then(|| format!("the kernel has no tracepoint {name}"))
    };
    let function = |names: &[&str]| {
        let absent = !names.iter().any(|name| btf.functions.contains(name));
        absent.then(|| {
            let names = names.join(" or ");
            format!("the kernel's own types have no function {names} (one of a module cannot be taken so)")
        })
    };
    match attach {
        Attach::TpBtf(name) => typed().or_else(|| crashes(facts)).or_else(|| tracepoint(name)),
        Attach::RawTracepoint(name) => tracepoint(name),
        Attach::Fentry(names) | Attach::Fexit(names) => typed().or_else(|| function(names)),
        // A function may be in a module, whose types are elsewhere.
        Attach::Kprobe(_) | Attach::Kretprobe(_) => match &facts.kprobes {
            Answer::No(why) => Some(why.clone()),
            _ => None,
        },
        Attach::Tcx => match facts.release {
            Some(release) if release < TCX => Some(format!(
                "programs on devices in an order (tcx) came with Linux {}.{}",
                TCX.0, TCX.1
            )),
            _ => None,
        },
        // Since long before the ring buffer.
        Attach::Clsact => None,
    }
}

const TCX: Release = Release(6, 6);

/// A typed load from a bad pointer is a fault that the kernel looks up in a table of the program. Before 6.5
/// (kernel/bpf/verifier.c, jit_subprogs) a program that calls functions of its own, as most here do if only to zero memory,
/// has a length of that table and no table: the kernel dereferences NULL. Pointers in packets can be bad: UDP keeps a number
/// in `skb->dev`. Stable kernels may have the correction earlier, which their release does not tell.
fn crashes(facts: &Facts) -> Option<String> {
    const CORRECTED: Release = Release(6, 5);
    let is_older = facts.release.is_none_or(|release| release < CORRECTED);
    is_older.then(|| "kernels before Linux 6.5 may crash when a typed load meets a bad pointer".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::probes::find;

    fn signal(name: &str) -> &'static Signal {
        probes::signals().find(|signal| signal.name == name).unwrap()
    }

    /// A signal with ways that no probe has yet.
    const FUNCTIONS: Signal = Signal {
        name: "test.functions",
        probe: "test",
        rows: true,
        buckets: &[],
        steps: &[
            Step::new(
                Rung::Fentry,
                &[
                    Hook("a", Attach::Fentry(&["new_name", "old_name"])),
                    Hook("b", Attach::Fexit(&["new_name", "old_name"])),
                ],
            ),
            Step {
                needs: &["KFREE_SKB_REASON"],
                ..Step::new(Rung::TpBtf, &[Hook("c", Attach::TpBtf("kfree_skb"))])
            },
            Step {
                unfit: |facts| (facts.release < Some(Release(6, 13))).then(|| "too old".to_owned()),
                ..Step::new(Rung::RawTracepoint, &[Hook("d", Attach::RawTracepoint("kfree_skb"))])
            },
            Step::new(
                Rung::Kprobe,
                &[
                    Hook("e", Attach::Kprobe(&["new_name"])),
                    Hook("f", Attach::Kretprobe(&["new_name"])),
                ],
            ),
        ],
        needs: &[],
        missed: "",
        provoke: None,
        ..Signal::PLAIN
    };

    fn capable() -> Facts {
        Facts {
            release_text: "6.12.0".into(),
            release: Some(Release(6, 12)),
            capabilities: Some(1 << CAP_BPF | 1 << CAP_PERFMON),
            btf: Ok(BtfFacts {
                path: "/sys/kernel/btf/vmlinux".into(),
                types: 1,
                tracepoints: vec!["kfree_skb"],
                functions: vec!["old_name"],
                fields: Vec::new(),
                arguments: Vec::new(),
                absent: Vec::new(),
            }),
            kernel_btf: Answer::Yes,
            kprobes: Answer::Yes,
            lockdown: Answer::Yes,
            jit: Answer::Yes,
            memlock: Answer::Yes,
            virtio_net: Answer::Yes,
        }
    }

    #[test]
    fn what_can_never_happen_here_is_not_missing() {
        let commands = signal("virtcmdlatency.times");
        let mut facts = capable();
        for there in [Answer::Yes, Answer::Unknown("no permission".into())] {
            facts.virtio_net = there;
            assert!(!plan(commands, &facts, &Config::default()).chosen);
        }
        facts.virtio_net = Answer::No("no virtio-net device".into());
        let decision = plan(commands, &facts, &Config::default());
        assert!(decision.chosen && decision.candidates.is_empty());
        let why = decision.reason(commands, None);
        assert_eq!(why, "no virtio-net device was there when the collector started");
    }

    #[test]
    fn where_only_functions_tell_it_is_said_that_no_tracepoint_does() {
        let stages = signal("kernellatency.stages");
        let mut config = Config::default();
        config.probes.entry("kernellatency".into()).or_default().enabled = Some(true);
        config.kernel.rungs = vec![Rung::TpBtf, Rung::Kprobe];
        let mut facts = capable();
        facts.kprobes = Answer::No("no kprobes".into());
        let decision = plan(stages, &facts, &config);
        let off = decision.reason(stages, None);
        assert!(
            off.contains("no kprobes") && off.contains("tracepoints: the kernel has none"),
            "{off}"
        );
        assert!(!decision.reason(stages, Some(1)).contains("tracepoints:"));
        config.probes.entry("kernellatency".into()).or_default().enabled = Some(false);
        let chosen = plan(stages, &facts, &config).reason(stages, None);
        assert_eq!(chosen, "probes.kernellatency.enabled is false");
    }

    #[test]
    fn what_a_signal_adds_to_is_listed_before_it() {
        let names: Vec<_> = probes::signals().map(|signal| (signal.name, signal.probe)).collect();
        for (at, signal) in probes::signals().enumerate() {
            if let Some(after) = signal.after {
                assert!(names[..at].contains(&(after, signal.probe)), "{}", signal.name);
            }
        }
    }

    fn decide(facts: &Facts) -> Decision {
        plan(signal("packetloss.count"), facts, &Config::default())
    }

    fn rungs(signal: &Signal, decision: &Decision) -> Vec<Rung> {
        decision.candidates.iter().map(|at| signal.steps[*at].rung).collect()
    }

    fn drop_rungs(facts: &Facts) -> Vec<Rung> {
        rungs(signal("packetloss.count"), &decide(facts))
    }

    fn off(facts: &Facts) -> String {
        let decision = decide(facts);
        assert!(decision.candidates.is_empty(), "{decision:?}");
        decision.reason(signal("packetloss.count"), None)
    }

    #[test]
    fn a_capable_host_takes_the_best_rung_and_keeps_the_next_as_a_fallback() {
        assert_eq!(drop_rungs(&capable()), [Rung::TpBtf, Rung::RawTracepoint]);
        assert_eq!(decide(&capable()).reason(signal("packetloss.count"), Some(0)), "");
    }

    #[test]
    fn a_rung_that_is_left_out_is_not_taken_and_that_is_said() {
        let mut config = Config::default();
        config.kernel.rungs.retain(|rung| *rung != Rung::TpBtf);
        let signal = signal("packetloss.count");
        let decision = plan(signal, &capable(), &config);
        assert_eq!(rungs(signal, &decision), [Rung::RawTracepoint]);
        assert_eq!(decision.reason(signal, Some(1)), "tp_btf: kernel.rungs leaves it out");
        config.kernel.rungs = vec![Rung::Kprobe];
        let decision = plan(signal, &capable(), &config);
        assert!(decision.candidates.is_empty() && decision.chosen, "{decision:?}");
        assert_eq!(decision.reason(signal, None), "kernel.rungs leaves out every way to it");
    }

    #[test]
    fn without_perfmon_and_sys_admin_everything_is_off() {
        let facts = Facts {
            capabilities: Some(1 << CAP_BPF),
            ..capable()
        };
        assert!(off(&facts).contains("CAP_PERFMON"));
        let facts = Facts {
            capabilities: Some(0),
            ..capable()
        };
        assert!(off(&facts).contains("no permission"));
        let facts = Facts {
            capabilities: Some(1 << CAP_SYS_ADMIN),
            ..capable()
        };
        assert!(
            !decide(&facts).candidates.is_empty(),
            "SYS_ADMIN alone is enough, as before 5.8"
        );
    }

    #[test]
    fn what_could_not_be_told_is_tried() {
        let unknown = || Answer::Unknown("no such file".into());
        let facts = Facts {
            capabilities: None,
            release: None,
            kernel_btf: unknown(),
            kprobes: unknown(),
            lockdown: unknown(),
            jit: unknown(),
            memlock: unknown(),
            virtio_net: unknown(),
            ..capable()
        };
        // But nothing that could crash a kernel.
        assert_eq!(drop_rungs(&facts), [Rung::RawTracepoint]);
        let decision = plan(&FUNCTIONS, &facts, &Config::default());
        assert!(rungs(&FUNCTIONS, &decision).contains(&Rung::Kprobe), "{decision:?}");
    }

    #[test]
    fn typed_loads_are_left_alone_where_a_bad_pointer_may_crash_the_kernel() {
        let of = |major, minor| Facts {
            release: Some(Release(major, minor)),
            ..capable()
        };
        for (major, minor) in [(5, 10), (6, 1), (6, 4)] {
            assert_eq!(drop_rungs(&of(major, minor)), [Rung::RawTracepoint]);
            let decision = decide(&of(major, minor));
            let why = decision.reason(signal("packetloss.count"), decision.candidates.first().copied());
            assert!(why.contains("before Linux 6.5 may crash"), "{why}");
        }
        assert_eq!(drop_rungs(&of(6, 5)), [Rung::TpBtf, Rung::RawTracepoint]);
    }

    #[test]
    fn without_any_btf_everything_is_off_and_the_setting_is_named() {
        let facts = Facts {
            btf: Err("/sys/kernel/btf/vmlinux: not found".into()),
            ..capable()
        };
        let why = off(&facts);
        assert!(why.contains("not found") && why.contains("kernel.btf_path"), "{why}");
    }

    #[test]
    fn with_btf_from_a_file_only_the_raw_tracepoint_is_left() {
        let facts = Facts {
            kernel_btf: Answer::No("vmlinux does not exist".into()),
            ..capable()
        };
        assert_eq!(drop_rungs(&facts), [Rung::RawTracepoint]);
        assert!(
            decide(&facts)
                .reason(signal("packetloss.count"), Some(1))
                .starts_with("tp_btf: the kernel has no BTF of its own")
        );
    }

    #[test]
    fn a_kernel_without_the_tracepoint_or_a_needed_field_is_told_apart() {
        let with = |change: fn(&mut BtfFacts)| {
            let mut facts = capable();
            change(facts.btf.as_mut().unwrap());
            facts
        };
        assert!(off(&with(|btf| btf.tracepoints.clear())).contains("no tracepoint kfree_skb"));
        let why = off(&with(|btf| {
            btf.absent
                .push(("DEV_NET", "net_device has no member nd_net.net".into()))
        }));
        assert!(why.contains("net_device has no member nd_net.net"), "{why}");
        let optional = with(|btf| btf.absent.push(("KFREE_SKB_REASON", "no argument".into())));
        assert!(
            !decide(&optional).candidates.is_empty(),
            "5.10 gives no reason, and is fine"
        );
    }

    #[test]
    fn lockdown_and_age_are_said() {
        let facts = Facts {
            lockdown: Answer::No("lockdown is at confidentiality".into()),
            ..capable()
        };
        assert!(off(&facts).contains("confidentiality"));
        let facts = Facts {
            release: Some(Release(5, 4)),
            release_text: "5.4.0".into(),
            ..capable()
        };
        assert!(off(&facts).contains("5.8"));
    }

    #[test]
    fn locked_memory_matters_on_old_kernels_only() {
        let memlock = || Answer::No("RLIMIT_MEMLOCK stays at 65536 bytes".into());
        assert!(
            !decide(&Facts {
                memlock: memlock(),
                ..capable()
            })
            .candidates
            .is_empty()
        );
        let old = Facts {
            memlock: memlock(),
            release: Some(Release(5, 10)),
            ..capable()
        };
        assert!(off(&old).contains("CAP_SYS_RESOURCE"));
    }

    #[test]
    fn the_configuration_turns_signals_off_by_name() {
        let config = |text: &str| -> Config { serde_json::from_str(text).unwrap() };
        let decide = |name, text| plan(signal(name), &capable(), &config(text)).reason(signal(name), None);
        assert_eq!(
            decide("packetloss.count", r#"{"kernel":{"ebpf":"off"}}"#),
            "kernel.ebpf is off"
        );
        let events = r#"{"probes":{"packetloss":{"events":false}}}"#;
        assert_eq!(decide("packetloss.events", events), "probes.packetloss.events is false");
        assert_eq!(decide("packetloss.count", events), "");
        let enabled = r#"{"probes":{"packetloss":{"enabled":false}}}"#;
        assert_eq!(
            decide("packetloss.count", enabled),
            "probes.packetloss.enabled is false"
        );
    }

    #[test]
    fn each_step_is_judged_by_what_it_hooks_and_needs() {
        let judge = |facts: &Facts| plan(&FUNCTIONS, facts, &Config::default());
        let all = [Rung::Fentry, Rung::TpBtf, Rung::RawTracepoint, Rung::Kprobe];
        let new = Facts {
            release: Some(Release(6, 18)),
            ..capable()
        };
        assert_eq!(rungs(&FUNCTIONS, &judge(&new)), all);

        let mut poor = Facts {
            kprobes: Answer::No("the kernel has no kprobes".into()),
            ..capable()
        };
        let btf = poor.btf.as_mut().unwrap();
        btf.functions.clear();
        btf.absent.push(("KFREE_SKB_REASON", "no argument reason".into()));
        let decision = judge(&poor);
        assert_eq!(rungs(&FUNCTIONS, &decision), []);
        assert_eq!(
            decision.reason(&FUNCTIONS, None),
            "fentry: the kernel's own types have no function new_name or old_name (one of a module cannot be taken \
             so); tp_btf: the kernel's types are not as \
             expected: no argument reason; raw_tracepoint: too old; kprobe: the kernel has no kprobes"
        );
        assert_eq!(
            decision.reason(&FUNCTIONS, Some(1)),
            "fentry: the kernel's own types have no function new_name or old_name (one of a module cannot be taken so)",
            "only better ones are spoken of"
        );
    }

    #[test]
    fn what_an_option_asks_for_is_off_without_it_and_takes_another_way_on_older_kernels() {
        let signal = signal("flow.tc");
        let with = |tc: bool, release: Release| {
            let mut config = Config::default();
            let flow = sonde_common::config::Probe {
                enabled: Some(true),
                tc,
                ..Default::default()
            };
            config.probes.insert("flow".into(), flow);
            let facts = Facts {
                release: Some(release),
                ..capable()
            };
            plan(signal, &facts, &config)
        };
        let off = with(false, Release(6, 12));
        assert!(off.chosen && off.candidates.is_empty());
        assert_eq!(off.reason(signal, None), "probes.flow.tc is false");
        assert_eq!(rungs(signal, &with(true, Release(6, 6))), [Rung::Tcx, Rung::Clsact]);
        let old = with(true, Release(6, 5));
        assert_eq!(rungs(signal, &old), [Rung::Clsact]);
        assert!(
            old.reason(signal, Some(1)).contains("tcx: programs on devices"),
            "{old:?}"
        );
    }

    #[test]
    fn signals_are_declared_whole() {
        use sonde_ebpf_common::fields::{ARGUMENTS, FIELDS};
        let known: Vec<_> = FIELDS
            .iter()
            .map(|f| f.symbol)
            .chain(ARGUMENTS.iter().map(|a| a.symbol))
            .collect();
        let mut buckets = std::collections::HashSet::new();
        for signal in probes::signals() {
            assert!(
                signal.name.starts_with(&format!("{}.", signal.probe)),
                "{}",
                signal.name
            );
            assert!(
                signal.rows || !signal.buckets.is_empty() || signal.after.is_some(),
                "{}: good for nothing",
                signal.name
            );
            assert!(
                signal.steps.iter().all(|step| !step.hooks.is_empty()),
                "{}",
                signal.name
            );
            for need in signal
                .needs
                .iter()
                .chain(signal.steps.iter().flat_map(|step| step.needs))
            {
                assert!(known.contains(need), "{need}");
            }
            for bucket in signal.buckets {
                assert!(
                    buckets.insert(bucket.position),
                    "{}: a type of another signal",
                    signal.name
                );
            }
            assert!(find(signal.probe).is_some(), "{}", signal.probe);
        }
        assert_eq!(
            buckets.len(),
            sonde_ebpf_common::limit::TYPES,
            "every type has a signal"
        );
    }
}
