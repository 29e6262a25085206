//! The eBPF side of the collector: which programs this host permits (`plan`), their loading, their ring and their maps.
//!
//! Not here: what a probe's records mean (`crate::probes`), whose they are (`crate::pods`).

use std::sync::Arc;

use serde::Serialize;
use sonde_common::config::Config;
use sonde_common::prom::Page;
use tokio::sync::mpsc::Sender;

use crate::event::{Event, Gap, NetnsKey, Observation, Subject};
use crate::pods::PodIndex;
use crate::table::Table;

mod clock;

pub use clock::{Clock, clock};

/// What one signal (a probe's counts, or its events) runs on, for the log, `/status` and `doctor`.
#[derive(Clone, Debug, Serialize)]
pub struct SignalStatus {
    /// `packetloss.count`, `packetloss.events`
    pub name: &'static str,
    /// `tp_btf`, `raw_tracepoint`; absent: off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rung: Option<&'static str>,
    /// Why it is off, or why no better rung was taken. Empty: it runs on the best one.
    pub reason: String,
}

/// What `/status` says of the kernel side.
#[derive(Clone, Debug, Default, Serialize)]
pub struct KernelStatus {
    pub signals: Vec<SignalReport>,
}

#[derive(Clone, Debug, Serialize)]
pub struct SignalReport {
    #[serde(flatten)]
    pub signal: SignalStatus,
}

/// All loaded programs. Dropping it detaches them and ends the ring's thread.
pub struct Kernel {
    signals: Vec<SignalStatus>,
}

impl Kernel {
    /// Never fails as a whole: what is off says why. Observations go to `events` in the order of the ring; they carry
    /// no subject yet: see [`attribute`].
    pub fn start(
        _config: &Config,
        _index: Arc<PodIndex>,
        _events: Sender<Vec<Observation>>,
    ) -> (Self, Vec<SignalStatus>) {
        (Self { signals: Vec::new() }, Vec::new())
    }

    /// The network namespaces of all pods that are there now; the host's is added here when `pods.include_host`.
    /// Cheap when nothing changed.
    pub fn netns_changed(&self, _live: &[NetnsKey]) {}

    /// Rows of this round, and what could not be seen since the round before.
    pub fn read(&mut self, _time_ns: u64, _index: &PodIndex) -> (Vec<Table>, Vec<Gap>) {
        (Vec::new(), Vec::new())
    }

    pub fn status(&self) -> KernelStatus {
        KernelStatus {
            signals: self
                .signals
                .iter()
                .map(|s| SignalReport { signal: s.clone() })
                .collect(),
        }
    }

    /// Families `sonde_collector_ebpf_*`.
    pub fn self_metrics(&self, _page: &mut Page) {}
}

/// Gives an observation its time in UTC, its subject and its peer. A drop on the host's side of a pod's veth pair
/// belongs to the pod behind it. Asked again later, the answer may be better: the index learns of pods late.
pub fn attribute(observation: Observation, index: &PodIndex) -> Event {
    let time_ns = clock().utc_ns(observation.ktime_ns);
    let subject = observation
        .netns
        .map_or(Subject::Unknown, |netns| index.by_netns(netns, time_ns));
    Event {
        time_ns,
        subject,
        peer: None,
        observation,
    }
}
