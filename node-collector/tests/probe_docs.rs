//! docs/probes/ and the table in docs/kubeskoop.md are made from the catalogue; these tests fail when they are stale.
//! `make docs` writes them anew.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use sonde_collector::catalogue::{ColumnSpec, Kind, ProbeSpec};
use sonde_collector::probes::{Whose, attributes, is_on_by_default, specs, whose};
use sonde_collector::serve::metrics::kubeskoop::{Entry, Labels, Rows, entries};

fn docs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs")
}

/// Text in a cell of a table.
fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('\n', " ")
}

fn table(out: &mut String, title: &str, head: &[&str], rows: impl Iterator<Item = Vec<String>>) {
    let rows: Vec<_> = rows.collect();
    if rows.is_empty() {
        return;
    }
    let _ = writeln!(
        out,
        "\n## {title}\n\n| {} |\n|{}",
        head.join(" | "),
        "---|".repeat(head.len())
    );
    for row in rows {
        let cells: Vec<String> = row.iter().map(|text| cell(text)).collect();
        let _ = writeln!(out, "| {} |", cells.join(" | "));
    }
}

fn kind(column: &ColumnSpec) -> String {
    match column.kind {
        Kind::Histogram => {
            let bounds: Vec<String> = column.bounds.iter().map(f64::to_string).collect();
            format!("histogram: {}", bounds.join(", "))
        }
        Kind::Gauge => "gauge".into(),
        Kind::Counter | Kind::Unspecified => "counter".into(),
    }
}

fn code(text: &str) -> String {
    format!("`{text}`")
}

fn page(spec: &ProbeSpec) -> String {
    let whose = match whose(spec.name) {
        Whose::Node => "the node alone: the kernel has one number for all network namespaces",
        Whose::Pods => "each pod: the sum over its processes",
        Whose::NodeAndPods => "the node and each pod",
    };
    let (default, switch) = if is_on_by_default(spec.name) {
        ("on", false)
    } else {
        ("off", true)
    };
    let name = spec.name;
    let mut out = format!(
        "# {name}\n\n{help}.\n\n\
         - Source: {source}\n- Rows: of {whose}\n- By default: {default}; `probes: {{{name}: {{enabled: {switch}}}}}` switches it {other}\n\
         - In SQL: view `sonde.{name}`, one row for each subject{labels} and time\n",
        help = spec.help,
        source = spec.source,
        other = if switch { "on" } else { "off" },
        labels = if spec.labels.is_empty() { "" } else { ", label set" },
    );
    let labels = spec
        .labels
        .iter()
        .map(|label| vec![code(label.name), label.help.into()]);
    table(&mut out, "Labels", &["label", "meaning"], labels);
    let columns = spec.columns.iter().map(|column| {
        vec![
            code(&sonde_proto::names::metric(name, &column.to_proto())),
            code(column.name),
            kind(column),
            column.unit.into(),
            column.help.into(),
        ]
    });
    table(
        &mut out,
        "Metrics",
        &["metric", "column", "type", "unit", "meaning"],
        columns,
    );
    let events = spec
        .event_types
        .iter()
        .map(|event| vec![code(event.name), event.help.into()]);
    table(&mut out, "Events", &["type", "meaning"], events);
    let attributes = attributes(name)
        .iter()
        .map(|attribute| vec![code(attribute.name), attribute.help.into()]);
    table(&mut out, "Attributes of events", &["attribute", "meaning"], attributes);
    let theirs = entries()
        .filter(|entry| entry.probe == name)
        .map(|entry| vec![code(entry.name), entry.kind.as_str().into(), made_of(&entry)]);
    let title = "Under KubeSkoop's names";
    table(&mut out, title, &["metric", "type", "made of"], theirs);
    out + "\nMade from the probe's own file by `make docs`.\n"
}

fn made_of(entry: &Entry) -> String {
    if entry.columns.is_empty() {
        return "nothing: the kernel has no such counter any more".into();
    }
    let columns: Vec<String> = entry.columns.iter().map(|column| code(column)).collect();
    let mut text = columns.join(" + ");
    let words = |words: &[&str]| words.iter().map(|word| code(word)).collect::<Vec<_>>().join(" or ");
    match entry.rows {
        Rows::All => {}
        Rows::Only(label, values) | Rows::Of(label, values) => {
            let _ = write!(text, " of rows with {label} {}", words(values));
        }
        Rows::Except(label, values) => {
            let _ = write!(text, " of rows without {label} {}", words(values));
        }
    }
    let scaled = |spec: &&ProbeSpec| {
        spec.name == entry.probe
            && spec
                .columns
                .iter()
                .any(|c| entry.columns.contains(&c.name) && c.scale != 1.0)
    };
    if specs().iter().any(scaled) {
        text += ", not scaled to its unit";
    }
    if entry.in_pages {
        text += ", in pages";
    }
    if entry.of_node && whose(entry.probe) != Whose::Node {
        text += ", of the node";
    }
    text
}

fn index(specs: &[&ProbeSpec]) -> String {
    let mut out = String::from(
        "# Probes\n\nMade from the catalogue by `make docs`. `sonde-collector probes` prints the same of the program at hand.\n\n\
         | probe | what it tells | rows |\n|---|---|---|\n",
    );
    for spec in specs {
        let whose = match whose(spec.name) {
            Whose::Node => "node",
            Whose::Pods => "pods",
            Whose::NodeAndPods => "node, pods",
        };
        let _ = writeln!(out, "| [{0}]({0}.md) | {1} | {whose} |", spec.name, cell(spec.help));
    }
    out
}

fn pages() -> BTreeMap<String, String> {
    let specs = specs();
    let mut pages: BTreeMap<String, String> = specs
        .iter()
        .map(|spec| (format!("{}.md", spec.name), page(spec)))
        .collect();
    pages.insert("README.md".into(), index(&specs));
    pages
}

const BEGIN: &str = "<!-- Made by `make docs` from here on. -->\n";

/// The hand-written part and the table.
fn kubeskoop(written: &str) -> String {
    let (prose, _) = written
        .split_once(BEGIN)
        .expect("docs/kubeskoop.md has the line that begins the table");
    let mut out =
        format!("{prose}{BEGIN}\n| metric | type | labels | Sonde's probe | made of |\n|---|---|---|---|---|\n");
    for entry in entries() {
        let labels = match entry.labels {
            Labels::Standard => "standard".to_owned(),
            Labels::Rdma { port } => format!("standard, device, type{}", if port { ", port" } else { "" }),
            Labels::NodeAnd(pairs) => {
                let names: Vec<&str> = pairs.iter().map(|(theirs, _)| *theirs).collect();
                format!("k8s_node, {}", names.join(", "))
            }
            Labels::Nobody | Labels::Sender | Labels::Flow => "k8s_node, the packet's 13".into(),
        };
        let _ = writeln!(
            out,
            "| `{}` | {} | {labels} | {} | {} |",
            entry.name,
            entry.kind.as_str(),
            entry.probe,
            cell(&made_of(&entry))
        );
    }
    out
}

fn is_writing() -> bool {
    std::env::var_os("SONDE_WRITE_DOCS").is_some()
}

#[test]
fn the_page_of_each_probe_is_as_its_file_says() {
    let dir = docs().join("probes");
    let pages = pages();
    if is_writing() {
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(&dir).unwrap();
        for (name, text) in &pages {
            std::fs::write(dir.join(name), text).unwrap();
        }
    }
    let mut there: Vec<String> = std::fs::read_dir(&dir)
        .map(|dir| {
            dir.map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .collect()
        })
        .unwrap_or_default();
    there.sort();
    assert!(
        there.iter().eq(pages.keys()),
        "docs/probes has {there:?}: run `make docs`"
    );
    for (name, text) in &pages {
        let written = std::fs::read_to_string(dir.join(name)).unwrap();
        assert!(written == *text, "docs/probes/{name} is stale: run `make docs`");
    }
}

#[test]
fn the_table_of_kubeskoops_names_is_as_the_program_has_it() {
    let path = docs().join("kubeskoop.md");
    let written = std::fs::read_to_string(&path).unwrap();
    let page = kubeskoop(&written);
    if is_writing() {
        std::fs::write(&path, &page).unwrap();
        return;
    }
    assert!(written == page, "docs/kubeskoop.md is stale: run `make docs`");
}

#[test]
fn a_page_has_everything_the_probe_says_of_itself() {
    for spec in specs() {
        let page = page(spec);
        let said = [spec.help, spec.source]
            .into_iter()
            .chain(spec.labels.iter().flat_map(|l| [l.name, l.help]))
            .chain(spec.columns.iter().flat_map(|c| [c.name, c.help]))
            .chain(spec.event_types.iter().flat_map(|e| [e.name, e.help]));
        for text in said {
            assert!(
                !text.is_empty() && page.contains(&cell(text)),
                "{}: {text:?}",
                spec.name
            );
        }
    }
}
