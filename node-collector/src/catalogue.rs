//! How a probe describes itself: the one place of its names, units and help. Travels to the aggregator at connect.

use sonde_proto::v1;
pub use sonde_proto::v1::Kind;

#[derive(Debug)]
pub struct ProbeSpec {
    pub name: &'static str,
    pub help: &'static str,
    /// File and group, netlink message or hook, with the kernel function that fills it and the first version that has
    /// it. For people: it stays on this side.
    pub source: &'static str,
    pub labels: &'static [LabelSpec],
    pub columns: &'static [ColumnSpec],
    pub event_types: &'static [EventTypeSpec],
}

#[derive(Debug)]
pub struct LabelSpec {
    pub name: &'static str,
    pub help: &'static str,
}

#[derive(Debug)]
pub struct ColumnSpec {
    /// Unit included, without `_total`: `receive_bytes`.
    pub name: &'static str,
    pub help: &'static str,
    pub kind: Kind,
    pub unit: &'static str,
    /// What a stored value is multiplied with to be in `unit`.
    pub scale: f64,
    /// Upper bounds of a histogram in `unit`.
    pub bounds: &'static [f64],
}

#[derive(Debug)]
pub struct EventTypeSpec {
    pub name: &'static str,
    pub help: &'static str,
}

impl ColumnSpec {
    pub const fn counter(name: &'static str, unit: &'static str, help: &'static str) -> Self {
        Self {
            name,
            help,
            kind: Kind::Counter,
            unit,
            scale: 1.0,
            bounds: &[],
        }
    }
    pub const fn gauge(name: &'static str, unit: &'static str, help: &'static str) -> Self {
        Self {
            name,
            help,
            kind: Kind::Gauge,
            unit,
            scale: 1.0,
            bounds: &[],
        }
    }
    /// `bounds` are in `unit`; the sum is a stored value and so times `scale` in `unit`.
    pub const fn histogram(name: &'static str, unit: &'static str, help: &'static str, bounds: &'static [f64]) -> Self {
        Self {
            name,
            help,
            kind: Kind::Histogram,
            unit,
            scale: 1.0,
            bounds,
        }
    }
    /// A counter that is kept in milliseconds; `unit` is `seconds`.
    pub const fn counter_ms(name: &'static str, unit: &'static str, help: &'static str) -> Self {
        Self::counter(name, unit, help).scaled(1e-3)
    }
    pub const fn scaled(mut self, scale: f64) -> Self {
        self.scale = scale;
        self
    }
    /// How many integers one row holds for this column.
    pub const fn width(&self) -> usize {
        match self.kind {
            Kind::Histogram => self.bounds.len() + 2,
            _ => 1,
        }
    }
}

impl ProbeSpec {
    pub fn to_proto(&self) -> v1::ProbeDef {
        v1::ProbeDef {
            name: self.name.into(),
            help: self.help.into(),
            labels: self
                .labels
                .iter()
                .map(|l| v1::LabelDef {
                    name: l.name.into(),
                    help: l.help.into(),
                })
                .collect(),
            columns: self.columns.iter().map(ColumnSpec::to_proto).collect(),
            event_types: self
                .event_types
                .iter()
                .map(|t| v1::EventTypeDef {
                    name: t.name.into(),
                    help: t.help.into(),
                })
                .collect(),
        }
    }
}

impl ColumnSpec {
    pub fn to_proto(&self) -> v1::ColumnDef {
        v1::ColumnDef {
            name: self.name.into(),
            help: self.help.into(),
            kind: self.kind.into(),
            unit: self.unit.into(),
            scale: self.scale,
            bounds: self.bounds.to_vec(),
        }
    }
}
