//! Which pods this node has and had. Answers for the time of an event, not for now.

use std::collections::BTreeMap;
use std::net::IpAddr;

mod index;
pub mod names;
pub mod netns;
mod targets;

pub use index::{Facts, PodIndex};
pub use targets::{Target, Targets};

/// One sandbox. All but the end of its life is known when it is found and never changes.
#[derive(Debug, Default)]
pub struct Pod {
    /// Unique on the node, also over time.
    pub sandbox: String,
    pub uid: String,
    pub namespace: String,
    pub name: String,
    pub workload_kind: String,
    pub workload: String,
    /// Those it was found with; what it has now is in the index.
    pub ips: Vec<IpAddr>,
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
    pub netns: crate::event::NetnsKey,
    pub host_network: bool,
    /// Unix time.
    pub valid_from_ns: u64,
    /// Unix time of its end, 0 while it is there.
    pub valid_to_ns: std::sync::atomic::AtomicU64,
}

impl Pod {
    pub fn has_ended(&self) -> bool {
        self.valid_to_ns.load(std::sync::atomic::Ordering::Acquire) != 0
    }
}
