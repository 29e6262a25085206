//! UDP of a network namespace, IPv4 (group `Udp` of `/proc/net/snmp`) and IPv6 (`Udp6...` of `/proc/net/snmp6`).

use std::sync::Arc;

use super::{Families, Probe, Registration, columns};
use crate::catalogue::{LabelSpec, ProbeSpec};
use crate::event::Subject;
use crate::handles::Readings;
use crate::procfs::named::Named;
use crate::procfs::pairs::Group;
use crate::procfs::{NetFile, ReadError};
use crate::table::Table;

pub(super) const PROBE: Registration = Registration {
    spec: &SPEC,
    files: &[NetFile::Snmp, NetFile::Snmp6],
    netlink: &[],
    node_only: false,
    make: || Box::new(Udp::default()),
};

static SPEC: ProbeSpec = ProbeSpec {
    name: "udp",
    help: "UDP datagrams by address family, from /proc/net/snmp and snmp6",
    source: "/proc/net/snmp, group Udp, and /proc/net/snmp6, Udp6* (Linux net/ipv4/proc.c, snmp_seq_show; net/ipv6/proc.c, snmp6_seq_show)",
    labels: &[LabelSpec {
        name: "family",
        help: "ipv4 or ipv6",
    }],
    columns: COLUMNS,
    event_types: &[],
};

columns! {
    "InDatagrams" "Udp6InDatagrams" => counter "received_datagrams" "datagrams": "Datagrams that processes read from their sockets";
    "NoPorts" "Udp6NoPorts" => counter "no_ports" "datagrams": "Datagrams for a port nobody listens on";
    "InErrors" "Udp6InErrors" => counter "received_errors" "datagrams": "Datagrams that could not be delivered for another reason than a missing listener";
    "OutDatagrams" "Udp6OutDatagrams" => counter "sent_datagrams" "datagrams": "Datagrams sent";
    "RcvbufErrors" "Udp6RcvbufErrors" => counter "receive_buffer_errors" "datagrams": "Datagrams dropped because the socket's receive buffer was full";
    "SndbufErrors" "Udp6SndbufErrors" => counter "send_buffer_errors" "datagrams": "Datagrams not sent because the socket's send buffer was full";
    "InCsumErrors" "Udp6InCsumErrors" => counter "checksum_errors" "datagrams": "Datagrams received with a wrong checksum";
    "IgnoredMulti" "Udp6IgnoredMulti" => counter "ignored_multicast" "datagrams": "Multicast datagrams that no socket wanted";
    "MemErrors" "Udp6MemErrors" => counter "memory_errors" "datagrams": "Datagrams dropped because UDP's memory limit was reached (Linux 5.10)";
}

#[derive(Debug)]
struct Udp {
    v4: Group,
    v6: Named,
    families: Families,
}

impl Default for Udp {
    fn default() -> Self {
        Self {
            v4: Group::new("Udp:", NAMES),
            v6: Named::new(NAMES_2),
            families: Families::default(),
        }
    }
}

impl Probe for Udp {
    fn read(
        &mut self,
        readings: &mut Readings<'_>,
        subject: &Subject,
        table: &mut Table,
    ) -> Result<(), Arc<ReadError>> {
        let mut values = [0; COLUMNS.len()];
        let v4 = readings.parse(NetFile::Snmp, |text| self.v4.parse(text, &mut values));
        if let Ok(Some(true)) = v4 {
            table.push(subject.clone(), [Arc::clone(&self.families.ipv4)], &values);
        }
        let v6 = readings.parse(NetFile::Snmp6, |text| self.v6.parse(text, &mut values));
        if let Ok(Some(true)) = v6 {
            table.push(subject.clone(), [Arc::clone(&self.families.ipv6)], &values);
        }
        v4.and(v6).map(|_| ())
    }
}
