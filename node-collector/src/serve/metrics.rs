//! The tables of the last round as Prometheus text.
//!
//! A series is named by node, namespace, pod and the probe's own labels, not by sandbox. Where two sandboxes of one name are
//! there at once (`x` and `netns.x` are both pod x of namespace netns), counters and histograms are their sum, and of gauges
//! the younger sandbox's is shown. What belongs to a pod that has ended is not shown at all.

use std::collections::HashMap;
use std::fmt::Write as _;

use sonde_common::prom::{Number, Page, Type, write_labels};
use sonde_proto::names;

use crate::catalogue::{ColumnSpec, Kind, ProbeSpec};
use crate::event::Subject;
use crate::table::{ABSENT, Table};

/// Adds every series of the tables. Tables of one probe become one set of families.
pub fn render(page: &mut Page, node: &str, tables: &[Table]) {
    let mut done: Vec<&'static str> = Vec::new();
    for table in tables {
        if done.contains(&table.spec.name) {
            continue;
        }
        done.push(table.spec.name);
        let same: Vec<&Table> = tables
            .iter()
            .filter(|other| other.spec.name == table.spec.name)
            .collect();
        probe(page, node, table.spec, &same);
    }
}

/// The rows of one series, youngest sandbox first.
struct Series {
    labels: String,
    rows: Vec<Row>,
}

#[derive(Clone, Copy)]
struct Row {
    table: usize,
    row: usize,
    valid_from_ns: u64,
}

fn probe(page: &mut Page, node: &str, spec: &'static ProbeSpec, tables: &[&Table]) {
    let all = series(node, spec, tables);
    let mut buckets = Vec::new();
    for (i, column) in spec.columns.iter().enumerate() {
        let name = names::metric(spec.name, &column.to_proto());
        let mut begun = false;
        let mut begin = |page: &mut Page, kind| {
            if !std::mem::replace(&mut begun, true) {
                page.family(&name, kind, column.help);
            }
        };
        for one in &all {
            let values = one
                .rows
                .iter()
                .map(|row| tables[row.table].columns[i][row.row])
                .filter(|v| *v != ABSENT);
            match column.kind {
                Kind::Histogram => {
                    if sum_histograms(&mut buckets, one, tables, i, column) {
                        begin(page, Type::Histogram);
                        histogram(page, &name, &one.labels, column, &buckets);
                    }
                }
                Kind::Gauge => {
                    if let Some(value) = values.into_iter().next() {
                        begin(page, Type::Gauge);
                        page.rendered(&name, &one.labels, scaled(value.into(), column));
                    }
                }
                Kind::Counter | Kind::Unspecified => {
                    if let Some(value) = values.map(i128::from).reduce(|a, b| a + b) {
                        begin(page, Type::Counter);
                        page.rendered(&name, &one.labels, scaled(value, column));
                    }
                }
            }
        }
    }
}

fn series(node: &str, spec: &'static ProbeSpec, tables: &[&Table]) -> Vec<Series> {
    let width = spec.labels.len();
    let mut all: Vec<Series> = Vec::new();
    let mut places: HashMap<String, usize> = HashMap::new();
    for (t, table) in tables.iter().enumerate() {
        for (r, subject) in table.subjects.iter().enumerate() {
            let (namespace, pod, valid_from_ns) = match subject {
                Subject::Pod(pod) if pod.has_ended() => continue,
                Subject::Pod(pod) => (pod.namespace.as_str(), pod.name.as_str(), pod.valid_from_ns),
                Subject::Node => ("", "", 0),
                Subject::Unknown => continue,
            };
            let own = spec
                .labels
                .iter()
                .map(|l| l.name)
                .zip(table.labels[r * width..][..width].iter().map(|l| &**l));
            let standard = [("k8s_node", node), ("k8s_namespace", namespace), ("k8s_pod", pod)];
            let mut labels = String::with_capacity(96);
            write_labels(&mut labels, standard.into_iter().chain(own));
            let row = Row {
                table: t,
                row: r,
                valid_from_ns,
            };
            match places.get(&labels) {
                Some(place) => all[*place].rows.push(row),
                None => {
                    places.insert(labels.clone(), all.len());
                    all.push(Series {
                        labels,
                        rows: vec![row],
                    });
                }
            }
        }
    }
    for one in &mut all {
        one.rows.sort_by_key(|row| std::cmp::Reverse(row.valid_from_ns));
    }
    all
}

fn scaled(value: i128, column: &ColumnSpec) -> Number {
    if column.scale == 1.0 || column.scale == 0.0 {
        Number::Int(value)
    } else {
        Number::Float(value as f64 * column.scale)
    }
}

/// Whether any of the rows has one.
fn sum_histograms(buckets: &mut Vec<i128>, one: &Series, tables: &[&Table], i: usize, column: &ColumnSpec) -> bool {
    let width = column.width();
    buckets.clear();
    buckets.resize(width, 0);
    let mut any = false;
    for row in &one.rows {
        let values = &tables[row.table].columns[i][row.row * width..][..width];
        if values.contains(&ABSENT) {
            continue;
        }
        any = true;
        for (bucket, value) in buckets.iter_mut().zip(values) {
            *bucket += i128::from(*value);
        }
    }
    any
}

/// `values`: the count of each bucket, not cumulated, the last one without bound, then the sum.
fn histogram(page: &mut Page, name: &str, labels: &str, column: &ColumnSpec, values: &[i128]) {
    let Some((sum, counts)) = values.split_last() else {
        return;
    };
    let mut count = 0;
    let mut with_bound = String::new();
    for (i, bucket) in counts.iter().enumerate() {
        count += bucket;
        with_bound.clear();
        with_bound.push_str(labels);
        let _ = match column.bounds.get(i) {
            Some(bound) => write!(with_bound, ",le=\"{bound}\""),
            None => write!(with_bound, ",le=\"+Inf\""),
        };
        page.rendered(&format!("{name}_bucket"), &with_bound, Number::Int(count));
    }
    page.rendered(&format!("{name}_sum"), labels, scaled(*sum, column));
    page.rendered(&format!("{name}_count"), labels, Number::Int(count));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalogue::LabelSpec;
    use crate::pods::Pod;
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
}
