//! A new configuration while the collector runs: what may change, what may not, and what became of it.
//!
//! The file is looked at once a second, by name: whoever replaces it, edits it or swaps a link on the way to it (as a
//! ConfigMap is updated) is seen. A file that is not right is refused with a message, and all stays as it was.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use serde::Serialize;
use serde_json::Value;
use sonde_common::config::{self, Config};
use sonde_common::time::{now_ns, rfc3339};
use tokio::signal::unix::Signal;
use tokio::sync::watch;

use crate::check;
use crate::missing::Missing;
use crate::netfilter::Tracing;
use crate::probes::{PROBES, PROCESS_PROBES};
use crate::reading::Reading;
use crate::run::say_missing;
use crate::sinks::Sinks;

/// How often the file is looked at.
pub const LOOK: Duration = Duration::from_secs(1);

/// Keys that change while the collector runs, with all below them.
const LIVE: [&str; 6] = [
    "probes",
    "events.rate",
    "events.burst",
    "sinks",
    "collector.interval",
    "kernel.cpu_budget_percent",
];
/// Keys of others than the collector.
const FOREIGN: [&str; 3] = ["aggregator", "storage", "kubernetes"];

/// What became of a look at the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Outcome {
    /// What may change is as the file says.
    Applied,
    /// It says what it said before.
    Unchanged,
    Refused,
}

impl Outcome {
    pub const ALL: [Self; 3] = [Self::Applied, Self::Unchanged, Self::Refused];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Applied => "applied",
            Self::Unchanged => "unchanged",
            Self::Refused => "refused",
        }
    }
}

/// The configuration that holds, and what became of later ones.
#[derive(Debug)]
pub struct Settings {
    file: Option<PathBuf>,
    current: ArcSwap<Config>,
    interval_ns: watch::Sender<u64>,
    outcomes: [AtomicU64; Outcome::ALL.len()],
    report: Mutex<Report>,
}

/// For `/status`.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// Empty: there is no file.
    #[serde(skip_serializing_if = "String::is_empty")]
    file: String,
    /// When something changed last.
    #[serde(skip_serializing_if = "String::is_empty")]
    applied: String,
    /// Why the file as it is now is not used.
    #[serde(skip_serializing_if = "String::is_empty")]
    error: String,
    /// Keys of which the file says something else than what holds, until the collector is started again.
    needs_restart: Vec<String>,
}

impl Settings {
    pub fn new(config: Config, file: Option<PathBuf>) -> Self {
        let report = Report {
            file: file.as_ref().map(|file| file.display().to_string()).unwrap_or_default(),
            ..Report::default()
        };
        Self {
            file,
            interval_ns: watch::Sender::new(config.collector.interval.as_nanos()),
            current: ArcSwap::from_pointee(config),
            outcomes: Default::default(),
            report: Mutex::new(report),
        }
    }

    pub fn current(&self) -> Arc<Config> {
        self.current.load_full()
    }

    /// `collector.interval`, as it changes.
    pub fn interval_ns(&self) -> watch::Receiver<u64> {
        self.interval_ns.subscribe()
    }

    /// In the order of [`Outcome::ALL`].
    pub fn outcomes(&self) -> [u64; Outcome::ALL.len()] {
        self.outcomes.each_ref().map(|count| count.load(Ordering::Relaxed))
    }

    pub fn report(&self) -> Report {
        self.report.lock().clone()
    }

    /// Probes of `/proc` that the configuration switches off.
    pub fn off(&self) -> Vec<&'static str> {
        let config = self.current();
        let files = PROBES.iter().map(|probe| probe.spec.name);
        let all = files.chain(PROCESS_PROBES.iter().map(|probe| probe.spec.name));
        all.filter(|name| !config.is_enabled(name, true)).collect()
    }

    fn count(&self, outcome: Outcome) {
        self.outcomes[outcome as usize].fetch_add(1, Ordering::Relaxed);
    }

    fn refuse(&self, error: &str) {
        self.count(Outcome::Refused);
        tracing::error!(%error, "new configuration refused, the one before holds");
        error.clone_into(&mut self.report.lock().error);
    }
}

/// Looks at the file and brings what it says to those who can change.
pub struct Reloader<'a> {
    pub settings: &'a Settings,
    pub sinks: &'a Sinks,
    pub reading: &'a Reading,
    pub missing: &'a Missing,
    pub tracing: Tracing,
    /// What the file was when it was read last, and when it was looked at last.
    pub read: Stamp,
    pub seen: Stamp,
    /// SIGHUP: files are opened anew and the configuration is read.
    pub hangup: Signal,
}

/// What tells one file from another without reading it: device, inode, size, time of change. `None`: there is none.
pub type Stamp = Option<(u64, u64, u64, i64, i64)>;

pub fn stamp(file: Option<&Path>) -> Stamp {
    let now = fs::metadata(file?).ok()?;
    Some((now.dev(), now.ino(), now.size(), now.mtime(), now.mtime_nsec()))
}

impl Reloader<'_> {
    /// Once a second: reads the file if it is another one, and has been for two looks, as it may be half written.
    pub async fn look(&mut self) {
        let now = stamp(self.settings.file.as_deref());
        if now == self.seen && now != self.read {
            self.reload().await;
        }
        self.seen = now;
    }

    /// Reads the file now.
    pub async fn reload(&mut self) {
        let Some(file) = &self.settings.file else {
            return;
        };
        self.read = stamp(Some(file));
        self.seen = self.read;
        let loaded = config::load(Some(file), |key| std::env::var(key).ok()).map_err(|error| error.to_string());
        let checked = loaded.and_then(|mut new| {
            check::check(&new).map_err(|error| error.to_string())?;
            new.probes = check::by_our_names(new.probes);
            Ok(new)
        });
        match checked {
            Ok(new) => self.apply(new).await,
            Err(error) => self.settings.refuse(&error),
        }
    }

    async fn apply(&self, new: Config) {
        let before = self.settings.current();
        let changes = Changes::between(&before, &new);
        let restart = changes.restart.clone();
        if self.settings.report().needs_restart != restart && !restart.is_empty() {
            tracing::warn!(
                keys = restart.join(", "),
                "these keys change when the collector is started again"
            );
        }
        if changes.live.is_empty() {
            self.settings.count(Outcome::Unchanged);
            self.done(restart, None, None);
            return;
        }
        // The only one that may still say no comes first.
        if let Err(error) = self.sinks.apply(&new.sinks).await {
            return self.settings.refuse(&error.to_string());
        }
        let mut now = (*before).clone();
        now.probes = new.probes;
        now.sinks = new.sinks;
        (now.events.rate, now.events.burst) = (new.events.rate, new.events.burst);
        now.collector.interval = new.collector.interval;
        now.kernel.cpu_budget_percent = new.kernel.cpu_budget_percent;
        self.settings.current.store(Arc::new(now.clone()));
        self.tracing.set(&now);
        let mut failed = None;
        let of_rounds = changes.live.iter().any(|key| !key.starts_with("sinks"));
        if of_rounds {
            let changed = self
                .reading
                .change(move |parts, interval| parts.apply(&now, interval))
                .await;
            // A thread of rounds that is gone ends the collector.
            if let Some(changed) = changed {
                say_missing(&changed.signals, self.missing);
                if let Some(error) = &changed.error {
                    tracing::error!(%error, "a setting of the kernel side could not be changed");
                }
                failed = changed.error;
            }
        }
        let interval_ns = new.collector.interval.as_nanos();
        self.settings
            .interval_ns
            .send_if_modified(|now| std::mem::replace(now, interval_ns) != interval_ns);
        tracing::info!(keys = changes.live.join(", "), "new configuration applied");
        self.settings.count(Outcome::Applied);
        self.done(restart, Some(now_ns()), failed);
    }

    fn done(&self, needs_restart: Vec<String>, applied_ns: Option<u64>, error: Option<String>) {
        let mut report = self.settings.report.lock();
        report.needs_restart = needs_restart;
        report.error = error.unwrap_or_default();
        if let Some(applied_ns) = applied_ns {
            report.applied = rfc3339(applied_ns);
        }
    }
}

/// Keys whose values differ.
#[derive(Debug, Default, PartialEq, Eq)]
struct Changes {
    live: Vec<String>,
    restart: Vec<String>,
}

impl Changes {
    fn between(before: &Config, now: &Config) -> Self {
        let leaves = |config: &Config| {
            let mut leaves = BTreeMap::new();
            let tree = serde_json::to_value(config).expect("the configuration is plain data");
            flatten(&tree, String::new(), &mut leaves);
            leaves
        };
        let (before, now) = (leaves(before), leaves(now));
        let keys = before.keys().chain(now.keys().filter(|key| !before.contains_key(*key)));
        let differ = keys.filter(|key| before.get(*key) != now.get(*key) && !is_below(key, &FOREIGN));
        let (live, restart) = differ.cloned().partition(|key| is_below(key, &LIVE));
        Self { live, restart }
    }
}

fn is_below(key: &str, keys: &[&str]) -> bool {
    keys.iter().any(|above| {
        let rest = key.strip_prefix(above);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    })
}

fn flatten(node: &Value, path: String, leaves: &mut BTreeMap<String, Value>) {
    match node {
        Value::Object(map) if !map.is_empty() => {
            for (key, value) in map {
                let below = if path.is_empty() {
                    key.clone()
                } else {
                    format!("{path}.{key}")
                };
                flatten(value, below, leaves);
            }
        }
        _ => drop(leaves.insert(path, node.clone())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sonde_common::config::Probe;
    use sonde_common::time::Span;

    #[test]
    fn what_changed_is_told_by_key_and_by_whether_it_may() {
        let before = Config::default();
        let mut now = before.clone();
        assert_eq!(Changes::between(&before, &now), Changes::default());
        now.probes.insert(
            "tcp".into(),
            Probe {
                enabled: Some(false),
                ..Probe::default()
            },
        );
        now.sinks.loki.url = "http://x".into();
        now.collector.interval = Span::from_secs(1);
        now.collector.http.set_port(1);
        now.node.name = "other".into();
        now.storage.run_as = "me".into();
        now.probes.entry("flow".into()).or_default().tc = true;
        now.probes.entry("packetloss".into()).or_default().nft_trace = true;
        let changes = Changes::between(&before, &now);
        for key in [
            "probes.flow.tc",
            "probes.packetloss.nft_trace",
            "probes.tcp.enabled",
            "sinks.loki.url",
            "collector.interval",
        ] {
            assert!(changes.live.contains(&key.to_owned()), "no {key} in {changes:?}");
        }
        assert_eq!(
            changes.restart,
            ["collector.http", "node.name"],
            "the storage is none of the collector's"
        );
    }

    #[test]
    fn a_swapped_link_is_another_file() {
        let dir = tempfile::tempdir().unwrap();
        let link = |to: &str| {
            let new = dir.path().join("..data_tmp");
            std::os::unix::fs::symlink(to, &new).unwrap();
            fs::rename(&new, dir.path().join("..data")).unwrap();
        };
        for version in ["..1", "..2"] {
            fs::create_dir(dir.path().join(version)).unwrap();
            fs::write(dir.path().join(version).join("config.yaml"), "a").unwrap();
        }
        link("..1");
        let file = dir.path().join("config.yaml");
        std::os::unix::fs::symlink("..data/config.yaml", &file).unwrap();
        let first = stamp(Some(&file));
        link("..2");
        assert!(first.is_some() && stamp(Some(&file)) != first);
        fs::remove_file(dir.path().join("..2/config.yaml")).unwrap();
        assert_eq!(stamp(Some(&file)), None);
        assert_eq!(stamp(None), None);
    }
}
