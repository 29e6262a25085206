//! The program on devices of pods, where `probes.flow.tc` asks for it.
//!
//! It lies before all others on what a device receives, and hands every packet on. A link that is closed takes it away, so
//! nothing is left when the collector ends, however it does. A device that it is not on, as one of the host's, is counted at the
//! tracepoint; the entry in the kernel side's map decides which of the two it is, so that none counts twice.

use std::collections::{HashMap, HashSet};
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};

use nix::net::if_::if_nameindex;
use sonde_ebpf_common::flow::DeviceKey;

use crate::event::NetnsKey;
use crate::kernel::sys::{BPF_ANY, RawMap, attach_first, device_of};

pub(super) struct Devices {
    program: OwnedFd,
    by_tc: RawMap<DeviceKey, u32>,
    /// By namespace and index.
    links: HashMap<NetnsKey, HashMap<u32, OwnedFd>>,
}

impl Devices {
    pub(super) fn new(program: OwnedFd, by_tc: RawMap<DeviceKey, u32>) -> Self {
        Self {
            program,
            by_tc,
            links: HashMap::new(),
        }
    }

    /// In the network namespace of the calling thread, which is that one. What fails for one device leaves it to the
    /// tracepoint, and is tried again the next time.
    pub(super) fn visit(&mut self, netns: NetnsKey) -> io::Result<()> {
        let there: HashSet<u32> = if_nameindex()?
            .iter()
            .filter(|device| device.name() != c"lo")
            .map(|device| device.index())
            .collect();
        let links = self.links.entry(netns).or_default();
        let mut result = Ok(());
        // A new device may have the index of one that is gone.
        links.retain(|ifindex, link| {
            let stays = there.contains(ifindex) && device_of(link.as_fd()).is_ok_and(|on| on == *ifindex);
            if !stays && let Err(error) = self.by_tc.delete(&key(netns, *ifindex)) {
                result = Err(error);
            }
            stays
        });
        for ifindex in there {
            if links.contains_key(&ifindex) {
                continue;
            }
            // First the program, which counts nothing yet; then what lets it count, and the tracepoint no more.
            let attached = attach_first(self.program.as_fd(), ifindex)
                .and_then(|link| self.by_tc.set(&key(netns, ifindex), &1, BPF_ANY).map(|()| link));
            match attached {
                Ok(link) => drop(links.insert(ifindex, link)),
                // Gone meanwhile: the next visit is on its way.
                Err(error) if error.raw_os_error() == Some(libc::ENODEV) => {}
                Err(error) => result = Err(io::Error::new(error.kind(), format!("device {ifindex}: {error}"))),
            }
        }
        result
    }

    /// Takes the program away from namespaces that are no pod's any more.
    pub(super) fn stay_in(&mut self, live: &[NetnsKey]) {
        let by_tc = &self.by_tc;
        self.links.retain(|netns, links| {
            let stays = live.contains(netns);
            if !stays {
                for ifindex in links.keys() {
                    let _ = by_tc.delete(&key(*netns, *ifindex));
                }
            }
            stays
        });
    }

    pub(super) fn count(&self) -> usize {
        self.links.values().map(HashMap::len).sum()
    }
}

const fn key(netns: NetnsKey, ifindex: u32) -> DeviceKey {
    DeviceKey {
        cookie: netns.cookie,
        netns: netns.inode,
        ifindex,
    }
}
