//! Sonde's tables under the names, types and labels of KubeSkoop's exporter, so that its dashboards work unchanged.
//!
//! What each of its metrics is made of stands in [`ENTRIES`]; what differs and why, in docs/kubeskoop.md. A probe or column
//! that this collector does not have gives no series.

mod derive;
mod entry;
mod rdma;
mod table;
#[cfg(test)]
mod tests;

pub(super) use derive::{derive, nobody_labels};
pub use entry::{Entry, Labels, Rows};

/// All of its metrics.
pub fn entries() -> impl Iterator<Item = Entry> {
    table::ENTRIES.iter().copied().chain(rdma::entries())
}

/// Names of labels beside the standard ones that its series have.
pub(super) const LABELS: [&str; 4] = ["device", "type", "port", "softirq_type"];

/// KubeSkoop's and older names of probes, and ours.
const PROBES: [(&str, &str); 4] = [
    ("softirq", "net_softirq"),
    ("netiftxlatency", "netiftxlat"),
    ("netif_txlat", "netiftxlat"),
    ("tcp_reset", "tcpreset"),
];

/// Our name of a probe.
pub fn probe(name: &str) -> &str {
    PROBES
        .iter()
        .find(|(theirs, _)| *theirs == name)
        .map_or(name, |(_, ours)| ours)
}
