//! TCP sockets of a network namespace by state, both address families, from a sock_diag dump.

use std::sync::Arc;

use super::{Probe, Registration};
use crate::catalogue::{ColumnSpec, LabelSpec, ProbeSpec};
use crate::event::Subject;
use crate::handles::{Netlink, Readings};
use crate::netlink::tcp::STATES;
use crate::procfs::ReadError;
use crate::table::Table;

pub(super) const PROBE: Registration = Registration {
    spec: &SPEC,
    files: &[],
    netlink: &[Netlink::SockDiag],
    node_only: false,
    make: || Box::new(TcpSummary::default()),
};

static SPEC: ProbeSpec = ProbeSpec {
    name: "tcpsummary",
    help: "TCP sockets by state, IPv4 and IPv6 together, from a sock_diag dump",
    source: "NETLINK_SOCK_DIAG, TCPDIAG_GETSOCK (Linux net/ipv4/inet_diag.c, inet_diag_dump_icsk); nothing is asked where /proc/net/sockstat and sockstat6 count no socket. A socket that changes its state while the table is walked can be counted in both or in neither",
    labels: &[LabelSpec {
        name: "state",
        help: "State as the kernel names it; new_syn_recv is a half-open connection of a listening socket, shown as SYN_RECV by other tools",
    }],
    columns: &[ColumnSpec::gauge(
        "sockets",
        "sockets",
        "TCP sockets now in this state; time_wait includes no FIN_WAIT2 and close only those on their way out",
    )],
    event_types: &[],
};

#[derive(Debug)]
struct TcpSummary {
    states: [(u8, Arc<str>); STATES.len()],
}

impl Default for TcpSummary {
    fn default() -> Self {
        Self {
            states: STATES.map(|(state, name)| (state, name.into())),
        }
    }
}

impl Probe for TcpSummary {
    fn read(
        &mut self,
        readings: &mut Readings<'_>,
        subject: &Subject,
        table: &mut Table,
    ) -> Result<(), Arc<ReadError>> {
        if let Some(sockets) = readings.tcp()? {
            for (state, name) in &self.states {
                table.push(subject.clone(), [Arc::clone(name)], &[sockets.in_state(*state)]);
            }
        }
        Ok(())
    }
}
