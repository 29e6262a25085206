//! `GET /api/v1/events/stats`.

use serde_json::{Value, json};
use sonde_common::time::{now_ns, rfc3339};

use crate::support::{App, Batch, EventSpec, SECOND};

#[tokio::test]
async fn events_are_counted_by_step_and_by_field() {
    let app = App::start().await;
    let minute = 60 * SECOND;
    let start = (now_ns() / minute - 10) * minute;
    let mut batch = Batch::new();
    let web = batch.pod("web", "10.0.0.1", start);
    let event = |at: u64| EventSpec {
        time_ns: start + at * SECOND,
        subject: web,
        reason: "A",
        ..Default::default()
    };
    for at in [0, 1, 59, 60, 180] {
        batch.event(&event(at));
    }
    batch.event(&EventSpec {
        subject: 0,
        reason: "",
        ..event(61)
    });
    batch.event(&EventSpec {
        subject: 0,
        unknown: true,
        reason: "B",
        ..event(61)
    });
    batch.event(&event(240));
    app.collector("n1").await.send(batch).await;

    let (from, to) = (rfc3339(start), rfc3339(start + 4 * minute));
    let params = |extra: &[(&'static str, &'static str)]| {
        let mut all = vec![("from", from.as_str()), ("to", to.as_str()), ("step", "1m")];
        all.extend(extra);
        App::path("/api/v1/events/stats", &all)
    };
    let answer = app.get(&params(&[])).await.json();
    let bucket = |i: u64, count: u32| json!({"time": rfc3339(start + i * minute), "count": count});
    assert_eq!(
        answer,
        json!({
            "from": from, "to": to, "step_s": 60.0, "total": 7,
            "buckets": [bucket(0, 3), bucket(1, 3), bucket(2, 0), bucket(3, 1)],
            "top": [{"value": "PACKETLOSS", "count": 7}]
        })
    );
    for (by, expected) in [
        (
            "reason",
            json!([{"value": "A", "count": 5}, {"value": "B", "count": 1}, {"value": null, "count": 1}]),
        ),
        (
            "pod",
            json!([{"value": "web", "count": 5}, {"value": "", "count": 1}, {"value": null, "count": 1}]),
        ),
        (
            "namespace",
            json!([{"value": "shop", "count": 5}, {"value": "", "count": 1}, {"value": null, "count": 1}]),
        ),
        (
            "workload",
            json!([{"value": "web-app", "count": 5}, {"value": null, "count": 2}]),
        ),
        ("node", json!([{"value": "n1", "count": 7}])),
        ("saddr", json!([{"value": null, "count": 7}])),
    ] {
        assert_eq!(app.get(&params(&[("by", by)])).await.json()["top"], expected, "{by}");
    }
    let top = app.get(&params(&[("by", "reason"), ("limit", "1")])).await.json();
    assert_eq!(top["top"], json!([{"value": "A", "count": 5}]));
    assert_eq!(
        app.get(&params(&[("reason", "A"), ("pod", "web")])).await.json()["total"],
        5
    );
}

#[tokio::test]
async fn every_field_can_be_counted_by() {
    let app = App::start().await;
    let mut batch = Batch::new();
    batch.event(&EventSpec {
        time_ns: now_ns() - SECOND,
        reason: "R",
        protocol: "TCP",
        from: Some(("10.0.0.1", 7)),
        to: Some(("fd00::1", 8)),
        direction: sonde_proto::v1::Direction::Forward,
        comm: "nginx",
        ..Default::default()
    });
    app.collector("n1").await.send(batch).await;
    for (by, value) in [
        ("type", json!("PACKETLOSS")),
        ("reason", json!("R")),
        ("probe", json!("netdev")),
        ("protocol", json!("TCP")),
        ("node", json!("n1")),
        ("namespace", json!("")),
        ("pod", json!("")),
        ("workload", Value::Null),
        ("interface", Value::Null),
        ("comm", json!("nginx")),
        ("state", Value::Null),
        ("direction", json!("forward")),
        ("saddr", json!("10.0.0.1")),
        ("daddr", json!("fd00::1")),
        ("sport", json!("7")),
        ("dport", json!("8")),
    ] {
        let answer = app.get(&format!("/api/v1/events/stats?by={by}")).await.json();
        assert_eq!(answer["top"], json!([{"value": value, "count": 1}]), "{by}");
    }
}

#[tokio::test]
async fn a_span_without_events_has_empty_steps_and_bad_steps_are_refused() {
    let app = App::start().await;
    let answer = app.get("/api/v1/events/stats?from=-15m").await.json();
    assert_eq!(
        (&answer["total"], &answer["top"], &answer["step_s"]),
        (&json!(0), &json!([]), &json!(15.0))
    );
    let buckets = answer["buckets"].as_array().unwrap().len();
    assert!((60..=61).contains(&buckets), "{buckets}");
    for (query, expected) in [
        ("by=color", "expected one of type, reason"),
        ("step=1ms", "at most 2000"),
        ("step=0s", "longer than nothing"),
        ("step=1", "has no unit"),
        ("cursor=1", "unknown parameter `cursor`"),
        ("limit=0", "from 1 to 1000"),
    ] {
        let detail = app.get(&format!("/api/v1/events/stats?{query}")).await.problem(400);
        assert!(detail.contains(expected), "{query}: {detail}");
    }
}
