//! Root qdiscs of the devices of a network namespace.

use std::sync::Arc;

use super::{Names, Probe, Registration};
use crate::catalogue::{ColumnSpec, LabelSpec, ProbeSpec};
use crate::event::Subject;
use crate::handles::{Netlink, Readings};
use crate::procfs::ReadError;
use crate::table::{ABSENT, Table};

pub(super) const PROBE: Registration = Registration {
    spec: &SPEC,
    files: &[],
    netlink: &[Netlink::Route],
    node_only: false,
    make: || Box::new(Qdisc::default()),
};

static SPEC: ProbeSpec = ProbeSpec {
    name: "qdisc",
    help: "Queueing disciplines at the root of each device. A root holds the sums of those below it, which are therefore left out; noqueue counts nothing and is left out too",
    source: "NETLINK_ROUTE, RTM_GETQDISC (Linux net/sched/sch_api.c, tc_fill_qdisc; net/core/gen_stats.c)",
    labels: &[
        LabelSpec {
            name: "device",
            help: "Name of the device in its network namespace",
        },
        LabelSpec {
            name: "kind",
            help: "Kind of the root qdisc, such as mq, fq_codel or tbf",
        },
    ],
    columns: &[
        ColumnSpec::counter("sent_bytes", "bytes", "Bytes that left the queue"),
        ColumnSpec::counter(
            "sent_packets",
            "packets",
            "Packets that left the queue; of 32 bits before Linux 5.5",
        ),
        ColumnSpec::counter("drops", "packets", "Packets dropped; the kernel counts with 32 bits"),
        ColumnSpec::counter(
            "requeues",
            "packets",
            "Packets put back because the device was busy; the kernel counts with 32 bits",
        ),
        ColumnSpec::counter(
            "overlimits",
            "",
            "Times that the rate set was reached; the kernel counts with 32 bits",
        ),
        ColumnSpec::gauge("queue_packets", "packets", "Packets that wait now"),
        ColumnSpec::gauge("backlog_bytes", "bytes", "Bytes that wait now"),
    ],
    event_types: &[],
};

#[derive(Debug, Default)]
struct Qdisc {
    names: Names,
}

impl Probe for Qdisc {
    fn read(
        &mut self,
        readings: &mut Readings<'_>,
        subject: &Subject,
        table: &mut Table,
    ) -> Result<(), Arc<ReadError>> {
        let Some(roots) = readings.qdiscs()? else {
            return Ok(());
        };
        for root in roots.iter() {
            let labels = [self.names.get(&root.device), self.names.get(&root.kind)];
            let wide = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
            let queue = root.queue.map_or([ABSENT; 5], |q| {
                [q.drops, q.requeues, q.overlimits, q.length, q.backlog_bytes].map(i64::from)
            });
            let [drops, requeues, overlimits, length, backlog] = queue;
            let values = [
                wide(root.bytes),
                wide(root.packets),
                drops,
                requeues,
                overlimits,
                length,
                backlog,
            ];
            table.push(subject.clone(), labels, &values);
        }
        Ok(())
    }
}
