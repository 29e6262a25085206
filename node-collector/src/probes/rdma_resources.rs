//! What is in use of RDMA devices of the node: queue pairs, memory regions and the like, of all processes.

use std::sync::Arc;

use super::{Names, Probe, Registration};
use crate::catalogue::{ColumnSpec, LabelSpec, ProbeSpec};
use crate::event::Subject;
use crate::handles::{Netlink, Readings};
use crate::procfs::ReadError;
use crate::table::Table;

pub(super) const PROBE: Registration = Registration {
    spec: &SPEC,
    files: &[],
    netlink: &[Netlink::Rdma],
    node_only: true,
    make: || Box::new(RdmaResources::default()),
};

static SPEC: ProbeSpec = ProbeSpec {
    name: "rdma_resources",
    help: "What is in use of RDMA devices, by kind of resource",
    source: "RDMA netlink, RDMA_NLDEV_CMD_RES_GET (Linux drivers/infiniband/core/nldev.c, fill_res_info; 4.17), where /sys/class/infiniband has a device",
    labels: &[
        LabelSpec {
            name: "device",
            help: "Name of the RDMA device, such as mlx5_0",
        },
        LabelSpec {
            name: "resource",
            help: "Kind, as the kernel names it: pd (protection domains), cq (completion queues), qp (queue pairs), cm_id (connection identifiers), mr (memory regions), ctx (user contexts), srq (shared receive queues, Linux 5.15)",
        },
    ],
    columns: &[ColumnSpec::gauge("value", "", "How many there are now")],
    event_types: &[],
};

#[derive(Debug, Default)]
struct RdmaResources {
    names: Names,
}

impl Probe for RdmaResources {
    fn read(
        &mut self,
        readings: &mut Readings<'_>,
        subject: &Subject,
        table: &mut Table,
    ) -> Result<(), Arc<ReadError>> {
        let Some(resources) = readings.rdma()? else {
            return Ok(());
        };
        for one in resources.iter() {
            let labels = [self.names.get(&one.device), self.names.get(&one.resource)];
            table.push(subject.clone(), labels, &[i64::try_from(one.count).unwrap_or(i64::MAX)]);
        }
        Ok(())
    }
}
