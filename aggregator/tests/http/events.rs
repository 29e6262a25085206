//! `GET /api/v1/events`: what an event looks like, and which events a filter finds.

use serde_json::{Value, json};
use sonde_common::time::{now_ns, rfc3339};
use sonde_proto::v1::Direction;

use crate::support::{App, Batch, EventSpec, SECOND};

/// Reasons of the events that were found, as a sorted list.
async fn reasons(app: &App, params: &[(&str, &str)]) -> Vec<String> {
    let answer = app.get(&App::path("/api/v1/events", params)).await.json();
    let mut reasons: Vec<String> = answer["events"]
        .as_array()
        .unwrap()
        .iter()
        .map(|e| e.get("reason").map_or("-", |r| r.as_str().unwrap()).to_owned())
        .collect();
    reasons.sort();
    reasons
}

#[tokio::test]
async fn an_event_has_what_is_known_of_it_and_nothing_else() {
    let app = App::start().await;
    let now = now_ns();
    let mut batch = Batch::new();
    let web = batch.pod("web", "10.0.0.1", now - 60 * SECOND);
    let api = batch.pod("api", "10.0.0.2", now - 60 * SECOND);
    batch.event(&EventSpec {
        time_ns: now - SECOND,
        subject: web,
        reason: "NETFILTER_DROP",
        protocol: "TCP",
        from: Some(("10.0.0.2", 40000)),
        to: Some(("10.0.0.1", 80)),
        peer: Some(api),
        direction: Direction::Ingress,
        latency_ns: Some(0),
        comm: "nginx",
        stack: &["nft_do_chain+0x4f1", "ip_rcv+0x1"],
        attributes: &[("table", "filter")],
        ..Default::default()
    });
    batch.event(&EventSpec {
        time_ns: now - 2 * SECOND,
        kind: "TCPRETRANS",
        ..Default::default()
    });
    batch.event(&EventSpec {
        time_ns: now - 3 * SECOND,
        unknown: true,
        ..Default::default()
    });
    app.collector("n1").await.send(batch).await;

    let answer = app.get("/api/v1/events").await.json();
    assert_eq!(answer["next_cursor"], Value::Null);
    let events = answer["events"].as_array().unwrap();
    let id = |i: usize| events[i]["id"].clone();
    assert_eq!(
        events[0],
        json!({
            "id": id(0), "time": rfc3339(now - SECOND), "node": "n1", "namespace": "shop", "pod": "web",
            "workload": "web-app", "probe": "netdev", "type": "PACKETLOSS", "reason": "NETFILTER_DROP",
            "protocol": "TCP", "saddr": "10.0.0.2", "sport": 40000, "daddr": "10.0.0.1", "dport": 80,
            "peer": {"node": "n1", "namespace": "shop", "pod": "api", "workload": "api-app"},
            "direction": "ingress", "latency_ns": 0, "comm": "nginx",
            "stack": ["nft_do_chain+0x4f1", "ip_rcv+0x1"], "attributes": {"table": "filter"}
        })
    );
    let host = json!({
        "id": id(1), "time": rfc3339(now - 2 * SECOND), "node": "n1", "namespace": "", "pod": "", "probe": "netdev",
        "type": "TCPRETRANS"
    });
    assert_eq!(events[1], host);
    let unknown = json!({
        "id": id(2), "time": rfc3339(now - 3 * SECOND), "node": "n1", "probe": "netdev", "type": "PACKETLOSS"
    });
    assert_eq!(events[2], unknown);
}

#[tokio::test]
async fn a_filter_finds_what_it_says() {
    let app = App::start().await;
    let now = now_ns();
    let event = |reason| EventSpec {
        time_ns: now - SECOND,
        reason,
        ..Default::default()
    };
    type Case = (&'static [(&'static str, &'static str)], &'static [&'static str]);
    let cases: &[Case] = &[
        (&[], &["-", "A", "B", "D", "HOST_reason"]),
        (&[("reason", "A")], &["A"]),
        (&[("reason", "A"), ("reason", "B"), ("reason", "nosuch")], &["A", "B"]),
        (&[("reason", "nosuch")], &[]),
        (&[("reason", "!A")], &["-", "B", "D", "HOST_reason"]),
        (&[("reason", "!nosuch")], &["-", "A", "B", "D", "HOST_reason"]),
        (&[("reason", "")], &["-"]),
        (&[("reason", "!")], &["A", "B", "D", "HOST_reason"]),
        (&[("reason", ""), ("reason", "A")], &["-", "A"]),
        (&[("reason", "A"), ("reason", "!A")], &[]),
        (&[("type", "TCPRETRANS")], &["HOST_reason"]),
        (&[("type", "!TCPRETRANS"), ("node", "n1")], &["-", "A", "B"]),
        (&[("probe", "netdev"), ("node", "n2")], &["D"]),
        (&[("probe", "other")], &[]),
        (&[("node", "!n1")], &["D"]),
        (&[("namespace", "shop")], &["A", "D"]),
        (&[("namespace", "shop"), ("node", "n1")], &["A"]),
        (&[("namespace", "")], &["HOST_reason"]),
        (&[("namespace", ""), ("pod", "")], &["HOST_reason"]),
        (&[("namespace", "!shop")], &["-", "B", "HOST_reason"]),
        (&[("namespace", "!")], &["-", "A", "B", "D"]),
        (&[("namespace", "!shop"), ("namespace", "!")], &["-", "B"]),
        (
            &[("namespace", "shop"), ("namespace", "kube-system"), ("pod", "!web")],
            &["B"],
        ),
        (&[("pod", "web")], &["A", "D"]),
        (&[("pod", "nosuch")], &[]),
        (&[("workload", "dns-app")], &["B"]),
        (&[("workload", "!dns-app")], &["-", "A", "D", "HOST_reason"]),
        (&[("protocol", "TCP")], &["A"]),
        (&[("protocol", "")], &["-", "D", "HOST_reason"]),
        (&[("ip", "10.0.0.1")], &["A"]),
        (&[("ip", "192.168.0.0/16")], &["A"]),
        (&[("ip", "192.168.7.9/16")], &["A"]),
        (&[("ip", "fd00:1::/32")], &["B"]),
        (&[("ip", "0.0.0.0/0")], &["A"]),
        (&[("ip", "::/0"), ("ip", "10.0.0.1")], &["A", "B"]),
        (&[("ip", "!10.0.0.1")], &["-", "B", "D", "HOST_reason"]),
        (&[("port", "5000")], &["A", "B"]),
        (&[("port", "5000"), ("port", "!443")], &["B"]),
        (&[("port", "!5000")], &["-", "D", "HOST_reason"]),
        (&[("min_latency", "20ms")], &["B"]),
        (&[("min_latency", "5000000")], &["A", "B"]),
        (&[("q", "nginx")], &["A"]),
        (&[("q", "TCP_V4")], &["A"]),
        (&[("q", "forward")], &["B"]),
        (&[("q", "host")], &["HOST_reason"]),
        (&[("q", "%")], &[]),
        (&[("q", "forward"), ("q", "nginx")], &["A", "B"]),
        (&[("q", "!nginx")], &["-", "B", "D", "HOST_reason"]),
        (
            &[
                ("pod", "web"),
                ("ip", "10.0.0.1"),
                ("port", "443"),
                ("protocol", "TCP"),
                ("q", "tcp_v4"),
            ],
            &["A"],
        ),
    ];
    // Streams filter the same events in memory.
    let mut streams = Vec::new();
    for (params, _) in cases {
        streams.push(app.stream(&App::path("/api/v1/events/stream", params), &[]).await);
    }
    let mut batch = Batch::new();
    let web = batch.pod("web", "10.0.0.1", now - 60 * SECOND);
    let dns = batch.pod_of("kube-system", "dns", "10.0.1.1", now - 60 * SECOND, 0);
    batch.event(&EventSpec {
        subject: web,
        protocol: "TCP",
        from: Some(("10.0.0.1", 5000)),
        to: Some(("192.168.7.9", 443)),
        latency_ns: Some(5_000_000),
        comm: "Nginx",
        stack: &["tcp_v4_rcv+0x1"],
        ..event("A")
    });
    batch.event(&EventSpec {
        subject: dns,
        protocol: "UDP",
        from: Some(("fd00::5", 53)),
        to: Some(("fd00:1::6", 5000)),
        latency_ns: Some(20_000_000),
        attributes: &[("chain", "FORWARD_drop")],
        ..event("B")
    });
    batch.event(&EventSpec {
        kind: "TCPRETRANS",
        ..event("HOST_reason")
    });
    batch.event(&EventSpec {
        unknown: true,
        ..event("")
    });
    app.collector("n1").await.send(batch).await;
    let mut batch = Batch::new();
    let web = batch.pod("web", "10.0.0.9", now - 60 * SECOND);
    batch.event(&EventSpec {
        subject: web,
        ..event("D")
    });
    app.collector("n2").await.send(batch).await;

    for (params, expected) in cases {
        assert_eq!(reasons(&app, params).await, *expected, "{params:?}");
    }
    let mut streamed = Vec::new();
    for (stream, (_, expected)) in streams.iter_mut().zip(cases) {
        let mut reasons = Vec::new();
        while reasons.len() < expected.len() {
            let (_, event) = stream.next().await.expect("the stream goes on");
            reasons.push(event.get("reason").map_or("-", |r| r.as_str().unwrap()).to_owned());
        }
        streamed.push(reasons);
    }
    // Whatever else they were sent.
    app.shut_down();
    for ((mut stream, mut reasons), (params, expected)) in streams.into_iter().zip(streamed).zip(cases) {
        while let Some((_, event)) = stream.next().await {
            reasons.push(event.to_string());
        }
        reasons.sort();
        assert_eq!(reasons, *expected, "{params:?}");
    }
}

#[tokio::test]
async fn time_bounds_include_the_beginning_and_exclude_the_end() {
    let app = App::start().await;
    let time = now_ns() / 1000 * 1000 - 7200 * SECOND;
    let mut batch = Batch::new();
    batch.event(&EventSpec {
        time_ns: time,
        reason: "A",
        ..Default::default()
    });
    app.collector("n1").await.send(batch).await;
    let (at, after) = (rfc3339(time), rfc3339(time + 1000));
    for (params, found) in [
        (vec![], false),
        (vec![("from", "-3h")], true),
        (vec![("from", "-3h"), ("to", "-2h")], true),
        (vec![("from", "-1h")], false),
        (vec![("from", at.as_str()), ("to", after.as_str())], true),
        (vec![("from", "-3h"), ("to", at.as_str())], false),
        (vec![("from", after.as_str())], false),
        (vec![("to", after.as_str())], true),
    ] {
        assert_eq!(!reasons(&app, &params).await.is_empty(), found, "{params:?}");
    }
}

#[tokio::test]
async fn a_peer_that_the_collector_could_not_name_is_looked_up_by_its_address_at_that_time() {
    let app = App::start().await;
    let now = now_ns();
    let start = now - 600 * SECOND;
    let mut far = Batch::new();
    far.pod_of("shop", "before", "10.0.9.9", start, start + 100 * SECOND);
    far.pod_of("shop", "after", "10.0.9.9", start + 200 * SECOND, 0);
    app.collector("n2").await.send(far).await;

    let mut near = Batch::new();
    let web = near.pod("web", "10.0.0.1", start);
    let (own, other) = (Some(("10.0.0.1", 1)), Some(("10.0.9.9", 2)));
    let event = |seconds: u64, reason| EventSpec {
        time_ns: start + seconds * SECOND,
        reason,
        ..Default::default()
    };
    near.event(&EventSpec {
        subject: web,
        from: other,
        to: own,
        ..event(50, "old")
    });
    near.event(&EventSpec {
        subject: web,
        from: other,
        to: own,
        ..event(150, "between")
    });
    near.event(&EventSpec {
        subject: web,
        from: own,
        to: other,
        ..event(250, "new")
    });
    // The node's own: no address of it is known, so the direction says which end is far.
    near.event(&EventSpec {
        from: own,
        to: other,
        direction: Direction::Egress,
        ..event(260, "host out")
    });
    near.event(&EventSpec {
        from: own,
        to: other,
        ..event(270, "host unknown")
    });
    near.event(&EventSpec {
        subject: web,
        from: own,
        to: other,
        peer: Some(0),
        ..event(280, "named")
    });
    app.collector("n1").await.send(near).await;

    let answer = app.get("/api/v1/events?order=asc").await.json();
    let peers: Vec<(&str, Value)> = answer["events"]
        .as_array()
        .unwrap()
        .iter()
        .map(|e| {
            (
                e["reason"].as_str().unwrap(),
                e.get("peer").cloned().unwrap_or_default(),
            )
        })
        .collect();
    let peer = |pod: &str| json!({"node": "n2", "namespace": "shop", "pod": pod, "workload": format!("{pod}-app")});
    assert_eq!(
        peers,
        [
            ("old", peer("before")),
            ("between", Value::Null),
            ("new", peer("after")),
            ("host out", peer("after")),
            ("host unknown", Value::Null),
            ("named", json!({"node": "n1", "namespace": "", "pod": ""})),
        ]
    );
}

#[tokio::test]
async fn words_of_callers_are_words() {
    let app = App::start().await;
    let evil = "'; drop table sonde_store.events; --";
    let mut batch = Batch::new();
    batch.event(&EventSpec {
        time_ns: now_ns() - SECOND,
        reason: evil,
        ..Default::default()
    });
    app.collector("n1").await.send(batch).await;
    for key in ["probe", "type", "node", "namespace", "pod", "workload", "protocol"] {
        assert_eq!(reasons(&app, &[(key, evil)]).await, Vec::<String>::new(), "{key}");
    }
    for key in ["reason", "q"] {
        assert_eq!(reasons(&app, &[(key, evil)]).await, [evil], "{key}");
    }
}

#[tokio::test]
async fn a_bad_parameter_is_named_with_what_was_expected() {
    let app = App::start().await;
    for (query, expected) in [
        (
            "nosuch=1",
            "unknown parameter `nosuch`; known are from, to, order, limit, cursor, probe, type, reason",
        ),
        ("from=yesterday", "expected RFC 3339"),
        ("from=-1h&to=-2h", "`from` is not before `to`"),
        ("to=", "expected RFC 3339"),
        ("order=up", "expected one of desc, asc"),
        ("limit=0", "expected a whole number from 1 to 1000"),
        ("limit=1001", "expected a whole number from 1 to 1000"),
        ("limit=ten", "expected a whole number from 1 to 1000"),
        ("limit=1&limit=2", "given more than once"),
        ("ip=10.0.0", "expected an address"),
        ("ip=10.0.0.0/33", "expected an address"),
        ("ip=!x", "expected an address"),
        ("port=http", "expected a port"),
        ("port=65536", "expected a port"),
        ("min_latency=fast", "expected a duration such as `10ms`"),
        ("min_latency=!10ms", "expected a duration"),
        ("q=", "expected a text"),
        ("q=!", "expected a text"),
        ("cursor=abc", "expected `next_cursor`"),
        ("reason=%00", "NUL byte"),
        ("reason=%FF%00", "NUL byte"),
    ] {
        let detail = app.get(&format!("/api/v1/events?{query}")).await.problem(400);
        assert!(detail.contains(expected), "{query}: {detail}");
    }
    // Bytes that are not UTF-8 are a word that nothing has.
    assert_eq!(app.get("/api/v1/events?reason=%FF").await.json()["events"], json!([]));
}
