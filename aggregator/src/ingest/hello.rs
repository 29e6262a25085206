//! The first message of a stream, checked. Names become SQL identifiers and metric names, so the checks are strict.

use std::collections::HashSet;

use sonde_proto::limits::{MAX_CELLS, MAX_COLUMNS, MAX_LABELS, MAX_NAME, MAX_NODE_NAME, MAX_PROBES, MAX_STRING};
use sonde_proto::{names, v1};
use uuid::Uuid;

use crate::store::Newcomer;

/// Views of schema `sonde` that are not probes, now or soon.
const RESERVED_PROBES: [&str; 11] = [
    "catalogue",
    "events",
    "pods",
    "nodes",
    "gaps",
    "incidents",
    "notes",
    "changes",
    "services",
    "endpoints",
    "cluster_nodes",
];
/// `sonde.<probe>_1m` and `sonde.<probe>_1h` are its rollups.
const RESERVED_SUFFIXES: [&str; 2] = ["_1m", "_1h"];
/// Columns that tables, views or PostgreSQL itself have, and labels that metrics have.
const RESERVED_COLUMNS: [&str; 18] = [
    "time",
    "readings",
    "node",
    "namespace",
    "pod",
    "node_id",
    "pod_id",
    "le",
    "quantile",
    "k8s_node",
    "k8s_namespace",
    "k8s_pod",
    "tableoid",
    "xmin",
    "xmax",
    "cmin",
    "cmax",
    "ctid",
];
/// Buckets of a histogram: each is a number in every row.
const MAX_BOUNDS: usize = 128;
const MAX_EVENT_TYPES: usize = 256;
const MAX_INTERVAL_NS: u64 = 3_600_000_000_000;

/// What is wrong with a hello: the field, and what was expected.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("hello: {field}: {what}")]
pub(super) struct Invalid {
    field: String,
    what: String,
}

fn ensure(right: bool, field: impl FnOnce() -> String, what: impl FnOnce() -> String) -> Result<(), Invalid> {
    if right {
        return Ok(());
    }
    Err(Invalid {
        field: field(),
        what: what(),
    })
}

/// Whether this may become a label of a metric.
pub(super) fn is_node_name(node: &str) -> bool {
    let part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
    (1..=MAX_NODE_NAME).contains(&node.len()) && node.chars().all(part)
}

pub(super) fn check(hello: v1::Hello) -> Result<Newcomer, Invalid> {
    let node = &hello.node;
    ensure(
        is_node_name(node),
        || "node".into(),
        || {
            format!(
                "{} is not a node name: expected 1 to {MAX_NODE_NAME} letters, digits, `-`, `.` or `_`",
                show(node)
            )
        },
    )?;
    let boot_id = uuid("boot_id", &hello.boot_id)?;
    let epoch = uuid("epoch", &hello.epoch)?;
    text("version", &hello.version, 256)?;
    text("kernel", &hello.kernel, 256)?;
    ensure(
        (1..=MAX_INTERVAL_NS).contains(&hello.interval_ns),
        || "interval_ns".into(),
        || format!("{} is not between 1 ns and 1 h", hello.interval_ns),
    )?;
    let catalogue = hello.catalogue.unwrap_or_default();
    ensure(
        catalogue.probes.len() <= MAX_PROBES,
        || "catalogue".into(),
        || format!("{} probes, expected at most {MAX_PROBES}", catalogue.probes.len()),
    )?;
    let mut seen = HashSet::new();
    for probe in &catalogue.probes {
        check_probe(probe)?;
        ensure(
            seen.insert(&probe.name),
            || format!("probe {}", probe.name),
            || "is there twice".into(),
        )?;
    }
    Ok(Newcomer {
        boot_id,
        epoch,
        version: hello.version,
        kernel: hello.kernel,
        interval_ns: hello.interval_ns,
        catalogue,
        node: hello.node,
    })
}

fn check_probe(probe: &v1::ProbeDef) -> Result<(), Invalid> {
    name("probe", &probe.name, &RESERVED_PROBES)?;
    ensure(
        !RESERVED_SUFFIXES.iter().any(|suffix| probe.name.ends_with(suffix)),
        || "probe".into(),
        || {
            format!(
                "`{}` ends as the views of rollups do: `_1m` and `_1h` are reserved",
                probe.name
            )
        },
    )?;
    let field = |what: &str| format!("probe {}: {what}", probe.name);
    text(&field("help"), &probe.help, MAX_STRING)?;
    for (what, count, most) in [
        ("labels", probe.labels.len(), MAX_LABELS),
        ("columns", probe.columns.len(), MAX_COLUMNS),
        ("event_types", probe.event_types.len(), MAX_EVENT_TYPES),
    ] {
        ensure(
            count <= most,
            || field(what),
            || format!("{count}, expected at most {most}"),
        )?;
    }
    let mut seen = HashSet::new();
    for label in &probe.labels {
        name(&field("label"), &label.name, &RESERVED_COLUMNS)?;
        text(&field(&label.name), &label.help, MAX_STRING)?;
        ensure(
            seen.insert(&label.name),
            || field(&label.name),
            || "is there twice".into(),
        )?;
    }
    for column in &probe.columns {
        name(&field("column"), &column.name, &RESERVED_COLUMNS)?;
        ensure(
            seen.insert(&column.name),
            || field(&column.name),
            || "is there twice".into(),
        )?;
        check_column(&field(&column.name), column)?;
    }
    let cells: usize = probe
        .columns
        .iter()
        .map(|c| c.bounds.len().max(1) + if c.bounds.is_empty() { 0 } else { 2 })
        .sum();
    ensure(
        cells <= MAX_CELLS,
        || field("columns"),
        || format!("{cells} numbers in a row, expected at most {MAX_CELLS}"),
    )?;
    for event_type in &probe.event_types {
        let word = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_';
        let good = !event_type.name.is_empty() && event_type.name.len() <= 64 && event_type.name.chars().all(word);
        ensure(
            good,
            || field("event_types"),
            || {
                format!(
                    "{} is not an event type: expected 1 to 64 of A-Z, 0-9 and `_`",
                    show(&event_type.name)
                )
            },
        )?;
        text(&field(&event_type.name), &event_type.help, MAX_STRING)?;
    }
    Ok(())
}

fn check_column(field: &str, column: &v1::ColumnDef) -> Result<(), Invalid> {
    text(field, &column.help, MAX_STRING)?;
    text(field, &column.unit, 32)?;
    let here = || field.to_owned();
    let kind = v1::Kind::try_from(column.kind).unwrap_or_default();
    ensure(kind != v1::Kind::Unspecified, here, || {
        format!("kind {} is none of counter, gauge and histogram", column.kind)
    })?;
    ensure(column.scale.is_finite() && column.scale >= 0.0, here, || {
        format!("scale {} is not a positive number", column.scale)
    })?;
    let bounds = &column.bounds;
    let ascending = bounds.iter().all(|b| b.is_finite()) && bounds.windows(2).all(|pair| pair[0] < pair[1]);
    ensure(
        (kind == v1::Kind::Histogram) != bounds.is_empty() && ascending && bounds.len() <= MAX_BOUNDS,
        here,
        || format!("expected 1 to {MAX_BOUNDS} ascending bounds for a histogram and none otherwise"),
    )
}

fn name(field: &str, name: &str, reserved: &[&str]) -> Result<(), Invalid> {
    ensure(
        names::is_valid(name),
        || field.to_owned(),
        || {
            format!(
                "{} is not a name: expected [a-z][a-z0-9_]*, at most {MAX_NAME} bytes",
                show(name)
            )
        },
    )?;
    ensure(
        !reserved.contains(&name),
        || field.to_owned(),
        || format!("`{name}` is reserved"),
    )
}

fn text(field: &str, text: &str, most: usize) -> Result<(), Invalid> {
    ensure(
        text.len() <= most && !text.contains('\0'),
        || field.to_owned(),
        || format!("a text of {} bytes, expected at most {most} and no NUL", text.len()),
    )
}

fn uuid(field: &str, bytes: &[u8]) -> Result<Uuid, Invalid> {
    Uuid::from_slice(bytes).map_err(|_| Invalid {
        field: field.to_owned(),
        what: format!("{} bytes, expected the 16 of a UUID", bytes.len()),
    })
}

/// What came, for a message: never more than a line of it.
fn show(text: &str) -> String {
    let start: String = text.chars().take(64).collect();
    format!("{start:?}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello() -> v1::Hello {
        v1::Hello {
            node: "n1".into(),
            boot_id: vec![1; 16],
            epoch: vec![2; 16],
            interval_ns: 5_000_000_000,
            catalogue: Some(v1::Catalogue {
                probes: vec![v1::ProbeDef {
                    name: "tcp".into(),
                    labels: vec![v1::LabelDef {
                        name: "device".into(),
                        help: String::new(),
                    }],
                    columns: vec![v1::ColumnDef {
                        name: "segs".into(),
                        kind: 1,
                        ..Default::default()
                    }],
                    event_types: vec![v1::EventTypeDef {
                        name: "A_100MS".into(),
                        help: String::new(),
                    }],
                    ..Default::default()
                }],
            }),
            ..Default::default()
        }
    }

    fn refused(change: impl FnOnce(&mut v1::Hello)) -> String {
        let mut hello = hello();
        change(&mut hello);
        check(hello).expect_err("expected a refusal").to_string()
    }

    fn probe(hello: &mut v1::Hello) -> &mut v1::ProbeDef {
        &mut hello.catalogue.as_mut().unwrap().probes[0]
    }

    #[test]
    fn a_good_hello_is_taken() {
        let newcomer = check(hello()).unwrap();
        assert_eq!(
            (newcomer.node.as_str(), newcomer.epoch),
            ("n1", Uuid::from_bytes([2; 16]))
        );
    }

    #[test]
    fn each_bad_field_is_named_with_what_was_expected() {
        for (expected, error) in [
            (
                "hello: node: \"a b\" is not a node name",
                refused(|h| h.node = "a b".into()),
            ),
            (
                "hello: epoch: 3 bytes, expected the 16",
                refused(|h| h.epoch = vec![0; 3]),
            ),
            ("hello: interval_ns: 0 is not", refused(|h| h.interval_ns = 0)),
            (
                "hello: probe: \"a\\\"; drop\" is not a name",
                refused(|h| probe(h).name = "a\"; drop".into()),
            ),
            (
                "hello: probe: `events` is reserved",
                refused(|h| probe(h).name = "events".into()),
            ),
            (
                "hello: probe: `tcp_1m` ends as the views of rollups do",
                refused(|h| probe(h).name = "tcp_1m".into()),
            ),
            (
                "hello: probe tcp: column: `xmin` is reserved",
                refused(|h| probe(h).columns[0].name = "xmin".into()),
            ),
            (
                "hello: probe tcp: device: is there twice",
                refused(|h| probe(h).columns[0].name = "device".into()),
            ),
            (
                "hello: probe tcp: segs: kind 0",
                refused(|h| probe(h).columns[0].kind = 0),
            ),
            (
                "hello: probe tcp: segs: kind 9",
                refused(|h| probe(h).columns[0].kind = 9),
            ),
            (
                "hello: probe tcp: segs: scale -1",
                refused(|h| probe(h).columns[0].scale = -1.0),
            ),
            (
                "hello: probe tcp: segs: scale NaN",
                refused(|h| probe(h).columns[0].scale = f64::NAN),
            ),
            (
                "hello: probe tcp: segs: expected 1 to 128",
                refused(|h| probe(h).columns[0].kind = 3),
            ),
            (
                "hello: probe tcp: segs: expected 1 to 128",
                refused(|h| probe(h).columns[0].bounds = vec![1.0]),
            ),
            (
                "hello: probe tcp: help: a text of 3 bytes",
                refused(|h| probe(h).help = "a\0b".into()),
            ),
            (
                "hello: probe tcp: event_types: \"a\"",
                refused(|h| probe(h).event_types[0].name = "a".into()),
            ),
            ("hello: probe tcp: is there twice", {
                refused(|h| {
                    let again = probe(h).clone();
                    h.catalogue.as_mut().unwrap().probes.push(again);
                })
            }),
        ] {
            assert!(error.starts_with(expected), "{error}, expected {expected}");
        }
    }
}
