//! IPVS, the kernel's load balancer, of a network namespace: `/proc/net/ip_vs_stats`. Absent where the module is.

use std::sync::Arc;

use super::{Probe, Registration};
use crate::catalogue::{ColumnSpec, ProbeSpec};
use crate::event::Subject;
use crate::handles::Readings;
use crate::procfs::{NetFile, ReadError, ipvs};
use crate::table::Table;

pub(super) const PROBE: Registration = Registration {
    spec: &SPEC,
    files: &[NetFile::IpVs],
    netlink: &[],
    node_only: false,
    make: || Box::new(IpVs),
};

static SPEC: ProbeSpec = ProbeSpec {
    name: "ipvs",
    help: "Load balancing by IPVS in the network namespace, all virtual services together",
    source: "/proc/net/ip_vs_stats (Linux net/netfilter/ipvs/ip_vs_ctl.c, ip_vs_stats_show)",
    labels: &[],
    columns: &[
        ColumnSpec::counter("connections", "connections", "Connections scheduled to a real server"),
        ColumnSpec::counter(
            "received_packets",
            "packets",
            "Packets from clients to virtual services",
        ),
        ColumnSpec::counter(
            "sent_packets",
            "packets",
            "Packets of real servers back to clients, as far as they pass here",
        ),
        ColumnSpec::counter(
            "received_bytes",
            "bytes",
            "Bytes of packets from clients to virtual services",
        ),
        ColumnSpec::counter(
            "sent_bytes",
            "bytes",
            "Bytes of packets of real servers back to clients",
        ),
    ],
    event_types: &[],
};

#[derive(Debug)]
struct IpVs;

impl Probe for IpVs {
    fn read(
        &mut self,
        readings: &mut Readings<'_>,
        subject: &Subject,
        table: &mut Table,
    ) -> Result<(), Arc<ReadError>> {
        if let Some(totals) = readings.parse(NetFile::IpVs, ipvs::parse)? {
            table.push(
                subject.clone(),
                [],
                &[
                    totals.connections,
                    totals.incoming_packets,
                    totals.outgoing_packets,
                    totals.incoming_bytes,
                    totals.outgoing_bytes,
                ],
            );
        }
        Ok(())
    }
}
