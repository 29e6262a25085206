//! `GET /api/v1/services`.

use serde_json::json;
use sonde_aggregator::testing::Database;
use sonde_common::time::{now_ns, rfc3339};

use crate::support::App;
use crate::support::cluster::{Cluster, objects};

const CREATED: &str = "2026-01-31T10:00:00Z";

#[tokio::test]
async fn a_service_is_shown_as_it_was_with_what_stood_behind_it() {
    let cluster = Cluster::start().await;
    cluster.put("services", objects::service("shop", "web", "10.96.0.1", CREATED));
    let mut headless = objects::service("shop", "db", "None", CREATED);
    headless["spec"]["clusterIPs"] = json!(["None"]);
    cluster.put("services", headless);
    let endpoints = [("10.1.0.1", "a", true), ("10.1.0.2", "b", false)];
    cluster.put("endpointslices", objects::slice("shop", "web", &endpoints, CREATED));
    let app = App::start_watching(&Database::migrated().await, &cluster.config()).await;
    app.synced().await;
    let web = async |query: &str| {
        let answer = app.get(&format!("/api/v1/services?service=web&{query}")).await.json();
        answer["services"][0].clone()
    };
    let shown = app
        .until("the service is stored", async || {
            let service = web("").await;
            (service["endpoints_total"] == 2).then_some(service)
        })
        .await;
    assert_eq!(
        shown,
        json!({
            "namespace": "shop", "service": "web", "type": "ClusterIP", "ips": ["10.96.0.1"], "labels": {},
            "ports": [{"name": "http", "port": 80, "protocol": "TCP", "target_port": "web"},
                      {"name": "dns", "port": 53, "protocol": "UDP", "target_port": "5353"}],
            "selector": {"app": "web"}, "endpoints_total": 2, "endpoints_ready": 1,
            "endpoints": [{"ip": "10.1.0.1", "pod": "a", "node": "n1", "ready": true},
                          {"ip": "10.1.0.2", "pod": "b", "node": "n1", "ready": false}],
            "valid_from": "2026-01-31T10:00:00.000000Z", "valid_to": null,
        })
    );
    let both = app.get("/api/v1/services?namespace=shop").await.json();
    assert_eq!(both["services"][0]["service"], "db");
    assert_eq!(
        (&both["services"][0]["ips"], &both["services"][0]["endpoints"]),
        (&json!([]), &json!([]))
    );

    let before = rfc3339(now_ns());
    let mut other = objects::service("shop", "web", "10.96.0.9", CREATED);
    other["spec"]["externalIPs"] = json!(["203.0.113.9"]);
    other["status"] = json!({"loadBalancer": {"ingress": [{"hostname": "lb.example"}, {"ip": "198.51.100.1"}]}});
    cluster.put("services", other);
    cluster.put(
        "endpointslices",
        objects::slice("shop", "web", &[("10.1.0.2", "b", true)], CREATED),
    );
    app.until("the change is stored", async || {
        (web("").await["endpoints_total"] == 1).then_some(())
    })
    .await;
    let now = app
        .until("the service is another", async || {
            let service = web("").await;
            (service["ips"] == json!(["10.96.0.9", "198.51.100.1", "203.0.113.9"])).then_some(service)
        })
        .await;
    assert_eq!(
        now["endpoints"],
        json!([{"ip": "10.1.0.2", "pod": "b", "node": "n1", "ready": true}])
    );
    let then = web(&format!("at={before}")).await;
    assert_eq!(
        (&then["ips"], &then["endpoints_total"], &then["endpoints_ready"]),
        (&json!(["10.96.0.1"]), &json!(2), &json!(1))
    );
    assert!(then["valid_to"].as_str().unwrap() > before.as_str());
    for (query, expected) in [
        ("ip=10.96.0.9", 1),
        ("ip=198.51.100.1", 1),
        ("ip=10.96.0.1", 0),
        ("namespace=!shop", 0),
        ("service=!web", 1),
        ("at=2026-01-31T09:59:59Z", 0),
    ] {
        let answer = app.get(&format!("/api/v1/services?{query}")).await.json();
        assert_eq!(answer["services"].as_array().unwrap().len(), expected, "{query}");
    }
    let row: (String, i64) =
        sqlx::query_as("select string_agg(distinct type, ','), count(*) from sonde.services where service = 'web'")
            .fetch_one(&app.db)
            .await
            .unwrap();
    assert_eq!(row, ("ClusterIP".into(), 2));
}

#[tokio::test]
async fn pages_of_services_have_each_once_and_bad_parameters_are_refused() {
    let cluster = Cluster::start().await;
    for n in 0..10 {
        cluster.put(
            "services",
            objects::service(["a", "b"][n % 2], &format!("s{n}"), &format!("10.96.0.{n}"), CREATED),
        );
    }
    let app = App::start_watching(&Database::migrated().await, &cluster.config()).await;
    let ask = async |query: &str| app.get(&format!("/api/v1/services?{query}")).await.json();
    app.until("all are stored", async || {
        (ask("").await["services"].as_array().unwrap().len() == 10).then_some(())
    })
    .await;
    let (mut read, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = ask(&format!("limit=3{cursor}")).await;
        read.extend(
            page["services"]
                .as_array()
                .unwrap()
                .iter()
                .map(|s| s["service"].as_str().unwrap().to_owned()),
        );
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    assert_eq!(read, ["s0", "s2", "s4", "s6", "s8", "s1", "s3", "s5", "s7", "s9"]);
    for query in ["ip=x", "ip=10.0.0.0/8", "at=x", "limit=0", "cursor=00", "pod=x"] {
        app.get(&format!("/api/v1/services?{query}")).await.problem(400);
    }
}
