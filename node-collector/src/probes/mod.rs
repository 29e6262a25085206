//! The probes that read `/proc`, `/sys` and netlink: one file each, one line in [`PROBES`]. Those that read single processes are in
//! [`PROCESS_PROBES`].
//!
//! A probe says what its columns mean ([`ProbeSpec`]) and turns the readings of one network namespace into rows. It does
//! not open files, know when rounds are, or count its own errors: `crate::round` does. The kernel's probes (eBPF)
//! are in `crate::kernel`.

mod conntrack;
mod fd;
mod icmp;
mod io;
mod ip;
mod ipvs;
mod neigh;
mod netdev;
pub mod packetloss;
mod ports;
mod qdisc;
mod rdma;
mod rdma_resources;
mod sock;
mod sockmem;
mod softnet;
mod tcp;
mod tcpext;
mod tcpsockets;
mod tcpsummary;
mod udp;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use crate::catalogue::{LabelSpec, ProbeSpec};
use crate::event::Subject;
use crate::handles::{Netlink, Readings};
use crate::processes::Members;
use crate::procfs::{NetFile, ReadError};
use crate::table::Table;

/// A probe and how to make it.
#[derive(Debug)]
pub struct Registration {
    pub spec: &'static ProbeSpec,
    /// What it reads, to be opened in each namespace.
    pub files: &'static [NetFile],
    /// What it asks, with a socket in each namespace.
    pub netlink: &'static [Netlink],
    /// What it reads is the same in every network namespace, so only the node has rows.
    pub node_only: bool,
    pub make: fn() -> Box<dyn Probe>,
}

/// Turns the readings of one network namespace into rows.
pub trait Probe: Send + std::fmt::Debug {
    /// Adds the subject's rows. What could be read is added even when the rest fails; what the kernel does not have
    /// gives no row, or [`crate::table::ABSENT`].
    fn read(&mut self, readings: &mut Readings<'_>, subject: &Subject, table: &mut Table)
    -> Result<(), Arc<ReadError>>;
}

/// Every probe of this kind.
pub const PROBES: &[Registration] = &[
    netdev::PROBE,
    ip::PROBE,
    icmp::PROBE,
    tcp::PROBE,
    tcpext::PROBE,
    udp::PROBE,
    softnet::PROBE,
    sock::PROBE,
    sockmem::PROBE,
    tcpsummary::PROBE,
    tcpsockets::PROBE,
    ports::PROBE,
    conntrack::PROBE,
    qdisc::PROBE,
    neigh::PROBE,
    ipvs::PROBE,
    rdma::PROBE,
    rdma_resources::PROBE,
];

/// A probe that sums up over the processes of a pod, and how to make it.
#[derive(Debug)]
pub struct ProcessRegistration {
    pub spec: &'static ProbeSpec,
    /// What it reads below `/proc/PID`.
    pub file: &'static str,
    pub make: fn() -> Box<dyn ProcessProbe>,
}

/// Turns the processes of a pod into a row. The node has none: its processes are mostly its pods'.
pub trait ProcessProbe: Send + std::fmt::Debug {
    /// Adds the pod's row, or none when a process could not be read: a part is not the sum.
    fn read(&mut self, members: Members<'_>, subject: &Subject, table: &mut Table) -> Result<(), ReadError>;

    /// The pods that are there, by sandbox: of all others nothing needs to be kept.
    fn forget_all_but(&mut self, live: &HashSet<&str>);
}

/// Every probe of that kind.
pub const PROCESS_PROBES: &[ProcessRegistration] = &[io::PROBE, fd::PROBE];

/// What this collector can send, the kernel's probes included.
pub fn specs() -> Vec<&'static ProbeSpec> {
    PROBES
        .iter()
        .map(|probe| probe.spec)
        .chain(PROCESS_PROBES.iter().map(|probe| probe.spec))
        .chain(crate::kernel::probes::ALL.iter().map(|probe| probe.spec))
        .collect()
}

/// What events of a probe carry beside what all have, as far as it is written down.
pub fn attributes(probe: &str) -> &'static [LabelSpec] {
    if probe == packetloss::SPEC.name {
        packetloss::ATTRIBUTES
    } else {
        &[]
    }
}

/// Whose rows a probe has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whose {
    NodeAndPods,
    Node,
    Pods,
}

/// Whose rows a probe has, by its name.
pub fn whose(name: &str) -> Whose {
    let of_node = PROBES.iter().any(|probe| probe.spec.name == name && probe.node_only)
        || crate::kernel::probes::find(name).is_some_and(|probe| probe.node_only);
    if of_node {
        Whose::Node
    } else if PROCESS_PROBES.iter().any(|probe| probe.spec.name == name) {
        Whose::Pods
    } else {
        Whose::NodeAndPods
    }
}

/// Whether a probe runs where the configuration says nothing of it.
pub fn is_on_by_default(name: &str) -> bool {
    let kernel = crate::kernel::probes::ALL;
    let found = kernel.iter().find(|probe| probe.spec.name == name);
    found.is_none_or(|probe| probe.defaults.enabled)
}

/// Columns beside the names the kernel has for them: `"InSegs" => counter "received_segments" "segments": "help";`
/// makes `COLUMNS` and `NAMES` of the same order. A second name (`"InReceives" "Ip6InReceives" => ...`) makes `NAMES_2`, a third
/// `NAMES_3`; `""` where that file has none.
macro_rules! columns {
    ($($kernel:literal => $kind:ident $name:literal $unit:literal : $help:literal;)*) => {
        const COLUMNS: &[crate::catalogue::ColumnSpec] =
            &[$(crate::catalogue::ColumnSpec::$kind($name, $unit, $help)),*];
        const NAMES: &[&str] = &[$($kernel),*];
    };
    ($($first:literal $second:literal => $kind:ident $name:literal $unit:literal : $help:literal;)*) => {
        const COLUMNS: &[crate::catalogue::ColumnSpec] =
            &[$(crate::catalogue::ColumnSpec::$kind($name, $unit, $help)),*];
        const NAMES: &[&str] = &[$($first),*];
        const NAMES_2: &[&str] = &[$($second),*];
    };
    ($($first:literal $second:literal $third:literal => $kind:ident $name:literal $unit:literal : $help:literal;)*) => {
        const COLUMNS: &[crate::catalogue::ColumnSpec] =
            &[$(crate::catalogue::ColumnSpec::$kind($name, $unit, $help)),*];
        const NAMES: &[&str] = &[$($first),*];
        const NAMES_2: &[&str] = &[$($second),*];
        const NAMES_3: &[&str] = &[$($third),*];
    };
}
use columns;

/// `ipv4` and `ipv6` as label values, made once.
#[derive(Debug)]
struct Families {
    ipv4: Arc<str>,
    ipv6: Arc<str>,
}

impl Default for Families {
    fn default() -> Self {
        Self {
            ipv4: "ipv4".into(),
            ipv6: "ipv6".into(),
        }
    }
}

/// Label values that come back with each round: `eth0` and `lo` are in every pod, so one string for all.
#[derive(Debug, Default)]
struct Names(HashMap<Box<str>, Arc<str>>);

/// Names that are gone are forgotten all at once when there are more than these.
const NAMES_KEPT: usize = 10_000;

impl Names {
    fn get(&mut self, name: &str) -> Arc<str> {
        if let Some(known) = self.0.get(name) {
            return Arc::clone(known);
        }
        if self.0.len() >= NAMES_KEPT {
            self.0.clear();
        }
        let new: Arc<str> = name.into();
        self.0.insert(name.into(), Arc::clone(&new));
        new
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sonde_proto::{limits, names};
    use std::collections::HashSet;

    #[test]
    fn every_name_is_fit_for_sql_and_metrics_and_taken_once() {
        let mut probes = HashSet::new();
        for spec in specs() {
            assert!(names::is_valid(spec.name) && probes.insert(spec.name));
            assert!(spec.columns.len() <= limits::MAX_COLUMNS);
            let mut columns = HashSet::from(["time", "node_id", "pod_id", "node", "namespace", "pod"]);
            for name in spec
                .labels
                .iter()
                .map(|l| l.name)
                .chain(spec.columns.iter().map(|c| c.name))
            {
                assert!(names::is_valid(name), "{name}");
                assert!(columns.insert(name), "{}: {name} twice", spec.name);
                assert!(!name.ends_with("_total"), "{name}");
            }
            for column in spec.columns {
                assert!(
                    column.help.len() >= 10 && !column.help.ends_with('.'),
                    "{}",
                    column.name
                );
                assert_eq!(
                    column.unit == "bytes",
                    column.name.ends_with("bytes"),
                    "{}",
                    column.name
                );
            }
        }
    }
}
