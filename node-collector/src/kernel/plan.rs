//! Which rung of its ladder each signal takes: a pure function of facts and configuration.

use serde::Serialize;
use sonde_common::config::{Config, Switch};

use super::facts::{Answer, CAP_BPF, CAP_PERFMON, CAP_SYS_ADMIN, CAP_SYS_RESOURCE, Facts, Release};

/// A way to hook into the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Rung {
    /// A tracepoint whose arguments the verifier knows by type: fields are plain loads.
    TpBtf,
    /// The same tracepoint, every field read through a helper.
    RawTracepoint,
}

impl Rung {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::TpBtf => "tp_btf",
            Self::RawTracepoint => "raw_tracepoint",
        }
    }
}

/// Something to learn from the kernel, and the ways to it, best first.
#[derive(Debug)]
pub(super) struct Signal {
    pub name: &'static str,
    pub probe: &'static str,
    /// Whether it makes events, which `probes.NAME.events` turns off.
    pub events: bool,
    pub tracepoint: &'static str,
    /// Rung and name of its program in the object.
    pub rungs: &'static [(Rung, &'static str)],
    /// Fields and arguments without which it would say wrong things.
    pub needs: &'static [&'static str],
}

pub(super) const SIGNALS: [&Signal; 2] = [&PACKETLOSS_COUNT, &PACKETLOSS_EVENTS];

pub(super) const PACKETLOSS_COUNT: Signal = Signal {
    name: "packetloss.count",
    probe: "packetloss",
    events: false,
    tracepoint: "kfree_skb",
    rungs: &[(Rung::TpBtf, "drop_count_btf"), (Rung::RawTracepoint, "drop_count_raw")],
    needs: PACKETLOSS_NEEDS,
};

pub(super) const PACKETLOSS_EVENTS: Signal = Signal {
    name: "packetloss.events",
    probe: "packetloss",
    events: true,
    tracepoint: "kfree_skb",
    rungs: &[(Rung::TpBtf, "drop_event_btf"), (Rung::RawTracepoint, "drop_event_raw")],
    needs: PACKETLOSS_NEEDS,
};

const PACKETLOSS_NEEDS: &[&str] = &[
    "KFREE_SKB_SKB",
    "KFREE_SKB_LOCATION",
    "SKB_DEV",
    "SKB_SK",
    "SKB_HEAD",
    "SKB_NETWORK_HEADER",
    "SKB_PROTOCOL",
    "DEV_NET",
    "SOCK_NET",
    "NET_INODE",
];

/// What was decided for a signal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Decision {
    /// Rungs to try in this order. Empty: off.
    pub candidates: Vec<Rung>,
    /// Rungs not to be tried, and why.
    pub rejected: Vec<(Rung, String)>,
    /// Why no rung can be had at all, before any is looked at.
    pub off: Option<String>,
}

impl Decision {
    fn off(why: impl Into<String>) -> Self {
        Self {
            candidates: Vec::new(),
            rejected: Vec::new(),
            off: Some(why.into()),
        }
    }

    /// One line for why a better rung than `taken` was not to be had, or none at all.
    pub(super) fn reason(&self, taken: Option<Rung>) -> String {
        if let Some(why) = &self.off {
            return why.clone();
        }
        let better = self.rejected.iter().take_while(|(rung, _)| Some(*rung) != taken);
        better
            .map(|(rung, why)| format!("{}: {why}", rung.name()))
            .collect::<Vec<_>>()
            .join("; ")
    }
}

pub(super) fn plan(signal: &Signal, facts: &Facts, config: &Config) -> Decision {
    if config.kernel.ebpf == Switch::Off {
        return Decision::off("kernel.ebpf is off");
    }
    let probe = config.probes.get(signal.probe).cloned().unwrap_or_default();
    if !probe.enabled {
        return Decision::off(format!("probes.{}.enabled is false", signal.probe));
    }
    if signal.events && !probe.events {
        return Decision::off(format!("probes.{}.events is false", signal.probe));
    }
    if let Some(why) = forbidden(facts) {
        return Decision::off(why);
    }
    if let Some(why) = misses(signal, facts) {
        return Decision::off(why);
    }
    let mut decision = Decision {
        candidates: Vec::new(),
        rejected: Vec::new(),
        off: None,
    };
    for (rung, _) in signal.rungs {
        match unfit(*rung, signal, facts) {
            None => decision.candidates.push(*rung),
            Some(why) => decision.rejected.push((*rung, why)),
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

fn misses(signal: &Signal, facts: &Facts) -> Option<String> {
    let btf = match &facts.btf {
        Ok(btf) => btf,
        Err(why) => {
            return Some(format!(
                "no BTF to find kernel fields by: {why} (kernel.btf_path may name a file)"
            ));
        }
    };
    if !btf.tracepoints.contains(&signal.tracepoint) {
        return Some(format!("the kernel has no tracepoint {}", signal.tracepoint));
    }
    let (_, why) = btf.absent.iter().find(|(symbol, _)| signal.needs.contains(symbol))?;
    Some(format!("the kernel's types are not as expected: {why}"))
}

fn unfit(rung: Rung, _signal: &Signal, facts: &Facts) -> Option<String> {
    match (rung, &facts.kernel_btf) {
        (Rung::TpBtf, Answer::No(why)) => Some(format!("the kernel has no BTF of its own: {why}")),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::facts::BtfFacts;

    fn capable() -> Facts {
        Facts {
            release_text: "6.12.0".into(),
            release: Some(Release(6, 12)),
            capabilities: Some(1 << CAP_BPF | 1 << CAP_PERFMON),
            btf: Ok(BtfFacts {
                path: "/sys/kernel/btf/vmlinux".into(),
                types: 1,
                tracepoints: vec!["kfree_skb"],
                fields: Vec::new(),
                arguments: Vec::new(),
                absent: Vec::new(),
            }),
            kernel_btf: Answer::Yes,
            lockdown: Answer::Yes,
            jit: Answer::Yes,
            memlock: Answer::Yes,
        }
    }

    fn decide(facts: &Facts) -> Decision {
        plan(&PACKETLOSS_COUNT, facts, &Config::default())
    }

    fn off(facts: &Facts) -> String {
        let decision = decide(facts);
        assert!(decision.candidates.is_empty(), "{decision:?}");
        decision.reason(None)
    }

    #[test]
    fn a_capable_host_takes_the_best_rung_and_keeps_the_next_as_a_fallback() {
        let decision = decide(&capable());
        assert_eq!(decision.candidates, [Rung::TpBtf, Rung::RawTracepoint]);
        assert_eq!(decision.reason(Some(Rung::TpBtf)), "");
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
            lockdown: unknown(),
            jit: unknown(),
            memlock: unknown(),
            ..capable()
        };
        assert_eq!(decide(&facts).candidates, [Rung::TpBtf, Rung::RawTracepoint]);
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
        let decision = decide(&facts);
        assert_eq!(decision.candidates, [Rung::RawTracepoint]);
        assert!(
            decision
                .reason(Some(Rung::RawTracepoint))
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
        let decide = |signal, text| plan(signal, &capable(), &config(text)).reason(None);
        assert_eq!(
            decide(&PACKETLOSS_COUNT, r#"{"kernel":{"ebpf":"off"}}"#),
            "kernel.ebpf is off"
        );
        let events = r#"{"probes":{"packetloss":{"events":false}}}"#;
        assert_eq!(decide(&PACKETLOSS_EVENTS, events), "probes.packetloss.events is false");
        assert_eq!(decide(&PACKETLOSS_COUNT, events), "");
        let enabled = r#"{"probes":{"packetloss":{"enabled":false}}}"#;
        assert_eq!(decide(&PACKETLOSS_COUNT, enabled), "probes.packetloss.enabled is false");
    }

    #[test]
    fn every_needed_symbol_is_declared() {
        use sonde_ebpf_common::fields::{ARGUMENTS, FIELDS};
        let known: Vec<_> = FIELDS
            .iter()
            .map(|f| f.symbol)
            .chain(ARGUMENTS.iter().map(|a| a.symbol))
            .collect();
        for signal in SIGNALS {
            for need in signal.needs {
                assert!(known.contains(need), "{need}");
            }
        }
    }
}
