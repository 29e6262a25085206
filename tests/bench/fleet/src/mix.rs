//! What a node's readings are made of: the collector's probes that are on by default, and which of their columns move.

use sonde_collector::catalogue::{Kind, ProbeSpec};
use sonde_collector::probes::{Whose, is_on_by_default, specs, whose};
use sonde_proto::v1;

/// All probes, in the order of the catalogue.
#[derive(Debug)]
pub struct Mix {
    pub probes: Vec<Probe>,
}

#[derive(Debug)]
pub struct Probe {
    pub spec: &'static ProbeSpec,
    pub whose: Whose,
    /// The labels of each row that a subject has. The first row is the quiet one where there are more.
    pub label_sets: Vec<Vec<&'static str>>,
    /// By column.
    pub moves: Vec<Moves>,
}

/// How often a column of a busy subject moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moves {
    /// With every reading, by about so much.
    Grows(i64),
    /// Up and down around what it is.
    Wanders,
    /// Some buckets and the sum.
    Fills,
    /// Now and then: errors, drops, what the kernel rarely does.
    Seldom,
}

impl Mix {
    /// As a collector sends it that nobody configured.
    pub fn real() -> Self {
        let on = specs().into_iter().filter(|spec| is_on_by_default(spec.name));
        Self {
            probes: on.map(Probe::new).collect(),
        }
    }

    pub fn catalogue(&self) -> v1::Catalogue {
        v1::Catalogue {
            probes: self.probes.iter().map(|probe| probe.spec.to_proto()).collect(),
        }
    }
}

impl Probe {
    fn new(spec: &'static ProbeSpec) -> Self {
        Self {
            spec,
            whose: whose(spec.name),
            label_sets: label_sets(spec),
            moves: spec.columns.iter().map(|c| moves(c.name, c.kind)).collect(),
        }
    }

    /// Rows of a node with so many pods.
    pub fn rows(&self, pods: usize) -> usize {
        let subjects = match self.whose {
            Whose::NodeAndPods => 1 + pods,
            Whose::Node => 1,
            Whose::Pods => pods,
        };
        if self.spec.columns.is_empty() {
            0
        } else {
            subjects * self.label_sets.len()
        }
    }
}

/// Enough of the values that a label has on a real host to give each subject the number of rows that it has there.
fn label_sets(spec: &ProbeSpec) -> Vec<Vec<&'static str>> {
    let values = |label: &str| -> &'static [&'static str] {
        match label {
            "device" => &["lo", "eth0"],
            "family" => &["ipv6", "ipv4"],
            "protocol" => &["UDP", "TCP"],
            "operation" => &["send", "receive"],
            "kind" => &["fq_codel", "noqueue"],
            "reason" => &["NO_SOCKET", "NETFILTER_DROP"],
            "class" => &["expected", "suspect"],
            "vector" => &["net_tx", "net_rx"],
            "state" => &["time_wait", "established"],
            "type" => &["TCPRESET_NOSOCK", "TCPRESET_RECEIVE"],
            _ => &["other", "first"],
        }
    };
    if spec.labels.is_empty() {
        return vec![Vec::new()];
    }
    (0..2)
        .map(|row| spec.labels.iter().map(|label| values(label.name)[row]).collect())
        .collect()
}

fn moves(name: &str, kind: Kind) -> Moves {
    const TRAFFIC: [&str; 7] = [
        "bytes",
        "packets",
        "segments",
        "datagrams",
        "octets",
        "messages",
        "acks",
    ];
    const SELDOM: [&str; 16] = [
        "error",
        "drop",
        "fail",
        "overrun",
        "invalid",
        "bad",
        "lost",
        "collision",
        "fifo",
        "frame",
        "compressed",
        "retrans",
        "multicast",
        "broadcast",
        "no_",
        "memory_",
    ];
    match kind {
        Kind::Histogram => Moves::Fills,
        Kind::Gauge => Moves::Wanders,
        _ if SELDOM.iter().any(|word| name.contains(word)) => Moves::Seldom,
        _ if name.contains("bytes") || name.contains("octets") => Moves::Grows(50_000),
        _ if TRAFFIC.iter().any(|word| name.contains(word)) => Moves::Grows(60),
        _ => Moves::Seldom,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_collectors_probes_give_every_kind_of_column() {
        let mix = Mix::real();
        assert!(mix.probes.len() >= 15, "{} probes", mix.probes.len());
        let moves: Vec<Moves> = mix.probes.iter().flat_map(|p| p.moves.iter().copied()).collect();
        for kind in [
            Moves::Grows(60),
            Moves::Grows(50_000),
            Moves::Wanders,
            Moves::Fills,
            Moves::Seldom,
        ] {
            assert!(moves.contains(&kind), "{kind:?}");
        }
        let seldom = moves.iter().filter(|m| **m == Moves::Seldom).count();
        assert!(
            seldom * 2 > moves.len(),
            "most counters of a kernel stand still: {seldom} of {}",
            moves.len()
        );
    }
}
