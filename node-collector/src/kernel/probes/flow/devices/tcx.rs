//! By a link, which the kernel keeps before all others. Closing it takes the program away, so nothing is left when the
//! collector ends, however it does.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};

use super::{Counts, of_device};
use crate::event::NetnsKey;
use crate::kernel::sys::{attach_first, device_of};

pub(super) struct Links {
    program: OwnedFd,
    /// By namespace and index.
    links: HashMap<NetnsKey, HashMap<u32, OwnedFd>>,
}

impl Links {
    pub(super) fn new(program: OwnedFd) -> Self {
        Self {
            program,
            links: HashMap::new(),
        }
    }

    pub(super) fn visit(&mut self, netns: NetnsKey, there: &[u32], counts: &Counts) -> io::Result<()> {
        let links = self.links.entry(netns).or_default();
        let mut result = Ok(());
        // A new device may have the index of one that is gone.
        links.retain(|ifindex, link| {
            let stays = there.contains(ifindex) && device_of(link.as_fd()).is_ok_and(|on| on == *ifindex);
            if !stays && let Err(error) = counts.end(netns, *ifindex) {
                result = Err(error);
            }
            stays
        });
        for ifindex in there.iter().copied() {
            if links.contains_key(&ifindex) {
                continue;
            }
            let attached = attach_first(self.program.as_fd(), ifindex)
                .and_then(|link| counts.begin(netns, ifindex).map(|()| link));
            match attached {
                Ok(link) => drop(links.insert(ifindex, link)),
                // Gone meanwhile: the next visit is on its way.
                Err(error) if error.raw_os_error() == Some(libc::ENODEV) => {}
                Err(error) => result = Err(of_device(ifindex, &error)),
            }
        }
        result
    }

    pub(super) fn stay_in(&mut self, live: &[NetnsKey], counts: &Counts) {
        self.links.retain(|netns, links| {
            let stays = live.contains(netns);
            if !stays {
                for ifindex in links.keys() {
                    let _ = counts.end(*netns, *ifindex);
                }
            }
            stays
        });
    }

    pub(super) fn count(&self) -> usize {
        self.links.values().map(HashMap::len).sum()
    }
}
