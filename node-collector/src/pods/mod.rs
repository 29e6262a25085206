//! Which pods this node has and had. Answers for the time of an event, not for now.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

mod index;

pub use index::PodIndex;

/// One sandbox. All but the end of its life is known when it is found and never changes.
#[derive(Debug)]
pub struct Pod {
    /// Unique on the node, also over time.
    pub sandbox: String,
    pub uid: String,
    pub namespace: String,
    pub name: String,
    pub workload_kind: String,
    pub workload: String,
    pub ips: Vec<IpAddr>,
    pub labels: BTreeMap<String, String>,
    pub netns: crate::event::NetnsKey,
    pub host_network: bool,
    /// Unix time.
    pub valid_from_ns: u64,
    /// Unix time of its end, 0 while it is there.
    pub valid_to_ns: std::sync::atomic::AtomicU64,
}
