//! `GET /api/v1/probes/{probe}/rows`.

use serde_json::{Value, json};
use sonde_common::time::now_ns;
use sonde_proto::ABSENT;

use crate::support::{App, Batch, SECOND};

/// A whole second about a minute ago, in nanoseconds.
fn start() -> u64 {
    (now_ns() / SECOND - 60) * SECOND
}

async fn app_with_rows(start: u64) -> App {
    let app = App::start().await;
    let mut collector = app.collector("n1").await;
    for i in 0..6 {
        let mut batch = Batch::new();
        let web = batch.pod("web", "10.0.0.1", start);
        let at = start + i * 5 * SECOND;
        let n = i as i64;
        let carrier = if i == 1 { ABSENT } else { 1 };
        batch.netdev(
            at,
            &[
                (0, "eth0", [n, 1, 0]),
                (web, "eth0", [100 + n, carrier, n * 500_000_000]),
                (web, "lo", [7, 1, 0]),
            ],
        );
        batch.lat(at, web, [n, 2, 1, 1_500_000_000]);
        collector.send(batch).await;
    }
    app
}

fn series<'a>(answer: &'a Value, pod: &str, device: &str) -> &'a Value {
    let all = answer["series"].as_array().unwrap();
    all.iter()
        .find(|s| s["pod"] == pod && s["labels"]["device"] == device)
        .expect("the series is there")
}

#[tokio::test]
async fn readings_are_in_their_unit_and_in_order() {
    let start = start();
    let app = app_with_rows(start).await;
    let answer = app.get("/api/v1/probes/netdev/rows").await.json();
    assert_eq!(answer["probe"], "netdev");
    assert_eq!(answer["series"].as_array().unwrap().len(), 3);
    let ms = |i: u64| (start + i * 5 * SECOND) / 1_000_000;
    assert_eq!(
        *series(&answer, "web", "eth0"),
        json!({"node": "n1", "namespace": "shop", "pod": "web", "labels": {"device": "eth0"}, "columns": {
            "receive_bytes": [[ms(0), 100], [ms(1), 101], [ms(2), 102], [ms(3), 103], [ms(4), 104], [ms(5), 105]],
            "carrier": [[ms(0), 1], [ms(1), null], [ms(2), 1], [ms(3), 1], [ms(4), 1], [ms(5), 1]],
            "busy_seconds": [[ms(0), 0], [ms(1), 0.5], [ms(2), 1], [ms(3), 1.5], [ms(4), 2], [ms(5), 2.5]]
        }})
    );
    let lat = app.get("/api/v1/probes/lat/rows").await.json();
    assert_eq!(
        lat["series"][0]["columns"]["wait_seconds"][3],
        json!([ms(3), [3, 2, 1, 1.5]])
    );
}

#[tokio::test]
async fn subjects_and_columns_are_chosen() {
    let app = app_with_rows(start()).await;
    for (params, expected) in [
        (vec![("pod", "web")], 2),
        (vec![("namespace", ""), ("pod", "")], 1),
        (vec![("pod", "!web")], 1),
        (vec![("node", "n2")], 0),
        (vec![("from", "-2h"), ("to", "-1h")], 0),
    ] {
        let answer = app.get(&App::path("/api/v1/probes/netdev/rows", &params)).await.json();
        assert_eq!(answer["series"].as_array().unwrap().len(), expected, "{params:?}");
    }
    let answer = app
        .get("/api/v1/probes/netdev/rows?column=carrier&column=receive_bytes&column=carrier")
        .await
        .json();
    let columns: Vec<_> = series(&answer, "web", "lo")["columns"]
        .as_object()
        .unwrap()
        .keys()
        .collect();
    assert_eq!(columns, ["carrier", "receive_bytes"]);
}

#[tokio::test]
async fn a_chart_gets_no_more_points_than_it_asks_for_and_the_newest_of_each_part() {
    let app = app_with_rows(start()).await;
    let answer = app
        .get("/api/v1/probes/netdev/rows?from=-2m&max_points=4&column=receive_bytes&pod=web")
        .await
        .json();
    let points = series(&answer, "web", "eth0")["columns"]["receive_bytes"]
        .as_array()
        .unwrap();
    assert!(
        (1..=3).contains(&points.len()),
        "30 seconds of 120 in parts of 30: {points:?}"
    );
    assert_eq!(points.last().unwrap()[1], 105);
}

#[tokio::test]
async fn what_is_not_there_is_refused() {
    let app = app_with_rows(start()).await;
    for probe in ["nosuch", "events", "a%22b", "%27;drop", "a.b"] {
        let detail = app.get(&format!("/api/v1/probes/{probe}/rows")).await.problem(404);
        assert!(detail.contains("there is no probe"), "{detail}");
    }
    for (query, expected) in [
        ("column=nosuch", "expected one of receive_bytes, carrier, busy_seconds"),
        ("column=", "expected one of"),
        ("max_points=0", "from 1 to 5000"),
        ("device=eth0", "unknown parameter `device`"),
        ("from=now", "`from` is not before `to`"),
    ] {
        let detail = app
            .get(&format!("/api/v1/probes/netdev/rows?{query}"))
            .await
            .problem(400);
        assert!(detail.contains(expected), "{query}: {detail}");
    }
}
