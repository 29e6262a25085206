//! What a kernel record says (`Observation`), whose it is (`Subject`), and both together (`Event`).

use std::net::IpAddr;
use std::sync::Arc;

use crate::pods::Pod;

/// What a row or event is about.
#[derive(Clone, Debug)]
pub enum Subject {
    /// The node itself: the host's network namespace.
    Node,
    Pod(Arc<Pod>),
    /// A network namespace that belongs to no known pod.
    Unknown,
}

impl PartialEq for Subject {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Node, Self::Node) | (Self::Unknown, Self::Unknown) => true,
            (Self::Pod(a), Self::Pod(b)) => Arc::ptr_eq(a, b) || a.sandbox == b.sandbox,
            _ => false,
        }
    }
}

/// A network namespace as a kernel record names it. Inodes are reused at once; the cookie is not, but it is 0 where
/// the kernel has none (below 5.14 user space cannot ask for it, on 5.10 it is made lazily).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct NetnsKey {
    pub inode: u32,
    pub cookie: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Direction {
    #[default]
    Unknown,
    Ingress,
    Egress,
    Forward,
}

/// One abnormal thing as the kernel told it, not yet attributed.
#[derive(Clone, Debug, Default)]
pub struct Observation {
    /// CLOCK_MONOTONIC.
    pub ktime_ns: u64,
    pub probe: &'static str,
    /// Event type of design section 7, `PACKETLOSS`.
    pub kind: &'static str,
    /// Where it happened; `None` where the record could not tell.
    pub netns: Option<NetnsKey>,
    /// It is a socket's, and `saddr` is that socket's own address: whoever has the namespace has it, whatever addresses
    /// it talks to.
    pub of_socket: bool,
    /// Index of the device in that namespace, 0 = none. Repeats across namespaces.
    pub ifindex: u32,
    pub interface: Option<Arc<str>>,
    pub reason: Option<Arc<str>>,
    /// `TCP`, `UDP`, `ICMP`, `ICMPv6`, else `IP`, `ARP`, or the EtherType as `0x88cc`.
    pub protocol: Option<Arc<str>>,
    pub saddr: Option<IpAddr>,
    pub sport: Option<u16>,
    pub daddr: Option<IpAddr>,
    pub dport: Option<u16>,
    pub direction: Direction,
    pub latency_ns: Option<u64>,
    pub cpu: Option<u32>,
    /// Only where it is really the owner's.
    pub pid: Option<u32>,
    pub comm: Option<Arc<str>>,
    pub state: Option<Arc<str>>,
    /// How many of this (namespace, type) the bucket held back since the one before.
    pub suppressed: u64,
    /// Innermost first, `symbol+0x1f`.
    pub stack: Vec<Arc<str>>,
    pub attributes: Vec<(&'static str, Arc<str>)>,
}

/// An observation with its time in UTC and its owner.
#[derive(Clone, Debug)]
pub struct Event {
    pub time_ns: u64,
    pub subject: Subject,
    /// The pod of this node at the other end, where it is one.
    pub peer: Option<Subject>,
    pub observation: Observation,
}

/// A span in which something could not be seen or had to be dropped. `cause` is one of `sonde_proto::gap`.
#[derive(Clone, Debug)]
pub struct Gap {
    /// Empty = all.
    pub probe: &'static str,
    pub cause: &'static str,
    pub from_ns: u64,
    pub to_ns: u64,
    /// 0 = not countable.
    pub count: u64,
    pub subject: Subject,
    pub detail: String,
}
