//! Counters of every device of a network namespace: `/proc/net/dev`.
//!
//! One series a device: adding up a bridge, its ports and the card below would count each packet several times.

use std::sync::Arc;

use super::{Names, Probe, Registration};
use crate::catalogue::{ColumnSpec, LabelSpec, ProbeSpec};
use crate::event::Subject;
use crate::handles::Readings;
use crate::procfs::dev::{Devices, Side};
use crate::procfs::{NetFile, ReadError};
use crate::table::Table;

pub(super) const PROBE: Registration = Registration {
    spec: &SPEC,
    files: &[NetFile::Dev],
    netlink: &[],
    node_only: false,
    make: || Box::new(NetDev::default()),
};

static SPEC: ProbeSpec = ProbeSpec {
    name: "netdev",
    help: "Packets and bytes of each network device, from /proc/net/dev",
    source: "/proc/net/dev (Linux net/core/net-procfs.c, dev_seq_show)",
    labels: &[LabelSpec {
        name: "device",
        help: "Name of the device in its network namespace",
    }],
    columns: COLUMNS,
    event_types: &[],
};

const COLUMNS: &[ColumnSpec] = &[
    ColumnSpec::counter("receive_bytes", "bytes", "Bytes received"),
    ColumnSpec::counter("receive_packets", "packets", "Packets received"),
    ColumnSpec::counter("receive_errors", "packets", "Bad packets received"),
    ColumnSpec::counter(
        "receive_drops",
        "packets",
        "Packets received and dropped by driver or stack",
    ),
    ColumnSpec::counter("receive_fifo_errors", "packets", "Overruns of the receive queue"),
    ColumnSpec::counter(
        "receive_frame_errors",
        "packets",
        "Frames of a wrong length, checksum or alignment",
    ),
    ColumnSpec::counter("receive_multicast", "packets", "Multicast packets received"),
    ColumnSpec::counter("transmit_bytes", "bytes", "Bytes sent"),
    ColumnSpec::counter("transmit_packets", "packets", "Packets sent"),
    ColumnSpec::counter("transmit_errors", "packets", "Packets that could not be sent"),
    ColumnSpec::counter("transmit_drops", "packets", "Packets dropped on the way out"),
    ColumnSpec::counter("transmit_fifo_errors", "packets", "Underruns of the transmit queue"),
    ColumnSpec::counter("transmit_collisions", "packets", "Collisions"),
    ColumnSpec::counter(
        "transmit_carrier_errors",
        "packets",
        "Losses of carrier and other errors of the line",
    ),
];

/// As the titles of the file have them, in the order of [`COLUMNS`].
const NAMES: &[(Side, &str)] = &[
    (Side::Receive, "bytes"),
    (Side::Receive, "packets"),
    (Side::Receive, "errs"),
    (Side::Receive, "drop"),
    (Side::Receive, "fifo"),
    (Side::Receive, "frame"),
    (Side::Receive, "multicast"),
    (Side::Transmit, "bytes"),
    (Side::Transmit, "packets"),
    (Side::Transmit, "errs"),
    (Side::Transmit, "drop"),
    (Side::Transmit, "fifo"),
    (Side::Transmit, "colls"),
    (Side::Transmit, "carrier"),
];
const _: () = assert!(COLUMNS.len() == NAMES.len());

#[derive(Debug)]
struct NetDev {
    devices: Devices,
    names: Names,
}

impl Default for NetDev {
    fn default() -> Self {
        Self {
            devices: Devices::new(NAMES),
            names: Names::default(),
        }
    }
}

impl Probe for NetDev {
    fn read(
        &mut self,
        readings: &mut Readings<'_>,
        subject: &Subject,
        table: &mut Table,
    ) -> Result<(), Arc<ReadError>> {
        let Self { devices, names } = self;
        let mut values = [0; COLUMNS.len()];
        readings.parse(NetFile::Dev, |text| {
            devices.parse(text, &mut values, |device, values| {
                table.push(subject.clone(), [names.get(device)], values);
            })
        })?;
        Ok(())
    }
}
