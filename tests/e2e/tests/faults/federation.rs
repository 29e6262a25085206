//! A real Prometheus that is set up as deploy/prometheus says: what it has, of which type, from when, and until when.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use sonde_e2e::http;
use sonde_e2e::process::Process;
use sonde_e2e::prom::Sample;
use sonde_e2e::site::{Site, free_ports};
use sonde_lab::Family;
use sonde_lab::faults::Fault;

use crate::shared::Shared;

/// A series of the page: name, and labels that are not empty (to Prometheus an empty label is none).
type Series = (String, BTreeMap<String, String>);

struct Prometheus {
    process: Process,
    address: SocketAddr,
    _dir: tempfile::TempDir,
}

/// The files of deploy/prometheus with the addresses of this site, read more often, and federation once more with the
/// timestamps of the nodes (job `exact`).
fn config(site: &Site) -> Result<String> {
    let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/prometheus");
    let jobs = |file: &str| -> Result<String> {
        let text = fs::read_to_string(deploy.join(file)).with_context(|| file.to_owned())?;
        let (_, jobs) = text.split_once("scrape_configs:\n").context("no scrape_configs")?;
        let jobs = jobs
            .replace("127.0.0.1:9640", &site.http.to_string())
            .replace("127.0.0.1:9642", &site.collector_http.to_string());
        ensure!(jobs.contains("scrape_interval: 15s"), "{file}: {jobs}");
        Ok(jobs.replace("scrape_interval: 15s", "scrape_interval: 1s"))
    };
    let federation = jobs("prometheus.yml")?;
    let exact = federation
        .replace("job_name: sonde-aggregator", "job_name: again")
        .replace("job_name: sonde\n", "job_name: exact\n")
        .replace("honor_timestamps: false", "honor_timestamps: true");
    ensure!(
        exact.contains("job_name: exact") && exact.contains("honor_timestamps: true"),
        "{exact}"
    );
    Ok(format!(
        "scrape_configs:\n{federation}{exact}{}",
        jobs("collectors.yml")?
    ))
}

impl Prometheus {
    fn start(site: &Site) -> Result<Self> {
        let dir = tempfile::TempDir::with_prefix("sonde-prometheus-")?;
        let [address] = free_ports()?;
        let file = dir.path().join("prometheus.yml");
        fs::write(&file, config(site)?)?;
        let mut command = Command::new("prometheus");
        command
            .arg(format!("--config.file={}", file.display()))
            .arg(format!("--storage.tsdb.path={}", dir.path().join("data").display()))
            .arg(format!("--web.listen-address={address}"));
        let process = Process::start(&site.lab, "prometheus", command, &dir.path().join("log"))?;
        Ok(Self {
            process,
            address,
            _dir: dir,
        })
    }

    /// Not listening yet is no failure; having ended is.
    fn query(&mut self, query: &str) -> Result<Vec<Value>> {
        ensure!(
            self.process.ended()?.is_none(),
            "prometheus ended: {}",
            self.process.log()
        );
        let Ok(answer) = http::json(self.address, "/api/v1/query", &[("query", query)]) else {
            return Ok(Vec::new());
        };
        Ok(answer["data"]["result"].as_array().cloned().unwrap_or_default())
    }

    /// Value and time of each sample of each series that a range selector finds.
    fn stored(&mut self, selector: &str) -> Result<BTreeMap<Series, BTreeMap<i64, f64>>> {
        let mut stored = BTreeMap::new();
        for result in self.query(selector)? {
            let mut labels: BTreeMap<String, String> = serde_json::from_value(result["metric"].clone())?;
            let name = labels.remove("__name__").context("no name")?;
            for added in ["job", "instance"] {
                labels.remove(added).with_context(|| format!("no {added}"))?;
            }
            let mut samples = BTreeMap::new();
            for sample in result["values"].as_array().context("no values")? {
                let seconds = sample[0].as_f64().context("no time")?;
                let value = sample[1].as_str().context("no value")?.parse()?;
                samples.insert((seconds * 1000.0).round() as i64, value);
            }
            stored.insert(series(name, labels), samples);
        }
        Ok(stored)
    }
}

/// The text format has `le="1"` where OpenMetrics, which Prometheus asks for, has `le="1.0"`.
fn series(name: String, mut labels: BTreeMap<String, String>) -> Series {
    labels.retain(|_, value| !value.is_empty());
    if let Some(le) = labels.get_mut("le")
        && let Some(whole) = le.strip_suffix(".0")
    {
        *le = whole.to_owned();
    }
    (name, labels)
}

pub(crate) fn check(shared: &Shared) -> Result<()> {
    let running = shared.running()?;
    let site = &running.site;
    let fault = Fault::find("nft-drop-input").context("no such fault")?;
    let scene = fault.scene(&site.lab, "federation")?;
    site.await_pods(&scene.pods())?;
    let dropped = scene.inject(Family::V4, 7)?.dropped.to_string();
    let namespace = scene.server.namespace();
    let mut prometheus = Prometheus::start(site)?;

    for job in ["sonde", "exact", "sonde-collectors"] {
        let query = format!(
            "sum(sonde_packetloss_drops_total{{job=\"{job}\",k8s_namespace=\"{namespace}\",class=\"suspect\"}})"
        );
        site.until(&format!("the drops in Prometheus, job {job}"), || {
            let found = prometheus.query(&query)?;
            Ok(match found.first() {
                Some(result) if result["value"][1].as_str() == Some(&dropped) => Ok(()),
                _ => Err(format!("{found:?}")),
            })
        })
        .with_context(|| prometheus.process.log())?;
    }
    let down = prometheus.query("up != 1")?;
    ensure!(down.is_empty(), "{down:?}");
    let renamed =
        prometheus.query("{__name__=~\".+\",exported_job=~\".+\"} or {__name__=~\".+\",exported_instance=~\".+\"}")?;
    ensure!(renamed.is_empty(), "honor_labels had something to rename: {renamed:?}");

    values(site, &mut prometheus, namespace)?;
    types(site, &prometheus)?;

    // Well before the five minutes for which a series without end is shown.
    let left = format!(
        "count({{job=\"sonde\",k8s_pod=\"{}\",k8s_namespace=\"{namespace}\"}})",
        scene.server.name()
    );
    let before = prometheus.query(&left)?;
    ensure!(before.len() == 1, "{left}: {before:?}");
    scene.server.delete()?;
    site.until("the end of the pod's series in Prometheus", || {
        let found = prometheus.query(&left)?;
        Ok(if found.is_empty() {
            Ok(())
        } else {
            Err(format!("{found:?}"))
        })
    })?;
    let other = format!(
        "count({{job=\"sonde\",k8s_pod=\"{}\",k8s_namespace=\"{namespace}\"}})",
        scene.client.name()
    );
    let found = prometheus.query(&other)?;
    ensure!(found.len() == 1, "of a pod that is there: {other}: {found:?}");
    prometheus.process.terminate()?;
    Ok(())
}

/// Until each series on Sonde's page was found in Prometheus with the same value at the same time.
fn values(site: &Site, prometheus: &mut Prometheus, namespace: &str) -> Result<()> {
    let matchers = format!("__name__=~\"sonde_.+\",k8s_namespace=\"{namespace}\"");
    let mut shown: BTreeMap<(Series, i64), f64> = BTreeMap::new();
    let mut same: BTreeSet<Series> = BTreeSet::new();
    site.until("each value of the page in Prometheus", || {
        let page: Vec<Sample> = site.federate(&format!("{{{matchers}}}"))?;
        let mut now = BTreeSet::new();
        for sample in page {
            let of = series(sample.name, sample.labels);
            let time = sample.time_ms.with_context(|| format!("no time: {of:?}"))?;
            now.insert(of.clone());
            shown.insert((of, time), sample.value);
        }
        let stored = prometheus.stored(&format!("{{job=\"exact\",{matchers}}}[30s]"))?;
        for ((of, time), value) in &shown {
            let Some(theirs) = stored.get(of).and_then(|samples| samples.get(time)) else {
                continue;
            };
            ensure!(
                theirs == value,
                "{of:?} at {time}: {value} on the page, {theirs} in Prometheus"
            );
            same.insert(of.clone());
        }
        let missing: Vec<_> = now.difference(&same).take(3).collect();
        Ok(if missing.is_empty() && now.len() > 100 {
            Ok(())
        } else {
            Err(format!(
                "{} of {} series are the same; not so: {missing:?}",
                same.len(),
                now.len()
            ))
        })
    })
}

/// Each family of the page has the type in Prometheus that it has on the page.
fn types(site: &Site, prometheus: &Prometheus) -> Result<()> {
    let page = http::get(site.http, "/federate", &[("match[]", "{__name__=~\"sonde_.+\"}")])?;
    site.until("each type of the page in Prometheus", || {
        let metadata = http::json(prometheus.address, "/api/v1/metadata", &[])?;
        let mut kinds = BTreeSet::new();
        for line in page.body.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
            let (family, kind) = line.split_once(' ').context("no type")?;
            kinds.insert(kind);
            // OpenMetrics, which Prometheus asks for, names a counter's family without `_total`.
            let name = if kind == "counter" {
                family.strip_suffix("_total").unwrap_or(family)
            } else {
                family
            };
            let Some(known) = metadata["data"][name].as_array() else {
                return Ok(Err(format!("nothing about {name}")));
            };
            ensure!(
                known.iter().all(|one| one["type"] == kind),
                "{name} is {kind}: {known:?}"
            );
        }
        // A histogram is there once something was slow.
        ensure!(kinds.contains("counter") && kinds.contains("gauge"), "{kinds:?}");
        Ok(Ok(()))
    })
}

/// What promtool says of the files as they are.
pub(crate) fn promtool(_: &Shared) -> Result<()> {
    let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/prometheus");
    for file in ["prometheus.yml", "collectors.yml"] {
        let mut promtool = Command::new("promtool");
        promtool.args(["check", "config"]).arg(deploy.join(file));
        let (code, stdout, stderr) = sonde_e2e::process::output(promtool)?;
        ensure!(code == Some(0), "{file}: {stdout}{stderr}");
    }
    Ok(())
}
