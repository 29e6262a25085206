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

/// A counter's points as increases: what falls begins again at 0.
fn increases(points: &[Value]) -> Vec<(i64, i64)> {
    let value = |point: &Value| (point[0].as_i64().unwrap(), point[1].as_i64());
    let points: Vec<_> = points.iter().map(value).filter_map(|(at, n)| Some((at, n?))).collect();
    let rise = |pair: &[(i64, i64)]| {
        (
            pair[1].0,
            if pair[1].1 < pair[0].1 {
                pair[1].1
            } else {
                pair[1].1 - pair[0].1
            },
        )
    };
    points.windows(2).map(rise).collect()
}

#[tokio::test]
async fn long_ranges_come_from_rollups_and_tell_the_same_increases() {
    const MINUTE: u64 = 60 * SECOND;
    let app = App::start().await;
    let mut collector = app.collector("n1").await;
    // Where a part of six minutes begins: these are counted from 1970.
    let start = (now_ns() / (6 * MINUTE) - 80) * 6 * MINUTE;
    let reset = 290;
    for hour in 0..8 {
        let mut batch = Batch::new();
        let web = batch.pod("web", "10.0.0.1", start);
        for i in hour * 60..(hour * 60 + 60).min(479) {
            let bytes = if i < reset { 1000 + i * i } else { 5 + (i - reset) * 3 };
            let at = start + i as u64 * MINUTE;
            let carrier = if i % 7 == 0 { ABSENT } else { i };
            batch.netdev(at, &[(web, "eth0", [bytes, carrier, i * 500_000_000])]);
            batch.lat(at, web, [i, 2 * i, i / 2, i * 1_000_000_000]);
        }
        collector.send(batch).await;
    }
    app.store.roll_up(now_ns()).await.unwrap();
    let at = |i: i64| sonde_aggregator::store::query::rfc3339((start as i64 + i * MINUTE as i64) / 1000);
    let get = async |probe: &str, from: i64, to: i64, points: &str| {
        let params = [("from", at(from)), ("to", at(to)), ("max_points", points.to_owned())];
        let params: Vec<_> = params.iter().map(|(name, value)| (*name, value.as_str())).collect();
        app.get(&App::path(&format!("/api/v1/probes/{probe}/rows"), &params))
            .await
            .json()
    };
    let points = |answer: &Value, column: &str| answer["series"][0]["columns"][column].as_array().unwrap().clone();

    let rolled = get("netdev", 0, 479, "479").await;
    assert_eq!(rolled["source"], "1m");
    let mut raw = Vec::new();
    for (from, to) in [(0, 240), (240, 479)] {
        let answer = get("netdev", from, to, "5000").await;
        assert_eq!(answer["source"], "rows");
        raw.extend(points(&answer, "receive_bytes"));
    }
    let (long, short) = (increases(&points(&rolled, "receive_bytes")), increases(&raw));
    // A rollup of a minute stands at its end. The first point of all has nothing to rise from.
    let ends: Vec<_> = short.iter().map(|(at, n)| (at + 60_000, *n)).collect();
    assert_eq!(long, ends[1..], "with the hour that is not rolled up");
    let busy = points(&rolled, "busy_seconds");
    let half = |point: &Value| (point[1].as_f64().unwrap() - 478.0 / 2.0).abs() < 1e-9;
    assert!(half(busy.last().unwrap()), "{:?}", busy.last());
    let carrier = points(&rolled, "carrier");
    assert_eq!((&carrier[6][1], &carrier[7][1]), (&json!(6), &Value::Null));

    // Six minutes are one part: a gauge is its average there.
    let parts = get("netdev", 0, 480, "80").await;
    assert_eq!(parts["source"], "1m");
    let total: i64 = increases(&points(&parts, "receive_bytes")).iter().map(|(_, n)| n).sum();
    let first = points(&parts, "receive_bytes")[0][1].as_i64().unwrap();
    assert_eq!(total + first, short.iter().map(|(_, n)| n).sum::<i64>());
    let lat = points(&get("lat", 0, 480, "80").await, "wait_seconds");
    let last = &lat.last().unwrap()[1];
    assert_eq!([&last[0], &last[1], &last[2]], [478, 956, 239]);
    assert!((last[3].as_f64().unwrap() - 478.0).abs() < 1e-9, "{last}");

    let hours = get("netdev", 0, 479, "8").await;
    assert_eq!(hours["source"], "1m", "parts of just under an hour");
    let hours = get("netdev", -600, 479, "10").await;
    assert_eq!(hours["source"], "1h");
    assert!(half(points(&hours, "busy_seconds").last().unwrap()));
    let old = get("netdev", -30 * 24 * 60, -29 * 24 * 60, "10").await;
    assert_eq!(
        (&old["source"], old["series"].as_array().unwrap().len()),
        (&json!("1h"), 0)
    );
}
