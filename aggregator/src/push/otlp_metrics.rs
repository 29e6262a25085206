//! Readings as metrics of OTLP.

use std::collections::HashMap;

use sonde_common::prom::Type;
use sonde_common::time::now_ns;
use sonde_push::Request;
use sonde_push::otlp::{Attributes, Kind, Metrics, Points};

use super::metrics::Encode;
use crate::live::{Column, Reading};

/// Bytes of a request before they are packed: receivers take 4 MiB at least.
const BYTES: usize = 2 << 20;

/// Times of what was sent last, by node and probe.
#[derive(Debug, Default)]
pub(super) struct OtlpMetrics {
    sent: HashMap<(String, String), u64>,
}

impl Encode for OtlpMetrics {
    fn encode(&mut self, readings: Vec<Reading>, send: &mut dyn FnMut(Request)) {
        let before = std::mem::take(&mut self.sent);
        let mut metrics = Metrics::new();
        for reading in readings {
            let key = (reading.node().to_owned(), reading.probe().to_owned());
            if before.get(&key).is_none_or(|time_ns| *time_ns < reading.time_ns()) {
                write(&mut metrics, &reading);
            }
            self.sent.insert(key, reading.time_ns());
            if metrics.len() >= BYTES {
                flush(&mut metrics, send);
            }
        }
        flush(&mut metrics, send);
    }
}

fn flush(metrics: &mut Metrics, send: &mut dyn FnMut(Request)) {
    let full = std::mem::take(metrics);
    if !full.is_empty() {
        send(Request {
            body: full.pack(),
            values: full.values(),
            time_ns: now_ns(),
        });
    }
}

fn write(metrics: &mut Metrics, reading: &Reading) {
    let rows: Vec<Attributes> = (0..reading.rows())
        .map(|row| {
            let labels = reading.labels(row).filter(|(_, value)| !value.is_empty());
            Attributes::new(labels.map(|(name, value)| (convention(name), value)))
        })
        .collect();
    let mut room = Vec::new();
    metrics.node(reading.node(), |scope| {
        for column in reading.columns() {
            let kind = match column.kind() {
                Type::Counter => Kind::Counter,
                Type::Gauge => Kind::Gauge,
                Type::Histogram => Kind::Histogram,
            };
            let bounds: Vec<f64> = column.bounds().iter().filter_map(|le| finite(le)).collect();
            scope.metric(column.family(), column.help(), unit(column.family()), kind, |points| {
                reading.each(column, &mut room, |row, values| {
                    point(points, &rows[row], reading.time_ns(), column, (values, &bounds));
                });
            });
        }
    });
}

fn point(
    points: &mut Points<'_>,
    row: &Attributes,
    time_ns: u64,
    column: Column<'_>,
    (values, bounds): (&[i64], &[f64]),
) {
    let buckets = column.bounds().len();
    let value = column.value(values[buckets]);
    if buckets == 0 {
        return points.number(row, time_ns, value);
    }
    let counts: Vec<u64> = values[..buckets].iter().map(|count| *count as u64).collect();
    points.histogram(row, time_ns, &counts, bounds, value);
}

fn finite(le: &str) -> Option<f64> {
    le.parse().ok().filter(|bound: &f64| bound.is_finite())
}

/// By OpenTelemetry's semantic conventions; the node is the resource's.
fn convention(label: &str) -> &str {
    match label {
        "k8s_namespace" => "k8s.namespace.name",
        "k8s_pod" => "k8s.pod.name",
        label => label,
    }
}

/// UCUM, as the name tells it.
fn unit(family: &str) -> &'static str {
    let name = family.strip_suffix("_total").unwrap_or(family);
    if name.ends_with("_seconds") {
        "s"
    } else if name.ends_with("_bytes") {
        "By"
    } else {
        ""
    }
}
