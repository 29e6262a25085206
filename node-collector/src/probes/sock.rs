//! Sockets: `/proc/net/sockstat` and `sockstat6`.
//!
//! `inuse`, `tw`, `used` and `FRAG` belong to the network namespace. Orphans, allocated sockets and the memory of TCP and UDP
//! are kept for the machine and shown in every namespace alike: they stand once, in the node's row, and are absent in
//! those of pods. The limits of these are in `sockmem`.

use std::sync::Arc;

use super::{Probe, Registration};
use crate::catalogue::{ColumnSpec, ProbeSpec};
use crate::event::Subject;
use crate::handles::Readings;
use crate::procfs::sockstat::{self, Name};
use crate::procfs::{NetFile, ReadError};
use crate::table::{ABSENT, Table};

pub(super) const PROBE: Registration = Registration {
    spec: &SPEC,
    files: &[NetFile::Sockstat, NetFile::Sockstat6],
    netlink: &[],
    node_only: false,
    make: || Box::new(Sock::default()),
};

static SPEC: ProbeSpec = ProbeSpec {
    name: "sock",
    help: "Sockets and what they hold, from /proc/net/sockstat and sockstat6",
    source: "/proc/net/sockstat and sockstat6 (Linux net/ipv4/proc.c, sockstat_seq_show; net/ipv6/proc.c, sockstat6_seq_show)",
    labels: &[],
    columns: COLUMNS,
    event_types: &[],
};

const COLUMNS: &[ColumnSpec] = &[
    ColumnSpec::gauge("used", "sockets", "Sockets of all kinds"),
    ColumnSpec::gauge(
        "tcp_in_use",
        "sockets",
        "TCP sockets of IPv4 in any state but TIME_WAIT",
    ),
    ColumnSpec::gauge(
        "tcp6_in_use",
        "sockets",
        "TCP sockets of IPv6 in any state but TIME_WAIT",
    ),
    ColumnSpec::gauge(
        "tcp_time_wait",
        "sockets",
        "TCP connections in TIME_WAIT, both families",
    ),
    ColumnSpec::gauge("udp_in_use", "sockets", "UDP sockets of IPv4"),
    ColumnSpec::gauge("udp6_in_use", "sockets", "UDP sockets of IPv6"),
    ColumnSpec::gauge("raw_in_use", "sockets", "Raw sockets of IPv4"),
    ColumnSpec::gauge("raw6_in_use", "sockets", "Raw sockets of IPv6"),
    ColumnSpec::gauge("frag_queues", "packets", "IPv4 packets that wait for fragments"),
    ColumnSpec::gauge("frag_memory_bytes", "bytes", "Memory of IPv4 fragments"),
    ColumnSpec::gauge("frag6_queues", "packets", "IPv6 packets that wait for fragments"),
    ColumnSpec::gauge("frag6_memory_bytes", "bytes", "Memory of IPv6 fragments"),
    ColumnSpec::gauge(
        "tcp_orphans",
        "sockets",
        "TCP sockets without a process, of the whole node",
    ),
    ColumnSpec::gauge(
        "tcp_allocated",
        "sockets",
        "TCP sockets in any state, of the whole node",
    ),
    ColumnSpec::gauge("tcp_memory_bytes", "bytes", "Memory of TCP buffers, of the whole node"),
    ColumnSpec::gauge("udp_memory_bytes", "bytes", "Memory of UDP buffers, of the whole node"),
];

/// As sockstat has them, in the order of [`COLUMNS`]; `NONE` where the other file has it.
const NAMES: [Name; COLUMNS.len()] = [
    ("sockets:", "used"),
    ("TCP:", "inuse"),
    NONE,
    ("TCP:", "tw"),
    ("UDP:", "inuse"),
    NONE,
    ("RAW:", "inuse"),
    NONE,
    ("FRAG:", "inuse"),
    ("FRAG:", "memory"),
    NONE,
    NONE,
    ("TCP:", "orphan"),
    ("TCP:", "alloc"),
    ("TCP:", "mem"),
    ("UDP:", "mem"),
];
const NAMES_6: [Name; 5] = [
    ("TCP6:", "inuse"),
    ("UDP6:", "inuse"),
    ("RAW6:", "inuse"),
    ("FRAG6:", "inuse"),
    ("FRAG6:", "memory"),
];
/// Places of [`NAMES_6`] among the columns.
const PLACES_6: [usize; 5] = [2, 5, 7, 10, 11];
/// Matches no word.
const NONE: Name = ("", "");
/// From here on the numbers are the node's.
const FIRST_OF_NODE: usize = 12;
/// These are in pages.
const MEMORY: [usize; 2] = [14, 15];

#[derive(Debug)]
struct Sock {
    page_bytes: i64,
}

impl Default for Sock {
    fn default() -> Self {
        let page = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE);
        Self {
            page_bytes: page.ok().flatten().unwrap_or(4096),
        }
    }
}

impl Probe for Sock {
    fn read(
        &mut self,
        readings: &mut Readings<'_>,
        subject: &Subject,
        table: &mut Table,
    ) -> Result<(), Arc<ReadError>> {
        let mut values = [ABSENT; COLUMNS.len()];
        let mut values_6 = [ABSENT; NAMES_6.len()];
        let v4 = readings.parse(NetFile::Sockstat, |text| sockstat::parse(text, &NAMES, &mut values));
        let v6 = readings.parse(NetFile::Sockstat6, |text| {
            sockstat::parse(text, &NAMES_6, &mut values_6)
        });
        if let Ok(Some(())) = v6 {
            for (place, value) in PLACES_6.into_iter().zip(values_6) {
                values[place] = value;
            }
        }
        if matches!(subject, Subject::Node) {
            for place in MEMORY {
                if values[place] != ABSENT {
                    values[place] = values[place].saturating_mul(self.page_bytes);
                }
            }
        } else {
            values[FIRST_OF_NODE..].fill(ABSENT);
        }
        if values.iter().any(|value| *value != ABSENT) {
            table.push(subject.clone(), [], &values);
        }
        v4.and(v6).map(|_| ())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_name_the_columns_they_fill() {
        for place in MEMORY {
            assert!(COLUMNS[place].name.ends_with("memory_bytes") && NAMES[place].1 == "mem");
        }
        for (place, (_, name)) in PLACES_6.into_iter().zip(NAMES_6) {
            assert!(COLUMNS[place].name.contains('6') && NAMES[place] == NONE, "{name}");
        }
        for (place, column) in COLUMNS.iter().enumerate() {
            assert_eq!(
                column.help.contains("whole node"),
                place >= FIRST_OF_NODE,
                "{}",
                column.name
            );
        }
    }
}
