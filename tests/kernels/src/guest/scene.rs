//! Two pods, a collector that sees them, and its doors.

use std::collections::HashMap;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;
use sonde_e2e::http;
use sonde_e2e::process::Process;
use sonde_e2e::prom::{self, Sample};
use sonde_lab::wait::{Look, until};
use sonde_lab::{Lab, Pod};

use super::receiver::{Event, Receiver};
use super::runs::{RUNS, Run};

/// Generous: it only bounds a failure, and this machine is emulated.
pub(super) const LIMIT: Duration = Duration::from_secs(240);

const HTTP: ([u8; 4], u16) = ([127, 0, 0, 1], 9642);
pub(super) const GRPC: ([u8; 4], u16) = ([127, 0, 0, 1], 9641);
/// A copy of the kernel's own.
pub(super) const BTF_FILE: &str = "/tmp/vmlinux.btf";

/// The probes that are off by default are on, and what is measured is an event however short it was.
const PROBES: &str = "
  net_softirq: {enabled: true, threshold: 0s}
  virtcmdlatency: {enabled: true, threshold: 0s}
  kernellatency: {enabled: true, threshold: 0s}
  netiftxlat: {enabled: true, threshold: 0s}
  socketlatency: {enabled: true, threshold: 50ms}
  flow: {enabled: true, tc: true}
  dns: {enabled: true}
";

pub(super) struct Scene {
    _lab: Lab,
    /// The collector runs as it comes.
    pub is_default: bool,
    pub client: Pod,
    pub server: Pod,
    receiver: Receiver,
    collector: Process,
    http: SocketAddr,
}

/// A signal as `/status` has it.
#[derive(Clone, Debug)]
pub(super) struct Signal {
    pub rung: Option<String>,
    pub reason: String,
}

impl Scene {
    /// A collector that has seen both pods.
    pub(super) fn start(run: &Run, receiver: &Receiver) -> Result<Self> {
        let lab = Lab::new(run.name)?;
        let [client, server] = [lab.pod("m", "client")?, lab.pod("m", "server")?];
        lab.link(&client, &server)?;
        let http = SocketAddr::from(HTTP);
        let collector = start_collector(&lab, run)?;
        let mut scene = Self {
            _lab: lab,
            is_default: run.name == RUNS[0].name,
            client,
            server,
            receiver: receiver.clone(),
            collector,
            http,
        };
        let begun = scene.await_pods();
        begun.with_context(|| scene.log())?;
        Ok(scene)
    }

    fn await_pods(&mut self) -> Result<()> {
        let mut end = None;
        until("the collector to see the pods", LIMIT, || {
            end = self.collector.ended().transpose();
            if end.is_some() {
                return Ok(Look::Found(()));
            }
            Ok(match self.status() {
                // A pod is listed for the kernel side before its round ends.
                Ok(status) if status["pods"] == 2 && status["kernel"]["namespaces"].as_u64() >= Some(3) => {
                    Look::Found(())
                }
                Ok(status) => Look::NotYet(format!("{} pods", status["pods"])),
                Err(error) => Look::NotYet(format!("{error:#}")),
            })
        })?;
        match end {
            None => Ok(()),
            Some(status) => bail!("the collector ended: {status:?}"),
        }
    }

    pub(super) fn log(&self) -> String {
        self.collector.log()
    }

    pub(super) fn status(&self) -> Result<Value> {
        http::json(self.http, "/status", &[])
    }

    pub(super) fn signals(&self) -> Result<HashMap<String, Signal>> {
        let status = self.status()?;
        let signals = status["kernel"]["signals"]
            .as_array()
            .context("no signals in /status")?;
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let named = signals.iter().map(|signal| {
            let found = Signal {
                rung: text(&signal["rung"]),
                reason: text(&signal["reason"]).unwrap_or_default(),
            };
            Some((text(&signal["name"])?, found))
        });
        named.collect::<Option<_>>().context("a signal without name in /status")
    }

    /// Runs of a signal's programs that the kernel says it skipped.
    pub(super) fn misses(&self, signal: &str) -> Result<u64> {
        let status = self.status()?;
        let signals = status["kernel"]["signals"]
            .as_array()
            .context("no signals in /status")?;
        let found = signals.iter().find(|one| one["name"] == signal);
        found
            .and_then(|one| one["misses"].as_u64())
            .with_context(|| format!("no misses of {signal} in /status"))
    }

    /// Waits until everything that happened before now has been read, counted and shipped.
    pub(super) fn mark(&self) -> Result<Mark> {
        let number = |status: &Value, pointer: &str| status.pointer(pointer).and_then(Value::as_u64);
        let wait = |what: &str, pointer: &str, least: u64| {
            until(what, LIMIT, || {
                Ok(match self.status() {
                    Ok(status) if number(&status, pointer) >= Some(least) => Look::Found(status),
                    Ok(status) => Look::NotYet(format!("{:?}, not {least}", number(&status, pointer))),
                    Err(error) => Look::NotYet(format!("{error:#}")),
                })
            })
        };
        let rounds = number(&self.status()?, "/rounds/count").context("no rounds in /status")?;
        // One may be under way. Two take longer than events are gathered for.
        let status = wait("two more rounds", "/rounds/count", rounds + 2)?;
        let next = number(&status, "/spool/next_sequence").context("no spool in /status")?;
        wait(
            "all batches to be taken",
            "/spool/acked_sequence",
            next.saturating_sub(1),
        )?;
        let page = http::get(self.http, "/metrics", &[])?;
        Ok(Mark {
            samples: prom::parse(&page.body)?,
            position: self.receiver.position(),
        })
    }

    /// Events since `mark`, once there are `count` that `of` takes.
    pub(super) fn await_events(
        &self,
        mark: &Mark,
        what: &str,
        count: usize,
        of: impl Fn(&Event) -> bool,
    ) -> Result<Vec<Event>> {
        let mut broken = None;
        let events = until(&format!("{count} events of {what}"), LIMIT, || {
            let all = match self.receiver.events(mark.position) {
                Ok(all) => all,
                Err(error) => {
                    broken = Some(error);
                    return Ok(Look::Found(Vec::new()));
                }
            };
            let events: Vec<_> = all.into_iter().filter(|event| of(event)).collect();
            Ok(match events.len() >= count {
                true => Look::Found(events),
                false => Look::NotYet(format!("{}: {events:?}", events.len())),
            })
        })?;
        match broken {
            None => Ok(events),
            Some(error) => Err(error),
        }
    }

    /// Events between two marks: exactly `count` that `of` takes.
    pub(super) fn exactly(
        &self,
        before: &Mark,
        after: &Mark,
        what: &str,
        count: usize,
        of: impl Fn(&Event) -> bool,
    ) -> Result<Vec<Event>> {
        let all = self.receiver.events(before.position)?;
        let between = all.into_iter().take(after.position - before.position);
        let mut events: Vec<_> = between.filter(|event| of(event)).collect();
        if events.len() < count {
            // A mark may come too early: only nearly always does everything come before it.
            events = self.await_events(before, what, count, of)?;
        }
        anyhow::ensure!(
            events.len() == count,
            "{what}: {} events, not {count}: {events:?}",
            events.len()
        );
        Ok(events)
    }

    pub(super) fn end(mut self) -> Result<()> {
        let status = self.collector.terminate()?;
        anyhow::ensure!(status.success(), "the collector ended with {status}: {}", self.log());
        for pod in [&self.client, &self.server] {
            let left = pod.tc("qdisc show dev eth0")? + &pod.tc("filter show dev eth0 ingress")?;
            let is_clean = !left.contains("clsact") && !left.contains("sonde");
            anyhow::ensure!(is_clean, "the collector left on a device: {left}");
        }
        Ok(())
    }
}

fn start_collector(lab: &Lab, run: &Run) -> Result<Process> {
    let dir = Path::new("/tmp").join(run.name);
    fs::create_dir_all(&dir)?;
    let config = dir.join("config.yaml");
    let [grpc, http] = [GRPC, HTTP].map(SocketAddr::from);
    let btf = if run.btf_file { BTF_FILE } else { "" };
    let text = format!(
        "node: {{name: guest}}\n\
         kernel: {{rungs: [{}], btf_path: \"{btf}\", cpu_budget_percent: 0}}\n\
         pods: {{sources: [netns], netns: {{include: [\"{}\"]}}}}\n\
         events: {{unknown_netns: keep}}\n\
         collector: {{interval: 300ms, http: \"{http}\", aggregator: \"http://{grpc}\", data_dir: {}}}\n\
         probes:{PROBES}",
        run.rungs.join(", "),
        lab.glob(),
        dir.display(),
    );
    fs::write(&config, text)?;
    let mut command = Command::new("/sonde-collector");
    command.arg("run").arg("--config").arg(&config);
    Process::start(lab, "sonde-collector", command, &dir.join("log"))
}

/// A moment: what was counted up to it, and where its events end.
pub(super) struct Mark {
    samples: Vec<Sample>,
    position: usize,
}

impl Mark {
    /// The sum of the series with these labels; none is 0.
    pub(super) fn sum(&self, name: &str, labels: &[(&str, &str)]) -> u64 {
        prom::sum(&self.samples, name, labels).unwrap_or(0.0) as u64
    }

    /// Of a pod.
    pub(super) fn of(&self, pod: &Pod, name: &str, labels: &[(&str, &str)]) -> u64 {
        let mut all = vec![("k8s_pod", pod.name())];
        all.extend(labels);
        self.sum(name, &all)
    }
}
