//! docs/config.md is made from the schema's source and its defaults; this test fails when it is stale.
//! `make docs` writes it anew.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::path::Path;

use serde_json::Value;
use sonde_common::config::Config;

const SCHEMA: [&str; 2] = [
    include_str!("../src/config/schema.rs"),
    include_str!("../src/config/outlets.rs"),
];

struct Field {
    name: String,
    kind: String,
    doc: String,
}

/// Doc comment and fields of each struct.
fn structs() -> HashMap<String, (String, Vec<Field>)> {
    let mut all = HashMap::new();
    let (mut doc, mut current) = (String::new(), None);
    for line in SCHEMA.iter().flat_map(|file| file.lines()).map(str::trim) {
        if let Some(text) = line.strip_prefix("///") {
            let _ = write!(doc, "{}{}", if doc.is_empty() { "" } else { " " }, text.trim());
        } else if let Some(name) = line.strip_prefix("pub struct ").and_then(|l| l.strip_suffix(" {")) {
            all.insert(name.to_owned(), (std::mem::take(&mut doc), Vec::new()));
            current = Some(name.to_owned());
        } else if let (Some(field), Some(name)) = (line.strip_prefix("pub "), &current)
            && let Some((field, kind)) = field.trim_end_matches(',').split_once(": ")
        {
            let field = Field {
                name: field.trim_start_matches("r#").into(),
                kind: kind.into(),
                doc: std::mem::take(&mut doc),
            };
            all.get_mut(name).expect("inserted above").1.push(field);
        } else if line == "}" {
            current = None;
            doc.clear();
        } else if !line.starts_with("#[") {
            doc.clear();
        }
    }
    all
}

fn rows(out: &mut String, structs: &HashMap<String, (String, Vec<Field>)>, name: &str, path: &str, defaults: &Value) {
    let (about, fields) = &structs[name];
    for field in fields {
        let key = if path.is_empty() {
            field.name.clone()
        } else {
            format!("{path}.{}", field.name)
        };
        let default = &defaults[&field.name];
        if structs.contains_key(&field.kind) {
            rows(out, structs, &field.kind, &key, default);
            continue;
        }
        let doc = if field.doc.is_empty() { about } else { &field.doc };
        let variable = format!("SONDE_{}", key.replace('.', "_").to_ascii_uppercase());
        let _ = writeln!(
            out,
            "| `{key}` | `{default}` | {} | `{variable}` |",
            doc.replace('|', "\\|")
        );
    }
}

fn page() -> String {
    let structs = structs();
    let mut out = String::from(
        "# Configuration\n\nMade from `common/src/config/schema.rs` by `make docs`.\n\n\
         One YAML document for all programs, given with `--config`. Command line goes before environment, environment\n\
         before file, file before default. Durations have a unit: `250ms`, `15s`, `5m`, `2h`, `7d`.\n\n\
         ## While it runs\n\n\
         A collector follows its file: it looks at it once a second by name, so an edited or replaced file and a swapped\n\
         ConfigMap are seen, and at once on SIGHUP. `probes`, `events.rate`, `events.burst`, `sinks` and `collector.interval`\n\
         change while it runs: thresholds, samples, stacks and rates are numbers that the programs read, so counters go on and\n\
         no packet is missed; probes and their events are attached and detached each by itself, and the time for which one was\n\
         off is a gap with cause `switched_off`. With other `probes.flow.ports` or `tc` that probe begins anew, which is such a\n\
         gap too. All else is said by key in the log and in `/status` (`config.needs_restart`),\n\
         and holds from the next start. A file with a mistake is refused as a whole, with a message that says which key and\n\
         value, where, and what was expected (`config.error`), and all stays as it was.\n\
         `sonde_collector_config_reloads_total{result}` counts `applied`, `unchanged` and `refused`. Variables of the\n\
         environment go before the file then too. The aggregator reads its configuration once.\n\n\
         ## Keys\n\n\
         | key | default | meaning | environment |\n|---|---|---|---|\n",
    );
    let defaults = serde_json::to_value(Config::default()).unwrap();
    rows(&mut out, &structs, "Config", "", &defaults);
    out.push_str("\nEach entry of `probes` has, by the probe's name:\n\n| key | default | meaning |\n|---|---|---|\n");
    let probe = serde_json::to_value(sonde_common::config::Probe::default()).unwrap();
    for field in &structs["Probe"].1 {
        let doc = if field.doc.is_empty() {
            "Whether the probe runs."
        } else {
            &field.doc
        };
        let default = match &probe[&field.name] {
            Value::Null => "not set".to_owned(),
            value => format!("`{value}`"),
        };
        let _ = writeln!(out, "| `probes.NAME.{}` | {default} | {doc} |", field.name);
    }
    out
}

#[test]
fn the_page_of_keys_is_as_the_schema_says() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/config.md");
    let page = page();
    if std::env::var_os("SONDE_WRITE_DOCS").is_some() {
        std::fs::write(&path, &page).unwrap();
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(written == page, "docs/config.md is stale: run `make docs`");
}

#[test]
fn every_key_is_explained() {
    for line in page().lines().filter(|line| line.starts_with("| `")) {
        let meaning = line.split(" | ").nth(2).unwrap_or_default().trim();
        assert!(!meaning.is_empty() && meaning != "|", "no documentation: {line}");
    }
}
