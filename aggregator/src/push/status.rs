//! How sending on fares, for `/metrics`.

use std::sync::Arc;

use parking_lot::Mutex;
use sonde_common::prom::{Page, Type};
use sonde_push::{Reason, Stats};

#[derive(Debug, Default)]
pub struct Status {
    targets: Mutex<Vec<Target>>,
}

/// Something that is sent somewhere.
#[derive(Debug)]
struct Target {
    name: &'static str,
    /// `events` or `metrics`.
    what: &'static str,
    stats: Arc<Stats>,
    /// Of events: whether this aggregator is the one that sends them, and how many wait.
    leads: bool,
    behind: u64,
}

impl Status {
    pub(super) fn add(&self, name: &'static str, what: &'static str, stats: Arc<Stats>) {
        self.targets.lock().push(Target {
            name,
            what,
            stats,
            leads: false,
            behind: 0,
        });
    }

    fn of_events(&self, name: &str, change: impl FnOnce(&mut Target)) {
        let mut targets = self.targets.lock();
        let found = targets
            .iter_mut()
            .find(|target| target.name == name && target.what == "events");
        found.map(change);
    }

    pub(super) fn leads(&self, name: &str, leads: bool) {
        self.of_events(name, |target| target.leads = leads);
    }

    pub(super) fn behind(&self, name: &str, events: u64) {
        self.of_events(name, |target| target.behind = events);
    }

    /// Nothing where nothing is sent on.
    pub fn render(&self, page: &mut Page) {
        let targets = self.targets.lock();
        if targets.is_empty() {
            return;
        }
        let mut family = |name: &str, kind, help: &str, value: &dyn Fn(&Target) -> u64| {
            let name = format!("sonde_aggregator_push_{name}");
            page.family(&name, kind, help);
            for target in targets.iter() {
                let labels = [("target", target.name), ("what", target.what)];
                page.sample(&name, &labels, value(target));
            }
        };
        family(
            "sent_total",
            Type::Counter,
            "Events or values that another system took.",
            &|t| t.stats.state().sent,
        );
        family("retries_total", Type::Counter, "Requests that were sent again.", &|t| {
            t.stats.state().retries
        });
        family("failing", Type::Gauge, "Whether the last request failed.", &|t| {
            t.stats.state().failing.into()
        });
        family(
            "leader",
            Type::Gauge,
            "Whether this aggregator sends: of several, one sends events, and each its own nodes' metrics.",
            &|t| u64::from(t.leads || t.what == "metrics"),
        );
        family(
            "behind_events",
            Type::Gauge,
            "Stored events that wait to be sent.",
            &|t| t.behind,
        );
        let name = "sonde_aggregator_push_dropped_total";
        page.family(name, Type::Counter, "Events or values that were not sent, by reason.");
        for target in targets.iter() {
            let dropped = target.stats.state().dropped;
            for (reason, count) in Reason::ALL.iter().zip(dropped) {
                let labels = [
                    ("target", target.name),
                    ("what", target.what),
                    ("reason", reason.name()),
                ];
                page.sample(name, &labels, count);
            }
        }
    }
}
