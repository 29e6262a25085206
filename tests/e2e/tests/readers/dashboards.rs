//! Every query of every dashboard in deploy/grafana, run where Grafana would run it.

use anyhow::{Context as _, Result, bail, ensure};
use sonde_e2e::grafana::{Chosen, Dashboard, Query, Source, Variables};

use crate::system::{CLUSTER, SCRAPE, System, root};

/// What has no rows here, and why. Its query is run all the same.
const WITHOUT_ROWS: [(&str, &str); 1] = [(
    "What changed in the cluster A",
    "there is no Kubernetes API here to tell of changes: the view is tested in aggregator/tests/http/kubernetes.rs",
)];

fn all() -> Result<Vec<Dashboard>> {
    let folder = root().join("deploy/grafana/dashboards");
    let mut files: Vec<_> = std::fs::read_dir(&folder)
        .with_context(|| folder.display().to_string())?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<_>>()?;
    files.sort();
    ensure!(files.len() >= 8, "{files:?}");
    files.iter().map(|file| Dashboard::read(file)).collect()
}

/// What a person would choose who looks at the pods of this test: All where that can be, else one.
fn chosen(system: &System, dashboard: &Dashboard, some: bool) -> Variables {
    let server = &system.traffic.server;
    let pick = |name: &str, many: bool| match name {
        "cluster" => Chosen::One(CLUSTER.into()),
        _ if many && !some => Chosen::All,
        "node" => Chosen::One(system.site.node.clone()),
        "namespace" => Chosen::One(server.namespace().into()),
        "pod" if many => Chosen::Several(vec![server.name().into(), system.traffic.client.name().into()]),
        "pod" => Chosen::One(server.name().into()),
        "type" => Chosen::Several(vec!["PACKETLOSS".into(), "TCPRETRANS".into()]),
        "reason" => Chosen::Several(vec!["NETFILTER_DROP".into(), "a.b(c)*".into()]),
        "ip" if some => Chosen::One("198.18.0.0/15".into()),
        "port" if some => Chosen::One("7001".into()),
        "text" if some => Chosen::One("TELEMETRY".into()),
        _ => Chosen::One(String::new()),
    };
    let variables = dashboard.variables.iter();
    variables
        .map(|v| (v.name.clone(), (v.clone(), pick(&v.name, v.many))))
        .collect()
}

/// Runs a query and says how many rows it gives.
fn run(system: &System, query: &Query, variables: &Variables) -> Result<u64> {
    let range = system.range();
    let text = query.expand(variables, range, SCRAPE)?;
    let failed = || format!("{}: {text}", query.of);
    match query.source {
        Source::Database => {
            let (columns, rows) = system.as_reader(&text).with_context(failed)?;
            if query.json["format"] == "time_series" {
                let kinds: Vec<&str> = columns.iter().map(|(_, kind)| kind.as_str()).collect();
                let names: Vec<&str> = columns.iter().map(|(name, _)| name.as_str()).collect();
                ensure!(names == ["time", "metric", "value"], "{}: columns {names:?}", failed());
                ensure!(
                    ["numeric", "double precision"].contains(&kinds[0]),
                    "{}: {kinds:?}",
                    failed()
                );
                ensure!(kinds[1] == "text", "{}: {kinds:?}", failed());
            }
            Ok(rows)
        }
        Source::Prometheus => {
            // A heat map of nothing but zeroes is empty.
            let text = match query.json["format"] == "heatmap" {
                true => format!("({text}) > 0"),
                false => text.clone(),
            };
            Ok(system.over(&text).with_context(failed)?.len() as u64)
        }
    }
}

pub(crate) fn panels(system: &System) -> Result<()> {
    let mut count = 0;
    let mut without: Vec<String> = Vec::new();
    for dashboard in all()? {
        let variables = chosen(system, &dashboard, false);
        for query in dashboard.queries()? {
            count += 1;
            let rows = run(system, &query, &variables).with_context(|| dashboard.title().to_owned())?;
            let excused = WITHOUT_ROWS.iter().any(|(of, _)| *of == query.of);
            ensure!(!excused || rows == 0, "{}: has rows, so it needs no excuse", query.of);
            if rows == 0 && !excused {
                let text = query.expand(&variables, system.range(), SCRAPE)?;
                without.push(format!("{}: {}: {text}", dashboard.title(), query.of));
            }
        }
        for panel in dashboard.panels() {
            let said = panel["description"].as_str().unwrap_or_default();
            ensure!(
                said.len() > 5,
                "{}: {} says nothing about itself",
                dashboard.title(),
                panel["title"]
            );
        }
    }
    ensure!(
        without.is_empty(),
        "{} of {count} queries without rows:\n{}",
        without.len(),
        without.join("\n")
    );
    println!("{count} queries have rows");
    Ok(())
}

/// One value, several, and text with signs that mean something in SQL and in expressions: all are taken.
pub(crate) fn choices(system: &System) -> Result<()> {
    for dashboard in all()? {
        let variables = chosen(system, &dashboard, true);
        let mut rows = 0;
        for query in dashboard.queries()? {
            rows += run(system, &query, &variables).with_context(|| dashboard.title().to_owned())?;
        }
        ensure!(rows > 0, "{}: {variables:?}: no rows at all", dashboard.title());
    }
    Ok(())
}

pub(crate) fn variables(system: &System) -> Result<()> {
    for dashboard in all()? {
        let chosen = chosen(system, &dashboard, false);
        for variable in &dashboard.variables {
            let Some((source, text)) = variable.expand(&chosen, system.range())? else {
                continue;
            };
            let choices = match source {
                Source::Database => system.psql(&format!("{text};\n"))?,
                Source::Prometheus => {
                    let inside = text.strip_prefix("label_values(").and_then(|t| t.strip_suffix(')'));
                    let (selector, label) = inside
                        .and_then(|inside| inside.rsplit_once(','))
                        .with_context(|| format!("not label_values(series, label): {text}"))?;
                    system.prometheus.values(label.trim(), Some(selector.trim()))?
                }
            };
            ensure!(
                !choices.is_empty(),
                "{}: ${}: no choice by {text}",
                dashboard.title(),
                variable.name
            );
            let expected = match variable.name.as_str() {
                "cluster" => CLUSTER,
                "node" => &system.site.node,
                "namespace" => system.traffic.server.namespace(),
                "pod" => system.traffic.server.name(),
                "type" => "PACKETLOSS",
                "reason" => "NETFILTER_DROP",
                other => bail!("${other} is not known to this test"),
            };
            ensure!(
                choices.iter().any(|c| c == expected),
                "{}: ${}: {choices:?}",
                dashboard.title(),
                variable.name
            );
        }
    }
    Ok(())
}

pub(crate) fn annotations(system: &System) -> Result<()> {
    for dashboard in all()? {
        let variables = chosen(system, &dashboard, false);
        for query in dashboard.annotations()? {
            let rows = run(system, &query, &variables).with_context(|| dashboard.title().to_owned())?;
            // Gaps of flows alone there are none.
            let expected = query.of == "annotation Gaps" && dashboard.title() != "Sonde / Flows";
            ensure!(rows > 0 || !expected, "{}: no gap is shown", dashboard.title());
        }
    }
    Ok(())
}
