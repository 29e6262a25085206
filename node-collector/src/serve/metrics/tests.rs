//! Series of tables made by hand.

use super::*;
use crate::catalogue::{ColumnSpec, LabelSpec};
use crate::event::Subject;
use crate::pods::Pod;
use crate::table::ABSENT;
use std::sync::Arc;

static SPEC: ProbeSpec = ProbeSpec {
    name: "t",
    help: "",
    source: "",
    labels: &[LabelSpec {
        name: "device",
        help: "",
    }],
    columns: &[
        ColumnSpec::counter("bytes", "bytes", "Bytes"),
        ColumnSpec::gauge("queue", "", "Queue"),
        ColumnSpec::counter("stalled_seconds", "seconds", "Stalls").scaled(1e-3),
    ],
    event_types: &[],
};
static LATENCY: ProbeSpec = ProbeSpec {
    name: "l",
    help: "",
    source: "",
    labels: &[],
    columns: &[ColumnSpec::histogram("wait_seconds", "seconds", "Waits", &[0.001, 0.1]).scaled(1e-9)],
    event_types: &[],
};

fn pod(name: &str, valid_from_ns: u64) -> Arc<Pod> {
    Arc::new(unshared(name, valid_from_ns))
}

fn unshared(name: &str, valid_from_ns: u64) -> Pod {
    Pod {
        sandbox: format!("{name}{valid_from_ns}"),
        namespace: "n".into(),
        name: name.into(),
        valid_from_ns,
        ..Pod::default()
    }
}

fn text(tables: &[Table]) -> String {
    let mut page = Page::new();
    render(&mut page, "node-1", tables);
    page.finish()
}

#[test]
fn absent_values_give_no_sample_and_columns_without_any_no_family() {
    let mut table = Table::new(&SPEC, 1);
    table.push(Subject::Node, ["lo".into()], &[0, ABSENT, ABSENT]);
    table.push(Subject::Pod(pod("a", 1)), ["e\"0".into()], &[ABSENT, ABSENT, 1500]);
    assert_eq!(
        text(&[table]),
        "# HELP sonde_t_bytes_total Bytes\n# TYPE sonde_t_bytes_total counter\n\
         sonde_t_bytes_total{k8s_node=\"node-1\",k8s_namespace=\"\",k8s_pod=\"\",device=\"lo\"} 0\n\
         # HELP sonde_t_stalled_seconds_total Stalls\n# TYPE sonde_t_stalled_seconds_total counter\n\
         sonde_t_stalled_seconds_total{k8s_node=\"node-1\",k8s_namespace=\"n\",k8s_pod=\"a\",device=\"e\\\"0\"} 1.5\n"
    );
}

#[test]
fn two_sandboxes_of_one_pod_are_one_series() {
    let (old, young) = (pod("a", 1), pod("a", 2));
    let mut first = Table::new(&SPEC, 1);
    first.push(Subject::Pod(Arc::clone(&young)), ["eth0".into()], &[i64::MAX, 7, 1]);
    let mut second = Table::new(&SPEC, 1);
    second.push(Subject::Pod(Arc::clone(&old)), ["eth0".into()], &[i64::MAX, 3, 1]);
    let tables = [first, second];
    let both = text(&tables);
    let samples: Vec<&str> = both.lines().filter(|l| !l.starts_with('#')).collect();
    let labels = "{k8s_node=\"node-1\",k8s_namespace=\"n\",k8s_pod=\"a\",device=\"eth0\"}";
    assert_eq!(
        samples,
        [
            format!("sonde_t_bytes_total{labels} {}", i64::MAX as u64 * 2),
            format!("sonde_t_queue{labels} 7"),
            format!("sonde_t_stalled_seconds_total{labels} 0.002"),
        ]
    );
    // Once the older one has ended, nothing of it is left.
    old.valid_to_ns.store(9, std::sync::atomic::Ordering::Release);
    assert!(text(&tables).contains(&format!("sonde_t_bytes_total{labels} {}\n", i64::MAX)));
    young.valid_to_ns.store(9, std::sync::atomic::Ordering::Release);
    assert_eq!(text(&tables), "");
}

#[test]
fn a_histogram_is_cumulated_and_in_its_unit() {
    let mut table = Table::new(&LATENCY, 1);
    table.push(Subject::Node, [], &[5, 0, 2, 3_000_000_000]);
    let labels = "k8s_node=\"node-1\",k8s_namespace=\"\",k8s_pod=\"\"";
    assert_eq!(
        text(&[table]),
        format!(
            "# HELP sonde_l_wait_seconds Waits\n# TYPE sonde_l_wait_seconds histogram\n\
             sonde_l_wait_seconds_bucket{{{labels},le=\"0.001\"}} 5\n\
             sonde_l_wait_seconds_bucket{{{labels},le=\"0.1\"}} 5\n\
             sonde_l_wait_seconds_bucket{{{labels},le=\"+Inf\"}} 7\n\
             sonde_l_wait_seconds_sum{{{labels}}} 3\n\
             sonde_l_wait_seconds_count{{{labels}}} 7\n"
        )
    );
}

fn exposition(config: &config::Metrics) -> Exposition {
    Exposition::new("node-1", config).unwrap()
}

fn limits(per_probe: usize, per_namespace: usize) -> config::Metrics {
    config::Metrics {
        max_series: MaxSeries {
            per_probe,
            per_namespace,
        },
        ..config::Metrics::default()
    }
}

/// The samples of a page in a scheme of names, without what it says of itself.
fn samples(exposition: &Exposition, tables: &[Table]) -> Vec<String> {
    let mut text = String::new();
    exposition.write(tables, Format::Text, &mut |piece| text.push_str(piece));
    let own = |line: &&str| !line.starts_with('#') && !line.starts_with("sonde_collector_");
    text.lines().filter(own).map(str::to_owned).collect()
}

/// One row a pod: bytes, queue, and half the bytes as milliseconds.
fn rows(pods: &[(&Arc<Pod>, i64)]) -> Vec<Table> {
    let mut table = Table::new(&SPEC, 1);
    for (pod, bytes) in pods {
        table.push(Subject::Pod(Arc::clone(pod)), ["eth0".into()], &[*bytes, 7, bytes / 2]);
    }
    vec![table]
}

fn value(samples: &[String], start: &str) -> Option<String> {
    let found: Vec<&String> = samples.iter().filter(|line| line.starts_with(start)).collect();
    assert!(found.len() < 2, "{found:?}");
    found.first().map(|line| line.rsplit_once(' ').unwrap().1.to_owned())
}

const OVER: &str =
    "sonde_t_bytes_total{k8s_node=\"node-1\",k8s_namespace=\"n\",k8s_pod=\"__overflow__\",device=\"__overflow__\"}";

fn bytes_of(name: &str) -> String {
    format!("sonde_t_bytes_total{{k8s_node=\"node-1\",k8s_namespace=\"n\",k8s_pod=\"{name}\",device=\"eth0\"}}")
}

#[test]
fn the_order_is_that_of_names_whatever_the_order_of_rows() {
    let (a, b) = (pod("a", 1), pod("b", 2));
    let mut other = unshared("a", 3);
    other.namespace = "m".into();
    let other = Arc::new(other);
    let plain = exposition(&config::Metrics::default());
    let mut node = Table::new(&SPEC, 1);
    node.push(Subject::Node, ["eth0".into()], &[1, 1, 1]);
    let sorted = samples(
        &plain,
        &[node.clone(), rows(&[(&other, 2), (&a, 3), (&b, 4)]).remove(0)],
    );
    assert_eq!(sorted.len(), 12);
    assert!(sorted[..4].is_sorted(), "{sorted:?}");
    assert_eq!(
        samples(&plain, &[rows(&[(&b, 4), (&other, 2), (&a, 3)]).remove(0), node]),
        sorted
    );
}

#[test]
fn labels_of_the_configuration_are_on_every_series_and_the_younger_sandbox_counts() {
    let config = config::Metrics {
        labels: [("team".to_owned(), "t-${labels:team}".to_owned())].into(),
        names: vec![MetricNames::Sonde, MetricNames::Kubeskoop],
        ..config::Metrics::default()
    };
    let with = |from: u64, team: &str| {
        let mut pod = unshared("a", from);
        pod.labels.insert("team".into(), team.into());
        Arc::new(pod)
    };
    let exposition = exposition(&config);
    let (old, young) = (with(1, "x"), with(2, "y"));
    let mut tables = rows(&[(&old, 1), (&young, 2)]);
    tables[0].push(Subject::Node, ["eth0".into()], &[5, 5, 5]);
    let both = samples(&exposition, &tables);
    assert_eq!(
        both[..2],
        [
            "sonde_t_bytes_total{k8s_node=\"node-1\",k8s_namespace=\"\",k8s_pod=\"\",team=\"t-\",device=\"eth0\"} 5",
            "sonde_t_bytes_total{k8s_node=\"node-1\",k8s_namespace=\"n\",k8s_pod=\"a\",team=\"t-y\",device=\"eth0\"} 3",
        ]
    );
    young.valid_to_ns.store(9, std::sync::atomic::Ordering::Release);
    let one = samples(&exposition, &tables);
    assert!(one[1].contains("team=\"t-x\"") && one[1].ends_with("} 1"), "{}", one[1]);
}

#[test]
fn what_is_beyond_the_budget_is_added_up_and_totals_stay_right() {
    // A row is three series: two fit.
    let exposition = exposition(&limits(1000, 7));
    let (a, b, c, d) = (pod("a", 1), pod("b", 2), pod("c", 3), pod("d", 4));
    let first = samples(&exposition, &rows(&[(&b, 10), (&c, 20), (&d, 30)]));
    assert_eq!(value(&first, &bytes_of("b")).as_deref(), Some("10"));
    assert_eq!(value(&first, &bytes_of("c")).as_deref(), Some("20"));
    assert_eq!(value(&first, &bytes_of("d")), None);
    assert_eq!(value(&first, OVER).as_deref(), Some("30"));
    assert!(
        !first
            .iter()
            .any(|line| line.contains("sonde_t_queue{") && line.contains("__overflow__"))
    );

    // Who was there stays, whatever the name of who comes.
    let tables = rows(&[(&a, 1), (&b, 11), (&c, 21), (&d, 33)]);
    let second = samples(&exposition, &tables);
    assert_eq!(value(&second, &bytes_of("a")), None);
    assert_eq!(value(&second, OVER).as_deref(), Some("34"));
    assert_eq!(
        samples(&exposition, &tables),
        second,
        "the same tables give the same page"
    );

    // What ended stays in the sum, and what began anew is added to it: a counter does not fall.
    let third = samples(&exposition, &rows(&[(&a, 5), (&b, 12), (&c, 22)]));
    assert_eq!(value(&third, OVER).as_deref(), Some("38"));
    let fourth = samples(&exposition, &rows(&[(&a, 2), (&b, 12), (&c, 22)]));
    assert_eq!(value(&fourth, OVER).as_deref(), Some("40"));

    // Room is given to who is new; the sum ends when nothing is in it any more.
    let e = pod("e", 5);
    let fifth = samples(&exposition, &rows(&[(&b, 12), (&e, 1)]));
    assert_eq!(value(&fifth, &bytes_of("e")).as_deref(), Some("1"));
    assert_eq!(value(&fifth, OVER), None);
}

#[test]
fn a_probe_that_spends_its_own_budget_overflows_without_a_namespace() {
    let exposition = exposition(&limits(7, 1000));
    let pods: Vec<Arc<Pod>> = (0..5).map(|i| pod(&format!("p{i}"), i)).collect();
    let rows_of: Vec<(&Arc<Pod>, i64)> = pods.iter().map(|pod| (pod, 10)).collect();
    let mut text = String::new();
    exposition.write(&rows(&rows_of), Format::Text, &mut |piece| text.push_str(piece));
    let over = "sonde_t_bytes_total{k8s_node=\"node-1\",k8s_namespace=\"__overflow__\",k8s_pod=\"__overflow__\",device=\"__overflow__\"} 30\n";
    assert!(text.contains(over), "{text}");
    for figure in [
        "sonde_collector_series{probe=\"t\",names=\"sonde\"} 8",
        "sonde_collector_folded_rows{probe=\"t\",names=\"sonde\"} 3",
        "sonde_collector_series_over_budget_total{probe=\"t\",names=\"sonde\"} 9",
    ] {
        assert!(text.contains(figure), "{figure}: {text}");
    }
}

#[test]
fn histograms_of_overflow_are_added_up_bucket_by_bucket() {
    let exposition = exposition(&limits(1000, 5));
    let table = |values: &[(&Arc<Pod>, [i64; 4])]| {
        let mut table = Table::new(&LATENCY, 1);
        for (pod, values) in values {
            table.push(Subject::Pod(Arc::clone(pod)), [], values);
        }
        vec![table]
    };
    let (a, b, c) = (pod("a", 1), pod("b", 2), pod("c", 3));
    let one = 1_000_000_000;
    samples(
        &exposition,
        &table(&[(&a, [1, 1, 1, one]), (&b, [2, 0, 0, one]), (&c, [0, 3, 0, one])]),
    );
    let page = samples(&exposition, &table(&[(&a, [1, 1, 1, one]), (&b, [2, 0, 1, 2 * one])]));
    let over = |suffix: &str, le: &str| {
        value(
            &page,
            &format!(
                "sonde_l_wait_seconds_{suffix}{{k8s_node=\"node-1\",k8s_namespace=\"n\",k8s_pod=\"__overflow__\"{le}}}"
            ),
        )
    };
    assert_eq!(over("bucket", ",le=\"0.001\"").as_deref(), Some("2"));
    assert_eq!(over("bucket", ",le=\"0.1\"").as_deref(), Some("5"));
    assert_eq!(over("bucket", ",le=\"+Inf\"").as_deref(), Some("6"));
    assert_eq!(over("count", "").as_deref(), Some("6"));
    assert_eq!(over("sum", "").as_deref(), Some("3"));
}
