//! Filters on pods' devices, which outlive whoever put them there.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use sonde_e2e::http;
use sonde_e2e::process::Process;
use sonde_e2e::site::{LIMIT, Site};
use sonde_lab::wait::{Look, until};
use sonde_lab::{Lab, Pod};

struct Filtered {
    site: Site,
    pods: [Pod; 2],
}

/// What `tc` shows of a pod's device: whose the filters are, and the qdisc.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Shown {
    names: Vec<String>,
    clsact: bool,
}

impl Filtered {
    fn new(lab: &Lab) -> Result<Self> {
        let pods = [lab.pod("left", "a")?, lab.pod("left", "b")?];
        lab.link(&pods[0], &pods[1])?;
        let site = Site::new(lab, "")?;
        let filtered = Self { site, pods };
        filtered.configure(true)?;
        Ok(filtered)
    }

    /// Probe `flow` by filters, or not at all.
    fn configure(&self, on: bool) -> Result<()> {
        let text = fs::read_to_string(&self.site.config)?;
        let text = text.lines().filter(|line| !line.starts_with("probes:"));
        let mut text: String = text.map(|line| format!("{line}\n")).collect();
        if !text.contains("rungs") {
            text = text.replace(
                "kernel: {",
                "kernel: {rungs: [tp_btf, raw_tracepoint, fentry, kprobe, clsact], ",
            );
        }
        text.push_str(&format!("probes: {{flow: {{enabled: {on}, tc: true}}}}\n"));
        Ok(fs::write(&self.site.config, text)?)
    }

    fn shown(&self) -> Result<Vec<Shown>> {
        let shown = |pod: &Pod| {
            let filters = pod.tc("filter show dev eth0 ingress")?;
            let names = filters
                .split_whitespace()
                .filter(|word| word.starts_with("sonde_flow:"));
            Ok(Shown {
                names: names.map(str::to_owned).collect(),
                clsact: pod.tc("qdisc show dev eth0")?.contains("clsact"),
            })
        };
        self.pods.iter().map(shown).collect()
    }

    /// Waits until each pod has filters that `right` takes.
    fn await_shown(&self, what: &str, right: impl Fn(&Shown) -> bool) -> Result<Vec<Shown>> {
        let mut failure = None;
        let found = until(what, LIMIT, || {
            Ok(match self.shown() {
                Ok(all) if all.iter().all(&right) => Look::Found(all),
                Ok(all) => Look::NotYet(format!("{all:?}")),
                Err(error) => {
                    failure = Some(error);
                    Look::Found(Vec::new())
                }
            })
        })?;
        failure.map_or(Ok(found), Err)
    }

    /// One of its own on each device; `false`: this host does not permit it.
    fn is_permitted(&self, collector: &Process) -> Result<bool> {
        let status = http::json(self.site.collector_http, "/status", &[])?;
        let signals = status["kernel"]["signals"].as_array().context("no signals")?;
        let tc = signals.iter().find(|signal| signal["name"] == "flow.tc");
        let tc = tc.with_context(|| collector.log())?;
        if tc["rung"] == "clsact" {
            return Ok(true);
        }
        println!("SKIPPED: {tc}");
        Ok(false)
    }
}

fn one(shown: &Shown) -> bool {
    shown.names.len() == 1 && shown.clsact
}

fn none(shown: &Shown) -> bool {
    shown.names.is_empty() && !shown.clsact
}

#[test]
fn what_a_killed_collector_left_on_pods_is_gone_after_the_next_start_and_nothing_stays_at_the_end() -> Result<()> {
    let Some(lab) = Lab::for_test("left over") else {
        return Ok(());
    };
    let filtered = Filtered::new(&lab)?;
    let mut collector = filtered.site.collector()?;
    if !filtered.is_permitted(&collector)? {
        return Ok(());
    }
    let first = filtered.await_shown("filters of the first collector", one)?;
    collector.kill()?;
    ensure!(filtered.shown()? == first, "they outlive it: {:?}", filtered.shown()?);

    // The next one has its own, and no other is there.
    let mut collector = filtered.site.collector()?;
    filtered.await_shown("filters of the second collector", |shown| {
        one(shown) && first.iter().all(|before| before.names != shown.names)
    })?;
    collector.kill()?;

    // One that hangs up none takes away those all the same.
    filtered.configure(false)?;
    let mut collector = filtered.site.collector()?;
    filtered.await_shown("no filters", none)?;
    // Switched on, off and on again while it runs, and an orderly end.
    for (on, right) in [(true, one as fn(&Shown) -> bool), (false, none), (true, one)] {
        filtered.configure(on)?;
        collector.signal(Signal::SIGHUP)?;
        filtered.await_shown(&format!("filters after enabled: {on}"), right)?;
    }
    let ended = collector.terminate()?;
    ensure!(ended.success(), "{ended}: {}", collector.log());
    ensure!(filtered.shown()?.iter().all(none), "{:?}", filtered.shown()?);
    Ok(())
}
