//! Which pods this node has and had. Answers for the time of an event, not for now.

use std::collections::BTreeMap;
use std::net::IpAddr;

pub mod cgroup;
pub mod cri;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod index;
pub mod names;
pub mod netns;
mod open;
mod targets;
mod watcher;
pub mod workload;

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
    /// Of the container runtime: how many sandboxes this pod had before.
    pub attempt: u32,
    pub workload_kind: String,
    pub workload: String,
    /// Those it was found with; what it has now is in the index.
    pub ips: Vec<IpAddr>,
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
    /// Its control group, below the root of a hierarchy; `None`: none of its own is known.
    pub cgroup: Option<String>,
    /// All zeros on the host network.
    pub netns: crate::event::NetnsKey,
    /// Shares the node's network namespace, whose numbers are the node's and not this pod's.
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
