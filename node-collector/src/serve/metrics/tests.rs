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
    Arc::new(Pod {
        sandbox: format!("{name}{valid_from_ns}"),
        namespace: "n".into(),
        name: name.into(),
        valid_from_ns,
        ..Pod::default()
    })
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
