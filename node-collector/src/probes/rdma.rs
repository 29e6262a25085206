//! RDMA devices of the node, by the counters that their drivers have. Devices are the node's, whichever pod uses them.

use std::sync::Arc;

use super::{Names, Probe, Registration};
use crate::catalogue::{ColumnSpec, LabelSpec, ProbeSpec};
use crate::event::Subject;
use crate::handles::Readings;
use crate::procfs::ReadError;
use crate::sysfs::infiniband;
use crate::table::Table;

pub(super) const PROBE: Registration = Registration {
    spec: &SPEC,
    files: &[],
    netlink: &[],
    node_only: true,
    make: || Box::new(Rdma::default()),
};

static SPEC: ProbeSpec = ProbeSpec {
    name: "rdma",
    help: "Counters of RDMA devices, every one that the driver has",
    source: "/sys/class/infiniband/DEVICE/ports/PORT/counters and hw_counters, and DEVICE/hw_counters (Linux drivers/infiniband/core/sysfs.c, show_pma_counter and hw_stat_port_show)",
    labels: &[
        LabelSpec {
            name: "device",
            help: "Name of the RDMA device, such as mlx5_0",
        },
        LabelSpec {
            name: "port",
            help: "Number of the port; empty for counters of the whole device",
        },
        LabelSpec {
            name: "counter",
            help: "Name that the kernel or the driver has for it; port_rcv_data and port_xmit_data count words of 4 bytes",
        },
    ],
    columns: &[ColumnSpec::counter(
        "value",
        "",
        "Value of the counter, in the unit its driver counts in",
    )],
    event_types: &[],
};

#[derive(Debug, Default)]
struct Rdma {
    names: Names,
}

impl Probe for Rdma {
    fn read(
        &mut self,
        readings: &mut Readings<'_>,
        subject: &Subject,
        table: &mut Table,
    ) -> Result<(), Arc<ReadError>> {
        let file = "sys/class/infiniband";
        let Some(infiniband::Found { counters, failed }) =
            infiniband::read(&readings.paths().sys).map_err(|source| Arc::new(ReadError::Read { file, source }))?
        else {
            return Ok(());
        };
        for counter in counters {
            let port = match counter.port {
                0 => self.names.get(""),
                port => self.names.get(&port.to_string()),
            };
            let labels = [self.names.get(&counter.device), port, self.names.get(&counter.name)];
            let value = i64::try_from(counter.value).unwrap_or(i64::MAX);
            table.push(subject.clone(), labels, &[value]);
        }
        match failed.into_iter().next() {
            None => Ok(()),
            Some(first) => Err(Arc::new(ReadError::Read {
                file,
                source: std::io::Error::other(first),
            })),
        }
    }
}
