//! What the page is made of; how series come and go is tested beside the table.

use sonde_common::time::now_ns;
use sonde_proto::{ABSENT, v1};

use super::*;

const SECOND: u64 = 1_000_000_000;
/// Histograms, whole.
const WAITS: &str = "{__name__=~\"sonde_lat_.+\"}";

fn column(name: &str, kind: v1::Kind, bounds: &[f64]) -> v1::ColumnDef {
    v1::ColumnDef {
        name: name.into(),
        help: format!("Help \"of\" {name}"),
        kind: kind.into(),
        scale: if kind == v1::Kind::Histogram { 1e-9 } else { 1.0 },
        bounds: bounds.to_vec(),
        ..Default::default()
    }
}

fn probe(name: &str, columns: Vec<v1::ColumnDef>) -> v1::ProbeDef {
    v1::ProbeDef {
        name: name.into(),
        columns,
        ..Default::default()
    }
}

/// The rows of one reading: a subject and its values each, `columns` of them with their widths.
fn rows(probe: &str, time_ns: u64, subjects: &[u32], columns: Vec<Vec<i64>>) -> v1::Rows {
    v1::Rows {
        probe: probe.into(),
        time_ns,
        subjects: subjects.to_vec(),
        columns: columns.into_iter().map(|values| v1::Column { values }).collect(),
        ..Default::default()
    }
}

/// `lat`: a counter, a histogram with bounds 0.1 and 1, and a gauge, of the node and of pod `web`.
fn table(time_ns: u64) -> Arc<LiveTable> {
    let table = LiveTable::new();
    let columns = vec![
        column("calls", v1::Kind::Counter, &[]),
        column("wait_seconds", v1::Kind::Histogram, &[0.1, 1.0]),
        column("depth", v1::Kind::Gauge, &[]),
    ];
    let catalogue = v1::Catalogue {
        probes: vec![probe("lat", columns)],
    };
    table.hello("n1", &catalogue, 5 * SECOND);
    let web = v1::Pod {
        sandbox: "s1".into(),
        namespace: "shop".into(),
        name: "web".into(),
        valid_from_ns: 1,
        ..Default::default()
    };
    let waits = vec![1, 2, 3, 4_500_000_000, 10, 0, 0, 20_000_000];
    let body = v1::BatchBody {
        strings: vec![String::new()],
        pods: vec![web],
        rows: vec![rows("lat", time_ns, &[0, 1], vec![vec![7, 8], waits, vec![ABSENT, 5]])],
        ..Default::default()
    };
    table.apply("n1", &body);
    table
}

fn page(table: &LiveTable, matches: &[&str], format: Format) -> String {
    let selectors: Vec<Selector> = matches.iter().map(|m| m.parse().unwrap()).collect();
    let mut text = String::new();
    assert!(table.federate(&selectors, format, &mut |piece| {
        text.push_str(&piece);
        true
    }));
    text
}

#[test]
fn openmetrics_has_its_names_units_bounds_seconds_and_end() {
    let now = now_ns();
    let table = table(now);
    let (seconds, millis) = (now / SECOND, now / 1_000_000 % 1000);
    let stamp = format!("{seconds}.{millis:03}");
    let host = "k8s_node=\"n1\",k8s_namespace=\"\",k8s_pod=\"\"";
    let web = "k8s_node=\"n1\",k8s_namespace=\"shop\",k8s_pod=\"web\"";
    let wait = "sonde_lat_wait_seconds";
    assert_eq!(
        page(&table, &[WAITS], Format::OpenMetrics),
        format!(
            "# HELP sonde_lat_calls Help \\\"of\\\" calls\n# TYPE sonde_lat_calls counter\n\
             sonde_lat_calls_total{{{host}}} 7 {stamp}\nsonde_lat_calls_total{{{web}}} 8 {stamp}\n\
             # HELP sonde_lat_depth Help \\\"of\\\" depth\n# TYPE sonde_lat_depth gauge\n\
             sonde_lat_depth{{{web}}} 5 {stamp}\n\
             # HELP {wait} Help \\\"of\\\" wait_seconds\n# TYPE {wait} histogram\n# UNIT {wait} seconds\n\
             {wait}_bucket{{{host},le=\"0.1\"}} 1 {stamp}\n{wait}_bucket{{{host},le=\"1.0\"}} 3 {stamp}\n\
             {wait}_bucket{{{host},le=\"+Inf\"}} 6 {stamp}\n{wait}_sum{{{host}}} 4.5 {stamp}\n{wait}_count{{{host}}} 6 {stamp}\n\
             {wait}_bucket{{{web},le=\"0.1\"}} 10 {stamp}\n{wait}_bucket{{{web},le=\"1.0\"}} 10 {stamp}\n\
             {wait}_bucket{{{web},le=\"+Inf\"}} 10 {stamp}\n{wait}_sum{{{web}}} 0.02 {stamp}\n{wait}_count{{{web}}} 10 {stamp}\n\
             # EOF\n"
        )
    );
    assert_eq!(page(&table, &["nosuch"], Format::OpenMetrics), "# EOF\n");
}

#[test]
fn a_part_of_a_histogram_is_no_histogram_in_openmetrics() {
    let table = table(now_ns());
    let types = |matches: &[&str], format| -> Vec<String> {
        let page = page(&table, matches, format);
        let lines = page
            .lines()
            .filter_map(|line| line.strip_prefix("# TYPE sonde_lat_wait_seconds"));
        lines.map(String::from).collect()
    };
    let whole = [
        "{__name__=~\"sonde_lat_wait_seconds_(bucket|sum|count)\"}",
        "{k8s_pod=\"web\"}",
        "{__name__=~\"sonde_lat_.+\",k8s_pod=\"web\",nosuch=\"\"}",
    ];
    for selector in whole {
        assert_eq!(types(&[selector], Format::OpenMetrics), [" histogram"], "{selector}");
    }
    assert_eq!(types(&whole, Format::OpenMetrics), [" histogram"]);
    for (parts, expected) in [
        (vec!["sonde_lat_wait_seconds_count"], vec!["_count unknown"]),
        (
            vec!["sonde_lat_wait_seconds_sum", "sonde_lat_wait_seconds_count"],
            vec!["_sum unknown", "_count unknown"],
        ),
        (vec!["{le=\"+Inf\"}"], vec!["_bucket unknown"]),
        // Whole of one pod, and of the node not even half.
        (
            vec!["{k8s_pod=\"web\"}", "sonde_lat_wait_seconds_sum{k8s_pod=\"\"}"],
            vec!["_bucket unknown", "_sum unknown", "_count unknown"],
        ),
    ] {
        assert_eq!(types(&parts, Format::OpenMetrics), expected, "{parts:?}");
        assert_eq!(types(&parts, Format::Text), [" histogram"], "{parts:?}");
    }
}

#[test]
fn a_bound_is_selected_as_it_is_shown() {
    let table = table(now_ns());
    let buckets = |selector: &str, format| page(&table, &[selector], format).matches("_bucket{").count();
    for (selector, text, open) in [
        ("{le=\"1\"}", 2, 0),
        ("{le=\"1.0\"}", 0, 2),
        ("{le=~\"1|1\\\\.0\"}", 2, 2),
        ("{le=\"0.1\"}", 2, 2),
        ("{__name__=~\".+_bucket\",le!=\"+Inf\"}", 4, 4),
    ] {
        assert_eq!(buckets(selector, Format::Text), text, "{selector}");
        assert_eq!(buckets(selector, Format::OpenMetrics), open, "{selector}");
    }
}

#[test]
fn many_selectors_are_one_page_with_each_series_once() {
    let table = table(now_ns());
    let one = "sonde_lat_calls_total{k8s_pod=\"web\"}";
    let mut matches = vec!["{k8s_pod=\"nosuch\"}"; MAX_SELECTORS - 2];
    matches.extend([one, "{k8s_namespace=\"shop\",__name__=\"sonde_lat_depth\"}"]);
    assert_eq!(page(&table, &matches, Format::Text).matches("k8s_node").count(), 2);
    let all = [one, WAITS, one, "{k8s_node=\"n1\"}"];
    assert_eq!(page(&table, &all, Format::Text), page(&table, &[WAITS], Format::Text));
}

#[test]
fn names_in_quotes_are_names() {
    let table = table(now_ns());
    for (selector, series) in [
        ("{\"sonde_lat_calls_total\"}", 2),
        ("{\"sonde_lat_calls_total\",\"k8s_pod\"=\"web\"}", 1),
        ("{'sonde_lat_calls_total',\"pod.größe\"=\"\"}", 2),
        ("{\"sonde_lat_calls_total\",\"pod.größe\"!=\"\"}", 0),
        ("{\"aufrufe.größe\"}", 0),
    ] {
        let found = page(&table, &[selector], Format::Text).matches("k8s_node").count();
        assert_eq!(found, series, "{selector}");
    }
}

#[test]
fn a_long_family_goes_out_in_pieces() {
    let table = LiveTable::new();
    let mut probe = probe("wide", vec![column("x", v1::Kind::Gauge, &[])]);
    probe.labels = vec![v1::LabelDef {
        name: "n".into(),
        help: String::new(),
    }];
    let catalogue = v1::Catalogue { probes: vec![probe] };
    table.hello("n1", &catalogue, 5 * SECOND);
    let count = 10_000;
    let mut all = rows("wide", now_ns(), &vec![0; count], vec![vec![1; count]]);
    all.labels = (0..count as u32).collect();
    let body = v1::BatchBody {
        strings: (0..count).map(|i| format!("n{i}")).collect(),
        rows: vec![all],
        ..Default::default()
    };
    table.apply("n1", &body);
    let mut pieces = Vec::new();
    table.federate(&["sonde_wide_x".parse().unwrap()], Format::Text, &mut |piece| {
        pieces.push(piece);
        true
    });
    assert!(pieces.len() > 4 && pieces.iter().all(|p| p.len() < 200 << 10 && p.ends_with('\n')));
    let lines = pieces
        .iter()
        .flat_map(|p| p.lines())
        .filter(|l| l.starts_with("sonde_wide_x{"));
    assert_eq!(lines.count(), count);
}

#[test]
fn a_histogram_and_a_gauge_of_one_family_do_not_share_a_head() {
    let table = LiveTable::new();
    let catalogue = v1::Catalogue {
        probes: vec![
            probe("a_b", vec![column("c", v1::Kind::Gauge, &[])]),
            probe("a", vec![column("b_c", v1::Kind::Histogram, &[1.0])]),
        ],
    };
    table.hello("n1", &catalogue, 5 * SECOND);
    let body = v1::BatchBody {
        strings: vec![String::new()],
        rows: vec![
            rows("a_b", now_ns(), &[0], vec![vec![1]]),
            rows("a", now_ns(), &[0], vec![vec![1, 0, 5]]),
        ],
        ..Default::default()
    };
    table.apply("n1", &body);
    for format in Format::ALL {
        let page = page(&table, &["{k8s_node=\"n1\"}"], format);
        assert!(page.contains("# TYPE sonde_a_b_c histogram"), "{page}");
        assert!(!page.contains("sonde_a_b_c{"), "{page}");
    }
}
