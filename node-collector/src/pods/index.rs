//! The history of network namespaces, addresses and host-side interfaces of this node.

use std::net::IpAddr;

use crate::event::{NetnsKey, Subject};

#[derive(Debug, Default)]
pub struct PodIndex {}

impl PodIndex {
    /// Whose network namespace this was at `at_ns` (Unix time). `Subject::Unknown` when it is none we know: ask again
    /// later, the pod may not have been found yet.
    pub fn by_netns(&self, _key: NetnsKey, _at_ns: u64) -> Subject {
        Subject::Unknown
    }

    /// The pod of this node that had the address at that time.
    pub fn by_ip(&self, _ip: IpAddr, _at_ns: u64) -> Option<Subject> {
        None
    }

    /// The pod behind a device of the host's namespace (veth pair) at that time.
    pub fn by_host_ifindex(&self, _ifindex: u32, _at_ns: u64) -> Option<Subject> {
        None
    }

    /// Pods that are there now.
    pub fn live(&self) -> Vec<std::sync::Arc<super::Pod>> {
        Vec::new()
    }
}
