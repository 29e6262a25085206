//! Addresses and devices of one network namespace: a NETLINK_ROUTE socket made inside it, which answers for it from any
//! thread and hears of changes.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use super::message::{attributes, messages, request};

const RTM_NEWLINK: u16 = 16;
const RTM_GETLINK: u16 = 18;
const RTM_NEWADDR: u16 = 20;
const RTM_GETADDR: u16 = 22;
const RTM_NEWNSID: u16 = 88;
const RTM_GETNSID: u16 = 90;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_DUMP_INTR: u16 = 0x10;
const NLM_F_DUMP: u16 = 0x300;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const IFLA_LINK: u16 = 5;
const IFLA_LINKINFO: u16 = 18;
const IFLA_EXT_MASK: u16 = 29;
const IFLA_LINK_NETNSID: u16 = 37;
const IFLA_INFO_KIND: u16 = 1;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const NETNSA_NSID: u16 = 1;
const NETNSA_FD: u16 = 3;
const RTEXT_FILTER_SKIP_STATS: u32 = 8;
/// Devices come and go, addresses of both families.
const GROUPS: u32 = 0x1 | 0x10 | 0x100;

/// What a namespace has at one time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Without loopback ones, ascending.
    pub addresses: Vec<IpAddr>,
    /// Indexes of the devices at the other end of its veth and netkit pairs, as far as that end is in the namespace
    /// asked for; ascending.
    pub outer_ifindexes: Vec<u32>,
}

#[derive(Debug)]
pub struct RouteSocket {
    socket: OwnedFd,
    sequence: u32,
    /// A change was heard since the facts were asked for last.
    changed: bool,
}

/// What messages are received into: one for all sockets of a thread.
#[derive(Debug)]
pub struct Buffer(Vec<u8>);

impl Default for Buffer {
    fn default() -> Self {
        // The kernel fills at most 32 KiB of a dump at once.
        Self(vec![0; 64 * 1024])
    }
}

impl RouteSocket {
    /// In the network namespace of the calling thread.
    pub fn open() -> io::Result<Self> {
        let socket = super::socket::open(libc::NETLINK_ROUTE, GROUPS)?;
        Ok(Self {
            socket,
            sequence: 0,
            changed: true,
        })
    }

    /// The cookie of the namespace (Linux 5.14), 0 where the kernel has none to give.
    pub fn netns_cookie(&self) -> u64 {
        /// asm-generic; the libc crate lacks it.
        const SO_NETNS_COOKIE: libc::c_int = 71;
        let mut cookie = 0u64;
        let mut len = size_of::<u64>() as libc::socklen_t;
        // SAFETY: the value and its length live through the call and agree.
        let result = unsafe {
            libc::getsockopt(
                self.socket.as_raw_fd(),
                libc::SOL_SOCKET,
                SO_NETNS_COOKIE,
                (&raw mut cookie).cast(),
                &raw mut len,
            )
        };
        if result == 0 && len == 8 { cookie } else { 0 }
    }

    /// Whether anything changed since the last [`Self::facts`]; true at first.
    pub fn has_changed(&mut self, buffer: &mut Buffer) -> bool {
        loop {
            match self.receive(buffer) {
                Ok(_) => self.changed = true,
                // Too many changes for the socket's buffer: some were lost, which is a change too.
                Err(e) if e.raw_os_error() == Some(libc::ENOBUFS) => self.changed = true,
                Err(_) => return self.changed,
            }
        }
    }

    /// Addresses, and outer ends of veth pairs that lie in the namespace of `outer`. When things change while they are
    /// listed, they are listed again.
    pub fn facts(&mut self, outer: BorrowedFd<'_>, buffer: &mut Buffer) -> io::Result<Facts> {
        let mut attempts = 0..4;
        loop {
            self.changed = false;
            let result = self.list(outer, buffer);
            let again = match &result {
                Ok(_) => self.changed,
                Err(e) => e.kind() == io::ErrorKind::Interrupted,
            };
            if !again || attempts.next().is_none() {
                self.changed |= result.is_err();
                return result;
            }
        }
    }

    fn list(&mut self, outer: BorrowedFd<'_>, buffer: &mut Buffer) -> io::Result<Facts> {
        let mut facts = Facts::default();
        // struct ifaddrmsg, AF_UNSPEC
        self.dump(buffer, RTM_GETADDR, &[0; 8], &[], RTM_NEWADDR, |payload| {
            facts.addresses.extend(address(payload).filter(|ip| !ip.is_loopback()));
        })?;
        let mut ends = Vec::new();
        let mask = RTEXT_FILTER_SKIP_STATS.to_ne_bytes();
        // struct ifinfomsg, AF_UNSPEC
        self.dump(
            buffer,
            RTM_GETLINK,
            &[0; 16],
            &[(IFLA_EXT_MASK, &mask)],
            RTM_NEWLINK,
            |payload| {
                ends.extend(pair_end(payload));
            },
        )?;
        if !ends.is_empty() {
            // Asked after the dump, which is what gives the other namespace its number here.
            let number = self.nsid(buffer, outer)?;
            facts.outer_ifindexes = ends
                .into_iter()
                .filter(|end| Some(end.nsid) == number)
                .map(|end| end.ifindex)
                .collect();
        }
        facts.addresses.sort_unstable();
        facts.addresses.dedup();
        facts.outer_ifindexes.sort_unstable();
        facts.outer_ifindexes.dedup();
        Ok(facts)
    }

    /// The number that this namespace gives another one, if it has one for it.
    fn nsid(&mut self, buffer: &mut Buffer, other: BorrowedFd<'_>) -> io::Result<Option<i32>> {
        let fd = (other.as_raw_fd() as u32).to_ne_bytes();
        let mut number = None;
        // struct rtgenmsg, padded
        self.ask(buffer, RTM_GETNSID, 0, &[0; 4], &[(NETNSA_FD, &fd)], |kind, payload| {
            if kind != RTM_NEWNSID {
                return false;
            }
            let value = attributes(payload.get(4..).unwrap_or_default()).find(|(kind, _)| *kind == NETNSA_NSID);
            number = value.and_then(|(_, v)| Some(i32::from_ne_bytes(v.try_into().ok()?)));
            true
        })?;
        Ok(number.filter(|n| *n >= 0))
    }

    fn dump(
        &mut self,
        buffer: &mut Buffer,
        kind: u16,
        payload: &[u8],
        attributes: &[(u16, &[u8])],
        answer: u16,
        mut each: impl FnMut(&[u8]),
    ) -> io::Result<()> {
        self.ask(buffer, kind, NLM_F_DUMP, payload, attributes, |kind, payload| {
            if kind == answer {
                each(payload);
            }
            false
        })
    }

    /// Sends and gives each answer to `each` until it says that it has enough, or the dump is done.
    fn ask(
        &mut self,
        buffer: &mut Buffer,
        kind: u16,
        flags: u16,
        payload: &[u8],
        attributes: &[(u16, &[u8])],
        mut each: impl FnMut(u16, &[u8]) -> bool,
    ) -> io::Result<()> {
        self.sequence += 1;
        let message = request(kind, NLM_F_REQUEST | flags, self.sequence, payload, attributes);
        // SAFETY: the buffer lives through the call and its length is its own.
        let sent = unsafe { libc::send(self.socket.as_raw_fd(), message.as_ptr().cast(), message.len(), 0) };
        if sent < 0 {
            return Err(io::Error::last_os_error());
        }
        let mut interrupted = false;
        loop {
            // A route socket answers within send(): when nothing is there, nothing will come.
            let len = match self.receive(buffer) {
                Err(e) if e.raw_os_error() == Some(libc::ENOBUFS) => {
                    self.changed = true;
                    continue;
                }
                result => result?,
            };
            for (header, payload) in messages(&buffer.0[..len]) {
                if header.sequence != self.sequence {
                    // Heard in between.
                    self.changed |= header.sequence == 0;
                    continue;
                }
                interrupted |= header.flags & NLM_F_DUMP_INTR != 0;
                match header.kind {
                    // A dump is read to its end even when it is no good: the socket takes no other before.
                    NLMSG_DONE if interrupted => return Err(io::ErrorKind::Interrupted.into()),
                    NLMSG_DONE => return Ok(()),
                    NLMSG_ERROR => {
                        let code = payload
                            .get(..4)
                            .map_or(0, |c| i32::from_ne_bytes([c[0], c[1], c[2], c[3]]));
                        return if code == 0 {
                            Ok(())
                        } else {
                            Err(io::Error::from_raw_os_error(code.saturating_neg()))
                        };
                    }
                    kind => {
                        if each(kind, payload) {
                            return Ok(());
                        }
                    }
                }
            }
        }
    }

    fn receive(&self, buffer: &mut Buffer) -> io::Result<usize> {
        loop {
            // SAFETY: the buffer lives through the call and its length is its own.
            let len = unsafe { libc::recv(self.socket.as_raw_fd(), buffer.0.as_mut_ptr().cast(), buffer.0.len(), 0) };
            if len >= 0 {
                return Ok(len as usize);
            }
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        }
    }
}

impl AsFd for RouteSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// The local address of an RTM_NEWADDR: IFA_LOCAL where there is one (point to point), else IFA_ADDRESS.
pub(super) fn address(payload: &[u8]) -> Option<IpAddr> {
    let (mut local, mut plain) = (None, None);
    for (kind, value) in attributes(payload.get(8..)?) {
        let ip = <[u8; 4]>::try_from(value)
            .map(IpAddr::from)
            .or_else(|_| <[u8; 16]>::try_from(value).map(IpAddr::from));
        match kind {
            IFA_LOCAL => local = ip.ok(),
            IFA_ADDRESS => plain = ip.ok(),
            _ => {}
        }
    }
    local.or(plain)
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct PairEnd {
    ifindex: u32,
    nsid: i32,
}

/// The far end of a device that comes in a pair, if it lies in another namespace. A macvlan or ipvlan also names a
/// device there, but one that it shares with others.
pub(super) fn pair_end(payload: &[u8]) -> Option<PairEnd> {
    let (mut ifindex, mut nsid, mut paired) = (None, None, false);
    for (kind, value) in attributes(payload.get(16..)?) {
        match kind {
            IFLA_LINK => ifindex = value.try_into().ok().map(u32::from_ne_bytes),
            IFLA_LINK_NETNSID => nsid = value.try_into().ok().map(i32::from_ne_bytes),
            IFLA_LINKINFO => {
                paired = attributes(value).any(|(kind, value)| {
                    kind == IFLA_INFO_KIND && matches!(value, b"veth\0" | b"netkit\0" | b"veth" | b"netkit")
                });
            }
            _ => {}
        }
    }
    paired.then_some(PairEnd {
        ifindex: ifindex?,
        nsid: nsid?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(kind: &[u8], more: &[(u16, &[u8])]) -> Vec<u8> {
        let info = request(0, 0, 0, &[], &[(IFLA_INFO_KIND, kind)])[16..].to_vec();
        let mut all: Vec<(u16, &[u8])> = more.to_vec();
        all.push((IFLA_LINKINFO, &info));
        request(0, 0, 0, &[0; 16], &all)[16..].to_vec()
    }

    #[test]
    fn only_the_far_end_of_a_pair_names_a_pod() {
        let (seven, two) = (7u32.to_ne_bytes(), 2i32.to_ne_bytes());
        let there: [(u16, &[u8]); 2] = [(IFLA_LINK, &seven), (IFLA_LINK_NETNSID, &two)];
        assert_eq!(
            pair_end(&link(b"veth\0", &there)),
            Some(PairEnd { ifindex: 7, nsid: 2 })
        );
        assert_eq!(
            pair_end(&link(b"netkit\0", &there)),
            Some(PairEnd { ifindex: 7, nsid: 2 })
        );
        assert_eq!(pair_end(&link(b"macvlan\0", &there)), None);
        // Both ends in one namespace: no number.
        assert_eq!(pair_end(&link(b"veth\0", &there[..1])), None);
        assert_eq!(pair_end(&[0; 3]), None);
    }

    #[test]
    fn the_local_address_counts() {
        let message = |attributes: &[(u16, &[u8])]| request(0, 0, 0, &[0; 8], attributes)[16..].to_vec();
        assert_eq!(
            address(&message(&[(IFA_ADDRESS, &[10, 0, 0, 2]), (IFA_LOCAL, &[10, 0, 0, 1])])),
            Some("10.0.0.1".parse().unwrap())
        );
        let v6: IpAddr = "fd00::5".parse().unwrap();
        let IpAddr::V6(octets) = v6 else { unreachable!() };
        assert_eq!(address(&message(&[(IFA_ADDRESS, &octets.octets())])), Some(v6));
        assert_eq!(address(&message(&[(IFA_ADDRESS, &[1, 2, 3])])), None);
        assert_eq!(address(&[]), None);
    }
}
