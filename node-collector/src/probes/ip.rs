//! IP of a network namespace: IPv4 from groups `Ip` of `/proc/net/snmp` and `IpExt` of `/proc/net/netstat`, IPv6 from
//! `/proc/net/snmp6`. The two families have the same columns where the kernel counts the same thing.

use std::sync::Arc;

use sonde_proto::ABSENT;

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
    files: &[NetFile::Snmp, NetFile::Netstat, NetFile::Snmp6],
    netlink: &[],
    node_only: false,
    make: || Box::new(Ip::default()),
};

static SPEC: ProbeSpec = ProbeSpec {
    name: "ip",
    help: "IP packets by address family, from /proc/net/snmp, netstat (IpExt) and snmp6",
    source: "/proc/net/snmp, group Ip, /proc/net/netstat, group IpExt, and /proc/net/snmp6, Ip6* (Linux net/ipv4/proc.c and net/ipv6/proc.c; RFC 4293)",
    labels: &[LabelSpec {
        name: "family",
        help: "ipv4 or ipv6",
    }],
    columns: COLUMNS,
    event_types: &[],
};

// Ip, IpExt, snmp6
columns! {
    "Forwarding" "" "" => gauge "forwarding" "": "Whether packets are forwarded: 1 yes, 2 no (IPv4)";
    "DefaultTTL" "" "" => gauge "default_ttl" "hops": "Time to live of packets sent (IPv4)";
    "InReceives" "" "Ip6InReceives" => counter "received_packets" "packets": "Packets received, bad ones included";
    "InHdrErrors" "" "Ip6InHdrErrors" => counter "header_errors" "packets": "Packets dropped for a broken header or an expired time to live";
    "InAddrErrors" "" "Ip6InAddrErrors" => counter "address_errors" "packets": "Packets dropped for a destination that is not ours and is not forwarded to";
    "" "" "Ip6InTooBigErrors" => counter "too_big_errors" "packets": "Packets not forwarded because they exceed the next link's MTU (IPv6)";
    "" "InNoRoutes" "Ip6InNoRoutes" => counter "received_no_routes" "packets": "Packets received and dropped for want of a route";
    "" "InTruncatedPkts" "Ip6InTruncatedPkts" => counter "truncated_packets" "packets": "Packets dropped because the frame held less than the header says";
    "InUnknownProtos" "" "Ip6InUnknownProtos" => counter "unknown_protocols" "packets": "Packets dropped for an unknown or unsupported protocol";
    "InDiscards" "" "Ip6InDiscards" => counter "received_discards" "packets": "Good packets dropped on receipt, for want of memory and the like";
    "InDelivers" "" "Ip6InDelivers" => counter "delivered_packets" "packets": "Packets delivered to a protocol of this host";
    "ForwDatagrams" "" "Ip6OutForwDatagrams" => counter "forwarded_packets" "packets": "Packets forwarded";
    "OutRequests" "" "Ip6OutRequests" => counter "sent_packets" "packets": "Packets that protocols of this host asked to send";
    "OutDiscards" "" "Ip6OutDiscards" => counter "sent_discards" "packets": "Good packets dropped on sending, by a filter, a full queue or for want of memory";
    "OutNoRoutes" "" "Ip6OutNoRoutes" => counter "sent_no_routes" "packets": "Packets not sent for want of a route";
    "OutTransmits" "" "Ip6OutTransmits" => counter "transmitted_packets" "packets": "Packets handed to a device, fragments and forwarded ones included (Linux 6.7)";
    "ReasmTimeout" "" "Ip6ReasmTimeout" => counter "reassembly_timeouts" "packets": "Fragments dropped because the rest did not come in time";
    "ReasmReqds" "" "Ip6ReasmReqds" => counter "reassembly_requests" "fragments": "Fragments received that had to be put together";
    "ReasmOKs" "" "Ip6ReasmOKs" => counter "reassembly_successes" "packets": "Packets put together from fragments";
    "ReasmFails" "" "Ip6ReasmFails" => counter "reassembly_failures" "packets": "Packets that could not be put together";
    "" "ReasmOverlaps" "" => counter "reassembly_overlaps" "packets": "Packets whose fragments overlapped (IPv4, Linux 4.20)";
    "FragOKs" "" "Ip6FragOKs" => counter "fragmented_packets" "packets": "Packets sent in fragments";
    "FragFails" "" "Ip6FragFails" => counter "fragmentation_failures" "packets": "Packets that would have to be fragmented and must not";
    "FragCreates" "" "Ip6FragCreates" => counter "created_fragments" "fragments": "Fragments made";
    "" "InCsumErrors" "" => counter "checksum_errors" "packets": "Packets with a wrong header checksum (IPv4)";
    "" "InMcastPkts" "Ip6InMcastPkts" => counter "received_multicast_packets" "packets": "Multicast packets received";
    "" "OutMcastPkts" "Ip6OutMcastPkts" => counter "sent_multicast_packets" "packets": "Multicast packets sent";
    "" "InBcastPkts" "" => counter "received_broadcast_packets" "packets": "Broadcast packets received (IPv4)";
    "" "OutBcastPkts" "" => counter "sent_broadcast_packets" "packets": "Broadcast packets sent (IPv4)";
    "" "InOctets" "Ip6InOctets" => counter "received_bytes" "bytes": "Bytes of IP packets received";
    "" "OutOctets" "Ip6OutOctets" => counter "sent_bytes" "bytes": "Bytes of IP packets sent";
    "" "InNoECTPkts" "Ip6InNoECTPkts" => counter "received_no_ect_packets" "packets": "Packets received from a sender without congestion notification";
    "" "InECT1Pkts" "Ip6InECT1Pkts" => counter "received_ect1_packets" "packets": "Packets received with the ECN code point ECT(1)";
    "" "InECT0Pkts" "Ip6InECT0Pkts" => counter "received_ect0_packets" "packets": "Packets received with the ECN code point ECT(0)";
    "" "InCEPkts" "Ip6InCEPkts" => counter "received_congestion_packets" "packets": "Packets received that a router on the way marked: congestion experienced";
}

#[derive(Debug)]
struct Ip {
    v4: Group,
    v4_ext: Group,
    v6: Named,
    families: Families,
}

impl Default for Ip {
    fn default() -> Self {
        Self {
            v4: Group::new("Ip:", NAMES),
            v4_ext: Group::new("IpExt:", NAMES_2),
            v6: Named::new(NAMES_3),
            families: Families::default(),
        }
    }
}

impl Probe for Ip {
    fn read(
        &mut self,
        readings: &mut Readings<'_>,
        subject: &Subject,
        table: &mut Table,
    ) -> Result<(), Arc<ReadError>> {
        let mut values = [ABSENT; COLUMNS.len()];
        let mut more = [ABSENT; COLUMNS.len()];
        let v4 = readings.parse(NetFile::Snmp, |text| self.v4.parse(text, &mut values));
        let ext = readings.parse(NetFile::Netstat, |text| self.v4_ext.parse(text, &mut more));
        if let Ok(Some(true)) = v4 {
            for (value, more) in values.iter_mut().zip(more) {
                if *value == ABSENT {
                    *value = more;
                }
            }
            table.push(subject.clone(), [Arc::clone(&self.families.ipv4)], &values);
        }
        let v6 = readings.parse(NetFile::Snmp6, |text| self.v6.parse(text, &mut values));
        if let Ok(Some(true)) = v6 {
            table.push(subject.clone(), [Arc::clone(&self.families.ipv6)], &values);
        }
        v4.and(ext).and(v6).map(|_| ())
    }
}
