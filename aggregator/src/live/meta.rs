//! A probe as `/federate` shows it: which labels and series names its columns have. Made once for each catalogue.

use std::collections::HashSet;

use sonde_common::prom::{Number, Scale, Type};
use sonde_proto::{names, v1};

/// Labels of every series, before the probe's own.
pub(super) const NODE: &str = "k8s_node";
pub(super) const NAMESPACE: &str = "k8s_namespace";
pub(super) const POD: &str = "k8s_pod";
/// Bound of a histogram's bucket.
pub(super) const LE: &str = "le";

#[derive(Debug, PartialEq)]
pub(super) struct ProbeMeta {
    pub probe: String,
    pub labels: Vec<String>,
    pub columns: Vec<ColumnMeta>,
}

#[derive(Debug, PartialEq)]
pub(super) struct ColumnMeta {
    pub family: String,
    pub help: String,
    pub shape: Shape,
    scale: Scale,
}

#[derive(Debug, PartialEq)]
pub(super) enum Shape {
    Counter,
    Gauge,
    /// `le` values as text, ascending, `+Inf` last; a row has one count for each and then the sum.
    Histogram(Vec<String>),
}

/// What stands behind the family's name in the name of a series.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Suffix {
    Plain,
    Bucket,
    Sum,
    Count,
}

impl Suffix {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Plain => "",
            Self::Bucket => "_bucket",
            Self::Sum => "_sum",
            Self::Count => "_count",
        }
    }
}

/// Why a probe cannot be shown: a page with such labels would be refused as a whole by Prometheus.
#[derive(Debug, PartialEq, thiserror::Error)]
pub(super) enum MetaError {
    #[error("label `{0}` is reserved")]
    Reserved(String),
    #[error("label `{0}` comes twice")]
    LabelTwice(String),
    #[error("two columns give the series `{0}`")]
    SeriesTwice(String),
}

impl ProbeMeta {
    pub(super) fn new(def: &v1::ProbeDef) -> Result<Self, MetaError> {
        let mut labels: Vec<String> = Vec::with_capacity(def.labels.len());
        for label in &def.labels {
            if [NODE, NAMESPACE, POD, LE].contains(&label.name.as_str()) {
                return Err(MetaError::Reserved(label.name.clone()));
            }
            if labels.contains(&label.name) {
                return Err(MetaError::LabelTwice(label.name.clone()));
            }
            labels.push(label.name.clone());
        }
        let columns: Vec<_> = def.columns.iter().map(|c| ColumnMeta::new(&def.name, c)).collect();
        let mut seen = HashSet::new();
        for name in columns.iter().flat_map(ColumnMeta::series_names) {
            if !seen.insert(name.clone()) {
                return Err(MetaError::SeriesTwice(name));
            }
        }
        Ok(Self {
            probe: def.name.clone(),
            labels,
            columns,
        })
    }
}

impl ColumnMeta {
    fn new(probe: &str, def: &v1::ColumnDef) -> Self {
        let family = names::metric(probe, def);
        let shape = match def.kind() {
            v1::Kind::Counter => Shape::Counter,
            v1::Kind::Histogram => {
                let mut bounds: Vec<_> = def.bounds.iter().map(|b| number_text(Number::Float(*b))).collect();
                bounds.push("+Inf".into());
                Shape::Histogram(bounds)
            }
            v1::Kind::Gauge | v1::Kind::Unspecified => Shape::Gauge,
        };
        let help = if def.help.is_empty() {
            family.clone()
        } else {
            def.help.clone()
        };
        Self {
            family,
            help,
            shape,
            scale: Scale::new(def.scale),
        }
    }

    pub(super) fn kind(&self) -> Type {
        match self.shape {
            Shape::Counter => Type::Counter,
            Shape::Gauge => Type::Gauge,
            Shape::Histogram(_) => Type::Histogram,
        }
    }

    pub(super) fn suffixes(&self) -> &'static [Suffix] {
        match self.shape {
            Shape::Histogram(_) => &[Suffix::Bucket, Suffix::Sum, Suffix::Count],
            _ => &[Suffix::Plain],
        }
    }

    pub(super) fn series_names(&self) -> impl Iterator<Item = String> {
        self.suffixes()
            .iter()
            .map(|suffix| format!("{}{}", self.family, suffix.as_str()))
    }

    /// How many integers one row holds.
    pub(super) fn width(&self) -> usize {
        match &self.shape {
            Shape::Histogram(bounds) => bounds.len() + 1,
            _ => 1,
        }
    }

    /// A stored integer in the unit. For histograms only the sum has one; counts are counts.
    pub(super) fn value(&self, stored: i64) -> Number {
        self.scale.apply(stored.into())
    }
}

fn number_text(number: Number) -> String {
    let mut text = String::new();
    number.write(&mut text);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn column(name: &str, kind: v1::Kind, scale: f64) -> v1::ColumnDef {
        v1::ColumnDef {
            name: name.into(),
            kind: kind.into(),
            scale,
            bounds: vec![0.001, 1.0],
            ..Default::default()
        }
    }

    fn probe(labels: &[&str], columns: Vec<v1::ColumnDef>) -> v1::ProbeDef {
        let labels = labels
            .iter()
            .map(|l| v1::LabelDef {
                name: (*l).into(),
                help: String::new(),
            })
            .collect();
        v1::ProbeDef {
            name: "p".into(),
            labels,
            columns,
            ..Default::default()
        }
    }

    #[test]
    fn values_are_scaled_without_noise() {
        let seconds = ColumnMeta::new("p", &column("busy_seconds", v1::Kind::Counter, 1e-9));
        assert_eq!(number_text(seconds.value(300_000_000)), "0.3");
        assert_eq!(number_text(seconds.value(1)), "0.000000001");
        let pages = ColumnMeta::new("p", &column("memory_bytes", v1::Kind::Gauge, 4096.0));
        assert_eq!(number_text(pages.value(2)), "8192");
        for whole in [0.0, 1.0, f64::NAN] {
            let plain = ColumnMeta::new("p", &column("x", v1::Kind::Gauge, whole));
            assert_eq!(number_text(plain.value(i64::MAX)), "9223372036854775807");
        }
    }

    #[test]
    fn a_histogram_has_three_kinds_of_series() {
        let meta = ColumnMeta::new("p", &column("wait_seconds", v1::Kind::Histogram, 1e-9));
        assert_eq!(
            meta.shape,
            Shape::Histogram(vec!["0.001".into(), "1".into(), "+Inf".into()])
        );
        assert_eq!(meta.width(), 4);
        let names: Vec<_> = meta.series_names().collect();
        assert_eq!(
            names,
            [
                "sonde_p_wait_seconds_bucket",
                "sonde_p_wait_seconds_sum",
                "sonde_p_wait_seconds_count"
            ]
        );
    }

    #[test]
    fn a_probe_that_would_spoil_the_page_is_refused() {
        let refused = |def| ProbeMeta::new(&def).unwrap_err();
        assert_eq!(
            refused(probe(&["k8s_pod"], vec![])),
            MetaError::Reserved("k8s_pod".into())
        );
        assert_eq!(refused(probe(&["le"], vec![])), MetaError::Reserved("le".into()));
        assert_eq!(refused(probe(&["a", "a"], vec![])), MetaError::LabelTwice("a".into()));
        let twice = vec![
            column("x", v1::Kind::Histogram, 1.0),
            column("x_sum", v1::Kind::Gauge, 1.0),
        ];
        assert_eq!(
            refused(probe(&[], twice)),
            MetaError::SeriesTwice("sonde_p_x_sum".into())
        );
    }
}
