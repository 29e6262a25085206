//! What the interface as a whole promises: problems for everything that is not there, a document that says what is.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::support::App;

#[tokio::test]
async fn an_unknown_path_or_method_is_a_problem() {
    let app = App::start().await;
    for path in [
        "/api",
        "/api/",
        "/api/v1",
        "/api/v1/nosuch",
        "/api/v1/events/",
        "/api/v2/events",
        "/api/v1/probes/x/nosuch",
    ] {
        app.get(path).await.problem(404);
    }
    for (method, path) in [
        ("POST", "/api/v1/events"),
        ("DELETE", "/api/v1/pods"),
        ("PUT", "/api/v1/probes/x/rows"),
        ("PATCH", "/metrics"),
        ("POST", "/"),
        ("POST", "/openapi.json"),
    ] {
        app.send(method, path, &[]).await.problem(405);
    }
    let head = app.send("HEAD", "/api/v1/nodes", &[]).await;
    assert_eq!((head.status.as_u16(), head.body.len()), (200, 0));
}

#[tokio::test]
async fn endpoints_without_parameters_take_none() {
    let app = App::start().await;
    for path in ["/api/v1/nodes?x=1", "/api/v1/probes?x=1", "/api/v1/kubernetes?x=1"] {
        assert!(app.get(path).await.problem(400).contains("unknown parameter `x`"));
    }
}

#[tokio::test]
async fn the_document_names_every_path_that_is_served_and_no_other() {
    let app = App::start().await;
    let document = app.get("/openapi.json").await.json();
    assert_eq!(
        document,
        serde_json::to_value(sonde_aggregator::http::openapi()).unwrap()
    );
    assert!(document["openapi"].as_str().unwrap().starts_with("3.1"));
    let paths: BTreeSet<&str> = document["paths"]
        .as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .collect();
    let expected = [
        "/-/healthy",
        "/-/ready",
        "/api/v1/changes",
        "/api/v1/events",
        "/api/v1/events/export",
        "/api/v1/events/stats",
        "/api/v1/events/stream",
        "/api/v1/gaps",
        "/api/v1/kubernetes",
        "/api/v1/nodes",
        "/api/v1/pods",
        "/api/v1/probes",
        "/api/v1/probes/{probe}/rows",
        "/api/v1/services",
        "/federate",
        "/metrics",
    ];
    assert_eq!(paths.into_iter().collect::<Vec<_>>(), expected);
    for (path, item) in document["paths"].as_object().unwrap() {
        for parameter in item["get"]["parameters"].as_array().unwrap_or(&Vec::new()) {
            assert!(
                parameter["description"].as_str().is_some() || is_plain(parameter),
                "{path}: {parameter}"
            );
        }
        assert!(item["get"]["summary"].as_str().is_some(), "{path}");
    }
}

/// Names that say what they are.
fn is_plain(parameter: &Value) -> bool {
    ["namespace", "pod", "workload"].contains(&parameter["name"].as_str().unwrap())
}

#[tokio::test]
async fn requests_are_counted_by_route_and_not_by_path() {
    let app = App::start().await;
    for path in [
        "/api/v1/nodes",
        "/api/v1/nodes?x=1",
        "/api/v1/probes/a/rows",
        "/api/v1/probes/b/rows",
        "/some/page",
    ] {
        app.get(path).await;
    }
    let page = app.get("/metrics").await;
    for line in [
        "sonde_aggregator_http_requests_total{route=\"/api/v1/nodes\",status=\"200\"} 1",
        "sonde_aggregator_http_requests_total{route=\"/api/v1/nodes\",status=\"400\"} 1",
        "sonde_aggregator_http_requests_total{route=\"/api/v1/probes/{probe}/rows\",status=\"404\"} 2",
        "sonde_aggregator_http_requests_total{route=\"pages\",status=\"200\"} 1",
    ] {
        assert!(page.text().lines().any(|l| l == line), "{line}\n{}", page.text());
    }
}
