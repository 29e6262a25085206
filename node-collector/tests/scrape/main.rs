//! `/metrics` as scrapers ask for it: formats, packing, a real Prometheus.

mod openmetrics;
mod running;

use std::collections::BTreeMap;
use std::io::Read as _;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use running::{Answer, Running};
use sonde_collector::catalogue::{ColumnSpec, LabelSpec, ProbeSpec};
use sonde_collector::event::Subject;
use sonde_collector::serve::metrics::Exposition;
use sonde_collector::table::Table;
use sonde_common::config::{MetricNames, Metrics};
use sonde_common::prom::{EOF, Format};

const OPEN: (&str, &str) = ("Accept", "application/openmetrics-text;version=1.0.0,text/plain;q=0.5");
const GZIP: (&str, &str) = ("Accept-Encoding", "gzip");

fn unpacked(answer: &Answer) -> String {
    let mut text = String::new();
    flate2::bufread::GzDecoder::new(answer.body.as_slice())
        .read_to_string(&mut text)
        .unwrap();
    text
}

/// What the page has of the round: the collector's own figures move from request to request.
fn of_round(page: &str) -> Vec<&str> {
    page.lines()
        .take_while(|line| !line.contains("sonde_collector_"))
        .collect()
}

#[test]
fn each_scraper_gets_the_format_and_packing_it_asks_for() {
    let running = Running::start(&[("SONDE_METRICS_NAMES", "sonde,kubeskoop")]);
    let text = running.get(&[]);
    assert_eq!(text.header("content-type"), "text/plain; version=0.0.4; charset=utf-8");
    assert_eq!(text.header("content-encoding"), "");
    assert_eq!(text.header("vary"), "accept, accept-encoding");
    let open = running.get(&[OPEN]);
    assert_eq!(
        open.header("content-type"),
        "application/openmetrics-text; version=1.0.0; charset=utf-8"
    );
    let packed = running.get(&[GZIP]);
    assert_eq!(packed.header("content-encoding"), "gzip");
    assert!(packed.body.len() * 4 < text.body.len());
    assert_eq!(of_round(&unpacked(&packed)), of_round(text.text()));
    let both = running.get(&[OPEN, GZIP]);
    assert_eq!(of_round(&unpacked(&both)), of_round(open.text()));

    let page = openmetrics::read(open.text()).unwrap();
    openmetrics::read(&unpacked(&both)).unwrap();
    let family = |name: &str| {
        let (kind, unit) = &page.families[name];
        (kind.as_str(), unit.as_str())
    };
    assert_eq!(family("sonde_netdev_receive_bytes"), ("counter", "bytes"));
    assert_eq!(family("sonde_netdev_receive_packets"), ("counter", "packets"));
    assert_eq!(family("sonde_collector_round_cpu_seconds"), ("counter", "seconds"));
    assert_eq!(family("kubeskoop_netdev_rxbytes"), ("gauge", ""));
    // The same series and values, whatever the format.
    let plain: BTreeMap<&str, &str> = of_round(text.text())
        .into_iter()
        .filter(|line| !line.starts_with('#'))
        .map(|line| line.rsplit_once(' ').unwrap())
        .collect();
    assert!(plain.len() > 100);
    for (series, value) in plain {
        assert_eq!(page.series.get(series).map(String::as_str), Some(value), "{series}");
    }
}

#[test]
fn ten_scrapers_cost_one_rendering() {
    let running = Running::start(&[]);
    let renderings = |answer: &Answer| -> u64 {
        let page = if answer.header("content-encoding") == "gzip" {
            unpacked(answer)
        } else {
            answer.text().to_owned()
        };
        let line = page
            .lines()
            .find_map(|line| line.strip_prefix("sonde_collector_page_renderings_total "));
        line.unwrap().parse().unwrap()
    };
    std::thread::scope(|scope| {
        for _ in 0..10 {
            scope.spawn(|| running.get(&[GZIP]));
        }
    });
    assert_eq!(renderings(&running.get(&[GZIP])), 1);
    assert_eq!(renderings(&running.get(&[OPEN])), 1);
    assert_eq!(renderings(&running.get(&[])), 2);
    assert_eq!(renderings(&running.get(&[])), 3);
}

#[test]
fn a_pod_takes_its_series_with_it_before_the_next_round() {
    let Some(lab) = sonde_lab::Lab::for_test("collector-scrape") else {
        return;
    };
    let (stays, goes) = (lab.pod("demo", "stays").unwrap(), lab.pod("demo", "goes").unwrap());
    let running = Running::start(&[
        ("SONDE_PODS_NETNS_INCLUDE", lab.glob().as_str()),
        ("SONDE_METRICS_NAMES", "sonde,kubeskoop"),
    ]);
    let of = |page: &str, pod: &sonde_lab::Pod| {
        let label = format!("k8s_namespace=\"{}\",k8s_pod=\"{}\"", pod.namespace(), pod.name());
        page.lines().filter(|line| line.contains(&label)).count()
    };
    let first = unpacked(&running.get(&[GZIP]));
    assert!(of(&first, &stays) > 100 && of(&first, &stays) == of(&first, &goes));
    let theirs = format!(
        "kubeskoop_netdev_rxbytes{{k8s_node=\"test-node\",k8s_namespace=\"{}\"",
        goes.namespace()
    );
    assert_eq!(first.matches(&theirs).count(), 2);
    goes.delete().unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    let last = loop {
        let page = unpacked(&running.get(&[GZIP]));
        if of(&page, &goes) == 0 {
            break page;
        }
        assert!(Instant::now() < deadline, "the pod is still there");
        std::thread::sleep(Duration::from_millis(20));
    };
    assert_eq!(of(&last, &stays), of(&first, &stays));
    assert!(last.contains("sonde_collector_rounds_total 1\n"), "no round was needed");
    openmetrics::read(running.get(&[OPEN]).text()).unwrap();
}

#[test]
fn a_label_that_cannot_be_ends_the_program_with_the_reason() {
    let output = Running::command(&["check-config"])
        .env("SONDE_METRICS_ADDITIONAL_LABELS", "team")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(
        String::from_utf8_lossy(&output.stderr),
        "error: metrics.additional_labels: `team`: expected `NAME=TEXT`\n"
    );
}

static SPEC: ProbeSpec = ProbeSpec {
    name: "lat",
    help: "",
    source: "",
    labels: &[LabelSpec { name: "path", help: "" }],
    columns: &[
        ColumnSpec::histogram("wait_seconds", "seconds", "Waits: \"long\" ones \\ too", &[0.001, 1.0]).scaled(1e-9),
        ColumnSpec::gauge("depth", "packets", "Depth"),
    ],
    event_types: &[],
};

#[test]
fn histograms_and_odd_labels_are_fit_for_openmetrics() {
    let config = Metrics {
        names: vec![MetricNames::Sonde],
        ..Metrics::default()
    };
    let exposition = Exposition::new("a\"b\\c\nd é", &config).unwrap();
    let mut table = Table::new(&SPEC, 1);
    table.push(Subject::Node, ["a\"},\\ b".into()], &[5, 0, 2, 3_000_000_000, -4]);
    table.push(Subject::Node, ["".into()], &[1, 1, 1, 1, 0]);
    let mut text = String::new();
    exposition.write(&[table], Format::OpenMetrics, &mut |piece| text.push_str(piece));
    text.push_str(EOF);
    let page = openmetrics::read(&text).unwrap();
    let labels = "k8s_node=\"a\\\"b\\\\c\\nd é\",k8s_namespace=\"\",k8s_pod=\"\",path=\"a\\\"},\\\\ b\"";
    let value = |name: &str, le: &str| page.series[&format!("sonde_lat_{name}{{{labels}{le}}}")].as_str();
    assert_eq!(value("wait_seconds_bucket", ",le=\"1.0\""), "5");
    assert_eq!(value("wait_seconds_bucket", ",le=\"+Inf\""), "7");
    assert_eq!(value("wait_seconds_sum", ""), "3");
    assert_eq!(value("depth", ""), "-4");
    assert_eq!(
        page.families["sonde_lat_wait_seconds"],
        ("histogram".into(), "seconds".into())
    );
}

/// A Prometheus that scrapes one collector; ends with its handle.
struct Prometheus {
    child: std::process::Child,
    url: String,
    dir: tempfile::TempDir,
}

impl Prometheus {
    fn start(target: &str) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let config = format!(
            "global: {{scrape_interval: 200ms, scrape_timeout: 200ms}}\n\
             scrape_configs:\n- job_name: sonde\n  static_configs: [{{targets: ['{target}']}}]\n"
        );
        std::fs::write(dir.path().join("prometheus.yml"), config).unwrap();
        // Prometheus does not say which port it took when asked for any.
        let port = std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let child = Command::new("prometheus")
            .arg(format!("--config.file={}", dir.path().join("prometheus.yml").display()))
            .arg(format!("--storage.tsdb.path={}", dir.path().join("data").display()))
            .arg(format!("--web.listen-address=127.0.0.1:{port}"))
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(dir.path().join("log")).unwrap())
            .spawn();
        match child {
            Ok(child) => Some(Self {
                child,
                url: format!("http://127.0.0.1:{port}"),
                dir,
            }),
            Err(_) => {
                println!("SKIPPED: prometheus is not installed");
                None
            }
        }
    }

    /// The answer's data, once there is any.
    fn ask(&self, path: &str) -> serde_json::Value {
        let deadline = Instant::now() + Duration::from_secs(30);
        while Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(100));
            let url = format!("{}{path}", self.url);
            let answer = Command::new("curl").args(["-sg", &url]).output().unwrap();
            let Ok(answer) = serde_json::from_slice::<serde_json::Value>(&answer.stdout) else {
                continue;
            };
            let data = &answer["data"];
            let result = data.get("result").unwrap_or(data);
            if result.as_array().is_some_and(|all| !all.is_empty()) || result.as_object().is_some_and(|m| !m.is_empty())
            {
                return result.clone();
            }
        }
        let log = std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
        panic!("Prometheus has nothing for {path}: {log}");
    }

    fn value(&self, query: &str) -> String {
        let result = self.ask(&format!("/api/v1/query?query={query}"));
        result[0]["value"][1].as_str().unwrap().to_owned()
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_real_prometheus_scrapes_openmetrics_and_reads_the_same_values() {
    let running = Arc::new(Running::start(&[
        ("SONDE_METRICS_NAMES", "sonde,kubeskoop"),
        ("SONDE_METRICS_LABELS", "{cluster: blue}"),
    ]));
    let Some(prometheus) = Prometheus::start(&running.http.to_string()) else {
        return;
    };
    // Units are there in OpenMetrics alone, and so are counters' families without `_total`.
    let about = prometheus.ask("/api/v1/metadata?metric=sonde_softnet_processed");
    assert_eq!(about["sonde_softnet_processed"][0]["type"], "counter");
    let about = prometheus.ask("/api/v1/metadata?metric=sonde_sock_tcp_memory_bytes");
    assert_eq!(about["sonde_sock_tcp_memory_bytes"][0]["unit"], "bytes");
    let page = openmetrics::read(running.get(&[OPEN]).text()).unwrap();
    let node = "k8s_node=\"test-node\",k8s_namespace=\"\",k8s_pod=\"\",cluster=\"blue\"";
    for name in [
        "sonde_ip_default_ttl",
        "sonde_softnet_processed_total",
        "sonde_tcpext_listen_drops_total",
        "kubeskoop_softnet_processed",
        "kubeskoop_ip_defaultttl",
        "kubeskoop_sock_alloc",
    ] {
        let family = if name == "sonde_ip_default_ttl" {
            ",family=\"ipv4\""
        } else {
            ""
        };
        let ours: f64 = page.series[&format!("{name}{{{node}{family}}}")].parse().unwrap();
        let theirs: f64 = prometheus
            .value(&format!("{name}{{cluster=\"blue\"}}"))
            .parse()
            .unwrap();
        assert_eq!(theirs, ours, "{name}");
    }
    assert_eq!(prometheus.value("up"), "1");
    // Each series of the page once, and none dropped.
    let scraped: usize = prometheus.value("scrape_samples_scraped").parse().unwrap();
    assert_eq!(scraped, page.series.len());
    assert_eq!(
        prometheus.value("scrape_samples_post_metric_relabeling"),
        scraped.to_string()
    );
}
