use sonde_common::prom::Format;
use sonde_proto::ABSENT;

use super::*;

const SECOND: u64 = 1_000_000_000;

fn catalogue() -> v1::Catalogue {
    let column = |name: &str, kind: v1::Kind, scale: f64, bounds: &[f64]| v1::ColumnDef {
        name: name.into(),
        help: format!("Help of {name}"),
        kind: kind.into(),
        scale,
        bounds: bounds.to_vec(),
        ..Default::default()
    };
    let netdev = v1::ProbeDef {
        name: "netdev".into(),
        labels: vec![v1::LabelDef {
            name: "device".into(),
            help: "Device".into(),
        }],
        columns: vec![
            column("receive_bytes", v1::Kind::Counter, 1.0, &[]),
            column("carrier", v1::Kind::Gauge, 1.0, &[]),
        ],
        ..Default::default()
    };
    let lat = v1::ProbeDef {
        name: "lat".into(),
        columns: vec![column("wait_seconds", v1::Kind::Histogram, 1e-9, &[0.001, 0.1])],
        ..Default::default()
    };
    v1::Catalogue {
        probes: vec![netdev, lat],
    }
}

/// A batch in the making.
struct Batch {
    body: v1::BatchBody,
    time_ns: u64,
}

impl Batch {
    fn at(time_ns: u64) -> Self {
        Self {
            body: v1::BatchBody {
                strings: vec![String::new()],
                ..Default::default()
            },
            time_ns,
        }
    }

    fn pod(&mut self, sandbox: &str, name: &str, from: u64, to: u64) -> u32 {
        self.body.pods.push(v1::Pod {
            sandbox: sandbox.into(),
            namespace: "shop".into(),
            name: name.into(),
            valid_from_ns: from,
            valid_to_ns: to,
            ..Default::default()
        });
        self.body.pods.len() as u32
    }

    /// Rows of netdev: subject, device, bytes, carrier.
    fn netdev(mut self, rows: &[(u32, &str, i64, i64)]) -> Self {
        let mut out = v1::Rows {
            probe: "netdev".into(),
            time_ns: self.time_ns,
            ..Default::default()
        };
        out.columns = vec![v1::Column::default(), v1::Column::default()];
        for (subject, device, bytes, carrier) in rows {
            out.subjects.push(*subject);
            out.labels.push(self.body.strings.len() as u32);
            self.body.strings.push((*device).into());
            out.columns[0].values.push(*bytes);
            out.columns[1].values.push(*carrier);
        }
        self.body.rows.push(out);
        self
    }
}

fn page(table: &LiveTable, matches: &[&str]) -> String {
    let selectors: Vec<Selector> = matches.iter().map(|m| m.parse().unwrap()).collect();
    let mut text = String::new();
    table.federate(&selectors, Format::Text, &mut |piece| {
        text.push_str(&piece);
        true
    });
    text
}

/// Samples without the lines that begin a family and without timestamps.
fn samples(table: &LiveTable, matches: &[&str]) -> Vec<String> {
    let page = page(table, matches);
    let lines = page.lines().filter(|l| !l.starts_with('#'));
    lines.map(|l| l.rsplit_once(' ').unwrap().0.into()).collect()
}

fn table() -> Arc<LiveTable> {
    let table = LiveTable::new();
    table.hello("n1", &catalogue(), 5 * SECOND);
    table
}

const ALL: &str = "{__name__=~\"sonde_.+\"}";

#[test]
fn a_page_has_families_in_order_with_help_type_and_the_nodes_timestamps() {
    let table = table();
    let now = now_ns();
    let mut batch = Batch::at(now);
    let web = batch.pod("s1", "we\"b\\", 1, 0);
    table.apply("n1", &batch.netdev(&[(0, "eth0", 7, 1), (web, "eth\n0", 8, 0)]).body);
    let ms = now / 1_000_000;
    assert_eq!(
        page(&table, &[ALL]),
        format!(
            "# HELP sonde_netdev_carrier Help of carrier\n# TYPE sonde_netdev_carrier gauge\n\
             sonde_netdev_carrier{{k8s_node=\"n1\",k8s_namespace=\"\",k8s_pod=\"\",device=\"eth0\"}} 1 {ms}\n\
             sonde_netdev_carrier{{k8s_node=\"n1\",k8s_namespace=\"shop\",k8s_pod=\"we\\\"b\\\\\",device=\"eth\\n0\"}} 0 {ms}\n\
             # HELP sonde_netdev_receive_bytes_total Help of receive_bytes\n# TYPE sonde_netdev_receive_bytes_total counter\n\
             sonde_netdev_receive_bytes_total{{k8s_node=\"n1\",k8s_namespace=\"\",k8s_pod=\"\",device=\"eth0\"}} 7 {ms}\n\
             sonde_netdev_receive_bytes_total{{k8s_node=\"n1\",k8s_namespace=\"shop\",k8s_pod=\"we\\\"b\\\\\",device=\"eth\\n0\"}} 8 {ms}\n"
        )
    );
}

#[test]
fn a_histogram_is_whole_and_cumulated() {
    let table = table();
    let rows = v1::Rows {
        probe: "lat".into(),
        time_ns: now_ns(),
        subjects: vec![0],
        columns: vec![v1::Column {
            values: vec![2, 3, 1, 1_500_000_000],
        }],
        ..Default::default()
    };
    table.apply(
        "n1",
        &v1::BatchBody {
            rows: vec![rows],
            ..Default::default()
        },
    );
    let host = "k8s_node=\"n1\",k8s_namespace=\"\",k8s_pod=\"\"";
    let bucket = |le: &str, n: u32| format!("sonde_lat_wait_seconds_bucket{{{host},le=\"{le}\"}} {n}");
    let sum = format!("sonde_lat_wait_seconds_sum{{{host}}} 1.5");
    let count = format!("sonde_lat_wait_seconds_count{{{host}}} 6");
    assert_eq!(
        samples(&table, &[ALL]),
        [
            bucket("0.001", 2),
            bucket("0.1", 5),
            bucket("+Inf", 6),
            sum,
            count.clone()
        ]
    );
    assert_eq!(samples(&table, &["sonde_lat_wait_seconds_count"]), [count]);
    assert_eq!(samples(&table, &["{le=\"+Inf\"}"]), [bucket("+Inf", 6)]);
    // The family's own name is no series, as in Prometheus.
    assert_eq!(page(&table, &["sonde_lat_wait_seconds"]), "");
    assert_eq!(page(&table, &["{le=\"7\"}"]), "");
}

#[test]
fn matchers_mean_what_they_mean_in_prometheus() {
    let table = table();
    table.hello("n2", &catalogue(), 5 * SECOND);
    let mut batch = Batch::at(now_ns());
    let web = batch.pod("s1", "web", 1, 0);
    let batch = batch.netdev(&[(0, "eth0", 1, ABSENT), (web, "eth0", 2, ABSENT), (web, "lo", 3, ABSENT)]);
    table.apply("n1", &batch.body);
    table.apply("n2", &Batch::at(now_ns()).netdev(&[(0, "eth0", 4, ABSENT)]).body);
    let values = |matches: &[&str]| -> Vec<String> {
        samples(&table, matches)
            .iter()
            .map(|s| s.rsplit_once(' ').unwrap().1.to_owned())
            .collect()
    };
    let name = "sonde_netdev_receive_bytes_total";
    for (matcher, expected) in [
        ("", vec!["1", "2", "3", "4"]),
        ("{device=\"lo\"}", vec!["3"]),
        ("{device!=\"lo\"}", vec!["1", "2", "4"]),
        ("{device=~\"l\"}", vec![]),
        ("{device=~\"l.|x\"}", vec!["3"]),
        ("{device!~\"e.*\"}", vec!["3"]),
        ("{k8s_pod=\"\"}", vec!["1", "4"]),
        ("{k8s_pod!=\"\"}", vec!["2", "3"]),
        ("{k8s_node=\"n2\"}", vec!["4"]),
        ("{k8s_namespace=\"shop\",device=\"eth0\"}", vec!["2"]),
        ("{nosuch=\"\"}", vec!["1", "2", "3", "4"]),
        ("{nosuch=\"x\"}", vec![]),
        ("{nosuch!=\"x\"}", vec!["1", "2", "3", "4"]),
        ("{le=\"\"}", vec!["1", "2", "3", "4"]),
    ] {
        assert_eq!(values(&[&format!("{name}{matcher}")]), expected, "{matcher}");
    }
    // A union, without doubles.
    let lo = format!("{name}{{device=\"lo\"}}");
    let pods = "{k8s_pod=\"web\"}";
    assert_eq!(values(&[&lo, pods, &lo]), ["2", "3"]);
    assert_eq!(
        values(&["up", "{__name__!~\"sonde_.*\",k8s_node=\"n1\"}"]),
        Vec::<String>::new()
    );
}

#[test]
fn an_absent_value_is_no_sample() {
    let table = table();
    table.apply(
        "n1",
        &Batch::at(now_ns())
            .netdev(&[(0, "eth0", ABSENT, 1), (0, "lo", 5, ABSENT)])
            .body,
    );
    let samples = samples(&table, &[ALL]);
    assert_eq!(samples.len(), 2);
    assert!(
        samples[0].contains("carrier") && samples[0].contains("eth0"),
        "{samples:?}"
    );
    assert!(samples[1].contains("bytes") && samples[1].contains("lo"), "{samples:?}");
}

#[test]
fn what_a_newer_reading_lacks_has_ended() {
    let table = table();
    let now = now_ns();
    table.apply("n1", &Batch::at(now).netdev(&[(0, "eth0", 1, 1), (0, "lo", 2, 1)]).body);
    table.apply("n1", &Batch::at(now + 1).netdev(&[(0, "lo", 3, 1)]).body);
    assert_eq!(table.size().rows, 1);
    table.apply("n1", &Batch::at(now + 2).netdev(&[]).body);
    assert_eq!(page(&table, &[ALL]), "");
}

#[test]
fn an_older_reading_changes_nothing() {
    let table = table();
    let now = now_ns();
    table.apply("n1", &Batch::at(now).netdev(&[(0, "eth0", 2, 1)]).body);
    table.apply("n1", &Batch::at(now - 1).netdev(&[(0, "eth0", 1, 1)]).body);
    assert!(page(&table, &[ALL]).contains("} 2 "));
}

#[test]
fn a_pod_takes_its_series_with_it_at_once() {
    let table = table();
    let now = now_ns();
    let mut batch = Batch::at(now);
    let web = batch.pod("s1", "web", 1, 0);
    let api = batch.pod("s2", "api", 1, 0);
    table.apply("n1", &batch.netdev(&[(web, "eth0", 1, 1), (api, "eth0", 2, 1)]).body);
    let mut ended = Batch::at(now);
    ended.pod("s1", "web", 1, now);
    table.apply("n1", &ended.body);
    let left = samples(&table, &[ALL]);
    assert_eq!(left.len(), 2);
    assert!(left.iter().all(|s| s.contains("api")), "{left:?}");
    // A reading that still has rows of an ended pod does not bring it back.
    let mut late = Batch::at(now + 1);
    let web = late.pod("s1", "web", 1, now);
    table.apply("n1", &late.netdev(&[(web, "eth0", 1, 1), (0, "eth0", 9, ABSENT)]).body);
    assert_eq!(samples(&table, &["{k8s_pod=\"web\"}"]), Vec::<String>::new());
    assert_eq!(table.size().rows, 1);
}

#[test]
fn two_sandboxes_of_one_pod_are_one_series_of_the_younger() {
    let table = table();
    for order in [[0, 1], [1, 0]] {
        let mut batch = Batch::at(now_ns());
        let old = (batch.pod("s1", "web", 100, 0), "eth0", 1, ABSENT);
        let new = (batch.pod("s2", "web", 200, 0), "eth0", 2, ABSENT);
        let rows = [old, new];
        table.apply("n1", &batch.netdev(&[rows[order[0]], rows[order[1]]]).body);
        let samples = samples(&table, &[ALL]);
        assert_eq!(samples.len(), 1, "{samples:?}");
        assert!(samples[0].ends_with("} 2"), "{samples:?}");
    }
}

#[test]
fn labels_are_rendered_once_in_a_series_life() {
    let table = table();
    let now = now_ns();
    let set = |table: &LiveTable, row: usize| {
        let snapshot = table.snapshots()[0].clone();
        snapshot.sets[snapshot.rows[row].set as usize].clone()
    };
    table.apply("n1", &Batch::at(now).netdev(&[(0, "eth0", 1, 1), (0, "lo", 2, 1)]).body);
    let (eth0, lo) = (set(&table, 0), set(&table, 1));
    table.apply(
        "n1",
        &Batch::at(now + 1)
            .netdev(&[(0, "lo", 3, 1), (0, "eth0", 4, 1), (0, "eth1", 5, 1)])
            .body,
    );
    assert!(Arc::ptr_eq(&set(&table, 0), &lo));
    assert!(Arc::ptr_eq(&set(&table, 1), &eth0));
}

#[test]
fn a_pod_is_rendered_once_for_all_its_probes_and_readings() {
    let table = table();
    let now = now_ns();
    let subjects = |table: &LiveTable| -> Vec<usize> {
        let snapshots = table.snapshots();
        let of = |snapshot: &Arc<snapshot::Snapshot>| {
            let rows = snapshot.rows.iter().filter(|row| row.subject > 0);
            rows.map(|row| Arc::as_ptr(snapshot.subjects.get(row.subject)) as usize)
                .collect::<Vec<_>>()
        };
        snapshots.iter().flat_map(of).collect()
    };
    let mut batch = Batch::at(now);
    let (web, api) = (batch.pod("s1", "web", 1, 0), batch.pod("s2", "api", 1, 0));
    let mut batch = batch.netdev(&[(web, "eth0", 1, 1), (api, "eth0", 2, 1)]);
    batch.body.rows.push(v1::Rows {
        probe: "lat".into(),
        time_ns: now,
        subjects: vec![web, api],
        columns: vec![v1::Column::default()],
        ..Default::default()
    });
    table.apply("n1", &batch.body);
    let first = subjects(&table);
    assert_eq!((first.len(), &first[..2]), (4, &first[2..]));
    // In another order, beside a new one, and one that is another pod in the place of an old one.
    let mut batch = Batch::at(now + 1);
    batch.pod("s3", "new", 1, 0);
    let (api, web) = (batch.pod("s2", "api", 1, 0), batch.pod("s1", "web", 1, 0));
    table.apply("n1", &batch.netdev(&[(api, "eth0", 2, 1), (web, "eth0", 1, 1)]).body);
    let second = subjects(&table);
    assert_eq!(second[2..], [first[1], first[0]]);
    let mut batch = Batch::at(now + 2);
    let web = batch.pod("s1", "renamed", 1, 0);
    table.apply("n1", &batch.netdev(&[(web, "eth0", 1, 1)]).body);
    assert!(samples(&table, &["sonde_netdev_carrier"])[0].contains("renamed"));
}

#[test]
fn a_silent_node_has_no_series() {
    let table = LiveTable::new();
    table.hello("n1", &catalogue(), 1);
    table.apply("n1", &Batch::at(now_ns()).netdev(&[(0, "eth0", 1, 1)]).body);
    assert_eq!(
        table.size(),
        Size::default(),
        "three intervals of a nanosecond are over"
    );
    table.disconnected("n1");
    table.hello("n2", &catalogue(), 5 * SECOND);
    assert_eq!(table.is_connected("n1"), None, "a silent node is forgotten");
}

#[test]
fn rows_of_long_ago_are_not_the_present() {
    let table = table();
    table.apply(
        "n1",
        &Batch::at(now_ns() - 301 * SECOND).netdev(&[(0, "eth0", 1, 1)]).body,
    );
    assert_eq!(page(&table, &[ALL]), "");
}

#[test]
fn rows_that_do_not_fit_are_left_out() {
    let table = table();
    let good = Batch::at(now_ns()).netdev(&[(0, "eth0", 1, 1)]).body;
    let breaks: [fn(&mut v1::BatchBody); 5] = [
        |b| b.rows[0].labels[0] = 99,
        |b| b.rows[0].labels.clear(),
        |b| b.rows[0].subjects[0] = 5,
        |b| b.rows[0].columns[1].values.push(1),
        |b| b.rows[0].columns.push(v1::Column::default()),
    ];
    for (i, spoil) in breaks.iter().enumerate() {
        let mut bad = good.clone();
        spoil(&mut bad);
        table.apply("n1", &bad);
        assert_eq!(table.size().rows, 0, "{i}");
    }
    let mut unknown = good.clone();
    unknown.rows[0].probe = "nosuch".into();
    table.apply("n1", &unknown);
    table.apply("stranger", &good);
    assert_eq!(table.size().rows, 0);
    table.apply("n1", &good);
    assert_eq!(table.size().rows, 1);
}

#[test]
fn a_stream_that_replaces_another_keeps_the_node_connected() {
    let table = table();
    assert_eq!(table.is_connected("n1"), Some(true));
    table.hello("n1", &catalogue(), 5 * SECOND);
    table.disconnected("n1");
    assert_eq!(table.is_connected("n1"), Some(true));
    table.disconnected("n1");
    assert_eq!(table.is_connected("n1"), Some(false));
    assert_eq!(table.is_connected("other"), None);
}

#[test]
fn two_probes_that_give_one_series_name_do_not_spoil_the_page() {
    let def = |probe: &str, column: &str| v1::ProbeDef {
        name: probe.into(),
        columns: vec![v1::ColumnDef {
            name: column.into(),
            kind: v1::Kind::Gauge.into(),
            ..Default::default()
        }],
        ..Default::default()
    };
    let table = LiveTable::new();
    table.hello(
        "n1",
        &v1::Catalogue {
            probes: vec![def("a_b", "c"), def("a", "b_c")],
        },
        5 * SECOND,
    );
    for (probe, value) in [("a_b", 1), ("a", 2)] {
        let rows = v1::Rows {
            probe: probe.into(),
            time_ns: now_ns(),
            subjects: vec![0],
            columns: vec![v1::Column { values: vec![value] }],
            ..Default::default()
        };
        table.apply(
            "n1",
            &v1::BatchBody {
                rows: vec![rows],
                ..Default::default()
            },
        );
    }
    let samples = samples(&table, &["sonde_a_b_c"]);
    assert_eq!(samples.len(), 1);
    assert!(samples[0].ends_with("} 2"), "{samples:?}");
}

#[test]
fn a_restart_leaves_no_hole() {
    let now = now_ns();
    let pod = Arc::new(LoadedPod {
        sandbox: "s1".into(),
        namespace: "shop".into(),
        name: "web".into(),
        valid_from_ns: 1,
    });
    let stored = |node: &str, time_ns: u64| LoadedTable {
        node: node.into(),
        interval_ns: 5 * SECOND,
        def: Arc::new(catalogue().probes[0].clone()),
        time_ns,
        rows: vec![
            LoadedRow {
                pod: None,
                labels: vec!["lo".into()],
                values: vec![1, ABSENT],
            },
            LoadedRow {
                pod: Some(pod.clone()),
                labels: vec!["eth0".into()],
                values: vec![2, 1],
            },
        ],
    };
    let loaded = LiveTable::new();
    loaded.load(&[stored("n1", now - SECOND), stored("gone", now - 15 * SECOND)]);

    let applied = table();
    let mut batch = Batch::at(now - SECOND);
    let web = batch.pod("s1", "web", 1, 0);
    applied.apply("n1", &batch.netdev(&[(0, "lo", 1, ABSENT), (web, "eth0", 2, 1)]).body);
    assert_eq!(page(&loaded, &[ALL]), page(&applied, &[ALL]));

    // What comes next goes on from there, and what has come since is newer than what was stored.
    loaded.hello("n1", &catalogue(), 5 * SECOND);
    loaded.apply("n1", &Batch::at(now).netdev(&[(0, "lo", 9, ABSENT)]).body);
    loaded.load(&[stored("n1", now - SECOND)]);
    assert_eq!(samples(&loaded, &[ALL]).len(), 1);
}

#[test]
fn a_reader_that_goes_away_ends_the_page() {
    let table = table();
    let names: Vec<String> = (0..4000).map(|i| format!("eth{i}")).collect();
    let rows: Vec<_> = names.iter().map(|n| (0, n.as_str(), 1, 1)).collect();
    table.apply("n1", &Batch::at(now_ns()).netdev(&rows).body);
    let mut pieces = 0;
    table.federate(&[ALL.parse().unwrap()], Format::Text, &mut |_| {
        pieces += 1;
        false
    });
    assert_eq!(pieces, 1);
}

#[test]
fn what_is_beyond_the_budget_is_added_up() {
    // A row is two series: two rows of a namespace fit.
    let table = LiveTable::with_limits(MaxSeries {
        per_probe: 100,
        per_namespace: 5,
    });
    table.hello("n1", &catalogue(), 5 * SECOND);
    let (now, none) = (now_ns(), ABSENT);
    let apply = |time: u64, names: &[&str], rows: &[(u32, &str, i64, i64)]| {
        let mut batch = Batch::at(time);
        for name in names {
            batch.pod(name, name, 1, 0);
        }
        table.apply("n1", &batch.netdev(rows).body);
        samples(&table, &["sonde_netdev_receive_bytes_total"])
    };
    let line = |pod: &str, device: &str, value: i64| {
        format!(
            "sonde_netdev_receive_bytes_total{{k8s_node=\"n1\",k8s_namespace=\"shop\",k8s_pod=\"{pod}\",device=\"{device}\"}} {value}"
        )
    };
    let over = |value| line("__overflow__", "__overflow__", value);
    let first = apply(
        now,
        &["b", "c", "d"],
        &[(1, "e", 1, 1), (2, "e", 2, 1), (3, "e", 30, 1)],
    );
    assert_eq!(first, [line("b", "e", 1), line("c", "e", 2), over(30)]);
    let gauges = samples(&table, &["sonde_netdev_carrier"]);
    assert!(
        gauges.len() == 2 && !gauges.concat().contains("__overflow__"),
        "{gauges:?}"
    );
    assert_eq!(table.folded()["netdev"], 1);
    assert_eq!(samples(&table, &["{k8s_pod=\"__overflow__\"}"]), [over(30)]);

    // Who was shown stays, and what is gone from the sum stays in it.
    let rows = [
        (1, "e", 5, none),
        (2, "e", 1, none),
        (3, "e", 2, none),
        (4, "e", 31, none),
    ];
    let second = apply(now + 1, &["a", "b", "c", "d"], &rows);
    assert_eq!(second, [line("b", "e", 1), line("c", "e", 2), over(36)]);
    let third = apply(
        now + 2,
        &["a", "b", "c"],
        &[(1, "e", 6, none), (2, "e", 1, none), (3, "e", 2, none)],
    );
    assert_eq!(third, [line("b", "e", 1), line("c", "e", 2), over(37)]);
    let fourth = apply(now + 3, &["b"], &[(1, "e", 1, none)]);
    assert_eq!(fourth, [line("b", "e", 1)]);
}

#[test]
fn pods_that_went_leave_nothing_in_the_table() {
    let table = LiveTable::with_limits(MaxSeries {
        per_probe: 200,
        per_namespace: 100,
    });
    table.hello("n1", &catalogue(), 5 * SECOND);
    let now = now_ns();
    for wave in 0..100 {
        let mut batch = Batch::at(now + wave);
        let names: Vec<String> = (0..100).map(|i| format!("pod-{wave}-{i}")).collect();
        let rows: Vec<_> = names
            .iter()
            .map(|name| (batch.pod(name, name, 1, 0), "eth0", 1, 1))
            .collect();
        table.apply("n1", &batch.netdev(&rows).body);
        assert_eq!(samples(&table, &[ALL]).len(), 101, "wave {wave}");
        assert_eq!(table.folded()["netdev"], 50);
        assert_eq!(table.size().rows, 51);
    }
}
