//! The system that all tests of this program share: `sonde up` with every probe on, pods with traffic and faults, and a
//! Prometheus that scrapes it as deploy/prometheus has it, but more often.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;
use sonde_e2e::grafana::Range;
use sonde_e2e::process::{Process, output};
use sonde_e2e::prometheus::Prometheus;
use sonde_e2e::site::Site;
use sonde_lab::Lab;

use crate::traffic::Traffic;

/// Between two scrapes, in milliseconds.
pub(crate) const SCRAPE: u64 = 2000;
/// The cluster that Prometheus says everything belongs to.
pub(crate) const CLUSTER: &str = "lab";

pub(crate) struct System {
    pub(crate) site: Site,
    pub(crate) traffic: Traffic,
    pub(crate) prometheus: Prometheus,
    began: u64,
    up: Process,
}

/// The checkout.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| d.as_millis() as u64)
}

impl System {
    pub(crate) fn start() -> Result<Self> {
        let lab = Lab::new("e2e readers")?;
        // Few events a second, so that some are held back, which is a gap.
        let site = Site::new(&lab, "rate: 20, burst: 20")?;
        // With a governor, which tells of itself, and never has to step down.
        let yaml = std::fs::read_to_string(&site.config)?
            .replace("include_host: false", "include_host: true")
            .replace("cpu_budget_percent: 0", "cpu_budget_percent: 100")
            + "metrics: {names: [sonde, kubeskoop]}\n\
               probes:\n  \
               socketlatency: {enabled: true, threshold: 5ms}\n  \
               kernellatency: {enabled: true}\n  net_softirq: {enabled: true}\n  netiftxlat: {enabled: true}\n  \
               flow: {enabled: true}\n  dns: {enabled: true}\n  fd: {enabled: true}\n  io: {enabled: true}\n";
        std::fs::write(&site.config, yaml)?;
        let began = now();
        let up = site.up()?;
        let prometheus = Prometheus::start(&lab, &scrapes(&site))?;
        let traffic = Traffic::new(&lab)?;
        // As docs/grafana.md has it; no password, since only this socket leads there.
        site.sql("alter role sonde_reader login")?;
        let system = Self {
            site,
            traffic,
            prometheus,
            began,
            up,
        };
        system
            .fill()
            .with_context(|| format!("{}\n{}", system.prometheus.log(), system.site.logs()))?;
        Ok(system)
    }

    /// Faults count from what Prometheus has seen before, so it sees the pods first.
    fn fill(&self) -> Result<()> {
        self.site.await_pods(&self.traffic.pods())?;
        let series = format!(
            "sonde_tcp_active_opens_total{{k8s_pod=\"{}\"}}",
            self.traffic.server.name()
        );
        self.scraped(&format!("count_over_time({series}[1m]) >= 2"))?;
        self.traffic.run()?;
        self.site.barrier(&self.traffic.client, &self.traffic.server)?;
        // A rate is what comes after a series was seen first, so all of the first round has to be seen before the second.
        // Questions come last.
        self.scraped("sonde_dns_latency_seconds_count > 0")?;
        self.traffic.run()?;
        self.site.barrier(&self.traffic.client, &self.traffic.server)?;
        self.drawn("rate(sonde_packetloss_drops_total{class=\"suspect\",k8s_pod!=\"\"}[8s]) > 0")?;
        self.drawn("rate(sonde_dns_latency_seconds_count[8s]) > 0")?;
        let gaps = format!(
            "select count(*) from sonde.gaps where pod = '{}'",
            self.traffic.server.name()
        );
        self.site.until("the gap of what was held back", || {
            Ok(match self.site.sql_number(&gaps)? {
                0 => Err("no gap".into()),
                _ => Ok(()),
            })
        })?;
        self.scraped("sonde_collector_ebpf_cpu_ratio")
    }

    fn scraped(&self, expr: &str) -> Result<()> {
        self.site.until(&format!("{expr} in Prometheus"), || {
            // Not listening yet is no failure.
            Ok(match self.prometheus.now(expr) {
                Ok(series) if !series.is_empty() => Ok(()),
                Ok(_) => Err("no series".into()),
                Err(error) => Err(format!("{error:#}")),
            })
        })
    }

    /// Waits until a panel over the whole range has the series. Its points are a step apart, so that it shows the newest
    /// scrape up to a step later than a query for one moment does.
    fn drawn(&self, expr: &str) -> Result<()> {
        self.site.until(&format!("{expr} in a panel"), || {
            Ok(match self.over(expr) {
                Ok(series) if !series.is_empty() => Ok(()),
                Ok(_) => Err("no series".into()),
                Err(error) => Err(format!("{error:#}")),
            })
        })
    }

    /// The series of a panel over the whole range.
    pub(crate) fn over(&self, expr: &str) -> Result<Vec<Value>> {
        let range = self.range();
        let (from, to) = (range.from as f64 / 1e3, range.to as f64 / 1e3);
        self.prometheus.over(expr, from, to, range.interval as f64 / 1e3)
    }

    /// From the start to now: what a dashboard shows.
    pub(crate) fn range(&self) -> Range {
        Range {
            from: self.began,
            to: now(),
            interval: SCRAPE,
        }
    }

    /// A statement as Grafana runs it, by the role that it has: columns with their types, and how many rows there are.
    pub(crate) fn as_reader(&self, statement: &str) -> Result<(Vec<(String, String)>, u64)> {
        let lines = self.psql(&format!(
            "{statement}\n\\gdesc\nselect count(*) from (\n{statement}\n) as rows;\n"
        ))?;
        let (count, columns) = lines.split_last().with_context(|| format!("{statement}: no answer"))?;
        let columns = columns
            .iter()
            .filter_map(|line| line.split_once('\t'))
            .map(|(name, kind)| (name.to_owned(), kind.to_owned()))
            .collect();
        Ok((columns, count.parse().with_context(|| format!("{statement}: {count}"))?))
    }

    /// Lines of what a script gives, columns parted by tabs, logged in as the role that Grafana has.
    pub(crate) fn psql(&self, script: &str) -> Result<Vec<String>> {
        let file = self.site.path().join("reader.sql");
        std::fs::write(&file, script)?;
        let mut psql = Command::new("psql");
        psql.arg("-h")
            .arg(self.site.data_dir().join("aggregator/postgres/run"))
            .args([
                "-U",
                "sonde_reader",
                "-d",
                "sonde",
                "-X",
                "-A",
                "-t",
                "-F",
                "\t",
                "-v",
                "ON_ERROR_STOP=1",
                "-f",
            ])
            .arg(&file);
        let (code, stdout, stderr) = output(psql)?;
        if code != Some(0) {
            bail!("{script}\n{code:?}: {stderr}");
        }
        Ok(stdout.lines().map(str::to_owned).collect())
    }

    pub(crate) fn end(mut self, failed: bool) {
        let ended = self.up.terminate();
        if failed || !ended.as_ref().is_ok_and(std::process::ExitStatus::success) {
            eprintln!("sonde up: {ended:?}\n{}", self.site.logs());
        }
    }
}

/// Jobs are named as in deploy/prometheus, and a scrape of Kubernetes adds `node`.
fn scrapes(site: &Site) -> String {
    let rules = root().join("deploy/prometheus/rules/*.yaml");
    format!(
        "global: {{scrape_interval: {SCRAPE}ms, scrape_timeout: {SCRAPE}ms, evaluation_interval: {SCRAPE}ms}}\n\
         rule_files: ['{}']\n\
         scrape_configs:\n\
         - job_name: sonde\n  honor_labels: true\n  honor_timestamps: false\n  metrics_path: /federate\n  \
         params: {{'match[]': ['{{__name__=~\"sonde_.+\"}}']}}\n  \
         static_configs: [{{targets: ['{}'], labels: {{cluster: {CLUSTER}}}}}]\n\
         - job_name: sonde-aggregator\n  \
         static_configs: [{{targets: ['{}'], labels: {{cluster: {CLUSTER}}}}}]\n\
         - job_name: sonde-collectors\n  \
         static_configs: [{{targets: ['{}'], labels: {{cluster: {CLUSTER}, node: {node}}}}}]\n  \
         metric_relabel_configs:\n  \
         - {{source_labels: [__name__], regex: '(sonde_collector|kubeskoop)_.*', action: keep}}\n",
        rules.display(),
        site.http,
        site.http,
        site.collector_http,
        node = site.node,
    )
}
