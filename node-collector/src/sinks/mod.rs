//! Events to where people look without an aggregator: standard error, a file, Grafana Loki.
//!
//! Each sink has a queue and a worker of its own. Whoever hands over events never waits; what a sink cannot keep up with
//! is counted and becomes a gap. Events come after their attribution.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use sonde_common::config::{self, EventFormat};
use sonde_proto::gap;
use sonde_push::{BadSetting, Loss, Pace, Pusher, Reason, State, Stats, Timed};

use crate::event::{Event, Gap, Subject};
use crate::ship::writer::Shipper;

mod file;
mod json;
mod loki;
mod stderr;
#[cfg(test)]
mod tests;
mod text;

use text::Format;

/// How long a sink may take to send what it has when it ends.
pub const DRAIN: Duration = Duration::from_secs(2);

/// An event that all sinks share.
#[derive(Clone, Debug)]
struct Shared(Arc<Event>);

impl Timed for Shared {
    fn time_ns(&self) -> u64 {
        self.0.time_ns
    }
}

/// A sink and how it fares, for `/status` and metrics.
#[derive(Clone, Debug)]
pub struct SinkStatus {
    pub name: &'static str,
    /// Where it writes to.
    pub target: String,
    pub on: bool,
    pub queued: usize,
    /// Counters go on when a sink is changed.
    pub state: State,
}

#[derive(Debug)]
struct Running {
    name: &'static str,
    target: String,
    pusher: Pusher<Shared>,
    reopen: Option<Arc<AtomicBool>>,
}

/// The sinks that are on.
#[derive(Debug)]
pub struct Sinks {
    node: Arc<str>,
    shipper: Shipper,
    settings: Mutex<config::Sinks>,
    running: RwLock<Vec<Running>>,
    /// Sinks that end.
    ending: Mutex<Vec<(&'static str, Arc<Stats>)>>,
    /// Sinks that ended, by name: their counters go on.
    past: Mutex<BTreeMap<&'static str, State>>,
}

/// What can be known before anything is opened.
pub fn check(settings: &config::Sinks) -> Result<(), BadSetting> {
    if settings.loki.url.is_empty() {
        return Ok(());
    }
    loki::http(&settings.loki).map(drop)
}

impl Sinks {
    /// On the runtime of the caller.
    pub fn start(settings: &config::Sinks, node: &str, shipper: Shipper) -> Result<Self, BadSetting> {
        let node: Arc<str> = node.into();
        let running = start(settings, &node, &["stderr", "file", "loki"])?;
        Ok(Self {
            node,
            shipper,
            settings: Mutex::new(settings.clone()),
            running: RwLock::new(running),
            ending: Mutex::default(),
            past: Mutex::default(),
        })
    }

    /// Never waits.
    pub fn events(&self, events: &[Event]) {
        let running = self.running.read();
        if running.is_empty() || events.is_empty() {
            return;
        }
        let shared: Vec<Shared> = events.iter().map(|event| Shared(Arc::new(event.clone()))).collect();
        for sink in running.iter() {
            sink.pusher.push(shared.iter().cloned());
        }
    }

    /// Files are opened anew with the next event.
    pub fn reopen(&self) {
        for flag in self.running.read().iter().filter_map(|sink| sink.reopen.as_ref()) {
            flag.store(true, Ordering::Relaxed);
        }
    }

    /// Those whose settings changed end, with what they have sent or counted, after new ones began. What cannot be is
    /// refused, and all stay as they are.
    pub async fn apply(&self, settings: &config::Sinks) -> Result<(), BadSetting> {
        let changed = changed(&self.settings.lock(), settings);
        if changed.is_empty() {
            return Ok(());
        }
        let new = start(settings, &self.node, &changed)?;
        let old = {
            let mut running = self.running.write();
            let (old, mut kept): (Vec<_>, Vec<_>) = std::mem::take(&mut *running)
                .into_iter()
                .partition(|sink| changed.contains(&sink.name));
            kept.extend(new);
            *running = kept;
            old
        };
        *self.settings.lock() = settings.clone();
        self.end_all(old, DRAIN).await;
        Ok(())
    }

    async fn end_all(&self, sinks: Vec<Running>, within: Duration) {
        let mut ends = Vec::new();
        for sink in sinks {
            self.ending.lock().push((sink.name, Arc::clone(sink.pusher.stats())));
            ends.push(sink.pusher.end(within));
        }
        futures::future::join_all(ends).await;
        self.tell_losses();
        let mut past = self.past.lock();
        for (name, stats) in self.ending.lock().drain(..) {
            let ended = stats.state();
            let all = match past.remove(name) {
                Some(before) => add(before, ended),
                None => ended,
            };
            past.insert(name, State { failing: false, ..all });
        }
    }

    /// Sends what there is, for a while, and counts the rest.
    pub async fn end(&self) {
        let running = std::mem::take(&mut *self.running.write());
        self.end_all(running, DRAIN).await;
    }

    /// What was lost since the last time becomes gaps.
    pub fn tell_losses(&self) {
        let mut gaps = Vec::new();
        let mut tell = |name: &str, stats: &Stats| {
            gaps.extend(stats.take_losses().into_iter().map(|loss| gap_of(name, loss)));
        };
        for sink in self.running.read().iter() {
            tell(sink.name, sink.pusher.stats());
        }
        for (name, stats) in self.ending.lock().iter() {
            tell(name, stats);
        }
        self.shipper.gaps(gaps);
    }

    /// All that are on or were.
    pub fn status(&self) -> Vec<SinkStatus> {
        let mut before = self.past.lock().clone();
        for (name, stats) in self.ending.lock().iter() {
            let state = stats.state();
            let all = match before.remove(name) {
                Some(past) => add(past, state),
                None => state,
            };
            before.insert(name, State { failing: false, ..all });
        }
        let mut all: BTreeMap<&'static str, SinkStatus> = BTreeMap::new();
        for sink in self.running.read().iter() {
            let now = sink.pusher.stats().state();
            let before = before.remove(sink.name);
            let status = SinkStatus {
                name: sink.name,
                target: sink.target.clone(),
                on: true,
                queued: sink.pusher.queued(),
                state: before.into_iter().fold(now, |now, before| add(before, now)),
            };
            all.insert(sink.name, status);
        }
        for (name, state) in before {
            let status = SinkStatus {
                name,
                target: String::new(),
                on: false,
                queued: 0,
                state,
            };
            all.insert(name, status);
        }
        all.into_values().collect()
    }
}

/// Counters of both; what is known of the other side is the later one's.
fn add(before: State, now: State) -> State {
    State {
        sent: before.sent + now.sent,
        retries: before.retries + now.retries,
        dropped: std::array::from_fn(|at| before.dropped[at] + now.dropped[at]),
        ..now
    }
}

fn gap_of(name: &str, loss: Loss) -> Gap {
    let Loss {
        reason,
        count,
        from_ns,
        to_ns,
        detail,
    } = loss;
    let why = match reason {
        Reason::Full => "its queue was full",
        Reason::Refused => "they were refused",
        Reason::GivenUp => "they were tried for as long as they may be",
        Reason::Ended => "the end came before they were sent",
    };
    let detail = if detail.is_empty() {
        detail
    } else {
        format!(": {detail}")
    };
    Gap {
        probe: "",
        cause: gap::SINK_LOST,
        from_ns,
        to_ns,
        count,
        subject: Subject::Node,
        detail: format!("sink {name}: {why}{detail}"),
    }
}

/// Names of the sinks that are not as they were.
fn changed(before: &config::Sinks, now: &config::Sinks) -> Vec<&'static str> {
    let all = before.queue != now.queue;
    [
        ("stderr", before.stderr != now.stderr),
        ("file", before.file != now.file),
        ("loki", before.loki != now.loki),
    ]
    .into_iter()
    .filter(|(_, differs)| all || *differs)
    .map(|(name, _)| name)
    .collect()
}

/// Those of `names` that are on.
fn start(settings: &config::Sinks, node: &Arc<str>, names: &[&'static str]) -> Result<Vec<Running>, BadSetting> {
    let config::Sinks {
        queue,
        stderr,
        file,
        loki,
    } = settings;
    let format = |form: EventFormat| Format {
        node: Arc::clone(node),
        form,
    };
    // A system call for each event costs more than waiting for a few of them.
    let local = Pace {
        queue: *queue,
        batch: 500,
        linger: Duration::from_millis(50),
        timeout: None,
        first_wait: Duration::from_millis(200),
        longest_wait: Duration::from_secs(5),
        retry_for: None,
    };
    let mut running = Vec::new();
    // First the one that may be refused.
    if names.contains(&"loki") && !loki.url.is_empty() {
        let target = loki::target(loki, format(loki.format))?;
        let pace = Pace {
            // About half a megabyte, well below what Loki takes at once from one tenant.
            linger: loki.linger.0,
            timeout: Some(loki.timeout.0),
            first_wait: Duration::from_millis(500),
            longest_wait: Duration::from_secs(30),
            retry_for: Some(loki.retry_for.0),
            ..local
        };
        running.push(Running {
            name: "loki",
            target: loki.url.clone(),
            pusher: Pusher::start("loki", target, pace),
            reopen: None,
        });
    }
    if names.contains(&"stderr") && stderr.enabled {
        let target = stderr::Stderr::new(format(stderr.format)).map_err(|error| BadSetting {
            key: "sinks.stderr.enabled".to_owned(),
            value: "true".to_owned(),
            what: format!("standard error cannot be had: {error}"),
        })?;
        running.push(Running {
            name: "stderr",
            target: "stderr".to_owned(),
            pusher: Pusher::start("stderr", target, local),
            reopen: None,
        });
    }
    if names.contains(&"file") && !file.path.as_os_str().is_empty() {
        let reopen = Arc::new(AtomicBool::new(false));
        let target = file::Rotated::new(file, format(file.format), Arc::clone(&reopen));
        running.push(Running {
            name: "file",
            target: file.path.display().to_string(),
            pusher: Pusher::start("file", target, local),
            reopen: Some(reopen),
        });
    }
    Ok(running)
}
