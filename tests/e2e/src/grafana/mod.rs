//! Dashboards as Grafana reads them: their panels, variables and annotations, and their queries with everything put in
//! that Grafana would put in.

mod macros;
mod variables;

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

pub use macros::{Range, sql};
pub use variables::{Chosen, Variable, Variables, prometheus, prometheus_interval};

#[derive(Debug)]
pub struct Dashboard {
    pub json: Value,
    pub variables: Vec<Variable>,
}

/// One query of a panel, an annotation or a variable.
#[derive(Debug)]
pub struct Query<'a> {
    pub of: String,
    pub source: Source,
    pub text: &'a str,
    pub json: &'a Value,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    Prometheus,
    Database,
}

impl Dashboard {
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
        let json: Value = serde_json::from_str(&text).with_context(|| path.display().to_string())?;
        let list = json["templating"]["list"].as_array().context("no variables")?;
        let variables = list.iter().map(Variable::read).collect::<Result<_>>()?;
        Ok(Self { json, variables })
    }

    pub fn title(&self) -> &str {
        self.json["title"].as_str().unwrap_or_default()
    }

    /// Panels without the rows that only part them.
    pub fn panels(&self) -> impl Iterator<Item = &Value> {
        let panels = self.json["panels"].as_array().map_or(&[][..], Vec::as_slice);
        panels.iter().filter(|panel| panel["type"] != "row")
    }

    pub fn queries(&self) -> Result<Vec<Query<'_>>> {
        let mut queries = Vec::new();
        for panel in self.panels() {
            let title = panel["title"].as_str().context("a panel has no title")?;
            let targets = panel["targets"].as_array().context("a panel asks nothing")?;
            ensure!(!targets.is_empty(), "{title}: asks nothing");
            for target in targets {
                let of = format!("{title} {}", target["refId"].as_str().unwrap_or_default());
                queries.push(Query::read(of, target)?);
            }
        }
        Ok(queries)
    }

    pub fn annotations(&self) -> Result<Vec<Query<'_>>> {
        let list = self.json["annotations"]["list"].as_array().context("no annotations")?;
        list.iter()
            .map(|annotation| {
                let name = annotation["name"].as_str().unwrap_or_default();
                let mut query = Query::read(format!("annotation {name}"), &annotation["target"])?;
                query.source = Source::read(annotation)?;
                Ok(query)
            })
            .collect()
    }
}

impl Source {
    fn read(json: &Value) -> Result<Self> {
        match json["datasource"]["type"].as_str() {
            Some("prometheus") => Ok(Self::Prometheus),
            Some("grafana-postgresql-datasource") => Ok(Self::Database),
            other => anyhow::bail!("data source {other:?}"),
        }
    }
}

impl<'a> Query<'a> {
    fn read(of: String, json: &'a Value) -> Result<Self> {
        let source = match json.get("datasource") {
            Some(_) => Source::read(json)?,
            None => Source::Database,
        };
        let text = match source {
            Source::Prometheus => &json["expr"],
            Source::Database => &json["rawSql"],
        };
        let text = text.as_str().with_context(|| format!("{of}: no query"))?;
        Ok(Self { of, source, text, json })
    }
}
