//! What the watches cost in a large cluster. Not a test of a bound: `cargo test --release -p sonde-aggregator --test http
//! -- --ignored --nocapture costs` prints what docs/kubernetes.md says. The API is a program of its own, so that its memory and time do not count.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use sonde_aggregator::kubernetes::{Kubernetes, Pace};
use sonde_aggregator::live::LiveTable;
use sonde_aggregator::metrics::Metrics;
use sonde_aggregator::store::{Parts, Store};
use sonde_aggregator::testing::Database;
use sonde_common::config::{self, Storage};
use sonde_common::shutdown;

use crate::support::cluster::{Cluster, objects};

const CREATED: &str = "2026-01-31T10:00:00Z";

/// Resident memory of this process, MiB.
fn resident() -> f64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: f64 = text.split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4096.0 / (1 << 20) as f64
}

/// Processor time of this process, seconds.
fn spent() -> f64 {
    let text = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = text.rsplit(')').next().unwrap().split_whitespace().collect();
    (fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()) / 100.0
}

const PODS: usize = 10_000;
const SERVICES: usize = 1_000;
const NODES: usize = 200;
const CHANGES: usize = 500;

/// What the other program is known by.
const STAND_IN: &str = "SONDE_TEST_LARGE_CLUSTER";

#[tokio::test(flavor = "multi_thread")]
#[ignore = "it is the other program of the one below"]
async fn stand_in() {
    if std::env::var_os(STAND_IN).is_none() {
        return;
    }
    let cluster = Cluster::start().await;
    for n in 0..NODES {
        let ip = format!("192.168.{}.{}", n / 250, n % 250);
        cluster.put("nodes", objects::node(&format!("node-{n}"), &ip, "b", CREATED));
    }
    for n in 0..SERVICES {
        let name = format!("service-{n}");
        let ip = format!("10.96.{}.{}", n / 250, n % 250);
        cluster.put("services", objects::service("shop", &name, &ip, CREATED));
        // Ten ReplicaSets of the past for each one that has pods, as Kubernetes keeps them.
        for revision in 1..=11 {
            let set = format!("{name}-{revision}");
            let set = objects::replica_set("shop", &set, &name, revision, CREATED);
            cluster.put("replicasets", set);
        }
        let each: Vec<(String, String)> = (0..PODS / SERVICES)
            .map(|p| {
                (
                    format!("10.{}.{}.{}", p + 1, n / 250, n % 250),
                    format!("{name}-11-{p}"),
                )
            })
            .collect();
        each.iter().for_each(|(ip, name)| cluster.put("pods", pod(n, name, ip)));
        let endpoints: Vec<_> = each.iter().map(|(ip, pod)| (ip.as_str(), pod.as_str(), true)).collect();
        cluster.put("endpointslices", objects::slice("shop", &name, &endpoints, CREATED));
    }
    println!("\nkubeconfig={}", cluster.kubeconfig().display());
    let mut line = String::new();
    while std::io::stdin().read_line(&mut line).unwrap() > 0 {
        for n in 0..CHANGES {
            let pod = pod(
                n,
                &format!("service-{n}-11-0"),
                &format!("10.1.{}.{}", n / 250, n % 250),
            );
            cluster.put("pods", objects::not_ready(pod, CREATED));
        }
    }
}

fn pod(n: usize, name: &str, ip: &str) -> serde_json::Value {
    let mut pod = objects::pod("shop", name, ip, CREATED);
    pod["spec"]["nodeName"] = format!("node-{}", n % NODES).into();
    for label in 0..6 {
        pod["metadata"]["labels"][format!("example.com/label-{label}")] = format!("value-{n}-{label}").into();
    }
    objects::owned(pod, "ReplicaSet", &format!("service-{n}-11"))
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "it measures, and takes long"]
async fn costs_of_ten_thousand_pods() {
    let mut other = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "--nocapture", "cluster_costs::stand_in"])
        .env(STAND_IN, "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut ask = other.stdin.take().unwrap();
    let mut answers = BufReader::new(other.stdout.take().unwrap()).lines();
    let kubeconfig = answers
        .find_map(|line| line.unwrap().strip_prefix("kubeconfig=").map(str::to_owned))
        .unwrap();
    let config = config::Kubernetes {
        kubeconfig: kubeconfig.into(),
        ..config::Kubernetes::default()
    };
    let database = Database::migrated().await;
    let kubernetes = Kubernetes::new(&config, Pace::default()).await.unwrap();
    let status = kubernetes.status.clone();
    let parts = Parts {
        live: LiveTable::new(),
        metrics: Metrics::new(),
    };
    let opened = Store::open(database.options.clone(), &Storage::default(), parts).await;
    let (store, _tasks) = opened.unwrap();
    let (_trigger, shutdown) = shutdown::channel();
    let (memory, time, begun) = (resident(), spent(), Instant::now());
    tokio::spawn(kubernetes.run(store, shutdown));
    let mut peak = memory;
    while !status.is_synced() {
        peak = peak.max(resident());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let (took, processor) = (begun.elapsed().as_secs_f64(), spent() - time);
    println!(
        "{PODS} pods, {SERVICES} services, {} ReplicaSets, {NODES} nodes",
        SERVICES * 11
    );
    println!("all listed and stored after {took:.1} s, {processor:.2} s of processor");
    println!(
        "memory {memory:.1} MiB before, {peak:.1} MiB at most, {:.1} MiB after",
        resident()
    );
    let sizes: Vec<(String, i64)> = sqlx::query_as(
        "select relname::text, pg_total_relation_size(oid) from pg_class \
         where relname in ('cluster_objects', 'cluster_endpoints') order by 1",
    )
    .fetch_all(&database.pool())
    .await
    .unwrap();
    println!("tables, with indexes: {sizes:?} bytes");
    let (time, begun) = (spent(), Instant::now());
    writeln!(ask, "go").unwrap();
    loop {
        let told: i64 = sqlx::query_scalar("select count(*) from sonde_store.changes where kind = 'readiness_changed'")
            .fetch_one(&database.pool())
            .await
            .unwrap();
        if told == CHANGES as i64 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let (took, processor) = (begun.elapsed().as_secs_f64(), spent() - time);
    println!("{CHANGES} changes at once: stored after {took:.2} s, {processor:.2} s of processor");
    println!("memory {:.1} MiB", resident());
    drop(ask);
    assert!(other.wait().unwrap().success());
}
