//! Both versions of a request, read with the messages of Prometheus' own protocol files.

use std::collections::BTreeMap;

use prost::Message as _;
use sonde_push::remote_write::{Family, Kind, Labels, PATH, STALE, Version, Writer, verdict};
use sonde_push::testing::Server;
use sonde_push::testing::prometheus::{WriteRequest, v2};
use sonde_push::{Auth, Http, Outcome, Posted, Request, Target as _};

const FAMILY: Family<'_> = Family {
    name: "sonde_wait_seconds",
    help: "How long.",
    kind: Kind::Histogram,
};

fn written(version: Version) -> Writer {
    let labels = Labels::new([("pod", "web"), ("Zone", "a"), ("none", "")]);
    let mut writer = Writer::new(version);
    writer.sample(
        &FAMILY,
        "sonde_wait_seconds_bucket",
        &labels,
        Some(("le", "+Inf")),
        1500,
        3.0,
    );
    writer.sample(&FAMILY, "sonde_wait_seconds_sum", &labels, None, 1500, STALE);
    assert_eq!(writer.values(), 2);
    writer
}

type Series = (Vec<(String, String)>, u64, i64);

fn expected() -> Vec<Series> {
    let labels = |all: &[(&str, &str)]| all.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    // In the order of bytes: capitals, `_`, small letters.
    let bucket = [
        ("Zone", "a"),
        ("__name__", "sonde_wait_seconds_bucket"),
        ("le", "+Inf"),
        ("pod", "web"),
    ];
    let sum = [("Zone", "a"), ("__name__", "sonde_wait_seconds_sum"), ("pod", "web")];
    // By bits: what says that a series ended is no number.
    vec![
        (labels(&bucket), 3.0_f64.to_bits(), 1500),
        (labels(&sum), 0x7ff0_0000_0000_0002, 1500),
    ]
}

#[test]
fn version_1_has_sorted_labels_and_each_family_once() {
    let request = WriteRequest::decode(written(Version::V1).finish().as_slice()).unwrap();
    let series: Vec<Series> = request
        .timeseries
        .iter()
        .map(|series| {
            let labels = series
                .labels
                .iter()
                .map(|l| (l.name.clone(), l.value.clone()))
                .collect();
            (labels, series.samples[0].value.to_bits(), series.samples[0].timestamp)
        })
        .collect();
    assert_eq!(series, expected());
    let [family] = &request.metadata[..] else {
        panic!("{:?}", request.metadata)
    };
    assert_eq!(
        (family.kind, family.family.as_str(), family.help.as_str()),
        (3, "sonde_wait_seconds", "How long.")
    );
}

#[test]
fn version_2_has_the_same_by_reference() {
    let request = v2::Request::decode(written(Version::V2).finish().as_slice()).unwrap();
    assert_eq!(request.symbols[0], "", "as the specification wants it");
    let mut counts = BTreeMap::new();
    for text in &request.symbols {
        *counts.entry(text).or_insert(0) += 1;
    }
    assert!(counts.values().all(|count| *count == 1), "{counts:?}");
    let text = |place: u32| request.symbols[place as usize].clone();
    let series: Vec<Series> = request
        .timeseries
        .iter()
        .map(|series| {
            let labels = series
                .labels_refs
                .chunks(2)
                .map(|pair| (text(pair[0]), text(pair[1])))
                .collect();
            let metadata = series.metadata.as_ref().unwrap();
            assert_eq!((metadata.kind, text(metadata.help_ref)), (3, "How long.".to_owned()));
            (labels, series.samples[0].value.to_bits(), series.samples[0].timestamp)
        })
        .collect();
    assert_eq!(series, expected());
}

#[tokio::test]
async fn a_request_says_what_it_is() {
    for (version, number, kind) in [
        (Version::V1, "0.1.0", "application/x-protobuf"),
        (
            Version::V2,
            "2.0.0",
            "application/x-protobuf;proto=io.prometheus.write.v2.Request",
        ),
    ] {
        let server = Server::start([], None).await.unwrap();
        let http = Http::new(&format!("http://{}", server.address), PATH, None, Auth::None).unwrap();
        let mut target = Posted::new(version.prepared(http).unwrap(), version.content_type(), verdict);
        let writer = written(version);
        let message = writer.finish();
        let writer = written(version);
        let request = Request {
            values: writer.values(),
            body: writer.pack(),
            time_ns: 1,
        };
        assert_eq!(target.send(&[request].into(), 0).await, Outcome::Sent);
        let received = &server.received()[0];
        assert_eq!(received.request, "POST /api/v1/write");
        assert_eq!(received.header("content-type"), kind);
        assert_eq!(received.header("content-encoding"), "snappy");
        assert_eq!(received.header("x-prometheus-remote-write-version"), number);
        assert_eq!(received.unsnapped().unwrap(), message);
    }
}
