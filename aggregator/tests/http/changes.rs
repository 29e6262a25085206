//! `GET /api/v1/changes`, from a cluster in which things happen.

use serde_json::{Value, json};
use sonde_aggregator::testing::Database;
use sonde_common::time::{now_ns, rfc3339};

use crate::support::cluster::{Cluster, objects};
use crate::support::{App, SECOND};

/// An hour ago, in the whole seconds of the API.
fn long_ago() -> String {
    ago(3600)
}

fn ago(seconds: u64) -> String {
    let time = rfc3339((now_ns() / SECOND - seconds) * SECOND);
    format!("{}Z", &time[..19])
}

async fn watching(cluster: &Cluster) -> App {
    let app = App::start_watching(&Database::migrated().await, &cluster.config()).await;
    app.synced().await;
    app
}

/// Without what differs from run to run.
fn told(change: &Value) -> Value {
    let mut change = change.clone();
    let all = change.as_object_mut().unwrap();
    for key in ["id", "time"] {
        assert!(all.remove(key).is_some(), "{key}");
    }
    change
}

#[tokio::test]
async fn what_happens_to_a_pod_is_told_once_and_what_was_there_before_is_not() {
    let cluster = Cluster::start().await;
    cluster.put(
        "replicasets",
        objects::replica_set("shop", "web-1", "web", 1, &long_ago()),
    );
    let old = objects::owned(
        objects::pod("shop", "web-1-a", "10.1.0.1", &long_ago()),
        "ReplicaSet",
        "web-1",
    );
    cluster.put("pods", old.clone());
    let app = watching(&cluster).await;
    app.changes("", 0).await;

    let before = now_ns();
    cluster.put("pods", objects::not_ready(old.clone(), &ago(1)));
    cluster.put(
        "pods",
        objects::restarted(objects::not_ready(old.clone(), &ago(1)), 2, &ago(1)),
    );
    cluster.put("pods", objects::restarted(old.clone(), 2, &ago(1)));
    // Nothing that matters changed, only the version.
    cluster.put("pods", objects::restarted(old.clone(), 2, &ago(1)));
    cluster.put(
        "pods",
        objects::owned(
            objects::pod("shop", "web-1-b", "10.1.0.2", &ago(0)),
            "ReplicaSet",
            "web-1",
        ),
    );
    cluster.delete("pods", "shop", "web-1-a");
    let changes = app.changes("", 5).await;
    let subject = |name: &str, kind: &str| {
        json!({"kind": kind, "node": "n1", "namespace": "shop", "pod": name, "workload_kind": "Deployment",
               "workload": "web"})
    };
    let with = |mut base: Value, more: Value| {
        base.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        base
    };
    let expected = [
        with(
            subject("web-1-a", "readiness_changed"),
            json!({"before": "ready", "after": "not ready",
                   "detail": "ContainersNotReady: containers with unready status: [app]"}),
        ),
        with(
            subject("web-1-a", "pod_restarted"),
            json!({"before": "0", "after": "2", "detail": "container app: OOMKilled, exit code 137"}),
        ),
        with(
            subject("web-1-a", "readiness_changed"),
            json!({"before": "not ready", "after": "ready"}),
        ),
        subject("web-1-b", "pod_created"),
        subject("web-1-a", "pod_deleted"),
    ];
    assert_eq!(changes.iter().map(told).collect::<Vec<_>>(), expected);
    for change in &changes {
        let time = change["time"].as_str().unwrap().to_owned();
        assert!(
            rfc3339(before) <= time && time <= rfc3339(now_ns()),
            "{change}: seen as it happened"
        );
    }
}

#[tokio::test]
async fn rollouts_nodes_and_services_are_told() {
    let cluster = Cluster::start().await;
    cluster.put(
        "replicasets",
        objects::replica_set("shop", "web-1", "web", 1, &long_ago()),
    );
    cluster.put(
        "controllerrevisions",
        objects::controller_revision("shop", "db-1", "db", 1, &long_ago()),
    );
    cluster.put("nodes", objects::node("n1", "192.168.0.1", "boot-1", &long_ago()));
    cluster.put("services", objects::service("shop", "web", "10.96.0.1", &long_ago()));
    let app = watching(&cluster).await;

    cluster.put("replicasets", objects::replica_set("shop", "web-2", "web", 2, &ago(0)));
    // Back to the old template: the old ReplicaSet gets the next number.
    cluster.put(
        "replicasets",
        objects::replica_set("shop", "web-1", "web", 3, &long_ago()),
    );
    cluster.put(
        "replicasets",
        objects::replica_set("shop", "web-2", "web", 2, &long_ago()),
    );
    cluster.put(
        "controllerrevisions",
        objects::controller_revision("shop", "db-2", "db", 2, &ago(0)),
    );
    let rollouts = app.changes("kind=rollout", 3).await;
    let words: Vec<_> = rollouts
        .iter()
        .map(|c| ["workload_kind", "workload", "before", "after"].map(|k| c[k].as_str().unwrap().to_owned()))
        .collect();
    let web = |before: &str, after: &str| ["Deployment", "web", before, after].map(str::to_owned);
    assert!(
        words.contains(&web("revision 1 (web-1)", "revision 2 (web-2)")),
        "{words:?}"
    );
    assert!(
        words.contains(&web("revision 2 (web-2)", "revision 3 (web-1)")),
        "{words:?}"
    );
    let db = ["StatefulSet", "db", "revision 1 (db-1)", "revision 2 (db-2)"].map(str::to_owned);
    assert!(words.contains(&db), "{words:?}");

    let mut sick = objects::node("n1", "192.168.0.1", "boot-1", &long_ago());
    sick["status"]["conditions"][1] = json!({"type": "Ready", "status": "Unknown", "reason": "NodeStatusUnknown",
        "message": "Kubelet stopped posting node status.", "lastTransitionTime": ago(0)});
    sick["spec"]["unschedulable"] = true.into();
    cluster.put("nodes", sick);
    cluster.put("nodes", objects::node("n1", "192.168.0.1", "boot-2", &long_ago()));
    cluster.put("nodes", objects::node("n2", "192.168.0.2", "boot-7", &ago(0)));
    cluster.delete("nodes", "", "n1");
    let nodes: Vec<_> = app.changes("node=n1&node=n2", 7).await.iter().map(told).collect();
    assert_eq!(
        nodes,
        [
            json!({"kind": "node_ready_changed", "node": "n1", "before": "ready", "after": "unknown",
                   "detail": "NodeStatusUnknown: Kubelet stopped posting node status."}),
            json!({"kind": "node_cordoned", "node": "n1", "before": "schedulable", "after": "cordoned"}),
            json!({"kind": "node_restarted", "node": "n1", "before": "boot-1", "after": "boot-2"}),
            json!({"kind": "node_ready_changed", "node": "n1", "before": "unknown", "after": "ready"}),
            json!({"kind": "node_cordoned", "node": "n1", "before": "cordoned", "after": "schedulable"}),
            json!({"kind": "node_added", "node": "n2"}),
            json!({"kind": "node_removed", "node": "n1"}),
        ]
    );

    let mut wider = objects::service("shop", "web", "10.96.0.1", &long_ago());
    wider["spec"]["ports"]
        .as_array_mut()
        .unwrap()
        .push(json!({"port": 443, "protocol": "TCP"}));
    cluster.put("services", wider);
    cluster.put("services", objects::service("shop", "api", "10.96.0.2", &ago(0)));
    cluster.delete("services", "shop", "web");
    let services: Vec<_> = app
        .changes("service=web&service=api", 3)
        .await
        .iter()
        .map(told)
        .collect();
    let web = "ClusterIP 10.96.0.1, 80/TCP 53/UDP 443/TCP, app=web";
    assert_eq!(
        services,
        [
            json!({"kind": "service_changed", "namespace": "shop", "service": "web",
                   "before": "ClusterIP 10.96.0.1, 80/TCP 53/UDP, app=web", "after": web}),
            json!({"kind": "service_created", "namespace": "shop", "service": "api",
                   "after": "ClusterIP 10.96.0.2, 80/TCP 53/UDP, app=api"}),
            json!({"kind": "service_deleted", "namespace": "shop", "service": "web", "before": web}),
        ]
    );
}

#[tokio::test]
async fn many_changes_behind_a_service_are_one_change() {
    let cluster = Cluster::start().await;
    cluster.put(
        "endpointslices",
        objects::slice("shop", "web", &[("10.1.0.1", "a", true)], &long_ago()),
    );
    let app = watching(&cluster).await;
    let all: Vec<(String, String)> = (1..=40).map(|n| (format!("10.1.0.{n}"), format!("p{n}"))).collect();
    for ready in 1..=40 {
        let endpoints: Vec<_> = all
            .iter()
            .enumerate()
            .map(|(at, (ip, pod))| (ip.as_str(), if at == 0 { "a" } else { pod }, at < ready))
            .collect();
        cluster.put("endpointslices", objects::slice("shop", "web", &endpoints, &long_ago()));
        if ready % 10 == 0 {
            tokio::time::sleep(std::time::Duration::from_millis(60)).await;
        }
    }
    app.until("all are ready", async || {
        let changes = app.get("/api/v1/changes?service=web").await.json();
        (changes["changes"][0]["after"] == "40 of 40 ready").then_some(())
    })
    .await;
    let change = &app.changes("kind=endpoints_changed", 1).await[0];
    assert_eq!(
        (&change["before"], &change["after"]),
        (&json!("1 of 1 ready"), &json!("40 of 40 ready"))
    );
    let detail = change["detail"].as_str().unwrap();
    assert!(
        detail.contains("p2 (10.1.0.2)") && detail.ends_with(" more") && detail.len() < 300,
        "{detail}"
    );
}

#[tokio::test]
async fn pages_of_changes_have_each_once() {
    let cluster = Cluster::start().await;
    let app = watching(&cluster).await;
    for n in 0..25 {
        cluster.put(
            "pods",
            objects::pod(if n % 2 == 0 { "a" } else { "b" }, &format!("p{n}"), "", &ago(0)),
        );
    }
    let all = app.changes("", 25).await;
    let mut ids: Vec<i64> = all.iter().map(|c| c["id"].as_i64().unwrap()).collect();
    ids.reverse();
    let (mut read, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = app.get(&format!("/api/v1/changes?limit=7{cursor}")).await.json();
        read.extend(
            page["changes"]
                .as_array()
                .unwrap()
                .iter()
                .map(|c| c["id"].as_i64().unwrap()),
        );
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    assert_eq!(read, ids);
    for (query, expected) in [
        ("namespace=a", 13),
        ("namespace=!a", 12),
        ("pod=p3&pod=p4", 2),
        ("kind=pod_created", 25),
        ("kind=!pod_created", 0),
        ("node=n1", 25),
        ("workload=x", 0),
        ("to=-1m", 0),
    ] {
        let answer = app.get(&format!("/api/v1/changes?{query}")).await.json();
        assert_eq!(answer["changes"].as_array().unwrap().len(), expected, "{query}");
    }
    for query in [
        "kind=nosuch",
        "kind=!nosuch",
        "limit=0",
        "limit=1001",
        "from=x",
        "cursor=00",
        "reason=x",
    ] {
        app.get(&format!("/api/v1/changes?{query}")).await.problem(400);
    }
    assert!(
        app.get("/api/v1/changes?kind=nosuch")
            .await
            .problem(400)
            .contains("rollout")
    );
}
