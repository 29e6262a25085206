//! Ephemeral ports of a network namespace: those that the kernel chooses for TCP connections that begin here.
//!
//! A connection needs a local port that no other one from the same address to the same destination has. So it is not
//! the sum that runs out but the ports towards one destination; sockets in TIME_WAIT hold theirs too.

use std::sync::Arc;

use super::{Probe, Registration};
use crate::catalogue::{ColumnSpec, ProbeSpec};
use crate::event::Subject;
use crate::handles::{Netlink, Readings};
use crate::procfs::{NetFile, ReadError, sysctl};
use crate::table::{ABSENT, Table};

pub(super) const PROBE: Registration = Registration {
    spec: &SPEC,
    files: &[NetFile::PortRange, NetFile::ReservedPorts],
    netlink: &[Netlink::SockDiag],
    node_only: false,
    make: || Box::new(Ports::default()),
};

static SPEC: ProbeSpec = ProbeSpec {
    name: "ports",
    help: "Ephemeral ports of the network namespace and how many TCP sockets of either family hold",
    source: "/proc/sys/net/ipv4/ip_local_port_range and ip_local_reserved_ports, and the sock_diag dump of tcpsummary (Linux net/ipv4/inet_hashtables.c, __inet_hash_connect)",
    labels: &[],
    columns: &[
        ColumnSpec::gauge("range_first", "", "First port of the range (ip_local_port_range)"),
        ColumnSpec::gauge("range_last", "", "Last port of the range"),
        ColumnSpec::gauge(
            "available",
            "ports",
            "Ports of the range that are not reserved (ip_local_reserved_ports), in use or not",
        ),
        ColumnSpec::gauge(
            "tcp_in_use",
            "ports",
            "Those of them that a TCP socket holds, TIME_WAIT and listening ones included, each counted once",
        ),
        ColumnSpec::gauge(
            "tcp_most_to_one_destination",
            "connections",
            "Most TCP connections, TIME_WAIT included, from one local address to one port of one other address: when it reaches the ports available, connect() to there fails",
        ),
    ],
    event_types: &[],
};

#[derive(Debug, Default)]
struct Ports {
    reserved: Vec<(u16, u16)>,
}

impl Probe for Ports {
    fn read(
        &mut self,
        readings: &mut Readings<'_>,
        subject: &Subject,
        table: &mut Table,
    ) -> Result<(), Arc<ReadError>> {
        let Some((first, last)) = readings.parse(NetFile::PortRange, sysctl::port_range)? else {
            return Ok(());
        };
        self.reserved.clear();
        readings.parse(NetFile::ReservedPorts, |text| {
            sysctl::port_list(text, &mut self.reserved)
        })?;
        let is_reserved = |port: u16| self.reserved.iter().any(|(from, to)| (*from..=*to).contains(&port));
        let count = if self.reserved.is_empty() {
            i64::from(last) - i64::from(first) + 1
        } else {
            (first..=last).filter(|port| !is_reserved(*port)).count() as i64
        };
        let sockets = readings.tcp();
        let (in_use, most) = match &sockets {
            Ok(Some(sockets)) => {
                let range = |port: &&u16| (first..=last).contains(*port) && !is_reserved(**port);
                (
                    sockets.ports.iter().filter(range).count() as i64,
                    sockets.most_to_one_destination,
                )
            }
            _ => (ABSENT, ABSENT),
        };
        table.push(
            subject.clone(),
            [],
            &[i64::from(first), i64::from(last), count, in_use, most],
        );
        sockets.map(drop)
    }
}
