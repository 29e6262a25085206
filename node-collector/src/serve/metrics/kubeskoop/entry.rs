//! How one of KubeSkoop's metrics is made of a probe's columns.

use sonde_common::prom::Type;

/// One metric.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    pub name: &'static str,
    /// As KubeSkoop declares it: many of its counters are gauges.
    pub kind: Type,
    pub help: &'static str,
    /// Sonde's.
    pub probe: &'static str,
    /// Added up. A value is as it is stored, not in the unit of Sonde's metric.
    pub columns: &'static [&'static str],
    pub rows: Rows,
    pub labels: Labels,
    /// Only the node has it.
    pub of_node: bool,
    /// Only RDMA devices of this type have it.
    pub driver: Option<&'static str>,
    /// Told in pages of memory.
    pub in_pages: bool,
}

/// Which rows of a subject are added up. Words are compared without case and `_`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rows {
    All,
    /// Those of which the label has one of these values; 0 where a subject has only others.
    Only(&'static str, &'static [&'static str]),
    /// The same, but nothing where a subject has only others: those do not tell that there is none of these.
    Of(&'static str, &'static [&'static str]),
    Except(&'static str, &'static [&'static str]),
}

/// The labels of a metric's series.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Labels {
    /// `k8s_node`, `k8s_namespace`, `k8s_pod` and the additional ones.
    Standard,
    /// The same, and `device`, `type` (the device's name up to the first `_`) and `port`.
    Rdma { port: bool },
    /// `k8s_node`, and of the row (theirs, ours).
    NodeAnd(&'static [(&'static str, &'static str)]),
    /// `k8s_node` and [`TUPLE`] of a packet of which nothing is known: one series for the node.
    Nobody,
    /// `k8s_node` and [`TUPLE`] of packets that the subject sent.
    Sender,
    /// `k8s_node` and [`TUPLE`] from the row's own labels, where it has them.
    Flow,
}

/// The labels of a packet.
pub(super) const TUPLE: [&str; 13] = [
    "protocol",
    "src",
    "src_type",
    "src_node",
    "src_namespace",
    "src_pod",
    "dst",
    "dst_type",
    "dst_node",
    "dst_namespace",
    "dst_pod",
    "sport",
    "dport",
];

impl Entry {
    const fn new(
        kind: Type,
        name: &'static str,
        probe: &'static str,
        columns: &'static [&'static str],
        help: &'static str,
    ) -> Self {
        Self {
            name,
            kind,
            help,
            probe,
            columns,
            rows: Rows::All,
            labels: Labels::Standard,
            of_node: false,
            driver: None,
            in_pages: false,
        }
    }
    pub(super) const fn gauge(
        name: &'static str,
        probe: &'static str,
        columns: &'static [&'static str],
        help: &'static str,
    ) -> Self {
        Self::new(Type::Gauge, name, probe, columns, help)
    }
    pub(super) const fn counter(
        name: &'static str,
        probe: &'static str,
        columns: &'static [&'static str],
        help: &'static str,
    ) -> Self {
        Self::new(Type::Counter, name, probe, columns, help)
    }
    pub(super) const fn rows(mut self, rows: Rows) -> Self {
        self.rows = rows;
        self
    }
    pub(super) const fn labels(mut self, labels: Labels) -> Self {
        self.labels = labels;
        self
    }
    pub(super) const fn of_node(mut self) -> Self {
        self.of_node = true;
        self
    }
    pub(super) const fn of_driver(mut self, driver: &'static str) -> Self {
        self.driver = Some(driver);
        self
    }
    pub(super) const fn in_pages(mut self) -> Self {
        self.in_pages = true;
        self
    }
}

impl Rows {
    pub(super) fn label(self) -> Option<&'static str> {
        match self {
            Self::All => None,
            Self::Only(label, _) | Self::Of(label, _) | Self::Except(label, _) => Some(label),
        }
    }

    /// Whether rows with this value of the label are added up.
    pub(super) fn take(self, value: &str) -> bool {
        match self {
            Self::All => true,
            Self::Only(_, words) | Self::Of(_, words) => words.iter().any(|word| same(word, value)),
            Self::Except(_, words) => !words.iter().any(|word| same(word, value)),
        }
    }
}

fn same(a: &str, b: &str) -> bool {
    fn letters(text: &str) -> impl Iterator<Item = u8> {
        text.bytes().filter(|b| *b != b'_').map(|b| b.to_ascii_lowercase())
    }
    letters(a).eq(letters(b))
}
