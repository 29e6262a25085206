//! What was there, came and went while nobody watched; and who watches.

use serde_json::json;
use sonde_aggregator::kubernetes::Role;
use sonde_aggregator::testing::Database;
use sonde_common::time::{now_ns, rfc3339};

use crate::support::cluster::{Cluster, objects};
use crate::support::{App, SECOND};

fn ago(seconds: u64) -> String {
    let time = rfc3339((now_ns() / SECOND - seconds) * SECOND);
    format!("{}Z", &time[..19])
}

#[tokio::test]
async fn a_restart_tells_nothing_twice_and_says_of_the_rest_in_which_span_it_was() {
    let cluster = Cluster::start().await;
    let database = Database::migrated().await;
    let web = |name: &str, ip: &str| objects::owned(objects::pod("shop", name, ip, &ago(600)), "ReplicaSet", "web-1");
    cluster.put(
        "replicasets",
        objects::replica_set("shop", "web-1", "web", 1, &ago(600)),
    );
    for (name, ip) in [("stays", "10.1.0.1"), ("goes", "10.1.0.2"), ("fails", "10.1.0.3")] {
        cluster.put("pods", web(name, ip));
    }
    cluster.put("services", objects::service("shop", "web", "10.96.0.1", &ago(600)));
    cluster.put(
        "endpointslices",
        objects::slice("shop", "web", &[("10.1.0.1", "stays", true)], &ago(600)),
    );
    cluster.put("nodes", objects::node("n1", "192.168.0.1", "boot-1", &ago(600)));
    let app = App::start_watching(&database, &cluster.config()).await;
    app.synced().await;
    cluster.put("pods", objects::restarted(web("stays", "10.1.0.1"), 1, &ago(0)));
    app.changes("", 1).await;
    app.stop().await;
    let rows = async |sql: &'static str| -> i64 { sqlx::query_scalar(sql).fetch_one(&database.pool()).await.unwrap() };
    let objects_before = rows("select count(*) from sonde_store.cluster_objects").await;
    let stopped = now_ns();

    // Nothing happens.
    let app = App::start_watching(&database, &cluster.config()).await;
    app.synced().await;
    cluster.put("pods", objects::pod("shop", "marker", "", &ago(0)));
    let changes = app.changes("", 2).await;
    assert_eq!(changes[1]["kind"], "pod_created", "and nothing before it: {changes:?}");
    cluster.delete("pods", "shop", "marker");
    app.changes("", 3).await;
    app.stop().await;
    assert_eq!(
        rows("select count(*) from sonde_store.cluster_objects").await,
        objects_before + 1
    );
    assert_eq!(rows("select count(*) from sonde_store.cluster_endpoints").await, 1);

    // Much happens, some of it with a time of its own.
    let away = now_ns();
    tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
    cluster.delete("pods", "shop", "goes");
    let stated = ago(0);
    cluster.put("pods", objects::not_ready(web("fails", "10.1.0.3"), &stated));
    cluster.put("pods", objects::pod("shop", "new", "10.1.0.4", &stated));
    cluster.put("replicasets", objects::replica_set("shop", "web-2", "web", 2, &stated));
    cluster.put("nodes", objects::node("n1", "192.168.0.1", "boot-2", &ago(600)));
    cluster.delete("services", "shop", "web");
    cluster.put("services", objects::service("shop", "other", "10.96.0.1", &stated));
    cluster.put("endpointslices", objects::slice("shop", "web", &[], &ago(600)));
    cluster.compact(false);
    let app = App::start_watching(&database, &cluster.config()).await;
    app.synced().await;
    let back = now_ns();
    let changes = app.changes_from(&rfc3339(away), "", 8).await;
    let find = |kind: &str| {
        changes
            .iter()
            .find(|c| c["kind"] == kind)
            .unwrap_or_else(|| panic!("{kind}: {changes:#?}"))
    };
    for kind in ["pod_deleted", "node_restarted", "service_deleted", "endpoints_changed"] {
        let change = find(kind);
        let (since, time) = (change["since"].as_str().unwrap(), change["time"].as_str().unwrap());
        let expected = rfc3339(stopped)..=rfc3339(away);
        assert!(
            expected.contains(&since.to_owned()) && *rfc3339(away) < *time && *time < *rfc3339(back),
            "{change}"
        );
    }
    assert_eq!(find("pod_deleted")["pod"], "goes");
    assert_eq!(find("endpoints_changed")["after"], "0 of 0 ready");
    for (kind, key, value) in [
        ("readiness_changed", "pod", "fails"),
        ("pod_created", "pod", "new"),
        ("rollout", "workload", "web"),
        ("service_created", "service", "other"),
    ] {
        let change = find(kind);
        assert_eq!((&change[key], change.get("since")), (&json!(value), None), "{change}");
        assert_eq!(
            change["time"],
            format!("{}.000000Z", &stated[..19]),
            "as the API states it"
        );
    }
    // In the span nobody is called by the address of what went in it.
    let held: Vec<(String, bool)> = sqlx::query_as(
        "select name, coalesce(valid_to < to_timestamp($1), false) from sonde_store.cluster_objects where kind = 'Service' order by id",
    )
    .bind(away as f64 / 1e9 + 0.001)
    .fetch_all(&app.db)
    .await
    .unwrap();
    assert_eq!(held, [("web".to_owned(), true), ("other".to_owned(), false)]);
    app.stop().await;
}

#[tokio::test]
async fn one_aggregator_watches_and_another_takes_over() {
    let cluster = Cluster::start().await;
    let database = Database::migrated().await;
    cluster.put("services", objects::service("shop", "web", "10.96.0.1", &ago(600)));
    let first = App::start_watching(&database, &cluster.config()).await;
    first.synced().await;
    let second = App::start_watching(&database, &cluster.config()).await;
    tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    assert_eq!(
        (first.kubernetes.role(), second.kubernetes.role()),
        (Role::Leader, Role::Follower)
    );
    assert_eq!(
        cluster.requests("pods").len(),
        2,
        "a list and a watch, for all nodes and aggregators together"
    );
    let answer = second.get("/api/v1/kubernetes").await.json();
    assert_eq!(answer, json!({"role": "follower", "synced": false, "watches": []}));
    // What the one learns, the other tells.
    second
        .until("the service is stored", async || {
            let answer = second.get("/api/v1/services").await.json();
            (answer["services"][0]["service"] == "web").then_some(())
        })
        .await;
    first.stop().await;
    second.synced().await;
    cluster.delete("services", "shop", "web");
    assert_eq!(second.changes("", 1).await[0]["kind"], "service_deleted");
    second.stop().await;
}

#[tokio::test]
async fn a_lost_connection_to_the_database_costs_nothing_but_time() {
    let cluster = Cluster::start().await;
    let database = Database::migrated().await;
    cluster.put("services", objects::service("shop", "web", "10.96.0.1", &ago(600)));
    let app = App::start_watching(&database, &cluster.config()).await;
    app.synced().await;
    for round in 1..=3 {
        // The lock of who watches (`LEADER` in store/locks.rs): others are taken in passing.
        let ended: i64 = sqlx::query_scalar(
            "select count(pg_terminate_backend(pid)) from pg_locks where locktype = 'advisory' and granted \
             and objid = x'65000002'::bigint::oid and database = (select oid from pg_database where datname = current_database())",
        )
        .fetch_one(&app.db)
        .await
        .unwrap();
        assert_eq!(ended, 1);
        let name = format!("s{round}");
        cluster.put(
            "services",
            objects::service("shop", &name, &format!("10.96.0.{}", round + 1), &ago(0)),
        );
        app.changes(&format!("service={name}"), 1).await;
    }
    app.changes("", 3).await;
    app.stop().await;
}
