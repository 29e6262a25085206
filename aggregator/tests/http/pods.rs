//! `GET /api/v1/pods`.

use serde_json::{Value, json};
use sonde_common::time::{now_ns, rfc3339};

use crate::support::{App, Batch, SECOND};

fn names(answer: &Value) -> Vec<&str> {
    answer["pods"]
        .as_array()
        .unwrap()
        .iter()
        .map(|p| p["pod"].as_str().unwrap())
        .collect()
}

/// n1: web and api live, old gone for an hour; n2: dns live.
async fn app_with_pods() -> (App, u64) {
    let app = App::start().await;
    let now = now_ns();
    let mut batch = Batch::new();
    batch.pod("web", "10.0.0.1", now - 7200 * SECOND);
    batch.pod("api", "10.0.0.2", now - 600 * SECOND);
    batch.pod_of("shop", "old", "10.0.0.3", now - 7200 * SECOND, now - 3600 * SECOND);
    app.collector("n1").await.send(batch).await;
    let mut batch = Batch::new();
    batch.pod_of("kube-system", "dns", "fd00::3", now - 7200 * SECOND, 0);
    app.collector("n2").await.send(batch).await;
    (app, now)
}

#[tokio::test]
async fn a_pod_is_shown_with_all_that_is_known_of_it() {
    let (app, now) = app_with_pods().await;
    let answer = app.get("/api/v1/pods?node=n2").await.json();
    assert_eq!(
        answer,
        json!({"next_cursor": null, "pods": [{
            "node": "n2", "namespace": "kube-system", "pod": "dns", "uid": "uid-dns", "workload": "dns-app",
            "workload_kind": "Deployment", "sandbox": format!("sandbox-kube-system-dns-{}", now - 7200 * SECOND),
            "ips": ["fd00::3"], "labels": {"app": "dns"}, "host_network": false, "netns_inode": 4_026_531_840_u64,
            "valid_from": rfc3339(now - 7200 * SECOND), "valid_to": null
        }]})
    );
}

#[tokio::test]
async fn pods_are_found_by_name_and_by_time() {
    let (app, now) = app_with_pods().await;
    let at = rfc3339(now - 5400 * SECOND);
    for (params, expected) in [
        (vec![], vec!["dns", "api", "web"]),
        (vec![("all", "true")], vec!["dns", "api", "old", "web"]),
        (vec![("all", "false")], vec!["dns", "api", "web"]),
        (vec![("namespace", "shop")], vec!["api", "web"]),
        (vec![("namespace", "!shop")], vec!["dns"]),
        (vec![("namespace", "")], vec![]),
        (vec![("node", "n1"), ("pod", "web"), ("pod", "dns")], vec!["web"]),
        (vec![("workload", "api-app")], vec!["api"]),
        (vec![("at", at.as_str())], vec!["dns", "old", "web"]),
        (vec![("at", "now")], vec!["dns", "api", "web"]),
        (vec![("at", "-3h")], vec![]),
        (vec![("from", "-2h"), ("to", "-30m")], vec!["dns", "old", "web"]),
        (vec![("from", "-30m")], vec!["dns", "api", "web"]),
        (vec![("from", "-90m")], vec!["dns", "api", "old", "web"]),
    ] {
        let answer = app.get(&App::path("/api/v1/pods", &params)).await.json();
        assert_eq!(names(&answer), expected, "{params:?}");
    }
}

#[tokio::test]
async fn pages_follow_one_another() {
    let (app, _) = app_with_pods().await;
    let first = app.get("/api/v1/pods?limit=2").await.json();
    assert_eq!(names(&first), ["dns", "api"]);
    let cursor = first["next_cursor"].as_str().unwrap();
    let second = app.get(&format!("/api/v1/pods?limit=2&cursor={cursor}")).await.json();
    assert_eq!((names(&second), &second["next_cursor"]), (vec!["web"], &Value::Null));
    app.get(&format!("/api/v1/pods?namespace=shop&cursor={cursor}"))
        .await
        .problem(400);
}

#[tokio::test]
async fn bad_parameters_are_refused() {
    let app = App::start().await;
    for (query, expected) in [
        ("at=-1h&all=true", "not several"),
        ("at=-1h&from=-1h", "not several"),
        ("all=yes", "expected `true` or `false`"),
        ("at=noon", "expected RFC 3339"),
        ("limit=10001", "from 1 to 10000"),
        ("ip=10.0.0.1", "unknown parameter `ip`"),
        ("cursor=00", "next_cursor"),
    ] {
        let detail = app.get(&format!("/api/v1/pods?{query}")).await.problem(400);
        assert!(detail.contains(expected), "{query}: {detail}");
    }
}
