//! Events that are stored go on to Grafana Loki and OTLP, each once, whatever happens to receiver and aggregator; metrics by
//! remote-write to a real Prometheus, and by OTLP.

use std::collections::{BTreeMap, BTreeSet};

use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::metrics::v1::metric::Data;
use prost::Message as _;
use sonde_aggregator::push::Pushes;
use sonde_aggregator::testing::Database;
use sonde_common::config;
use sonde_common::shutdown::{self, Trigger};
use sonde_common::time::{Span, now_ns};
use sonde_push::testing::prometheus::WriteRequest;
use sonde_push::testing::{Answer, Server};
use tokio::task::JoinHandle;

use crate::federate::{ALL, Prometheus, app_with_rows, samples};
use crate::support::{App, Batch, Collector, EventSpec, SECOND};

/// Sends on what an app stores, until it is ended.
struct Sending {
    trigger: Trigger,
    task: JoinHandle<()>,
}

impl Sending {
    fn start(app: &App, settings: &config::Push) -> Self {
        let pushes = Pushes::new(settings).unwrap();
        let (trigger, shutdown) = shutdown::channel();
        Self {
            trigger,
            task: tokio::spawn(pushes.run(app.store.clone(), app.live.clone(), shutdown)),
        }
    }

    async fn end(self) {
        self.trigger.fire();
        self.task.await.unwrap();
    }
}

fn to_loki(server: &Server) -> config::Push {
    let mut push = config::Push::default();
    push.loki.url = format!("http://{}", server.address);
    push.loki.labels = [("job", "sonde"), ("node", "${node}"), ("type", "${type}")]
        .map(|(name, text)| (name.to_owned(), text.to_owned()))
        .into();
    push
}

/// Events whose reasons are numbers.
async fn store(collector: &mut Collector, numbers: std::ops::Range<u32>) {
    let mut batch = Batch::new();
    for number in numbers {
        batch.event(&EventSpec {
            time_ns: now_ns() - SECOND,
            reason: &format!("R{number}"),
            ..Default::default()
        });
    }
    collector.send(batch).await;
}

/// How often each reason came, once that of the last number did.
async fn reasons(app: &App, server: &Server, numbers: u32) -> BTreeMap<u32, usize> {
    app.until(&format!("{numbers} events at the receiver"), async || {
        let mut counts = BTreeMap::new();
        for line in server.lines() {
            let (_, after) = line.split_once(" reason=R").expect("a reason");
            let number = after.split(' ').next().unwrap().parse::<u32>().unwrap();
            *counts.entry(number).or_insert(0) += 1;
        }
        (counts.len() as u32 == numbers).then_some(counts)
    })
    .await
}

#[tokio::test]
async fn events_go_to_loki_from_the_first_one_after_it_was_configured() {
    let app = App::start().await;
    let mut collector = app.collector("n1").await;
    store(&mut collector, 1000..1010).await;
    let server = Server::start([], None).await.unwrap();
    let sending = Sending::start(&app, &to_loki(&server));
    let leads = "select count(*) from sonde_store.push_cursors where target = 'loki'";
    app.until("the place to be there", async || {
        let count: i64 = sqlx::query_scalar(leads).fetch_one(&app.db).await.unwrap();
        (count == 1).then_some(())
    })
    .await;
    // More than a page.
    store(&mut collector, 0..1200).await;
    let counts = reasons(&app, &server, 1200).await;
    assert!(
        counts.iter().all(|(number, count)| *number < 1200 && *count == 1),
        "{counts:?}"
    );
    let streams = server.received()[0].loki().unwrap().streams;
    assert_eq!(streams[0].labels, r#"{job="sonde", node="n1", type="PACKETLOSS"}"#);
    assert!(
        streams[0].entries[0].line.starts_with("type=PACKETLOSS "),
        "{streams:?}"
    );
    sending.end().await;
    assert_eq!(server.broken(), [""; 0]);
}

#[tokio::test]
async fn what_is_stored_while_nobody_can_send_comes_later_and_nothing_twice() {
    let database = Database::migrated().await;
    let app = App::start_on(&database).await;
    let mut collector = app.collector("n1").await;
    let server = Server::start(
        [
            Answer::Http("503 Busy\r\n", ""),
            Answer::Http("429 Slow\r\nRetry-After: 1\r\n", ""),
        ],
        None,
    )
    .await
    .unwrap();
    let settings = to_loki(&server);
    let sending = Sending::start(&app, &settings);
    let at = "select coalesce(max(event_id), -1) from sonde_store.push_cursors";
    let place = async || -> i64 { sqlx::query_scalar(at).fetch_one(&app.db).await.unwrap() };
    app.until("the place to be there", async || (place().await == 0).then_some(()))
        .await;
    // Another aggregator of the same database waits for its turn.
    let other = App::start_on(&database).await;
    let waiting = Sending::start(&other, &settings);
    store(&mut collector, 0..20).await;
    app.until("the first to be taken", async || (place().await == 20).then_some(()))
        .await;
    sending.end().await;
    store(&mut collector, 20..40).await;
    app.until("the other one to have sent the rest", async || {
        (place().await == 40).then_some(())
    })
    .await;
    waiting.end().await;
    store(&mut collector, 40..60).await;
    let again = Sending::start(&app, &settings);
    app.until("the last to be taken", async || (place().await == 60).then_some(()))
        .await;
    again.end().await;
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    // The first two requests were not taken, and had the first events.
    for received in &server.received()[2..] {
        for entry in received
            .loki()
            .unwrap()
            .streams
            .into_iter()
            .flat_map(|stream| stream.entries)
        {
            *counts.entry(entry.line).or_default() += 1;
        }
    }
    assert_eq!((counts.len(), counts.values().sum::<usize>()), (60, 60), "each once");
}

#[tokio::test]
async fn a_record_of_otlp_has_all_that_is_known_of_an_event() {
    let app = App::start().await;
    let mut collector = app.collector("n1").await;
    let server = Server::start([], None).await.unwrap();
    let mut push = config::Push::default();
    push.otlp.url = format!("http://{}", server.address);
    push.otlp.metrics = false;
    let sending = Sending::start(&app, &push);
    let at = "select count(*) from sonde_store.push_cursors where target = 'otlp'";
    app.until("the place to be there", async || {
        let count: i64 = sqlx::query_scalar(at).fetch_one(&app.db).await.unwrap();
        (count == 1).then_some(())
    })
    .await;
    let mut batch = Batch::new();
    let pod = batch.pod("web-1", "10.0.0.7", now_ns() - 60 * SECOND);
    let time_ns = (now_ns() - SECOND) / 1000 * 1000;
    batch.event(&EventSpec {
        time_ns,
        subject: pod,
        reason: "NO_SOCKET",
        from: Some(("10.0.0.7", 443)),
        to: Some(("10.0.0.9", 51_000)),
        ..Default::default()
    });
    collector.send(batch).await;
    let received = app
        .until("a request", async || server.received().into_iter().next())
        .await;
    assert_eq!(received.request, "POST /v1/logs");
    let request = ExportLogsServiceRequest::decode(received.ungzipped().unwrap().as_slice()).unwrap();
    let record = &request.resource_logs[0].scope_logs[0].log_records[0];
    assert_eq!(record.time_unix_nano, time_ns);
    assert_eq!(record.event_name, "sonde.PACKETLOSS");
    let attributes: BTreeMap<_, _> = record
        .attributes
        .iter()
        .map(|attribute| (attribute.key.as_str(), attribute.value.clone().unwrap().value.unwrap()))
        .collect();
    let text = |text: &str| Value::StringValue(text.into());
    assert_eq!(attributes["k8s.pod.name"], text("web-1"));
    assert_eq!(attributes["sonde.reason"], text("NO_SOCKET"));
    let page = app.get("/api/v1/events?from=-1h").await.json();
    let event = &page["events"][0];
    assert_eq!(attributes["source.address"], text(event["saddr"].as_str().unwrap()));
    assert_eq!(
        attributes["source.port"],
        Value::IntValue(event["sport"].as_i64().unwrap())
    );
    assert_eq!(attributes["sonde.id"], Value::IntValue(event["id"].as_i64().unwrap()));
    sending.end().await;
}

const RECEIVERS: [&str; 1] = ["--web.enable-remote-write-receiver"];

#[tokio::test(flavor = "multi_thread")]
async fn a_real_prometheus_gets_the_series_of_the_page_and_hears_when_one_ends() {
    if let Some(prometheus) = Prometheus::start_with("global: {}\n", &RECEIVERS) {
        gets_the_series_of_the_page(&prometheus, 1).await;
    }
}

/// Debian has an older one.
fn prometheus_3(flags: &[&str]) -> Prometheus {
    let program =
        std::env::var_os("SONDE_PROMETHEUS_3").expect("SONDE_PROMETHEUS_3: expected the path of a Prometheus 3");
    Prometheus::start_program(&program, "global: {}\n", flags).expect("it starts")
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a Prometheus 3: SONDE_PROMETHEUS_3=PATH"]
async fn a_real_prometheus_3_gets_the_same_by_either_version() {
    for version in [1, 2] {
        gets_the_series_of_the_page(&prometheus_3(&RECEIVERS), version).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a Prometheus 3: SONDE_PROMETHEUS_3=PATH"]
async fn a_real_prometheus_3_gets_the_same_values_by_otlp() {
    let prometheus = prometheus_3(&["--web.enable-otlp-receiver"]);
    let app = app_with_rows().await;
    let mut push = config::Push::default();
    push.otlp.url = format!("{}/api/v1/otlp", prometheus.url);
    push.otlp.events = false;
    let sending = Sending::start(&app, &push);
    assert_eq!(prometheus.query("count({__name__=~\"sonde_.+\"})").await[0].1, "12");
    let theirs = prometheus.federate(&["{__name__=~\"sonde_.+\"}"]).await;
    // Labels have other names there: what is a resource is not on its series.
    let values = |page: &str| -> BTreeSet<(String, Option<String>, String)> {
        samples(page)
            .iter()
            .map(|line| {
                let (name, rest) = line.split_once('[').unwrap();
                let (labels, values) = rest.rsplit_once("] ").unwrap();
                let bound = labels.split(", ").find(|label| label.starts_with("\"le="));
                (name.to_owned(), bound.map(str::to_owned), values.to_owned())
            })
            .collect()
    };
    assert_eq!(values(theirs.text()), values(app.get(ALL).await.text()));
    sending.end().await;
}

async fn gets_the_series_of_the_page(prometheus: &Prometheus, version: u8) {
    // Begun before there is anything: a series that comes later is sent too.
    let app = App::start().await;
    let mut push = config::Push::default();
    push.remote_write.url.clone_from(&prometheus.url);
    push.remote_write.version = version;
    push.remote_write.interval = Span(std::time::Duration::from_millis(200));
    let sending = Sending::start(&app, &push);
    let mut collector = app.collector("n1").await;
    let now = now_ns();
    let mut batch = Batch::new();
    let web = batch.pod("web", "10.0.0.1", now);
    let api = batch.pod("api", "10.0.0.2", now);
    batch.netdev(
        now,
        &[
            (0, "eth0", [100, 1, 1_500_000_000]),
            (web, "eth0", [7, 0, 5]),
            (api, "a\"b\\c\nd é", [3, 1, 250]),
        ],
    );
    batch.lat(now, web, [5, 3, 1, 700_000_000]);
    collector.send(batch).await;
    let count = "count({__name__=~\"sonde_.+\"})";
    app.until("all series at Prometheus", async || {
        (prometheus.query(count).await[0].1 == "14").then_some(())
    })
    .await;
    let theirs = prometheus.federate(&["{__name__=~\"sonde_.+\"}"]).await;
    assert_eq!(
        samples(theirs.text()),
        samples(app.get(ALL).await.text()),
        "names, labels, values and times"
    );

    // One pod ends, and another one has no such device any more.
    let later = now_ns();
    let mut batch = Batch::new();
    let web = batch.pod("web", "10.0.0.1", now);
    batch.pod_of("shop", "api", "10.0.0.2", now, later);
    batch.netdev(later, &[(0, "eth0", [101, 1, 1_600_000_000])]);
    batch.lat(later, web, [6, 3, 1, 800_000_000]);
    collector.send(batch).await;
    app.until("ended series to be gone", async || {
        (prometheus.query(count).await[0].1 == "8").then_some(())
    })
    .await;
    let theirs = prometheus.federate(&["{__name__=~\"sonde_.+\"}"]).await;
    assert_eq!(samples(theirs.text()), samples(app.get(ALL).await.text()));

    // The other one ends too, and nothing is read any more.
    let mut batch = Batch::new();
    batch.pod_of("shop", "web", "10.0.0.1", now, now_ns());
    collector.send(batch).await;
    app.until("the last pod's series to be gone", async || {
        (prometheus.query(count).await[0].1 == "3").then_some(())
    })
    .await;
    sending.end().await;
}

#[tokio::test]
async fn only_selected_series_are_sent_with_the_labels_that_are_given() {
    let app = app_with_rows().await;
    let server = Server::start([], None).await.unwrap();
    let mut push = config::Push::default();
    push.remote_write.url = format!("http://{}", server.address);
    push.remote_write.r#match = vec![
        "sonde_lat_wait_seconds_bucket{le=\"0.1\"}".to_owned(),
        "{__name__=~\"sonde_netdev_.+\",k8s_pod=\"api\"}".to_owned(),
    ];
    push.remote_write.labels = [("cluster".to_owned(), "c1".to_owned())].into();
    let sending = Sending::start(&app, &push);
    let received = app
        .until("a request", async || server.received().into_iter().next())
        .await;
    let request = WriteRequest::decode(received.unsnapped().unwrap().as_slice()).unwrap();
    let mut seen: Vec<_> = request
        .timeseries
        .iter()
        .map(|series| {
            let label = |name: &str| {
                let found = series.labels.iter().find(|label| label.name == name);
                found.map_or("", |found| found.value.as_str())
            };
            (
                label("__name__"),
                label("k8s_pod"),
                label("le"),
                label("cluster"),
                series.samples[0].value,
            )
        })
        .collect();
    seen.sort_by(|a, b| a.partial_cmp(b).unwrap());
    let expected = [
        ("sonde_lat_wait_seconds_bucket", "web", "0.1", "c1", 8.0),
        ("sonde_netdev_busy_seconds_total", "api", "", "c1", 2.5e-7),
        ("sonde_netdev_receive_bytes_total", "api", "", "c1", 3.0),
    ];
    assert_eq!(seen, expected);
    sending.end().await;
}

#[tokio::test]
async fn metrics_of_otlp_are_the_same_values() {
    let app = app_with_rows().await;
    let server = Server::start([], None).await.unwrap();
    let mut push = config::Push::default();
    push.otlp.url = format!("http://{}", server.address);
    push.otlp.events = false;
    let sending = Sending::start(&app, &push);
    let received = app
        .until("a request", async || server.received().into_iter().next())
        .await;
    assert_eq!(received.request, "POST /v1/metrics");
    let request = ExportMetricsServiceRequest::decode(received.ungzipped().unwrap().as_slice()).unwrap();
    let metrics: BTreeMap<_, _> = request
        .resource_metrics
        .iter()
        .flat_map(|resource| &resource.scope_metrics[0].metrics)
        .map(|metric| (metric.name.as_str(), metric))
        .collect();
    let Some(Data::Sum(sum)) = &metrics["sonde_netdev_busy_seconds_total"].data else {
        panic!("{metrics:?}")
    };
    assert_eq!(
        (
            metrics["sonde_netdev_busy_seconds_total"].unit.as_str(),
            sum.data_points.len()
        ),
        ("s", 2)
    );
    let Some(Data::Gauge(gauge)) = &metrics["sonde_netdev_carrier"].data else {
        panic!("{metrics:?}")
    };
    assert_eq!(
        gauge.data_points.len(),
        2,
        "the node's and one pod's: the other one has none"
    );
    let Some(Data::Histogram(histogram)) = &metrics["sonde_lat_wait_seconds"].data else {
        panic!("{metrics:?}")
    };
    let point = &histogram.data_points[0];
    assert_eq!((point.count, point.sum), (9, Some(0.7)));
    assert_eq!(
        (&point.bucket_counts[..], &point.explicit_bounds[..]),
        (&[5, 3, 1][..], &[0.001, 0.1][..])
    );
    let pod = point
        .attributes
        .iter()
        .find(|attribute| attribute.key == "k8s.pod.name")
        .unwrap();
    assert_eq!(pod.value.clone().unwrap().value, Some(Value::StringValue("web".into())));
    sending.end().await;
}

#[test]
fn what_cannot_work_is_said_at_the_start_with_its_key() {
    let error = |change: &dyn Fn(&mut config::Push)| {
        let mut push = config::Push::default();
        change(&mut push);
        Pushes::new(&push).unwrap_err().to_string()
    };
    assert!(error(&|p| p.loki.url = "loki:3100".into()).starts_with("push.loki.url: `loki:3100`: expected"));
    assert!(error(&|p| p.otlp.url = "ftp://x".into()).starts_with("push.otlp.url: `ftp://x/v1/logs`"));
    let error = error(&|p| {
        p.loki.url = "http://x".into();
        p.loki.bearer_token_env = "SONDE_TEST_NO_SUCH".into();
    });
    assert!(
        error.starts_with("push.loki.bearer_token_env: `SONDE_TEST_NO_SUCH`"),
        "{error}"
    );
}
