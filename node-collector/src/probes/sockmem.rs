//! What the node's sockets may take in all: limits and pressure. The kernel has these once for the machine; what is taken
//! now is in `sock`.

use std::sync::Arc;

use super::{Probe, Registration};
use crate::catalogue::{ColumnSpec, ProbeSpec};
use crate::event::Subject;
use crate::handles::Readings;
use crate::procfs::{NetFile, ReadError, protocols, sysctl};
use crate::table::{ABSENT, Table};

pub(super) const PROBE: Registration = Registration {
    spec: &SPEC,
    files: &[
        NetFile::MaxOrphans,
        NetFile::TcpMem,
        NetFile::UdpMem,
        NetFile::Protocols,
    ],
    netlink: &[],
    node_only: true,
    make: || Box::new(SockMem::default()),
};

static SPEC: ProbeSpec = ProbeSpec {
    name: "sockmem",
    help: "Limits of the memory of all sockets of the node, and whether TCP is under memory pressure",
    source: "/proc/sys/net/ipv4/tcp_max_orphans, tcp_mem and udp_mem, and /proc/net/protocols (Linux net/core/sock.c, proto_seq_show)",
    labels: &[],
    columns: &[
        ColumnSpec::gauge(
            "tcp_orphans_limit",
            "sockets",
            "TCP sockets without a process that there may be before more are reset (tcp_max_orphans)",
        ),
        ColumnSpec::gauge(
            "tcp_low_bytes",
            "bytes",
            "Memory of TCP buffers below which pressure ends (tcp_mem)",
        ),
        ColumnSpec::gauge(
            "tcp_pressure_bytes",
            "bytes",
            "Memory of TCP buffers above which pressure begins (tcp_mem)",
        ),
        ColumnSpec::gauge("tcp_limit_bytes", "bytes", "Memory that TCP buffers may take (tcp_mem)"),
        ColumnSpec::gauge("udp_limit_bytes", "bytes", "Memory that UDP buffers may take (udp_mem)"),
        ColumnSpec::gauge(
            "tcp_under_pressure",
            "",
            "Whether TCP is under memory pressure: 1 yes, 0 no",
        ),
    ],
    event_types: &[],
};

#[derive(Debug)]
struct SockMem {
    page_bytes: i64,
}

impl Default for SockMem {
    fn default() -> Self {
        let page = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE);
        Self {
            page_bytes: page.ok().flatten().unwrap_or(4096),
        }
    }
}

impl Probe for SockMem {
    fn read(
        &mut self,
        readings: &mut Readings<'_>,
        subject: &Subject,
        table: &mut Table,
    ) -> Result<(), Arc<ReadError>> {
        let bytes = |pages: i64| pages.saturating_mul(self.page_bytes);
        let orphans = readings.parse(NetFile::MaxOrphans, sysctl::numbers::<1>);
        let tcp = readings.parse(NetFile::TcpMem, sysctl::numbers::<3>);
        let udp = readings.parse(NetFile::UdpMem, sysctl::numbers::<3>);
        let pressure = readings.parse(NetFile::Protocols, |text| protocols::is_under_pressure(text, "TCP"));
        let [limit] = *orphans.as_ref().ok().and_then(Option::as_ref).unwrap_or(&[ABSENT]);
        let [low, high, most] = match tcp {
            Ok(Some(pages)) => pages.map(bytes),
            _ => [ABSENT; 3],
        };
        let udp_most = match udp {
            Ok(Some([_, _, pages])) => bytes(pages),
            _ => ABSENT,
        };
        let under_pressure = match pressure {
            Ok(Some(Some(pressure))) => i64::from(pressure),
            _ => ABSENT,
        };
        let values = [limit, low, high, most, udp_most, under_pressure];
        if values.iter().any(|value| *value != ABSENT) {
            table.push(subject.clone(), [], &values);
        }
        orphans
            .map(drop)
            .and(tcp.map(drop))
            .and(udp.map(drop))
            .and(pressure.map(drop))
    }
}
