//! TCP of a network namespace, IPv4 and IPv6 together as the kernel counts it: group `Tcp` of `/proc/net/snmp`.

use std::sync::Arc;

use super::{Probe, Registration, columns};
use crate::catalogue::ProbeSpec;
use crate::event::Subject;
use crate::handles::Readings;
use crate::procfs::pairs::Group;
use crate::procfs::{NetFile, ReadError};
use crate::table::Table;

pub(super) const PROBE: Registration = Registration {
    spec: &SPEC,
    files: &[NetFile::Snmp],
    netlink: &[],
    node_only: false,
    make: || Box::new(Tcp(Group::new("Tcp:", NAMES))),
};

static SPEC: ProbeSpec = ProbeSpec {
    name: "tcp",
    help: "TCP connections and segments, IPv4 and IPv6 together, from group Tcp of /proc/net/snmp",
    source: "/proc/net/snmp, group Tcp (Linux net/ipv4/proc.c, snmp_seq_show; RFC 4022)",
    labels: &[],
    columns: COLUMNS,
    event_types: &[],
};

columns! {
    "ActiveOpens" => counter "active_opens" "connections": "Connections begun by this side (SYN sent)";
    "PassiveOpens" => counter "passive_opens" "connections": "Connections begun by the other side (SYN received on a listening socket)";
    "AttemptFails" => counter "attempt_fails" "connections": "Connections that failed before they were established";
    "EstabResets" => counter "established_resets" "connections": "Established connections that ended by a reset";
    "CurrEstab" => gauge "current_established" "connections": "Connections now established or waiting to be closed by this side";
    "InSegs" => counter "received_segments" "segments": "Segments received, bad ones included";
    "OutSegs" => counter "sent_segments" "segments": "Segments sent, without those that only repeat";
    "RetransSegs" => counter "retransmitted_segments" "segments": "Segments sent again";
    "InErrs" => counter "received_errors" "segments": "Bad segments received, such as with a wrong checksum";
    "OutRsts" => counter "sent_resets" "segments": "Segments with RST sent";
    "InCsumErrors" => counter "checksum_errors" "segments": "Segments received with a wrong checksum";
}

#[derive(Debug)]
struct Tcp(Group);

impl Probe for Tcp {
    fn read(
        &mut self,
        readings: &mut Readings<'_>,
        subject: &Subject,
        table: &mut Table,
    ) -> Result<(), Arc<ReadError>> {
        let mut values = [0; COLUMNS.len()];
        if readings.parse(NetFile::Snmp, |text| self.0.parse(text, &mut values))? == Some(true) {
            table.push(subject.clone(), [], &values);
        }
        Ok(())
    }
}
