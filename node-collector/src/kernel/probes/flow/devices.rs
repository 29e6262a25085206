//! The program on devices of pods, where `probes.flow.tc` asks for it.
//!
//! It is asked before all others about what a device receives, and hands every packet on. A device that it is not on, as one of
//! the host's, is counted at the tracepoint; the entry in the kernel side's map decides which of the two it is, so that none
//! counts twice.

use std::collections::HashSet;
use std::io;
use std::os::fd::OwnedFd;

use nix::net::if_::if_nameindex;
use sonde_ebpf_common::flow::DeviceKey;

use crate::event::NetnsKey;
use crate::kernel::sys::{BPF_ANY, RawMap};

mod beat;
mod clsact;
mod owner;
mod tcx;

pub(super) use beat::Beat;
pub(in crate::kernel) use clsact::sweep;

pub(super) struct Devices {
    way: Way,
    counts: Counts,
}

enum Way {
    Tcx(tcx::Links),
    Clsact(clsact::Filters),
}

/// Devices of which the program counts what they receive. An entry is made after the program is there and goes before it: until
/// then, and from then on, the tracepoint counts.
struct Counts(RawMap<DeviceKey, u32>);

impl Devices {
    /// A link for each device (Linux 6.6).
    pub(super) fn by_tcx(program: OwnedFd, by_tc: RawMap<DeviceKey, u32>) -> Self {
        Self {
            way: Way::Tcx(tcx::Links::new(program)),
            counts: Counts(by_tc),
        }
    }

    /// A filter for each device.
    pub(super) fn by_clsact(program: OwnedFd, by_tc: RawMap<DeviceKey, u32>, beat: Beat) -> io::Result<Self> {
        Ok(Self {
            way: Way::Clsact(clsact::Filters::new(program, beat)?),
            counts: Counts(by_tc),
        })
    }

    /// In the network namespace of the calling thread, which is that one. What fails for one device leaves it to the
    /// tracepoint, and is tried again the next time.
    pub(super) fn visit(&mut self, netns: NetnsKey) -> io::Result<()> {
        let there: Vec<u32> = if_nameindex()?
            .iter()
            .filter(|device| device.name() != c"lo")
            .map(|device| device.index())
            .collect();
        match &mut self.way {
            Way::Tcx(links) => links.visit(netns, &there, &self.counts),
            Way::Clsact(filters) => filters.visit(netns, &there, &self.counts),
        }
    }

    /// Takes the program away from namespaces that are no pod's any more.
    pub(super) fn stay_in(&mut self, live: &[NetnsKey]) {
        match &mut self.way {
            Way::Tcx(links) => links.stay_in(live, &self.counts),
            Way::Clsact(filters) => filters.stay_in(live, &self.counts),
        }
    }

    /// Puts the program back where somebody took it away, or put another one before it, and says that the collector lives.
    /// Gives on in which namespaces packets went uncounted.
    pub(super) fn put_back(&mut self) -> HashSet<NetnsKey> {
        match &mut self.way {
            // A link stays first, nobody else can take it away, and it goes with the collector.
            Way::Tcx(_) => HashSet::new(),
            Way::Clsact(filters) => filters.put_back(&self.counts),
        }
    }

    pub(super) fn count(&self) -> usize {
        match &self.way {
            Way::Tcx(links) => links.count(),
            Way::Clsact(filters) => filters.count(),
        }
    }
}

impl Drop for Devices {
    fn drop(&mut self) {
        self.stay_in(&[]);
    }
}

impl Counts {
    fn begin(&self, netns: NetnsKey, ifindex: u32) -> io::Result<()> {
        self.0.set(&key(netns, ifindex), &1, BPF_ANY)
    }

    fn end(&self, netns: NetnsKey, ifindex: u32) -> io::Result<()> {
        self.0.delete(&key(netns, ifindex)).map(drop)
    }
}

const fn key(netns: NetnsKey, ifindex: u32) -> DeviceKey {
    DeviceKey {
        cookie: netns.cookie,
        netns: netns.inode,
        ifindex,
    }
}

fn of_device(ifindex: u32, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("device {ifindex}: {error}"))
}
