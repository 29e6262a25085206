//! By a filter of the device's clsact qdisc, where the kernel has no links for that (before Linux 6.6).
//!
//! A filter outlives who added it. So it is taken away when the pod is none any more and when the probe or the collector ends,
//! and what a killed collector left is found by its name when the next one comes into the namespace (see [`sweep`]). The qdisc
//! goes too if it was made for the filter and nobody else has hung something on it since; between that look and its end somebody
//! could, as the kernel has no way to take away only an empty one.
//!
//! Others may end the search for a verdict, so the filter must be asked first to see everything. It has a priority of its
//! own, with some room before it for those who insist on the first; if one comes before it, it moves. Where that cannot be, the
//! device is left to the tracepoint.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};

use super::owner::{Mark, Owner};
use super::{Beat, Counts, of_device};
use crate::event::NetnsKey;
use crate::netlink::dump::DumpError;
use crate::netlink::filter::{self, Filter, Side};
use crate::netlink::socket::{AskSocket, Transport as _};

/// Where nothing else is.
const PRIORITY: u16 = 10;
/// Others count from 1, and who replaces a filter with that number is not to meet ours.
const HANDLE: u32 = 0x50de;

/// The filters of one collector.
pub(super) struct Filters {
    program: OwnedFd,
    owner: Owner,
    beat: Beat,
    namespaces: HashMap<NetnsKey, Namespace>,
    /// Where a filter was found gone, not the first, or without its collector, since that was asked last.
    disturbed: HashSet<NetnsKey>,
    buffer: Vec<u8>,
}

/// One that has filters. The socket answers for it from any thread, and hears of changes.
struct Namespace {
    socket: AskSocket,
    /// By device; `None`: it could not be hung there so far.
    hung: HashMap<u32, Option<Hung>>,
}

/// A filter on a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Hung {
    priority: u16,
    mark: Mark,
}

impl Filters {
    pub(super) fn new(program: OwnedFd, beat: Beat) -> io::Result<Self> {
        Ok(Self {
            program,
            owner: Owner::new()?,
            beat,
            namespaces: HashMap::new(),
            disturbed: HashSet::new(),
            buffer: buffer(),
        })
    }

    pub(super) fn visit(&mut self, netns: NetnsKey, there: &[u32], counts: &Counts) -> io::Result<()> {
        if let Entry::Vacant(new) = self.namespaces.entry(netns) {
            let socket = AskSocket::route()?;
            let hung = HashMap::new();
            new.insert(Namespace { socket, hung });
        }
        self.make_right(netns, Some(there), counts)
    }

    /// Looks where something has changed. Gives on where a filter was gone, was not the first, or took this collector to be
    /// gone.
    pub(super) fn put_back(&mut self, counts: &Counts) -> HashSet<NetnsKey> {
        match self.beat.beat() {
            Ok(false) => {}
            Ok(true) => self.disturbed.extend(self.namespaces.keys()),
            Err(error) => tracing::warn!(%error, "filters of probe flow cannot be told that the collector lives"),
        }
        let news: Vec<NetnsKey> = self
            .namespaces
            .iter()
            .filter(|(_, namespace)| namespace.socket.has_heard(&mut self.buffer))
            .map(|(netns, _)| *netns)
            .collect();
        for netns in news {
            if let Err(error) = self.make_right(netns, None, counts) {
                tracing::warn!(inode = netns.inode, %error, "a filter of probe flow could not be put back");
            }
        }
        std::mem::take(&mut self.disturbed)
    }

    /// Every device of `there` has its filter, and has it first; without `there`, each that is known.
    fn make_right(&mut self, netns: NetnsKey, there: Option<&[u32]>, counts: &Counts) -> io::Result<()> {
        let Some(Namespace { socket, hung }) = self.namespaces.get_mut(&netns) else {
            return Ok(());
        };
        let on = On {
            socket,
            program: &self.program,
            owner: &self.owner,
        };
        let buffer = &mut self.buffer;
        let mut result = Ok(());
        if let Some(there) = there {
            hung.retain(|ifindex, _| {
                let stays = there.contains(ifindex);
                if !stays && let Err(error) = counts.end(netns, *ifindex) {
                    result = Err(error);
                }
                stays
            });
        }
        let devices = there.map_or_else(|| hung.keys().copied().collect(), <[u32]>::to_vec);
        for ifindex in devices {
            let before = hung.get(&ifindex).copied().flatten();
            let is_right = before.map_or(Ok(false), |one| on.is_right(ifindex, one, buffer));
            if matches!(is_right, Ok(true)) {
                continue;
            }
            if before.is_some() {
                self.disturbed.insert(netns);
                let _ = counts.end(netns, ifindex);
            }
            let made = is_right
                .and_then(|_| on.hang(ifindex, buffer))
                .and_then(|one| counts.begin(netns, ifindex).map(|()| one));
            match made {
                Ok(one) => drop(hung.insert(ifindex, Some(one))),
                // Gone meanwhile: the next visit is on its way.
                Err(error) if error.raw_os_error() == Some(libc::ENODEV) => drop(hung.remove(&ifindex)),
                Err(error) => {
                    hung.insert(ifindex, None);
                    result = Err(of_device(ifindex, &error));
                }
            }
        }
        result
    }

    pub(super) fn stay_in(&mut self, live: &[NetnsKey], counts: &Counts) {
        let Self {
            program,
            owner,
            namespaces,
            buffer,
            ..
        } = self;
        namespaces.retain(|netns, Namespace { socket, hung }| {
            if live.contains(netns) {
                return true;
            }
            let on = On { socket, program, owner };
            for ifindex in hung.keys().copied() {
                let _ = counts.end(*netns, ifindex);
                let taken = on.unhang(ifindex, buffer).and_then(|made_qdisc| match made_qdisc {
                    true => give_back(socket, ifindex, buffer).map_err(plain),
                    false => Ok(()),
                });
                if let Err(error) = taken
                    && error.raw_os_error() != Some(libc::ENODEV)
                {
                    tracing::warn!(inode = netns.inode, ifindex, %error, "a filter of probe flow could not be taken away");
                }
            }
            false
        });
    }

    pub(super) fn count(&self) -> usize {
        let hung = self.namespaces.values().flat_map(|namespace| namespace.hung.values());
        hung.flatten().count()
    }
}

/// Room for a piece of a dump.
fn buffer() -> Vec<u8> {
    vec![0; 32 * 1024]
}

/// A namespace, and what to hang up there.
struct On<'a> {
    socket: &'a AskSocket,
    program: &'a OwnedFd,
    owner: &'a Owner,
}

impl On<'_> {
    /// A filter before all others, and what it hangs on.
    fn hang(&self, ifindex: u32, buffer: &mut [u8]) -> io::Result<Hung> {
        let was_ours = self.unhang(ifindex, buffer)?;
        let made_qdisc = match filter::add_qdisc(self.socket, ifindex, buffer) {
            Ok(()) => true,
            Err(error) if errno(&error) == Some(libc::EEXIST) => was_ours,
            Err(error) => return Err(plain(error)),
        };
        let hung = self.hang_first(ifindex, self.owner.mark(made_qdisc), buffer);
        if hung.is_err() && made_qdisc {
            let _ = give_back(self.socket, ifindex, buffer);
        }
        hung
    }

    fn hang_first(&self, ifindex: u32, mark: Mark, buffer: &mut [u8]) -> io::Result<Hung> {
        let others = filter::filters(self.socket, ifindex, Side::Ingress, buffer).map_err(plain)?;
        let priority = before_all(&others).map_err(io::Error::other)?;
        let place = (ifindex, priority, HANDLE);
        let program = (self.program.as_fd(), &*mark.name());
        filter::add_program(self.socket, place, program, buffer).map_err(plain)?;
        let one = Hung { priority, mark };
        if self.is_right(ifindex, one, buffer)? {
            return Ok(one);
        }
        self.unhang(ifindex, buffer)?;
        Err(io::Error::other("another filter came before ours at that moment"))
    }

    /// Whether it is there and asked before all others. Those of other collectors hand every packet on too.
    fn is_right(&self, ifindex: u32, one: Hung, buffer: &mut [u8]) -> io::Result<bool> {
        let all = filter::filters(self.socket, ifindex, Side::Ingress, buffer).map_err(plain)?;
        let first = all.iter().filter(|filter| filter.chain == 0);
        Ok(first.map_while(Hung::of).any(|hung| hung == one))
    }

    /// Takes this collector's filters away. Gives whether it made the qdisc that they hung on; whoever took them away before
    /// did so with the qdisc, or uses that.
    fn unhang(&self, ifindex: u32, buffer: &mut [u8]) -> io::Result<bool> {
        let mut made_qdisc = false;
        for one in hung_on(self.socket, ifindex, buffer)? {
            if one.mark == self.owner.mark(one.mark.made_qdisc) {
                take_away(self.socket, ifindex, one, buffer).map_err(plain)?;
                made_qdisc |= one.mark.made_qdisc;
            }
        }
        Ok(made_qdisc)
    }
}

/// What collectors have hung on a device.
fn hung_on(socket: &AskSocket, ifindex: u32, buffer: &mut [u8]) -> io::Result<Vec<Hung>> {
    let all = filter::filters(socket, ifindex, Side::Ingress, buffer).map_err(plain)?;
    Ok(all.iter().filter_map(Hung::of).collect())
}

impl Hung {
    /// `None`: it is of no collector.
    fn of(filter: &Filter) -> Option<Self> {
        let mark = Mark::parse(&filter.name).filter(|_| filter.handle == HANDLE && filter.chain == 0)?;
        Some(Self {
            priority: filter.priority,
            mark,
        })
    }
}

/// The priority of a filter that is to be asked before all others; or why there is none.
fn before_all(others: &[Filter]) -> Result<u16, String> {
    let first = others
        .iter()
        .filter(|other| other.chain == 0)
        .min_by_key(|other| other.priority);
    match first {
        Some(first) if first.priority <= 1 && first.may_share() => Ok(1),
        Some(first) if first.priority <= 1 => Err(format!(
            "a filter of kind {} has priority 1, so that none can be before it",
            first.kind
        )),
        Some(first) => Ok(PRIORITY.min(first.priority - 1)),
        None => Ok(PRIORITY),
    }
}

fn take_away(socket: &AskSocket, ifindex: u32, one: Hung, buffer: &mut [u8]) -> Result<(), DumpError> {
    filter::delete_program(socket, (ifindex, one.priority, HANDLE), buffer)
}

/// Takes away a qdisc that was made for a filter, unless it is of use to somebody else now.
fn give_back(socket: &AskSocket, ifindex: u32, buffer: &mut [u8]) -> Result<(), DumpError> {
    for side in [Side::Ingress, Side::Egress] {
        if !filter::filters(socket, ifindex, side, buffer)?.is_empty() {
            return Ok(());
        }
    }
    filter::delete_qdisc(socket, ifindex, buffer)
}

/// Takes away what collectors that are gone left in the network namespace of the calling thread, and gives on how many
/// devices that was.
pub(in crate::kernel) fn sweep() -> io::Result<usize> {
    let socket = AskSocket::route()?;
    let buffer = &mut buffer();
    let mut swept = 0;
    for ifindex in filter::devices(&socket, buffer).map_err(plain)? {
        for left in hung_on(&socket, ifindex, buffer)? {
            if !left.mark.is_left_over()? {
                continue;
            }
            take_away(&socket, ifindex, left, buffer).map_err(plain)?;
            if left.mark.made_qdisc {
                give_back(&socket, ifindex, buffer).map_err(plain)?;
            }
            swept += 1;
        }
    }
    Ok(swept)
}

fn errno(error: &DumpError) -> Option<i32> {
    match error {
        DumpError::Refused(error) => error.raw_os_error(),
        _ => None,
    }
}

fn plain(error: DumpError) -> io::Error {
    match error {
        DumpError::Refused(error) => error,
        other => io::Error::other(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(priority: u16, chain: u32, kind: &str) -> Filter {
        Filter::for_test(priority, chain, kind)
    }

    #[test]
    fn the_filter_is_before_all_others_and_leaves_room_before_itself() {
        for (others, priority) in [
            (vec![], Some(PRIORITY)),
            (vec![at(49_152, 0, "u32")], Some(PRIORITY)),
            (vec![at(20, 0, "u32"), at(7, 0, "flower")], Some(6)),
            (vec![at(10, 0, "bpf")], Some(9)),
            // Only those of the first chain are asked by themselves.
            (vec![at(1, 3, "u32")], Some(PRIORITY)),
            // The newest program of a priority is asked first.
            (vec![at(1, 0, "bpf")], Some(1)),
            (vec![at(1, 0, "u32")], None),
        ] {
            let found = before_all(&others);
            assert_eq!(found.as_ref().ok().copied(), priority, "{others:?}: {found:?}");
        }
    }
}
