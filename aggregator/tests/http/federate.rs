//! `/federate`, asked by hand, by promtool and by a real Prometheus.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::io::{Read as _, Write as _};
use std::process::{Command, Stdio};
use std::time::Duration;

use flate2::read::GzDecoder;
use sonde_common::time::now_ns;
use sonde_proto::ABSENT;

use crate::support::client::{self, Answer};
use crate::support::{App, Batch};

pub(crate) const ALL: &str = "/federate?match%5B%5D=%7B__name__%3D~%22sonde_.%2B%22%7D";

/// Rows of the node and of two pods, with every kind of metric and a label value that needs escaping.
pub(crate) async fn app_with_rows() -> App {
    let app = App::start().await;
    send_rows(&app).await;
    app
}

async fn send_rows(app: &App) {
    let now = now_ns();
    let mut batch = Batch::new();
    let web = batch.pod("web", "10.0.0.1", now);
    let api = batch.pod("api", "10.0.0.2", now);
    let large = (1_i64 << 53) + 1;
    batch.netdev(
        now,
        &[
            (0, "eth0", [100, 1, 1_500_000_000]),
            (web, "eth0", [large, 0, ABSENT]),
            (api, "a\"b\\c\nd é", [3, ABSENT, 250]),
        ],
    );
    batch.lat(now, web, [5, 3, 1, 700_000_000]);
    app.collector("n1").await.send(batch).await;
}

#[tokio::test]
async fn stored_rows_are_federated_and_nothing_else() {
    let app = app_with_rows().await;
    let answer = app.get(ALL).await;
    assert_eq!(
        answer.header("content-type"),
        "text/plain; version=0.0.4; charset=utf-8"
    );
    let samples = answer.text().lines().filter(|l| !l.starts_with('#')).count();
    assert_eq!(samples, 7 + 5);
    let one = app
        .get(&App::path(
            "/federate",
            &[("match[]", "sonde_netdev_carrier{k8s_pod=\"web\"}")],
        ))
        .await;
    assert_eq!(one.text().lines().count(), 3);
    assert!(
        one.text()
            .contains("k8s_namespace=\"shop\",k8s_pod=\"web\",device=\"eth0\"} 0 "),
        "{}",
        one.text()
    );
    assert_eq!(app.get("/federate?match[]=nosuch").await.text(), "");
}

#[tokio::test]
async fn a_restart_leaves_no_hole() {
    let (app, database) = App::start_with_database().await;
    send_rows(&app).await;
    // A pod that has ended does not come back.
    let now = now_ns();
    let mut batch = Batch::new();
    batch.pod_of("shop", "ended", "10.0.0.9", now - 5, now);
    let ended = batch.0.pods.len() as u32;
    batch.netdev(now, &[(ended, "eth0", [1, 1, 1])]);
    app.collector("n2").await.send(batch).await;
    let before = app.get(ALL).await;
    assert!(
        before.text().contains("web") && !before.text().contains("ended"),
        "{}",
        before.text()
    );
    drop(app);

    let again = App::start_on(&database).await;
    assert_eq!(again.get(ALL).await.text(), "");
    again.live.restore(&again.store).await;
    // Series of one family have no order.
    let lines = |text: &str| -> BTreeSet<String> { text.lines().map(String::from).collect() };
    assert_eq!(lines(again.get(ALL).await.text()), lines(before.text()));
}

#[tokio::test]
async fn a_selector_that_is_missing_or_bad_is_refused_with_what_was_expected() {
    let app = App::start().await;
    for query in [
        "",
        "?match=up",
        "?match[]=",
        "?match[]=up&match[]=%7B%7D",
        "?match[]=sum(up)",
        "?match[]=up%5B5m%5D",
    ] {
        let detail = app.get(&format!("/federate{query}")).await.problem(400);
        assert!(
            detail.contains("expected") && detail.contains("match[]"),
            "{query}: {detail}"
        );
    }
    app.send("POST", "/federate?match[]=up", &[]).await.problem(405);
}

#[tokio::test]
async fn the_page_is_compressed_for_those_who_ask() {
    let app = app_with_rows().await;
    let plain = app.get(ALL).await;
    assert_eq!(plain.header("content-encoding"), "");
    let packed = app.get_with(ALL, &[("accept-encoding", "gzip")]).await;
    assert_eq!(packed.header("content-encoding"), "gzip");
    let mut text = String::new();
    GzDecoder::new(packed.body.as_slice())
        .read_to_string(&mut text)
        .unwrap();
    assert_eq!(text, plain.text());
}

#[tokio::test]
async fn the_page_is_packed_with_zstd_for_those_who_ask() {
    let app = app_with_rows().await;
    let plain = app.get(ALL).await;
    let packed = app.get_with(ALL, &[("accept-encoding", "gzip;q=0.5, zstd")]).await;
    assert_eq!(packed.header("content-encoding"), "zstd");
    let text = zstd::decode_all(packed.body.as_slice()).unwrap();
    assert_eq!(text, plain.body);
    assert_eq!(packed.header("vary"), "accept");
}

#[tokio::test]
async fn the_format_is_the_one_asked_for() {
    let app = app_with_rows().await;
    let three = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,text/plain;version=0.0.4;q=0.2,*/*;q=0.1";
    let text = "text/plain; version=0.0.4; charset=utf-8";
    let open = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    for (accept, content_type) in [
        ("", text.to_owned()),
        ("text/html,*/*;q=0.8", text.to_owned()),
        ("application/openmetrics-text;q=0.4,text/plain;q=0.5", text.to_owned()),
        ("application/openmetrics-text; version=1.0.0", open.to_owned()),
        (three, format!("{open}; escaping=allow-utf-8")),
        (
            "text/plain;version=1.0.0;escaping=values",
            format!("{text}; escaping=values"),
        ),
    ] {
        let answer = app.get_with(ALL, &[("accept", accept)]).await;
        assert_eq!(answer.header("content-type"), content_type, "{accept}");
        assert_eq!(
            answer.text().ends_with("# EOF\n"),
            content_type.starts_with(open),
            "{accept}"
        );
        let samples = answer.text().lines().filter(|l| !l.starts_with('#')).count();
        assert_eq!(samples, 7 + 5, "{accept}");
    }
}

/// `promtool check metrics` knows the text format and the rules for names.
fn promtool(page: &str) -> Option<(bool, String)> {
    let child = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let Ok(mut child) = child else {
        println!("SKIPPED: promtool is not installed");
        return None;
    };
    child.stdin.take().unwrap().write_all(page.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    Some((
        output.status.success(),
        String::from_utf8_lossy(&output.stderr).into_owned(),
    ))
}

#[tokio::test]
async fn promtool_accepts_every_page() {
    let app = app_with_rows().await;
    for path in [ALL, "/metrics"] {
        let page = app.get(path).await;
        let Some((accepted, words)) = promtool(page.text()) else {
            return;
        };
        assert!(accepted && words.is_empty(), "{path}: {words}\n{}", page.text());
    }
    let (accepted, _) = promtool("# TYPE a counter\na 1\na 1\n").unwrap();
    assert!(!accepted, "it does refuse what is wrong");
}

/// A Prometheus of the test's own; ends with its handle.
pub(crate) struct Prometheus {
    child: std::process::Child,
    pub(crate) url: String,
    _dir: tempfile::TempDir,
}

impl Prometheus {
    /// That federates one server.
    fn start(target: &str) -> Option<Self> {
        let config = format!(
            "global: {{scrape_interval: 200ms, scrape_timeout: 200ms}}\n\
             scrape_configs:\n- job_name: sonde\n  honor_labels: true\n  metrics_path: /federate\n\
             \x20 params: {{'match[]': ['{{__name__=~\"sonde_.+\"}}']}}\n\
             \x20 static_configs: [{{targets: ['{}']}}]\n",
            target.trim_start_matches("http://")
        );
        Self::start_with(&config, &[])
    }

    pub(crate) fn start_with(config: &str, flags: &[&str]) -> Option<Self> {
        Self::start_program("prometheus".as_ref(), config, flags)
    }

    pub(crate) fn start_program(program: &OsStr, config: &str, flags: &[&str]) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("prometheus.yml"), config).unwrap();
        // Prometheus does not say which port it took when asked for any.
        let port = std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let child = Command::new(program)
            .arg(format!("--config.file={}", dir.path().join("prometheus.yml").display()))
            .arg(format!("--storage.tsdb.path={}", dir.path().join("data").display()))
            .arg(format!("--web.listen-address=127.0.0.1:{port}"))
            .args(flags)
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(dir.path().join("log")).unwrap())
            .spawn();
        match child {
            Ok(child) => Some(Self {
                child,
                url: format!("http://127.0.0.1:{port}"),
                _dir: dir,
            }),
            Err(_) => {
                println!("SKIPPED: {} is not installed", program.display());
                None
            }
        }
    }

    /// Values of an instant query by their labels, once there are any.
    pub(crate) async fn query(&self, query: &str) -> Vec<(serde_json::Value, String)> {
        let path = App::path("/api/v1/query", &[("query", query)]);
        for _ in 0..300 {
            tokio::time::sleep(Duration::from_millis(100)).await;
            let url = format!("{}{path}", self.url);
            let answer = tokio::task::spawn_blocking(move || Command::new("curl").args(["-s", &url]).output().unwrap());
            let Ok(answer) = serde_json::from_slice::<serde_json::Value>(&answer.await.unwrap().stdout) else {
                continue;
            };
            let result = answer["data"]["result"].as_array().cloned().unwrap_or_default();
            if !result.is_empty() {
                let value = |r: &serde_json::Value| (r["metric"].clone(), r["value"][1].as_str().unwrap().to_owned());
                return result.iter().map(value).collect();
            }
        }
        let log = std::fs::read_to_string(self._dir.path().join("log")).unwrap_or_default();
        panic!("Prometheus has no {query}: {log}");
    }
}

impl Prometheus {
    /// Its own page of what it has, or its refusal.
    pub(crate) async fn federate(&self, matches: &[&str]) -> Answer {
        client::get(&format!("{}{}", self.url, federate(matches)), &[]).await
    }
}

fn federate(matches: &[&str]) -> String {
    let params: Vec<_> = matches.iter().map(|text| ("match[]", *text)).collect();
    App::path("/federate", &params)
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_prometheus_reads_the_same_values() {
    let app = app_with_rows().await;
    let Some(prometheus) = Prometheus::start(&app.url) else {
        return;
    };
    let one = |labels: &str| format!("sonde_netdev_receive_bytes_total{{{labels}}}");
    let values = prometheus.query(&one("k8s_pod=\"api\"")).await;
    assert_eq!(values.len(), 1);
    assert_eq!(values[0].0["device"], "a\"b\\c\nd é");
    assert_eq!(values[0].0["k8s_node"], "n1");
    assert_eq!(values[0].1, "3");
    let float = ((1_i64 << 53) + 1) as f64;
    assert_eq!(
        prometheus.query(&one("k8s_pod=\"web\"")).await[0]
            .1
            .parse::<f64>()
            .unwrap(),
        float
    );
    assert_eq!(prometheus.query(&one("k8s_pod=\"\"")).await[0].1, "100");
    assert_eq!(
        prometheus.query("sonde_netdev_busy_seconds_total{k8s_pod=\"\"}").await[0].1,
        "1.5"
    );
    assert_eq!(
        prometheus.query("sonde_lat_wait_seconds_bucket{le=\"0.1\"}").await[0].1,
        "8"
    );
    let median = &prometheus
        .query("histogram_quantile(0.5, sonde_lat_wait_seconds_bucket)")
        .await[0]
        .1;
    assert!((median.parse::<f64>().unwrap() - 0.0009).abs() < 1e-9, "{median}");
    assert_eq!(prometheus.query("sonde_lat_wait_seconds_sum").await[0].1, "0.7");
    same_selections(&app, &prometheus).await;
    same_refusals(&app, &prometheus).await;
    let all = prometheus.query("count({__name__=~\"sonde_.+\"})").await;
    assert_eq!(all[0].1, "12", "each series once");
    assert_eq!(prometheus.query("scrape_samples_scraped").await[0].1, "12");
}

/// Lines of samples as sets of text. What a federated server adds (`job`, `instance`) and leaves out (empty labels), and the
/// order of labels, do not count.
pub(crate) fn samples(page: &str) -> BTreeSet<String> {
    let normal = |line: &str| {
        let (name, rest) = line.split_once('{').unwrap();
        let (labels, values) = rest.rsplit_once("} ").unwrap();
        // No value in these rows has `",`.
        let mut labels: Vec<_> = labels.split("\",").map(|label| label.trim_end_matches('"')).collect();
        labels.retain(|label| !label.starts_with("job=") && !label.starts_with("instance=") && !label.ends_with('='));
        labels.sort_unstable();
        let (value, time) = values.split_once(' ').unwrap();
        let value: f64 = value.parse().unwrap();
        format!("{name}{labels:?} {value} {time}")
    };
    page.lines().filter(|line| !line.starts_with('#')).map(normal).collect()
}

/// Each selection is the one that Prometheus makes of the same series: names, labels, values and times.
async fn same_selections(app: &App, prometheus: &Prometheus) {
    let netdev = "__name__=~\"sonde_netdev_.+\"";
    let of = |matchers: &str| format!("{{{netdev},{matchers}}}");
    let name = |name: &str, matchers: &str| format!("{name}{{{matchers}}}");
    let all = "{__name__=~\"sonde_.+\"}".to_owned();
    let web = of("k8s_pod=\"web\"");
    let one = name("sonde_netdev_carrier", "k8s_pod=\"web\"");
    let selections: Vec<(Vec<String>, usize)> = vec![
        (vec![all.clone()], 12),
        (vec![one.clone()], 1),
        (vec![web.clone()], 2),
        (vec![web.clone(), one.clone(), web.clone()], 2),
        (vec![one, all.clone()], 12),
        (vec![of("k8s_pod=~\"w.*|ap[i]\"")], 4),
        (vec![of("k8s_pod=~\"w\"")], 0),
        (vec![of("k8s_pod!~\"w.*\"")], 5),
        (vec![of("k8s_pod=\"\"")], 3),
        (vec![of("k8s_pod!=\"\"")], 4),
        (vec![of("k8s_namespace!=\"shop\"")], 3),
        (vec![of("nosuch=\"\"")], 7),
        (vec![of("nosuch!=\"\"")], 0),
        (vec![of("nosuch=~\"a|\"")], 7),
        (vec![of("nosuch!~\".+\"")], 7),
        (vec![of("le=\"\"")], 7),
        (vec![of("device=\"a\\\"b\\\\c\\nd é\"")], 2),
        (vec![of("device='a\"b\\\\c\\nd \\u00e9'")], 2),
        (vec![of("device=\"\\x65th\\060\"")], 5),
        (vec![of("device=~\"(?i)ETH[0-9]\"")], 5),
        (vec![of("device=~`eth\\d{1,2}`")], 5),
        (vec![of("device=~\"a.b(?s:.*)\"")], 2),
        (vec![of("device=~\"a.b.*\"")], 0),
        (vec![of("device=~\"eth0{x}?\"")], 0),
        (vec!["{le=\"0.1\"}".into()], 1),
        (vec!["{le=~\"0\\\\.1|\\\\+Inf\"}".into()], 2),
        (vec!["{__name__=~\"sonde_lat_.*_(sum|count)\"}".into()], 2),
        (vec!["sonde_lat_wait_seconds".into()], 0),
        (
            vec![
                "sonde_lat_wait_seconds_bucket".into(),
                "sonde_lat_wait_seconds_sum".into(),
            ],
            4,
        ),
        (vec!["{__name__!~\"sonde_netdev.*\",k8s_node=\"n1\"}".into()], 5),
        (vec![" {  k8s_node = \"n1\" , } ".into()], 12),
    ];
    for (matches, count) in selections {
        let matches: Vec<&str> = matches.iter().map(String::as_str).collect();
        let ours = app.get(&federate(&matches)).await;
        let theirs = prometheus.federate(&matches).await;
        for answer in [&ours, &theirs] {
            assert_eq!(answer.status, 200, "{matches:?}: {}", answer.text());
        }
        let found = samples(ours.text());
        assert_eq!(found, samples(theirs.text()), "{matches:?}");
        assert_eq!(found.len(), count, "{matches:?}: {found:#?}");
    }
}

/// What Prometheus refuses is refused. Its page also takes a selector that every series matches, and
/// a name that is given twice; here these are slips.
async fn same_refusals(app: &App, prometheus: &Prometheus) {
    let mut taken = Vec::new();
    for bad in [
        "",
        "up{",
        "up}",
        "up[5m]",
        "up offset 5m",
        "up @ 5",
        "sum(up)",
        "1",
        "up{a=\"x\"} or up",
        "up{a=~\"(\"}",
        "up{a=\"x}",
        "up{a=\"\\q\"}",
        "up{a:b=\"x\"}",
        "{a=1}",
    ] {
        let ours = app.get(&federate(&["up", bad])).await;
        let theirs = prometheus.federate(&["up", bad]).await;
        if (ours.status.as_u16(), theirs.status.as_u16()) != (400, 400) {
            taken.push((bad, ours.status, theirs.status));
        }
    }
    assert!(taken.is_empty(), "{taken:?}");
}
