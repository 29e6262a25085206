//! Rules in deploy/prometheus: their own tests, and whether a real system has the metrics that they ask for.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use sonde_e2e::http;
use sonde_e2e::process::output;

use crate::system::{System, root};

/// Only there while something is so: no node was refused, and no probe had to step down.
const NOT_HERE: [&str; 2] = [
    "sonde_aggregator_refused_batches_total",
    "sonde_collector_ebpf_stepped_down",
];

fn files(folder: &str) -> Result<Vec<PathBuf>> {
    let folder = root().join("deploy/prometheus").join(folder);
    let files = std::fs::read_dir(&folder).with_context(|| folder.display().to_string())?;
    let mut files: Vec<PathBuf> = files.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    files.sort();
    ensure!(!files.is_empty(), "{}: nothing there", folder.display());
    Ok(files)
}

fn promtool(command: &str, files: Vec<PathBuf>) -> Result<()> {
    let mut promtool = Command::new("promtool");
    promtool.args([command, "rules"]).args(files);
    let (code, stdout, stderr) = output(promtool)?;
    ensure!(code == Some(0), "promtool {command} rules: {code:?}\n{stdout}{stderr}");
    Ok(())
}

/// No system is needed.
pub(crate) fn tests() -> Result<()> {
    promtool("check", files("rules")?)?;
    promtool("test", files("tests")?)?;
    let tested: String = files("tests")?
        .iter()
        .map(std::fs::read_to_string)
        .collect::<std::io::Result<_>>()?;
    for line in std::fs::read_to_string(root().join("deploy/prometheus/rules/alerts.yaml"))?.lines() {
        let Some(alert) = line.trim().strip_prefix("- alert: ") else {
            continue;
        };
        let tested = tested.contains(&format!("alertname=\"{alert}\""));
        ensure!(tested, "alert {alert} is not tested in deploy/prometheus/tests");
    }
    Ok(())
}

pub(crate) fn check(system: &System) -> Result<()> {
    let rules = system.site.until("the rules to be evaluated", || {
        let data = system.prometheus.get("/api/v1/rules", &[])?;
        let groups = data["groups"].as_array().context("no groups")?;
        let rules: Vec<Value> = groups
            .iter()
            .flat_map(|g| g["rules"].as_array().cloned().unwrap_or_default())
            .collect();
        Ok(match rules.iter().find(|rule| rule["health"] == "unknown") {
            None if !rules.is_empty() => Ok(rules),
            _ => Err("some are not yet".into()),
        })
    })?;
    let known: BTreeSet<String> = system.prometheus.values("__name__", None)?.into_iter().collect();
    let site = &system.site;
    let pages = [site.http, site.collector_http].map(|address| http::get(address, "/metrics", &[]));
    let pages: String = pages.into_iter().map(|page| Ok(page?.body)).collect::<Result<_>>()?;
    for metric in NOT_HERE {
        ensure!(pages.contains(&format!("# TYPE {metric} ")), "there is no {metric}");
    }
    for rule in &rules {
        let name = &rule["name"];
        ensure!(rule["health"] == "ok", "{name}: {}", rule["lastError"]);
        for metric in metrics(rule["query"].as_str().context("no query")?) {
            ensure!(
                known.contains(metric) || NOT_HERE.contains(&metric),
                "{name}: there is no {metric}, or nothing gave it a value"
            );
        }
        if rule["type"] == "alerting" {
            for annotation in ["summary", "runbook"] {
                let text = rule["annotations"][annotation].as_str().unwrap_or_default();
                ensure!(text.len() > 20, "{name}: no {annotation}");
            }
        }
    }
    Ok(())
}

/// Names of our metrics, recorded ones included, in an expression.
fn metrics(expr: &str) -> impl Iterator<Item = &str> {
    let words = expr.split(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != ':');
    words.filter(|word| word.starts_with("sonde_") || word.contains(":sonde_"))
}
