//! Sites of drops: what each is called and which class it has, learned once and told to the kernel side.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use sonde_ebpf_common::drop::{NO_REASON, Site, verdict};

use super::reasons::{NOT_SPECIFIED, Reasons};
use super::symbols::Symbols;
use super::sys::{BPF_ANY, RawMap};
use crate::probes::packetloss::{Class, Names, classify, verdict_of_reason};

/// Bounds what is remembered. Sites are functions times reasons times a few kinds of packets: some hundred on a node.
const MOST: usize = 65_536;

#[derive(Clone, Debug)]
pub(super) struct Known {
    pub class: Class,
    pub reason: Arc<str>,
}

pub(super) struct Sites {
    reasons: Reasons,
    symbols: Arc<Symbols>,
    /// The kernel side's copy; absent where no program asks for it.
    map: Option<RawMap<Site, u32>>,
    /// A site keeps its class for good: counts must not move from one class to another.
    known: Mutex<HashMap<Site, Known>>,
}

impl Sites {
    pub(super) fn new(reasons: Reasons, symbols: Arc<Symbols>, map: Option<RawMap<Site, u32>>) -> Self {
        Self {
            reasons,
            symbols,
            map,
            known: Mutex::default(),
        }
    }

    /// The class of a site. Tells the kernel side when it is a new one.
    pub(super) fn learn(&self, site: Site) -> Known {
        if let Some(known) = self.known.lock().get(&site) {
            return known.clone();
        }
        let reason = self.reasons.name(site.reason);
        let function = self.symbols.function(site.location);
        let known = Known {
            class: classify(&reason, function.as_deref(), site.detail),
            reason,
        };
        if let Some(map) = &self.map {
            // Full: the site goes on to use the bucket of new ones, and is told apart here each time.
            let _ = map.set(&site, &u32::from(known.class.verdict()), BPF_ANY);
        }
        let mut all = self.known.lock();
        if all.len() < MOST {
            all.insert(site, known.clone());
        }
        known
    }

    pub(super) fn len(&self) -> usize {
        self.known.lock().len()
    }
}

/// For the programs: what the reason alone decides.
pub(super) fn verdicts(reasons: &Reasons) -> [u8; verdict::REASONS] {
    let mut verdicts = [verdict::BY_SITE; verdict::REASONS];
    verdicts[NO_REASON as usize] = verdict_of_reason(NOT_SPECIFIED);
    for (number, name) in reasons.iter() {
        if let Some(slot) = verdicts.get_mut(number as usize) {
            *slot = verdict_of_reason(name);
        }
    }
    verdicts
}

impl Names for Sites {
    fn reason(&self, reason: u32) -> Arc<str> {
        self.reasons.name(reason)
    }
    fn symbol(&self, address: u64) -> Arc<str> {
        self.symbols.show(address)
    }
}
