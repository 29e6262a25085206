//! OpenTelemetry's protocol over HTTP: `POST /v1/logs` and `/v1/metrics`, protobuf, gzip.
//!
//! Source: opentelemetry-proto 1.x (`logs/v1/logs.proto`, `metrics/v1/metrics.proto`, `common/v1/common.proto`,
//! `collector/*/v1/*_service.proto`) and the specification's page "OTLP". Numbers of fields are theirs.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::sync::Arc;

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use prost::Message as _;

use crate::wire::Wire;
use crate::{Http, HttpError, Outcome, Target, Timed};

pub const LOGS_PATH: &str = "/v1/logs";
pub const METRICS_PATH: &str = "/v1/metrics";
pub const CONTENT_TYPE: &str = "application/x-protobuf";

/// `SEVERITY_NUMBER_WARN`.
const WARN: u64 = 13;
/// `AGGREGATION_TEMPORALITY_CUMULATIVE`.
const CUMULATIVE: u64 = 2;

/// The headers that all requests have.
pub fn prepared(http: Http) -> Result<Http, HttpError> {
    http.header("content-encoding", "gzip")
}

/// The base of an endpoint and the path of a signal: what the specification calls `OTEL_EXPORTER_OTLP_ENDPOINT`.
pub fn url(base: &str, path: &str) -> String {
    format!("{}{path}", base.trim_end_matches('/'))
}

fn packed(message: &[u8]) -> Bytes {
    let mut out = GzEncoder::new(Vec::with_capacity(message.len() / 4), Compression::fast());
    out.write_all(message).expect("memory takes all");
    out.finish().expect("memory takes all").into()
}

/// `KeyValue` with a string.
fn attribute(w: &mut Wire, field: u32, key: &str, value: &str) {
    w.message(field, |w| {
        w.bytes(1, key);
        w.message(2, |w| w.bytes(1, value));
    });
}

/// `resource` and `scope`: what all in it has in common.
fn common(w: &mut Wire, resource: &[(&str, &str)], scope_field: u32, scope: impl FnOnce(&mut Wire)) {
    w.message(1, |w| {
        for (key, value) in resource {
            attribute(w, 1, key, value);
        }
    });
    w.message(scope_field, |w| {
        w.message(1, |w| {
            w.bytes(1, "sonde");
            w.bytes(2, env!("CARGO_PKG_VERSION"));
        });
        scope(w);
    });
}

/// `ExportLogsServiceResponse` and `ExportMetricsServiceResponse`, which have the same shape.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct ExportResponse {
    #[prost(message, optional, tag = "1")]
    pub partial_success: Option<PartialSuccess>,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct PartialSuccess {
    #[prost(int64, tag = "1")]
    pub rejected: i64,
    #[prost(string, tag = "2")]
    pub error_message: String,
}

/// A receiver may take a request and leave some of it out. What it says in another form is no reason to send again.
pub fn verdict(answer: &Bytes, count: u64) -> Outcome {
    match ExportResponse::decode(answer.clone())
        .ok()
        .and_then(|answer| answer.partial_success)
    {
        Some(partial) if partial.rejected > 0 => Outcome::Partial {
            rejected: count.min(partial.rejected as u64),
            why: partial.error_message,
        },
        _ => Outcome::Sent,
    }
}

/// Makes log records of items.
pub trait Logs: Send + 'static {
    type Item: Timed + Send + Sync + 'static;

    /// The node that the item is of.
    fn node<'a>(&self, item: &'a Self::Item) -> &'a str;
    fn record(&self, item: &Self::Item, record: &mut Record<'_>);
}

/// A log record in the making.
#[derive(Debug)]
pub struct Record<'a> {
    wire: &'a mut Wire,
}

impl Record<'_> {
    pub fn body(&mut self, text: &str) {
        self.wire.message(5, |w| w.bytes(1, text));
    }

    pub fn name(&mut self, name: &str) {
        self.wire.bytes(12, name);
    }

    pub fn text(&mut self, key: &str, value: &str) {
        attribute(self.wire, 6, key, value);
    }

    pub fn int(&mut self, key: &str, value: i64) {
        self.wire.message(6, |w| {
            w.bytes(1, key);
            w.message(2, |w| w.varint(3, value as u64));
        });
    }
}

/// `ExportLogsServiceRequest`, a resource for each node.
pub fn logs_request<L: Logs>(logs: &L, items: &[L::Item]) -> Vec<u8> {
    let mut nodes: BTreeMap<&str, Vec<&L::Item>> = BTreeMap::new();
    for item in items {
        nodes.entry(logs.node(item)).or_default().push(item);
    }
    let mut wire = Wire::new();
    for (node, items) in nodes {
        wire.message(1, |w| {
            common(w, &resource(node), 2, |w| {
                for item in items {
                    w.message(2, |w| {
                        w.fixed64(1, item.time_ns());
                        w.fixed64(11, item.time_ns());
                        w.varint(2, WARN);
                        w.bytes(3, "WARN");
                        logs.record(item, &mut Record { wire: w });
                    });
                }
            });
        });
    }
    wire.as_bytes().to_vec()
}

/// By the semantic conventions of OpenTelemetry.
fn resource(node: &str) -> [(&str, &str); 2] {
    [("service.name", "sonde"), ("k8s.node.name", node)]
}

/// A receiver of log records.
#[derive(Debug)]
pub struct OtlpLogs<L> {
    http: Http,
    logs: L,
}

impl<L: Logs> OtlpLogs<L> {
    /// `http` is [`prepared`], and knows path, credentials and tenant.
    pub const fn new(http: Http, logs: L) -> Self {
        Self { http, logs }
    }
}

impl<L: Logs + Sync> Target for OtlpLogs<L> {
    type Item = L::Item;

    async fn send(&mut self, batch: &Arc<[L::Item]>, from: usize) -> Outcome {
        let items = &batch[from..];
        let count = items.iter().map(Timed::count).sum();
        match self
            .http
            .ask(CONTENT_TYPE, packed(&logs_request(&self.logs, items)))
            .await
        {
            Ok(answer) => verdict(&answer, count),
            Err(outcome) => outcome,
        }
    }
}

/// What a metric is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Counter,
    Gauge,
    Histogram,
}

/// `ExportMetricsServiceRequest` in the making.
#[derive(Debug, Default)]
pub struct Metrics {
    wire: Wire,
    values: u64,
}

impl Metrics {
    pub fn new() -> Self {
        Self::default()
    }

    pub const fn values(&self) -> u64 {
        self.values
    }

    /// Before it is packed.
    pub fn len(&self) -> usize {
        self.wire.len()
    }

    pub fn is_empty(&self) -> bool {
        self.values == 0
    }

    pub fn as_bytes(&self) -> &[u8] {
        self.wire.as_bytes()
    }

    /// Metrics of a node.
    pub fn node(&mut self, node: &str, write: impl FnOnce(&mut Scope<'_>)) {
        let values = &mut self.values;
        self.wire.message(1, |w| {
            common(w, &resource(node), 2, |w| write(&mut Scope { wire: w, values }));
        });
    }

    /// The body of a request.
    pub fn pack(&self) -> Bytes {
        packed(self.wire.as_bytes())
    }
}

/// Metrics of one node.
#[derive(Debug)]
pub struct Scope<'a> {
    wire: &'a mut Wire,
    values: &'a mut u64,
}

impl Scope<'_> {
    pub fn metric(&mut self, name: &str, help: &str, unit: &str, kind: Kind, points: impl FnOnce(&mut Points<'_>)) {
        let values = &mut *self.values;
        self.wire.message(2, |w| {
            for (field, text) in [(1, name), (2, help), (3, unit)] {
                w.bytes(field, text);
            }
            let field = match kind {
                Kind::Gauge => 5,
                Kind::Counter => 7,
                Kind::Histogram => 9,
            };
            w.message(field, |w| {
                points(&mut Points { wire: w, values });
                if kind != Kind::Gauge {
                    w.varint(2, CUMULATIVE);
                }
                if kind == Kind::Counter {
                    w.varint(3, 1); // is_monotonic
                }
            });
        });
    }
}

/// Labels of a series, written once for all its metrics.
#[derive(Debug, Default)]
pub struct Attributes {
    /// As fields 7 of `NumberDataPoint`.
    number: Wire,
    /// As fields 9 of `HistogramDataPoint`.
    histogram: Wire,
}

impl Attributes {
    pub fn new<'a>(labels: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        let mut all = Self::default();
        for (key, value) in labels {
            attribute(&mut all.number, 7, key, value);
            attribute(&mut all.histogram, 9, key, value);
        }
        all
    }
}

/// Data points of a metric. When the counting began is not known: `start_time_unix_nano` is left out.
#[derive(Debug)]
pub struct Points<'a> {
    wire: &'a mut Wire,
    values: &'a mut u64,
}

impl Points<'_> {
    pub fn number(&mut self, attributes: &Attributes, time_ns: u64, value: f64) {
        *self.values += 1;
        self.wire.message(1, |w| {
            w.fields(attributes.number.as_bytes());
            w.fixed64(3, time_ns);
            w.double(4, value);
        });
    }

    /// `counts`: of each bucket by itself, one more than `bounds`, which end before +Inf.
    pub fn histogram(&mut self, attributes: &Attributes, time_ns: u64, counts: &[u64], bounds: &[f64], sum: f64) {
        *self.values += 1;
        self.wire.message(1, |w| {
            w.fields(attributes.histogram.as_bytes());
            w.fixed64(3, time_ns);
            w.fixed64(4, counts.iter().sum());
            w.double(5, sum);
            w.packed64(6, counts.iter().copied());
            w.packed64(7, bounds.iter().map(|bound| bound.to_bits()));
        });
    }
}
