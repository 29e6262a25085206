//! `GET /api/v1/gaps`.

use serde_json::json;
use sonde_common::time::{now_ns, rfc3339};

use crate::support::{App, Batch, SECOND};

#[tokio::test]
async fn gaps_that_touch_the_span_are_shown_newest_first() {
    let app = App::start().await;
    let now = now_ns();
    let at = |minutes: u64| now - minutes * 60 * SECOND;
    let mut batch = Batch::new();
    let web = batch.pod("web", "10.0.0.1", at(600));
    batch.gap("netdev", "ring_full", at(20), at(10), 0);
    batch.gap("", "collector_down", at(200), at(50), 0);
    batch.gap("packetloss", "rate_limited", at(5), at(4), web);
    batch.gap("packetloss", "rate_limited", at(300), at(250), web);
    app.collector("n1").await.send(batch).await;

    let answer = app.get("/api/v1/gaps").await.json();
    assert_eq!(
        answer,
        json!({"truncated": false, "gaps": [
            {"node": "n1", "namespace": "shop", "pod": "web", "probe": "packetloss", "cause": "rate_limited",
             "from": rfc3339(at(5)), "to": rfc3339(at(4)), "count": 3, "detail": "why"},
            {"node": "n1", "namespace": "", "pod": "", "probe": "netdev", "cause": "ring_full",
             "from": rfc3339(at(20)), "to": rfc3339(at(10)), "count": 3, "detail": "why"},
            {"node": "n1", "namespace": "", "pod": "", "probe": "", "cause": "collector_down",
             "from": rfc3339(at(200)), "to": rfc3339(at(50)), "count": 3, "detail": "why"}
        ]})
    );
    for (query, expected) in [
        ("from=-6h", 4),
        ("from=-15m", 2),
        ("from=-6h&to=-1h", 2),
        ("from=-45m&to=-30m", 0),
        ("probe=netdev", 2),
        ("probe=packetloss&from=-6h", 3),
        ("probe=!packetloss", 2),
        ("cause=ring_full&cause=rate_limited", 2),
        ("node=n2", 0),
        ("node=!n2", 3),
    ] {
        let answer = app.get(&format!("/api/v1/gaps?{query}")).await.json();
        assert_eq!(answer["gaps"].as_array().unwrap().len(), expected, "{query}");
    }
    let cut = app.get("/api/v1/gaps?limit=1").await.json();
    assert_eq!(
        (cut["gaps"].as_array().unwrap().len(), &cut["truncated"]),
        (1, &json!(true))
    );
}

#[tokio::test]
async fn bad_parameters_are_refused() {
    let app = App::start().await;
    for query in ["type=X", "from=x", "limit=0", "limit=10001", "from=now&to=-1h"] {
        app.get(&format!("/api/v1/gaps?{query}")).await.problem(400);
    }
}
