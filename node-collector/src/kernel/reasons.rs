//! Names of drop reasons, from the running kernel: their numbers change between builds of one series.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use sonde_ebpf_common::drop::NO_REASON;

use super::btf::{Btf, Kind};

/// What a kernel below 5.17 calls every reason, and later ones a drop that nobody named.
pub(super) const NOT_SPECIFIED: &str = "NOT_SPECIFIED";

#[derive(Clone, Debug)]
pub(super) struct Reasons {
    names: HashMap<u32, Arc<str>>,
    not_specified: Arc<str>,
}

impl Default for Reasons {
    fn default() -> Self {
        Self {
            names: HashMap::new(),
            not_specified: NOT_SPECIFIED.into(),
        }
    }
}

impl Reasons {
    /// From the kernel's BTF, with those of loaded modules (openvswitch, mac80211) where they can be read.
    pub(super) fn read(btf: &Btf, sys: &Path) -> Self {
        let mut reasons = Self::of(btf);
        let modules = std::fs::read_dir(sys.join("kernel/btf"))
            .into_iter()
            .flatten()
            .flatten();
        for module in modules.filter(|entry| WITH_REASONS.iter().any(|name| entry.file_name() == *name)) {
            let parsed = std::fs::read(module.path())
                .ok()
                .and_then(|bytes| Btf::parse_module(bytes, btf).ok());
            if let Some(module) = parsed {
                reasons.take(&module);
            }
        }
        reasons
    }

    /// Those of one file.
    pub(super) fn of(btf: &Btf) -> Self {
        let mut reasons = Self::default();
        reasons.take(btf);
        reasons
    }

    /// All enums of drop reasons: the core's, and those of subsystems, whose numbers have the subsystem in the upper half.
    fn take(&mut self, btf: &Btf) {
        for (_, found) in btf.types().filter(|(_, t)| matches!(t.kind, Kind::Enum | Kind::Enum64)) {
            let name = found.name();
            let core = name == "skb_drop_reason";
            let subsystem = name.ends_with("_drop_reason") || name.ends_with("_drop_reasons");
            if !core && !subsystem {
                continue;
            }
            for (name, value) in found.enumerators() {
                let Ok(number) = u32::try_from(value) else { continue };
                let name = name.strip_prefix("SKB_DROP_REASON_").unwrap_or(name);
                let mark = matches!(name, "MAX" | "SUBSYS_MASK") || number == NO_REASON;
                if !mark && (core || number >> 16 != 0) {
                    self.names.entry(number).or_insert_with(|| name.into());
                }
            }
        }
    }

    /// `NETFILTER_DROP`; a number that has no name is shown as `REASON_130`.
    pub(super) fn name(&self, reason: u32) -> Arc<str> {
        match self.names.get(&reason) {
            Some(name) => Arc::clone(name),
            None if reason == NO_REASON => Arc::clone(&self.not_specified),
            None => format!("REASON_{reason}").into(),
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, &str)> {
        self.names.iter().map(|(number, name)| (*number, &**name))
    }

    pub(super) fn len(&self) -> usize {
        self.names.len()
    }
}

/// Modules that bring drop reasons of their own.
const WITH_REASONS: [&str; 2] = ["openvswitch", "mac80211"];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::btf::write::Writer;

    #[test]
    fn reasons_have_their_names_without_the_prefix_and_marks_are_none() {
        let w = &mut Writer::new();
        w.enumeration(
            "skb_drop_reason",
            &[
                ("SKB_NOT_DROPPED_YET", 0),
                ("SKB_CONSUMED", 1),
                ("SKB_DROP_REASON_NOT_SPECIFIED", 2),
                ("SKB_DROP_REASON_NETFILTER_DROP", 12),
                ("SKB_DROP_REASON_MAX", 128),
                ("SKB_DROP_REASON_SUBSYS_MASK", 0xffff_0000),
            ],
        );
        w.enumeration("qdisc_drop_reason", &[("QDISC_DROP_OVERLIMIT", 0x3_0001), ("SMALL", 3)]);
        w.enumeration("color", &[("RED", 130)]);
        let reasons = Reasons::of(&Btf::parse(w.finish()).unwrap());
        assert_eq!(reasons.len(), 4);
        assert_eq!(&*reasons.name(12), "NETFILTER_DROP");
        assert_eq!(&*reasons.name(0x3_0001), "QDISC_DROP_OVERLIMIT");
        assert_eq!(&*reasons.name(130), "REASON_130");
        assert_eq!(&*reasons.name(NO_REASON), "NOT_SPECIFIED");
    }

    #[test]
    fn the_running_kernel_names_the_reasons_everybody_asks_for() {
        let Ok(bytes) = std::fs::read("/sys/kernel/btf/vmlinux") else {
            println!("SKIPPED: no BTF");
            return;
        };
        let reasons = Reasons::read(&Btf::parse(bytes).unwrap(), Path::new("/sys"));
        if reasons.len() == 0 {
            println!("SKIPPED: this kernel gives no reasons");
            return;
        }
        let names: Vec<&str> = reasons.iter().map(|(_, name)| name).collect();
        for name in ["NOT_SPECIFIED", "NO_SOCKET", "NETFILTER_DROP", "SOCKET_RCVBUFF"] {
            assert!(names.contains(&name), "{name} in {names:?}");
        }
    }
}
