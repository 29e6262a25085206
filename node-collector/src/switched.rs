//! What the configuration has switched off, since when: once it is on again, that was a gap.

use std::collections::BTreeMap;

use sonde_proto::gap;

use crate::event::{Gap, Subject};

/// What of a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum What {
    Probe,
    Events,
    /// Only while it was begun anew.
    Anew,
}

/// By probe. Unix time.
#[derive(Debug, Default)]
pub struct Switched(BTreeMap<(&'static str, What), u64>);

impl Switched {
    /// Whether it is off now. A gap where it was off until now.
    pub fn note(&mut self, probe: &'static str, what: What, off: bool, now_ns: u64) -> Option<Gap> {
        if off {
            self.0.entry((probe, what)).or_insert(now_ns);
            return None;
        }
        let since = self.0.remove(&(probe, what))?;
        Some(was_off(probe, what, since, now_ns))
    }
}

/// A clock that was set back makes no gap that ends before it begins.
pub fn was_off(probe: &'static str, what: What, from_ns: u64, to_ns: u64) -> Gap {
    Gap {
        probe,
        cause: gap::SWITCHED_OFF,
        from_ns: from_ns.min(to_ns),
        to_ns,
        count: 0,
        subject: Subject::Node,
        detail: match what {
            What::Probe => "the configuration had the probe switched off",
            What::Events => "the configuration had its events switched off",
            What::Anew => "it was begun anew, as it counts by other keys or in other places now",
        }
        .to_owned(),
    }
}
