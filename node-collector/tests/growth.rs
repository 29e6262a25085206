//! Ten thousand pods come and go: neither page nor memory grows with those that went. A process of its own, since its
//! memory is measured.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use sonde_collector::catalogue::{ColumnSpec, LabelSpec, ProbeSpec};
use sonde_collector::event::Subject;
use sonde_collector::pods::Pod;
use sonde_collector::serve::metrics::Exposition;
use sonde_collector::table::Table;
use sonde_common::config::{MaxSeries, MetricNames, Metrics};
use sonde_common::prom::Format;

static SPEC: ProbeSpec = ProbeSpec {
    name: "netdev",
    help: "",
    source: "",
    labels: &[LabelSpec {
        name: "device",
        help: "",
    }],
    columns: &[
        ColumnSpec::counter("receive_bytes", "bytes", ""),
        ColumnSpec::counter("transmit_bytes", "bytes", ""),
        ColumnSpec::histogram("wait_seconds", "seconds", "", &[0.001, 0.1, 1.0]).scaled(1e-9),
    ],
    event_types: &[],
};

const AT_ONCE: usize = 250;
const WAVES: usize = 40;

/// Pods of a wave, with names and labels that no other has.
fn wave(number: usize) -> Vec<Arc<Pod>> {
    let pod = |i: usize| {
        Arc::new(Pod {
            sandbox: format!("sandbox-{number:04}-{i:04}"),
            // Some namespaces go with their pods.
            namespace: format!("namespace-{:04}", if i.is_multiple_of(2) { number } else { 0 }),
            name: format!("pod-{number:04}-{i:04}"),
            labels: [("team".to_owned(), format!("team-{number:04}-{i:04}"))].into(),
            valid_from_ns: number as u64 + 1,
            ..Pod::default()
        })
    };
    (0..AT_ONCE).map(pod).collect()
}

fn table(pods: &[Arc<Pod>], value: i64) -> Vec<Table> {
    let mut table = Table::new(&SPEC, 1);
    for pod in pods {
        for device in ["lo", "eth0"] {
            let values = [value, value, value, 0, 0, 1, value];
            table.push(Subject::Pod(Arc::clone(pod)), [device.into()], &values);
        }
    }
    vec![table]
}

fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: u64 = statm.split(' ').nth(1).unwrap().parse().unwrap();
    pages
        * nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE)
            .unwrap()
            .unwrap() as u64
}

#[test]
fn pods_that_went_leave_nothing_behind() {
    let config = Metrics {
        names: vec![MetricNames::Sonde, MetricNames::Kubeskoop],
        labels: [("team".to_owned(), "${labels:team}".to_owned())].into(),
        // Some series find no room, so that overflow is tried too.
        max_series: MaxSeries {
            per_probe: 3000,
            per_namespace: 1000,
        },
        ..Metrics::default()
    };
    let exposition = Exposition::new("n", &config).unwrap();
    let page = |tables: &[Table]| {
        let mut text = String::new();
        exposition.write(tables, Format::Text, &mut |piece| text.push_str(piece));
        text
    };
    let (mut lines, mut memory) = (0, 0);
    for number in 1..=WAVES {
        let pods = wave(number);
        for value in [5, 6] {
            let text = page(&table(&pods, value));
            let samples = text
                .lines()
                .filter(|l| !l.starts_with('#') && !l.contains("sonde_collector"))
                .count();
            if number == 1 {
                lines = samples;
            }
            assert_eq!(samples, lines, "wave {number}");
            assert!(text.contains("__overflow__"));
            assert!(
                !text.contains(&format!("pod-{:04}-", number - 1)),
                "a pod of the wave before"
            );
        }
        // They end between two rounds: the tables still have them, the page does not.
        let last = table(&pods, 7);
        for pod in &pods {
            pod.valid_to_ns.store(9, Ordering::Release);
        }
        assert!(!page(&last).contains("k8s_pod=\"pod-"));
        if number == WAVES / 4 {
            memory = resident();
        }
    }
    let grown = resident().saturating_sub(memory);
    assert!(grown < 4 << 20, "{grown} bytes more after {} pods", AT_ONCE * WAVES);
}
