//! ICMP of a network namespace: IPv4 from group `Icmp` of `/proc/net/snmp`, IPv6 from `/proc/net/snmp6`.

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
    make: || Box::new(Icmp::default()),
};

static SPEC: ProbeSpec = ProbeSpec {
    name: "icmp",
    help: "ICMP and ICMPv6 messages by address family and what they say, from /proc/net/snmp and snmp6",
    source: "/proc/net/snmp, group Icmp, and /proc/net/snmp6, Icmp6* (Linux net/ipv4/proc.c, icmp_put; net/ipv6/proc.c, snmp6_seq_show; RFC 4293). The kernel counts by type, not by code: that a packet was too big shows with IPv6 on its own, with IPv4 among the destinations unreachable",
    labels: &[LabelSpec {
        name: "family",
        help: "ipv4 or ipv6",
    }],
    columns: COLUMNS,
    event_types: &[],
};

columns! {
    "InMsgs" "Icmp6InMsgs" => counter "received_messages" "packets": "Messages received, bad ones included";
    "InErrors" "Icmp6InErrors" => counter "received_errors" "packets": "Bad messages received: of a wrong length, type or checksum";
    "InCsumErrors" "Icmp6InCsumErrors" => counter "checksum_errors" "packets": "Messages received with a wrong checksum";
    "InDestUnreachs" "Icmp6InDestUnreachs" => counter "received_unreachable" "packets": "Messages received that a destination cannot be reached";
    "" "Icmp6InPktTooBigs" => counter "received_too_big" "packets": "Messages received that a packet exceeds the MTU of a link on the way (IPv6)";
    "InTimeExcds" "Icmp6InTimeExcds" => counter "received_time_exceeded" "packets": "Messages received that a packet's hops or a fragment's time ran out";
    "InParmProbs" "Icmp6InParmProblems" => counter "received_parameter_problems" "packets": "Messages received that a header is not understood";
    "InRedirects" "Icmp6InRedirects" => counter "received_redirects" "packets": "Messages received that there is a better router";
    "InEchos" "Icmp6InEchos" => counter "received_echo_requests" "packets": "Echo requests received";
    "InEchoReps" "Icmp6InEchoReplies" => counter "received_echo_replies" "packets": "Echo replies received";
    "" "Icmp6InRouterSolicits" => counter "received_router_solicitations" "packets": "Router solicitations received (IPv6)";
    "" "Icmp6InRouterAdvertisements" => counter "received_router_advertisements" "packets": "Router advertisements received (IPv6)";
    "" "Icmp6InNeighborSolicits" => counter "received_neighbour_solicitations" "packets": "Neighbour solicitations received (IPv6)";
    "" "Icmp6InNeighborAdvertisements" => counter "received_neighbour_advertisements" "packets": "Neighbour advertisements received (IPv6)";
    "OutMsgs" "Icmp6OutMsgs" => counter "sent_messages" "packets": "Messages that were to be sent";
    "OutErrors" "Icmp6OutErrors" => counter "sent_errors" "packets": "Messages that could not be sent";
    "OutRateLimitGlobal" "" => counter "rate_limited_global" "packets": "Messages not sent for the limit of the whole node (IPv4, Linux 6.3)";
    "OutRateLimitHost" "Icmp6OutRateLimitHost" => counter "rate_limited_host" "packets": "Messages not sent for the limit of one destination (Linux 6.3)";
    "OutDestUnreachs" "Icmp6OutDestUnreachs" => counter "sent_unreachable" "packets": "Messages sent that a destination cannot be reached";
    "" "Icmp6OutPktTooBigs" => counter "sent_too_big" "packets": "Messages sent that a packet exceeds the MTU of the next link (IPv6)";
    "OutTimeExcds" "Icmp6OutTimeExcds" => counter "sent_time_exceeded" "packets": "Messages sent that a packet's hops or a fragment's time ran out";
    "OutParmProbs" "Icmp6OutParmProblems" => counter "sent_parameter_problems" "packets": "Messages sent that a header is not understood";
    "OutRedirects" "Icmp6OutRedirects" => counter "sent_redirects" "packets": "Messages sent that there is a better router";
    "OutEchos" "Icmp6OutEchos" => counter "sent_echo_requests" "packets": "Echo requests sent";
    "OutEchoReps" "Icmp6OutEchoReplies" => counter "sent_echo_replies" "packets": "Echo replies sent";
    "" "Icmp6OutRouterSolicits" => counter "sent_router_solicitations" "packets": "Router solicitations sent (IPv6)";
    "" "Icmp6OutRouterAdvertisements" => counter "sent_router_advertisements" "packets": "Router advertisements sent (IPv6)";
    "" "Icmp6OutNeighborSolicits" => counter "sent_neighbour_solicitations" "packets": "Neighbour solicitations sent (IPv6)";
    "" "Icmp6OutNeighborAdvertisements" => counter "sent_neighbour_advertisements" "packets": "Neighbour advertisements sent (IPv6)";
}

#[derive(Debug)]
struct Icmp {
    v4: Group,
    v6: Named,
    families: Families,
}

impl Default for Icmp {
    fn default() -> Self {
        Self {
            v4: Group::new("Icmp:", NAMES),
            v6: Named::new(NAMES_2),
            families: Families::default(),
        }
    }
}

impl Probe for Icmp {
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
