//! What is written is what OpenTelemetry's own types read.

use std::sync::Arc;

use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value::Value};
use opentelemetry_proto::tonic::metrics::v1::{metric::Data, number_data_point};
use prost::Message as _;
use sonde_push::otlp::{self, Attributes, ExportResponse, Kind, Logs, Metrics, OtlpLogs, PartialSuccess, Record};
use sonde_push::testing::{Answer, Server};
use sonde_push::{Auth, Http, Outcome, Target as _, Timed};

#[derive(Debug)]
struct Fault(u64, &'static str, i64);

impl Timed for Fault {
    fn time_ns(&self) -> u64 {
        self.0
    }
}

struct Faults;

impl Logs for Faults {
    type Item = Fault;

    fn node<'a>(&self, item: &'a Fault) -> &'a str {
        item.1
    }

    fn record(&self, item: &Fault, record: &mut Record<'_>) {
        record.body("a packet was dropped");
        record.name("PACKETLOSS");
        record.text("sonde.reason", "NO_SOCKET");
        record.int("source.port", item.2);
    }
}

fn text(attributes: &[KeyValue], key: &str) -> String {
    let found = attributes.iter().find(|attribute| attribute.key == key);
    match found.and_then(|found| found.value.clone()?.value) {
        Some(Value::StringValue(text)) => text,
        Some(Value::IntValue(number)) => number.to_string(),
        other => panic!("{key}: {other:?}"),
    }
}

fn target(server: &Server) -> OtlpLogs<Faults> {
    let url = otlp::url(&format!("http://{}/base/", server.address), otlp::LOGS_PATH);
    let http = otlp::prepared(Http::new(&url, "/", None, Auth::None).unwrap()).unwrap();
    OtlpLogs::new(http, Faults)
}

fn batch() -> Arc<[Fault]> {
    [Fault(7, "b", 80), Fault(5, "a", -1), Fault(9, "b", 443)].into()
}

#[tokio::test]
async fn records_come_by_node_with_all_that_they_have() {
    let server = Server::start([], None).await.unwrap();
    assert_eq!(target(&server).send(&batch(), 0).await, Outcome::Sent);
    let received = &server.received()[0];
    assert_eq!(received.request, "POST /base/v1/logs");
    assert_eq!(received.header("content-type"), "application/x-protobuf");
    assert_eq!(received.header("content-encoding"), "gzip");
    let request = ExportLogsServiceRequest::decode(received.ungzipped().unwrap().as_slice()).unwrap();
    let mut seen = Vec::new();
    for logs in &request.resource_logs {
        let resource = &logs.resource.as_ref().unwrap().attributes;
        assert_eq!(text(resource, "service.name"), "sonde");
        for record in &logs.scope_logs[0].log_records {
            assert_eq!(record.event_name, "PACKETLOSS");
            assert_eq!(record.severity_text, "WARN");
            assert_eq!(text(&record.attributes, "sonde.reason"), "NO_SOCKET");
            let body = record.body.clone().unwrap().value;
            assert_eq!(body, Some(Value::StringValue("a packet was dropped".into())));
            let port = text(&record.attributes, "source.port");
            seen.push((text(resource, "k8s.node.name"), record.time_unix_nano, port));
        }
    }
    let seen: Vec<_> = seen.iter().map(|(n, t, p)| (n.as_str(), *t, p.as_str())).collect();
    assert_eq!(seen, [("a", 5, "-1"), ("b", 7, "80"), ("b", 9, "443")]);
}

#[tokio::test]
async fn what_the_receiver_left_out_is_counted() {
    let partial = ExportResponse {
        partial_success: Some(PartialSuccess {
            rejected: 2,
            error_message: "too old".into(),
        }),
    };
    let outcome = otlp::verdict(&partial.encode_to_vec().into(), 3);
    let expected = Outcome::Partial {
        rejected: 2,
        why: "too old".into(),
    };
    assert_eq!(outcome, expected);
    assert_eq!(otlp::verdict(&"{}".into(), 3), Outcome::Sent, "JSON, or anything else");
    let answers = [
        Answer::Http("400 Bad Request\r\n", "no"),
        Answer::Http("503 Busy\r\n", ""),
    ];
    let server = Server::start(answers, None).await.unwrap();
    let mut target = target(&server);
    assert!(matches!(target.send(&batch(), 0).await, Outcome::Refused { .. }));
    assert!(matches!(target.send(&batch(), 0).await, Outcome::Retry { done: 0, .. }));
}

#[test]
fn metrics_have_their_kind_and_all_points() {
    let mut metrics = Metrics::new();
    let labels = Attributes::new([("k8s.pod.name", "web"), ("device", "eth0")]);
    metrics.node("a", |scope| {
        scope.metric("sonde_x_total", "Help.", "", Kind::Counter, |points| {
            points.number(&labels, 11, 1.5);
            points.number(&Attributes::default(), 12, 0.0);
        });
        scope.metric("sonde_y", "", "s", Kind::Gauge, |points| {
            points.number(&labels, 11, -2.0)
        });
        scope.metric("sonde_z_seconds", "", "s", Kind::Histogram, |points| {
            points.histogram(&labels, 13, &[1, 0, 2], &[0.5, 1.0], 7.25);
        });
    });
    assert_eq!(metrics.values(), 4);
    let request = ExportMetricsServiceRequest::decode(metrics.as_bytes()).unwrap();
    let [resource] = &request.resource_metrics[..] else {
        panic!("{request:?}")
    };
    assert_eq!(
        text(&resource.resource.as_ref().unwrap().attributes, "k8s.node.name"),
        "a"
    );
    let [counter, gauge, histogram] = &resource.scope_metrics[0].metrics[..] else {
        panic!("{resource:?}")
    };
    assert_eq!(
        (counter.name.as_str(), counter.description.as_str()),
        ("sonde_x_total", "Help.")
    );
    let Some(Data::Sum(sum)) = &counter.data else {
        panic!("{counter:?}")
    };
    assert_eq!((sum.is_monotonic, sum.aggregation_temporality), (true, 2));
    assert_eq!(sum.data_points[0].value, Some(number_data_point::Value::AsDouble(1.5)));
    assert_eq!(sum.data_points[1].value, Some(number_data_point::Value::AsDouble(0.0)));
    assert_eq!(
        (
            sum.data_points[0].time_unix_nano,
            sum.data_points[0].start_time_unix_nano
        ),
        (11, 0)
    );
    assert_eq!(text(&sum.data_points[0].attributes, "device"), "eth0");
    let Some(Data::Gauge(points)) = &gauge.data else {
        panic!("{gauge:?}")
    };
    assert_eq!((gauge.unit.as_str(), points.data_points.len()), ("s", 1));
    let Some(Data::Histogram(histogram)) = &histogram.data else {
        panic!("{histogram:?}")
    };
    let point = &histogram.data_points[0];
    assert_eq!((point.count, point.sum), (3, Some(7.25)));
    assert_eq!(
        (&point.bucket_counts[..], &point.explicit_bounds[..]),
        (&[1, 0, 2][..], &[0.5, 1.0][..])
    );
    assert_eq!(histogram.aggregation_temporality, 2);
    assert_eq!(text(&point.attributes, "k8s.pod.name"), "web");
}
