//! `GET /api/v1/kubernetes` and the watches behind it: every way in which the API can answer, or not.

use std::time::Duration;

use serde_json::{Value, json};
use sonde_aggregator::kubernetes::{Kubernetes, Pace};
use sonde_aggregator::testing::Database;
use sonde_common::config::{self, Enabled};
use sonde_common::time::{now_ns, rfc3339};

use crate::support::cluster::{Cluster, Trouble, objects};
use crate::support::{App, SECOND};

const CREATED: &str = "2026-01-31T10:00:00Z";

fn ago(seconds: u64) -> String {
    let time = rfc3339((now_ns() / SECOND - seconds) * SECOND);
    format!("{}Z", &time[..19])
}

async fn watching(cluster: &Cluster) -> App {
    let app = App::start_watching(&Database::migrated().await, &cluster.config()).await;
    app.synced().await;
    app
}

async fn watch(app: &App, name: &str) -> Value {
    let answer = app.get("/api/v1/kubernetes").await.json();
    let watches = answer["watches"].as_array().unwrap();
    watches.iter().find(|w| w["watch"] == name).cloned().unwrap_or_default()
}

/// One line of the aggregator's own metrics.
async fn metric(app: &App, series: &str) -> f64 {
    let page = app.get("/metrics").await;
    let line = page
        .text()
        .lines()
        .find(|l| l.starts_with(series))
        .unwrap_or_else(|| panic!("{series}: {}", page.text()));
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

#[tokio::test]
async fn without_a_cluster_it_says_why_it_is_off() {
    let app = App::start().await;
    let answer = app.get("/api/v1/kubernetes").await.json();
    assert_eq!(
        answer,
        json!({"role": "off", "reason": "kubernetes.enabled is off", "synced": false, "watches": []})
    );
    assert_eq!(metric(&app, "sonde_aggregator_kubernetes_leader").await, 0.0);
    let on = config::Kubernetes {
        enabled: Enabled::On,
        kubeconfig: "/nonexistent".into(),
        ..config::Kubernetes::default()
    };
    let error = Kubernetes::new(&on, Pace::default()).await.unwrap_err().to_string();
    assert!(error.starts_with("kubernetes.kubeconfig: `/nonexistent`:"), "{error}");
}

#[tokio::test]
async fn all_pages_of_all_lists_are_read_and_counted() {
    let cluster = Cluster::start().await;
    for n in 0..10 {
        cluster.put("pods", objects::pod("shop", &format!("p{n}"), "", CREATED));
    }
    let app = watching(&cluster).await;
    app.until("the pods are counted", async || {
        (watch(&app, "pods").await["objects"] == 10).then_some(())
    })
    .await;
    let answer = app.get("/api/v1/kubernetes").await.json();
    assert_eq!((&answer["role"], &answer["synced"]), (&json!("leader"), &json!(true)));
    let names: Vec<_> = answer["watches"]
        .as_array()
        .unwrap()
        .iter()
        .map(|w| w["watch"].clone())
        .collect();
    assert_eq!(
        names,
        [
            "controllerrevisions",
            "endpointslices",
            "jobs",
            "nodes",
            "pods",
            "replicasets",
            "services"
        ]
    );
    let lists: Vec<_> = cluster
        .requests("pods")
        .into_iter()
        .filter(|q| !q.contains_key("watch"))
        .collect();
    assert_eq!(lists.len(), 4, "pages of three: {lists:?}");
    assert!(lists.iter().all(|q| q["limit"] == "3") && !lists[0].contains_key("continue"));
    for (series, expected) in [
        ("sonde_aggregator_kubernetes_leader", 1.0),
        ("sonde_aggregator_kubernetes_synced{watch=\"pods\"}", 1.0),
        ("sonde_aggregator_kubernetes_objects{watch=\"pods\"}", 10.0),
        ("sonde_aggregator_kubernetes_lists_total{watch=\"pods\"}", 1.0),
        (
            "sonde_aggregator_kubernetes_errors_total{watch=\"pods\",kind=\"connection\"}",
            0.0,
        ),
        ("sonde_aggregator_kubernetes_changes_total{kind=\"pod_created\"}", 0.0),
    ] {
        assert_eq!(metric(&app, series).await, expected, "{series}");
    }
    let heard = metric(
        &app,
        "sonde_aggregator_kubernetes_heard_timestamp_seconds{watch=\"pods\"}",
    )
    .await;
    assert!((now_ns() as f64 / 1e9 - heard).abs() < 30.0, "{heard}");
    cluster.put("pods", objects::pod("shop", "more", "", &ago(0)));
    app.changes("", 1).await;
    assert_eq!(
        metric(&app, "sonde_aggregator_kubernetes_changes_total{kind=\"pod_created\"}").await,
        1.0
    );
}

#[tokio::test]
async fn a_cut_watch_goes_on_where_it_was_and_a_bookmark_moves_that() {
    let cluster = Cluster::start().await;
    cluster.put("pods", objects::pod("shop", "first", "", CREATED));
    let app = watching(&cluster).await;
    app.until("the watch is open", async || {
        (cluster.requests("pods").len() == 2).then_some(())
    })
    .await;
    for n in 0..5 {
        cluster.put("pods", objects::pod("shop", &format!("p{n}"), "", &ago(0)));
        cluster.cut();
        app.changes("", n + 1).await;
    }
    // The watch is open, and has been silent for long enough to be heard of no more but by the bookmark.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let heard = async || {
        let series = "sonde_aggregator_kubernetes_heard_timestamp_seconds{watch=\"pods\"}";
        metric(&app, series).await
    };
    let quiet = heard().await;
    cluster.bookmark("pods");
    let marked = cluster.version().to_string();
    app.until("the bookmark is heard", async || (heard().await > quiet).then_some(()))
        .await;
    let before = cluster.requests("pods").len();
    cluster.cut();
    let again = app
        .until("it asks again", async || cluster.requests("pods").get(before).cloned())
        .await;
    assert_eq!(
        (again.get("watch"), &again["resourceVersion"]),
        (Some(&"true".to_owned()), &marked),
        "{again:?}"
    );
    cluster.put("pods", objects::pod("shop", "last", "", &ago(0)));
    app.changes("", 6).await;
    let lists = cluster
        .requests("pods")
        .iter()
        .filter(|q| !q.contains_key("watch"))
        .count();
    assert_eq!(lists, 1, "no second list was needed");
    let series = "sonde_aggregator_kubernetes_errors_total{watch=\"pods\",kind=\"closed\"}";
    assert!(metric(&app, series).await >= 1.0);
    app.until("all is well again", async || app.kubernetes.is_synced().then_some(()))
        .await;
}

#[tokio::test]
async fn an_expired_version_leads_to_a_new_list_and_to_no_invented_change() {
    for in_stream in [false, true] {
        let cluster = Cluster::start().await;
        for n in 0..7 {
            cluster.put("pods", objects::pod("shop", &format!("p{n}"), "", CREATED));
        }
        let app = watching(&cluster).await;
        app.until("the watch is open", async || {
            (cluster.requests("pods").len() == 4).then_some(())
        })
        .await;
        cluster.trouble(Trouble::Status(503));
        cluster.cut();
        cluster.delete("pods", "shop", "p3");
        cluster.compact(in_stream);
        cluster.trouble(Trouble::None);
        let change = app.changes("", 1).await.remove(0);
        assert_eq!((&change["kind"], &change["pod"]), (&json!("pod_deleted"), &json!("p3")));
        let since = change["since"].as_str().expect("it was not seen");
        assert!(since < change["time"].as_str().unwrap(), "{change}");
        assert_eq!(
            metric(
                &app,
                "sonde_aggregator_kubernetes_errors_total{watch=\"pods\",kind=\"expired\"}"
            )
            .await,
            1.0
        );
        assert_eq!(
            metric(&app, "sonde_aggregator_kubernetes_lists_total{watch=\"pods\"}").await,
            2.0
        );
        cluster.put("pods", objects::pod("shop", "next", "", &ago(0)));
        app.changes("", 2).await;
    }
}

#[tokio::test]
async fn a_list_that_expires_between_its_pages_begins_again() {
    let cluster = Cluster::start().await;
    for n in 0..9 {
        cluster.put("pods", objects::pod("shop", &format!("p{n}"), "", CREATED));
    }
    cluster.break_lists(3);
    let app = watching(&cluster).await;
    app.until("the pods are counted", async || {
        (watch(&app, "pods").await["objects"] == 9).then_some(())
    })
    .await;
    app.changes("", 0).await;
    assert_eq!(
        metric(
            &app,
            "sonde_aggregator_kubernetes_errors_total{watch=\"pods\",kind=\"expired\"}"
        )
        .await,
        3.0
    );
    let rows: i64 = sqlx::query_scalar("select count(*) from sonde_store.cluster_objects")
        .fetch_one(&app.db)
        .await
        .unwrap();
    assert_eq!(rows, 9);
}

#[tokio::test]
async fn while_the_api_is_away_what_is_known_is_kept_and_it_is_said() {
    let cluster = Cluster::start().await;
    cluster.put("services", objects::service("shop", "web", "10.96.0.1", CREATED));
    let app = watching(&cluster).await;
    app.until("the watch is open", async || {
        (cluster.requests("services").len() == 2).then_some(())
    })
    .await;
    for (trouble, kind, words) in [
        (
            Trouble::Status(503),
            "status",
            "503 ServiceUnavailable: the API is not well",
        ),
        (Trouble::Status(401), "status", "401 "),
        (Trouble::Garbage, "decode", "not understood"),
        (Trouble::Hang, "timeout", "in time"),
    ] {
        cluster.trouble(trouble);
        cluster.cut();
        let error = app
            .until(words, async || {
                let error = watch(&app, "services").await["error"].as_str()?.to_owned();
                error.contains(words).then_some(error)
            })
            .await;
        assert!(!error.contains('\n') && error.len() < 400, "{error}");
        assert!(!app.kubernetes.is_synced());
        assert_eq!(
            metric(&app, "sonde_aggregator_kubernetes_synced{watch=\"services\"}").await,
            0.0
        );
        let series = format!("sonde_aggregator_kubernetes_errors_total{{watch=\"services\",kind=\"{kind}\"}}");
        assert!(metric(&app, &series).await >= 1.0, "{series}");
        let answer = app.get("/api/v1/services").await.json();
        assert_eq!(answer["services"][0]["service"], "web");
        assert_eq!(
            app.get("/-/ready").await.status,
            200,
            "the aggregator's own work goes on"
        );
        cluster.trouble(Trouble::None);
        app.until("all is well again", async || app.kubernetes.is_synced().then_some(()))
            .await;
    }
    app.changes("", 0).await;
}

#[tokio::test]
async fn what_happened_while_a_watch_was_away_has_a_span() {
    let cluster = Cluster::start().await;
    cluster.put("services", objects::service("shop", "web", "10.96.0.1", CREATED));
    let app = watching(&cluster).await;
    app.until("the watch is open", async || {
        (cluster.requests("services").len() == 2).then_some(())
    })
    .await;
    cluster.bookmark("services");
    tokio::time::sleep(Duration::from_millis(100)).await;
    let lost = rfc3339(now_ns() - SECOND);
    cluster.trouble(Trouble::Status(500));
    cluster.cut();
    tokio::time::sleep(Duration::from_millis(1300)).await;
    let deleted = rfc3339(now_ns());
    cluster.delete("services", "shop", "web");
    cluster.trouble(Trouble::None);
    let change = app.changes("", 1).await.remove(0);
    let (since, time) = (
        change["since"].as_str().expect("a span"),
        change["time"].as_str().unwrap(),
    );
    assert!(
        *lost < *since && *since < *deleted && *deleted < *time,
        "{change}, deleted at {deleted}"
    );
    // Long after it is back, things are seen as they happen.
    tokio::time::sleep(Duration::from_millis(700)).await;
    cluster.put("services", objects::service("shop", "api", "10.96.0.2", &ago(0)));
    assert_eq!(app.changes("", 2).await[1].get("since"), None);
}

#[tokio::test]
async fn only_the_given_namespaces_are_watched_and_one_that_is_given_no_longer_ends_without_a_change() {
    let cluster = Cluster::start().await;
    let database = Database::migrated().await;
    for namespace in ["shop", "pay", "other"] {
        cluster.put("services", objects::service(namespace, "web", "10.96.0.1", CREATED));
        cluster.put(
            "endpointslices",
            objects::slice(namespace, "web", &[("10.1.0.1", "p", true)], CREATED),
        );
    }
    cluster.put("nodes", objects::node("n1", "192.168.0.1", "b", CREATED));
    let mut config = cluster.config();
    config.namespaces = vec!["shop".into(), "pay".into()];
    let app = App::start_watching(&database, &config).await;
    app.synced().await;
    let services = async |app: &App| {
        let answer = app.get("/api/v1/services").await.json();
        let all = answer["services"].as_array().unwrap().clone();
        all.iter()
            .map(|s| format!("{} {}", s["namespace"], s["endpoints_total"]))
            .collect::<Vec<_>>()
    };
    app.until("both are stored", async || {
        (services(&app).await == ["\"pay\" 1", "\"shop\" 1"]).then_some(())
    })
    .await;
    assert_eq!(watch(&app, "nodes").await["synced"], true);
    cluster.put("services", objects::service("other", "more", "10.96.0.2", &ago(0)));
    cluster.put("services", objects::service("shop", "more", "10.96.0.3", &ago(0)));
    assert_eq!(app.changes("", 1).await[0]["namespace"], "shop");
    app.stop().await;
    config.namespaces = vec!["shop".into()];
    let app = App::start_watching(&database, &config).await;
    app.synced().await;
    app.until("one is left", async || {
        (services(&app).await == ["\"shop\" 0", "\"shop\" 1"]).then_some(())
    })
    .await;
    app.changes("", 1).await;
}
