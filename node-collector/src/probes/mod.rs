//! The probes that read `/proc/net`: one file each, one line in [`PROBES`]. Those that read single processes are in
//! [`PROCESS_PROBES`].
//!
//! A probe says what its columns mean ([`ProbeSpec`]) and turns the texts of one network namespace into rows. It does
//! not open files, know when rounds are, or count its own errors: `crate::round` does. The kernel's probes (eBPF)
//! are in `crate::kernel`.

mod fd;
mod io;
mod ip;
mod netdev;
pub mod packetloss;
mod sock;
mod softnet;
mod tcp;
mod tcpext;
mod udp;

use std::collections::HashSet;
use std::sync::Arc;

use crate::catalogue::ProbeSpec;
use crate::event::Subject;
use crate::processes::Members;
use crate::procfs::files::Texts;
use crate::procfs::{NetFile, ReadError};
use crate::table::Table;

/// A probe and how to make it.
#[derive(Debug)]
pub struct Registration {
    pub spec: &'static ProbeSpec,
    /// What it reads, to be opened in each namespace.
    pub files: &'static [NetFile],
    /// What it reads is the same in every network namespace, so only the node has rows.
    pub node_only: bool,
    pub make: fn() -> Box<dyn Probe>,
}

/// Turns the texts of one network namespace into rows.
pub trait Probe: Send + std::fmt::Debug {
    /// Adds the subject's rows. What could be read is added even when the rest fails; what the kernel does not have
    /// gives no row, or [`crate::table::ABSENT`].
    fn read(&mut self, texts: &mut Texts<'_>, subject: &Subject, table: &mut Table) -> Result<(), Arc<ReadError>>;
}

/// Every probe of this kind.
pub const PROBES: &[Registration] = &[
    netdev::PROBE,
    ip::PROBE,
    tcp::PROBE,
    tcpext::PROBE,
    udp::PROBE,
    softnet::PROBE,
    sock::PROBE,
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
        .chain([&packetloss::SPEC])
        .collect()
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
