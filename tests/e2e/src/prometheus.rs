//! A real Prometheus with the scrape jobs that a test gives it.

use std::net::SocketAddr;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use sonde_lab::Lab;
use tempfile::TempDir;

use crate::http;
use crate::process::Process;
use crate::site::free_ports;

pub struct Prometheus {
    pub address: SocketAddr,
    process: Process,
    _dir: TempDir,
}

impl Prometheus {
    /// `config` is the whole configuration, in YAML.
    pub fn start(lab: &Lab, config: &str) -> Result<Self> {
        let dir = TempDir::with_prefix("sonde-prometheus-")?;
        let [address] = free_ports()?;
        let file = dir.path().join("prometheus.yml");
        std::fs::write(&file, config)?;
        let mut command = Command::new("prometheus");
        command
            .arg(format!("--config.file={}", file.display()))
            .arg(format!("--storage.tsdb.path={}", dir.path().join("data").display()))
            .arg(format!("--web.listen-address={address}"));
        let process = Process::start(lab, "prometheus", command, &dir.path().join("log"))?;
        Ok(Self {
            address,
            process,
            _dir: dir,
        })
    }

    pub fn log(&self) -> String {
        self.process.log()
    }

    /// An answer's `data`.
    pub fn get(&self, path: &str, query: &[(&str, &str)]) -> Result<Value> {
        let answer = http::json(self.address, path, query)?;
        ensure!(answer["status"] == "success", "{path} {query:?}: {answer}");
        Ok(answer["data"].clone())
    }

    /// Series of an instant query.
    pub fn now(&self, expr: &str) -> Result<Vec<Value>> {
        let data = self.get("/api/v1/query", &[("query", expr)])?;
        data["result"].as_array().cloned().with_context(|| data.to_string())
    }

    /// Series of a query over time, in seconds, that have a number at some point.
    pub fn over(&self, expr: &str, from: f64, to: f64, step: f64) -> Result<Vec<Value>> {
        let (from, to, step) = (from.to_string(), to.to_string(), step.to_string());
        let query = [("query", expr), ("start", &from), ("end", &to), ("step", &step)];
        let data = self.get("/api/v1/query_range", &query)?;
        let result = data["result"].as_array().with_context(|| data.to_string())?;
        let has_number = |series: &&Value| {
            let values = series["values"].as_array().map_or(&[][..], Vec::as_slice);
            values.iter().any(|value| value[1] != "NaN")
        };
        Ok(result.iter().filter(has_number).cloned().collect())
    }

    /// Values of a label, of series that match.
    pub fn values(&self, label: &str, selector: Option<&str>) -> Result<Vec<String>> {
        let query: Vec<_> = selector.map(|s| ("match[]", s)).into_iter().collect();
        let data = self.get(&format!("/api/v1/label/{label}/values"), &query)?;
        let values = data.as_array().with_context(|| data.to_string())?;
        Ok(values.iter().filter_map(|v| v.as_str().map(str::to_owned)).collect())
    }
}
