//! From facts of the cluster to names in answers: an event's peer gets the name that its address had at that time.

use serde_json::{Value, json};
use sonde_aggregator::testing::Database;
use sonde_common::time::{now_ns, rfc3339};
use sonde_proto::v1::Direction;

use crate::support::cluster::{Cluster, objects};
use crate::support::{App, Batch, EventSpec, SECOND};

fn hours_ago(hours: u64) -> String {
    let time = rfc3339((now_ns() / SECOND - hours * 3600) * SECOND);
    format!("{}Z", &time[..19])
}

async fn watching(cluster: &Cluster) -> App {
    let app = App::start_watching(&Database::migrated().await, &cluster.config()).await;
    app.synced().await;
    app
}

/// Until a statement says true.
async fn holds(app: &App, sql: &'static str) {
    app.until(sql, async || {
        let holds: bool = sqlx::query_scalar(sql).fetch_one(&app.db).await.unwrap();
        holds.then_some(())
    })
    .await;
}

/// An event of a pod, at that time, to an address; its peer.
fn to(batch: &mut Batch, subject: u32, time_ns: u64, ip: &str) {
    batch.event(&EventSpec {
        time_ns,
        subject,
        from: Some(("10.1.0.1", 40_000)),
        to: Some((ip, 80)),
        direction: Direction::Egress,
        ..EventSpec::default()
    });
}

async fn peers(app: &App) -> Vec<Value> {
    let answer = app.get("/api/v1/events?order=asc&from=-1d").await.json();
    answer["events"]
        .as_array()
        .unwrap()
        .iter()
        .map(|e| e["peer"].clone())
        .collect()
}

#[tokio::test]
async fn a_peer_is_what_had_its_address_at_the_time_of_the_event() {
    let cluster = Cluster::start().await;
    cluster.put(
        "services",
        objects::service("shop", "before", "10.96.0.7", &hours_ago(2)),
    );
    cluster.put("nodes", objects::node("n2", "192.168.0.2", "b", &hours_ago(2)));
    cluster.put(
        "replicasets",
        objects::replica_set("shop", "far-1", "far", 1, &hours_ago(2)),
    );
    let far = objects::owned(
        objects::pod("shop", "far-1-a", "10.1.9.9", &hours_ago(2)),
        "ReplicaSet",
        "far-1",
    );
    cluster.put("pods", far);
    let app = watching(&cluster).await;
    holds(
        &app,
        "select count(*) = 4 from sonde_store.cluster_objects where workload = 'far' or kind <> 'Pod'",
    )
    .await;
    let first = now_ns();
    cluster.delete("services", "shop", "before");
    app.changes("kind=service_deleted", 1).await;
    let between = now_ns();
    cluster.put("services", objects::service("pay", "after", "10.96.0.7", &hours_ago(0)));
    holds(
        &app,
        "select count(*) = 1 from sonde_store.cluster_objects where name = 'after'",
    )
    .await;
    // Created in the second in which it came: from then on.
    tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    let last = now_ns();

    let mut batch = Batch::new();
    let own = batch.pod("web", "10.1.0.1", first - 60 * SECOND);
    batch.pod_of("shop", "near", "10.1.0.2", first - 60 * SECOND, 0);
    for (time, ip) in [
        (first - 10 * SECOND, "10.96.0.7"),
        (first - 9 * SECOND, "192.168.0.2"),
        (first - 8 * SECOND, "10.1.9.9"),
        (first - 7 * SECOND, "10.1.0.2"),
        (first - 6 * SECOND, "203.0.113.5"),
        (last, "10.96.0.7"),
    ] {
        to(&mut batch, own, time, ip);
    }
    app.collector("n1").await.send(batch).await;
    let service = |namespace: &str, name: &str| json!({"namespace": namespace, "service": name});
    assert_eq!(
        peers(&app).await,
        [
            service("shop", "before"),
            json!({"node": "n2", "namespace": "", "pod": ""}),
            json!({"node": "n1", "namespace": "shop", "pod": "far-1-a", "workload": "far"}),
            json!({"node": "n1", "namespace": "shop", "pod": "near", "workload": "near-app"}),
            Value::Null,
            service("pay", "after"),
        ]
    );
    // What happens later does not change what was.
    cluster.delete("services", "pay", "after");
    app.changes("kind=service_deleted", 2).await;
    let again = peers(&app).await;
    assert_eq!(
        (&again[0], &again[5]),
        (&service("shop", "before"), &service("pay", "after"))
    );
    let seen: Vec<(Option<String>, Option<String>, Option<String>)> =
        sqlx::query_as("select peer_node, peer_pod, peer_service from sonde.events order by time")
            .fetch_all(&app.db)
            .await
            .unwrap();
    let text = |t: &str| Some(t.to_owned());
    assert_eq!(seen[0], (None, None, text("before")));
    assert_eq!(seen[1], (text("n2"), text(""), None));
    assert_eq!(seen[2], (text("n1"), text("far-1-a"), None));
    assert_eq!(seen[4], (None, None, None));
    assert!(between < last);
}

#[tokio::test]
async fn an_address_of_nobody_in_between_has_no_name() {
    let cluster = Cluster::start().await;
    cluster.put("services", objects::service("shop", "a", "10.96.0.7", &hours_ago(2)));
    let app = watching(&cluster).await;
    holds(&app, "select count(*) = 1 from sonde_store.cluster_objects").await;
    cluster.delete("services", "shop", "a");
    app.changes("kind=service_deleted", 1).await;
    let between = now_ns();
    let mut batch = Batch::new();
    let own = batch.pod("web", "10.1.0.1", between - 60 * SECOND);
    to(&mut batch, own, between - 7300 * SECOND, "10.96.0.7");
    to(&mut batch, own, between, "10.96.0.7");
    app.collector("n1").await.send(batch).await;
    assert_eq!(
        peers(&app).await,
        [Value::Null, Value::Null],
        "before it was created, and after it went"
    );
}

#[tokio::test]
async fn addresses_of_pods_that_have_ended_or_are_of_the_host_name_nobody() {
    let cluster = Cluster::start().await;
    let mut done = objects::pod("shop", "done", "10.1.0.9", &hours_ago(1));
    done["status"]["phase"] = "Succeeded".into();
    cluster.put("pods", done);
    let mut host = objects::pod("kube-system", "proxy", "192.168.0.1", &hours_ago(1));
    host["spec"]["hostNetwork"] = true.into();
    cluster.put("pods", host);
    cluster.put("nodes", objects::node("n1", "192.168.0.1", "b", &hours_ago(1)));
    let app = watching(&cluster).await;
    holds(&app, "select count(*) = 3 from sonde_store.cluster_objects").await;
    let now = now_ns();
    let mut batch = Batch::new();
    let own = batch.pod("web", "10.1.0.1", now - 60 * SECOND);
    to(&mut batch, own, now - 2, "10.1.0.9");
    to(&mut batch, own, now - 1, "192.168.0.1");
    // Of the node itself: its own address is not its peer.
    batch.event(&EventSpec {
        time_ns: now,
        subject: 0,
        from: Some(("192.168.0.1", 1)),
        to: Some(("192.168.0.1", 2)),
        direction: Direction::Forward,
        ..EventSpec::default()
    });
    app.collector("n1").await.send(batch).await;
    let node = json!({"node": "n1", "namespace": "", "pod": ""});
    assert_eq!(peers(&app).await, [Value::Null, node, Value::Null]);
}

#[tokio::test]
async fn the_api_completes_what_a_node_says_of_a_pod_whoever_speaks_first() {
    let cluster = Cluster::start().await;
    let pod = |name: &str| {
        let mut pod = objects::pod("shop", name, "10.1.0.1", &hours_ago(1));
        pod["metadata"]["uid"] = format!("uid-{name}").into();
        pod
    };
    let created = hours_ago(1);
    cluster.put("pods", objects::owned(pod("early"), "ReplicaSet", "rs"));
    // The API's image of a static pod has a uid of its own; the runtime's is in the annotation.
    let mut mirror = objects::pod("shop", "static", "", &created);
    mirror["metadata"]["annotations"]["kubernetes.io/config.mirror"] = "uid-static".into();
    mirror["metadata"]["ownerReferences"] = json!([{"kind": "Node", "name": "n1", "uid": "x", "controller": true}]);
    cluster.put("pods", mirror);
    let app = watching(&cluster).await;
    holds(&app, "select count(*) = 2 from sonde_store.cluster_objects").await;
    let now = now_ns();
    let mut batch = Batch::new();
    for name in ["early", "late", "static", "unknown"] {
        batch.pod(name, "10.1.0.1", now - 60 * SECOND);
    }
    let mut collector = app.collector("n1").await;
    collector.send(batch).await;
    cluster.put("pods", objects::owned(pod("late"), "Job", "job-1"));
    // The owners come last, as they may: their watch is another.
    cluster.put("replicasets", objects::replica_set("shop", "rs", "web", 1, &created));
    let job = objects::owned(objects::job("shop", "job-1", &created), "CronJob", "nightly");
    cluster.put("jobs", job);

    let pods = async || {
        let answer = app.get("/api/v1/pods").await.json();
        let pods = answer["pods"].as_array().unwrap().clone();
        let words = |p: &Value| {
            let text = |key: &str| p[key].as_str().unwrap().to_owned();
            [
                text("pod"),
                text("workload_kind"),
                text("workload"),
                p["labels"]["pod-template-hash"].to_string(),
            ]
        };
        pods.iter().map(words).collect::<Vec<_>>()
    };
    let expected = [
        ["early", "Deployment", "web", "\"abc\""],
        ["late", "CronJob", "nightly", "\"abc\""],
        ["static", "Node", "n1", "\"abc\""],
        ["unknown", "Deployment", "unknown-app", "null"],
    ];
    app.until("the workloads are known", async || {
        (pods().await == expected).then_some(())
    })
    .await;
    // The node speaks again, with its own guess: what the API said stays, and what the node says is kept.
    let mut batch = Batch::new();
    batch.pod("early", "10.1.0.1", now - 60 * SECOND);
    batch.0.pods[0].workload = "guess".into();
    collector.send(batch).await;
    assert_eq!(pods().await, expected);
    let said: Value = sqlx::query_scalar("select said from sonde_store.pods where name = 'early'")
        .fetch_one(&app.db)
        .await
        .unwrap();
    assert_eq!(
        said,
        json!({"workload_kind": "Deployment", "workload": "guess", "labels": {"app": "early"}})
    );
    let answer = app.get("/api/v1/pods?workload=nightly").await.json();
    assert_eq!(answer["pods"].as_array().unwrap().len(), 1, "it is found by it too");
}

#[tokio::test]
async fn nodes_have_their_labels_where_the_api_knows_them() {
    let cluster = Cluster::start().await;
    cluster.put("nodes", objects::node("n1", "192.168.0.1", "b", &hours_ago(1)));
    let app = watching(&cluster).await;
    holds(&app, "select count(*) = 1 from sonde_store.cluster_objects").await;
    for node in ["n1", "n9"] {
        app.collector(node).await.send(Batch::new()).await;
    }
    let answer = app.get("/api/v1/nodes").await.json();
    let (n1, n9) = (&answer["nodes"][0], &answer["nodes"][1]);
    assert_eq!(n1["labels"]["topology.kubernetes.io/zone"], "a");
    assert_eq!((&n1["ips"], &n1["ready"]), (&json!(["192.168.0.1"]), &json!("ready")));
    assert!(
        n9.get("labels").is_none() && n9.get("ips").is_none() && n9.get("ready").is_none(),
        "{n9}"
    );
}
