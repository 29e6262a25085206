//! Sockets: `/proc/net/sockstat` and `sockstat6`.
//!
//! `inuse`, `tw`, `used` and `FRAG` belong to the network namespace. Orphans, allocated sockets and the memory of TCP and UDP
//! are kept for the machine and shown in every namespace alike: they stand once, in the node's row, and are absent in
//! those of pods. So do the limits of these, and whether TCP is under memory pressure.

use std::sync::Arc;

use super::{Probe, Registration};
use crate::catalogue::{ColumnSpec, ProbeSpec};
use crate::event::Subject;
use crate::handles::Readings;
use crate::procfs::sockstat::{self, Name};
use crate::procfs::{NetFile, ReadError, protocols, sysctl};
use crate::table::{ABSENT, Table};

pub(super) const PROBE: Registration = Registration {
    spec: &SPEC,
    files: &[
        NetFile::Sockstat,
        NetFile::Sockstat6,
        NetFile::TcpMem,
        NetFile::UdpMem,
        NetFile::MaxOrphans,
        NetFile::Protocols,
    ],
    netlink: &[],
    node_only: false,
    make: || Box::new(Sock::default()),
};

static SPEC: ProbeSpec = ProbeSpec {
    name: "sock",
    help: "Sockets and what they hold, from /proc/net/sockstat and sockstat6, and the limits of the node",
    source: "/proc/net/sockstat and sockstat6 (Linux net/ipv4/proc.c, sockstat_seq_show; net/ipv6/proc.c, sockstat6_seq_show); for the node also /proc/sys/net/ipv4/tcp_mem, udp_mem and tcp_max_orphans, and /proc/net/protocols (net/core/sock.c, proto_seq_show)",
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
    ColumnSpec::gauge(
        "tcp_orphans_limit",
        "sockets",
        "How many TCP sockets without a process there may be before they are reset, of the whole node (tcp_max_orphans)",
    ),
    ColumnSpec::gauge(
        "tcp_memory_low_bytes",
        "bytes",
        "Memory of TCP buffers below which pressure ends, of the whole node (tcp_mem)",
    ),
    ColumnSpec::gauge(
        "tcp_memory_pressure_bytes",
        "bytes",
        "Memory of TCP buffers above which pressure begins, of the whole node (tcp_mem)",
    ),
    ColumnSpec::gauge(
        "tcp_memory_limit_bytes",
        "bytes",
        "Memory that TCP buffers may take, of the whole node (tcp_mem)",
    ),
    ColumnSpec::gauge(
        "udp_memory_limit_bytes",
        "bytes",
        "Memory that UDP buffers may take, of the whole node (udp_mem)",
    ),
    ColumnSpec::gauge(
        "tcp_under_memory_pressure",
        "",
        "Whether TCP is under memory pressure, of the whole node: 1 yes, 0 no",
    ),
];

/// As sockstat has them, in the order of [`COLUMNS`]; `NONE` where the other file has it.
const NAMES: [Name; FIRST_OF_LIMITS] = [
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
/// From here on other files have them.
const FIRST_OF_LIMITS: usize = 16;
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

impl Sock {
    /// Fills the columns of the limits; what is there even when the rest fails.
    fn limits(&self, readings: &mut Readings<'_>, out: &mut [i64]) -> Result<(), Arc<ReadError>> {
        let bytes = |pages: i64| pages.saturating_mul(self.page_bytes);
        let orphans = readings.parse(NetFile::MaxOrphans, sysctl::numbers::<1>);
        if let Ok(Some([limit])) = orphans {
            out[0] = limit;
        }
        let tcp = readings.parse(NetFile::TcpMem, sysctl::numbers::<3>);
        if let Ok(Some(pages)) = tcp {
            out[1..4].copy_from_slice(&pages.map(bytes));
        }
        let udp = readings.parse(NetFile::UdpMem, sysctl::numbers::<3>);
        if let Ok(Some([_, _, limit])) = udp {
            out[4] = bytes(limit);
        }
        let pressure = readings.parse(NetFile::Protocols, |text| protocols::is_under_pressure(text, "TCP"));
        if let Ok(Some(Some(pressure))) = pressure {
            out[5] = i64::from(pressure);
        }
        orphans
            .map(drop)
            .and(tcp.map(drop))
            .and(udp.map(drop))
            .and(pressure.map(drop))
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
        let v4 = readings.parse(NetFile::Sockstat, |text| {
            sockstat::parse(text, &NAMES, &mut values[..FIRST_OF_LIMITS])
        });
        let v6 = readings.parse(NetFile::Sockstat6, |text| {
            sockstat::parse(text, &NAMES_6, &mut values_6)
        });
        if let Ok(Some(())) = v6 {
            for (place, value) in PLACES_6.into_iter().zip(values_6) {
                values[place] = value;
            }
        }
        let mut limits = Ok(());
        if matches!(subject, Subject::Node) {
            for place in MEMORY {
                if values[place] != ABSENT {
                    values[place] = values[place].saturating_mul(self.page_bytes);
                }
            }
            limits = self.limits(readings, &mut values[FIRST_OF_LIMITS..]);
        } else {
            values[FIRST_OF_NODE..].fill(ABSENT);
        }
        if values.iter().any(|value| *value != ABSENT) {
            table.push(subject.clone(), [], &values);
        }
        v4.and(v6).map(|_| ()).and(limits)
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
