//! The network namespaces that the kernel side knows by name, their buckets, and what those held back.

use std::collections::HashMap;
use std::io;

use parking_lot::Mutex;
use sonde_ebpf_common::limit::{Held, Namespace, TYPES, UNKNOWN};

use super::sys::{BPF_ANY, BPF_EXIST, BPF_NOEXIST, RawMap};
use crate::event::NetnsKey;

pub(super) struct Listing {
    namespaces: RawMap<u32, Namespace>,
    held: RawMap<u32, Held>,
    /// Tells the programs that the list has changed.
    changes: RawMap<u32, u32>,
    /// The host's, when the configuration includes it.
    host: Option<NetnsKey>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// How often the list has changed.
    changes: u32,
    listed: HashMap<u32, Entry>,
    /// No longer there, not yet read for the last time.
    gone: Vec<NetnsKey>,
    /// What their buckets held back, not yet told.
    gone_held: Vec<HeldBack>,
}

#[derive(Clone, Copy)]
struct Entry {
    key: NetnsKey,
    /// What has been told of in gaps, and with events.
    in_gaps: [u64; TYPES],
    in_events: [u64; TYPES],
}

impl Entry {
    const fn new(key: NetnsKey) -> Self {
        Self {
            key,
            in_gaps: [0; TYPES],
            in_events: [0; TYPES],
        }
    }

    /// What was held back since the last gap. `None`: nothing.
    fn since(&self, now: &[u64; TYPES]) -> Option<HeldBack> {
        let events = std::array::from_fn(|i| now[i].saturating_sub(self.in_gaps[i]));
        let netns = (self.key.inode != UNKNOWN).then_some(self.key);
        events.iter().any(|n| *n != 0).then_some(HeldBack { netns, events })
    }
}

/// What a namespace's buckets held back since the last time it was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct HeldBack {
    /// `None`: of namespaces that are not listed.
    pub netns: Option<NetnsKey>,
    pub events: [u64; TYPES],
}

impl Listing {
    pub(super) fn new(
        namespaces: RawMap<u32, Namespace>,
        held: RawMap<u32, Held>,
        changes: RawMap<u32, u32>,
        host: Option<NetnsKey>,
    ) -> io::Result<Self> {
        let listing = Self {
            namespaces,
            held,
            changes,
            host,
            state: Mutex::default(),
        };
        listing.namespaces.set(&UNKNOWN, &bucket(0), BPF_ANY)?;
        listing.held.set(&UNKNOWN, &Held::default(), BPF_ANY)?;
        listing
            .state
            .lock()
            .listed
            .insert(UNKNOWN, Entry::new(NetnsKey::default()));
        Ok(listing)
    }

    /// Lists the pods' namespaces, and the host's. What could not be written is tried again the next time.
    pub(super) fn update(&self, live: &[NetnsKey]) -> io::Result<()> {
        let state = &mut *self.state.lock();
        let result = self.replace(state, live);
        // Also after half of a change.
        match result {
            Ok(false) => Ok(()),
            result => {
                state.changes = state.changes.wrapping_add(1);
                result.map(drop).and(self.changes.set(&0, &state.changes, BPF_ANY))
            }
        }
    }

    /// Whether anything changed.
    fn replace(&self, state: &mut State, live: &[NetnsKey]) -> io::Result<bool> {
        let wanted: HashMap<u32, NetnsKey> = live
            .iter()
            .chain(&self.host)
            .filter(|key| key.inode != UNKNOWN)
            .map(|key| (key.inode, *key))
            .collect();
        let mut result = Ok(());
        let mut changed = false;
        let gone: Vec<NetnsKey> = state
            .listed
            .values()
            .map(|entry| entry.key)
            .filter(|key| key.inode != UNKNOWN && wanted.get(&key.inode) != Some(key))
            .collect();
        for key in gone {
            changed = true;
            if let (Some(entry), Ok(now)) = (state.listed.remove(&key.inode), self.read(key.inode)) {
                state.gone_held.extend(entry.since(&now));
            }
            // An inode that already has its next owner keeps its place: only the cookie changes below.
            if !wanted.contains_key(&key.inode) {
                result = result.and(self.namespaces.delete(&key.inode).map(drop));
            }
            state.gone.push(key);
        }
        for key in wanted.values() {
            if state.listed.contains_key(&key.inode) {
                continue;
            }
            changed = true;
            match self.list(key) {
                Ok(()) => drop(state.listed.insert(key.inode, Entry::new(*key))),
                Err(error) => result = result.and(Err(error)),
            }
        }
        result.map(|()| changed)
    }

    fn list(&self, key: &NetnsKey) -> io::Result<()> {
        // First the count, then what makes it count.
        self.held.set(&key.inode, &Held::default(), BPF_ANY)?;
        match self.namespaces.set(&key.inode, &bucket(key.cookie), BPF_NOEXIST) {
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {
                self.namespaces.set(&key.inode, &bucket(key.cookie), BPF_EXIST)
            }
            result => result,
        }
    }

    /// Namespaces that went since the last call: their counts are read once more and then forgotten.
    pub(super) fn take_gone(&self) -> Vec<NetnsKey> {
        let gone = std::mem::take(&mut self.state.lock().gone);
        let state = self.state.lock();
        for key in gone.iter().filter(|key| !state.listed.contains_key(&key.inode)) {
            let _ = self.held.delete(&key.inode);
        }
        gone
    }

    /// For gaps: what each namespace's buckets held back since this was asked last. Empty where they held nothing.
    pub(super) fn held_since_last_gap(&self) -> io::Result<Vec<HeldBack>> {
        let state = &mut *self.state.lock();
        let mut out = std::mem::take(&mut state.gone_held);
        for (inode, entry) in &mut state.listed {
            let now = self.read(*inode)?;
            out.extend(entry.since(&now));
            entry.in_gaps = now;
        }
        Ok(out)
    }

    /// For the event that passed: how many of its type its bucket held back since the one before.
    pub(super) fn held_since_last_event(&self, netns: Option<NetnsKey>, bucket: usize) -> u64 {
        let state = &mut *self.state.lock();
        let inode = netns.map_or(UNKNOWN, |key| key.inode);
        let inode = match state.listed.get(&inode) {
            Some(entry) if entry.key.cookie == 0 || netns.is_none_or(|key| key.cookie == entry.key.cookie) => inode,
            _ => UNKNOWN,
        };
        let (Ok(now), Some(entry)) = (self.read(inode), state.listed.get_mut(&inode)) else {
            return 0;
        };
        let new = now[bucket].saturating_sub(entry.in_events[bucket]);
        entry.in_events[bucket] = now[bucket];
        new
    }

    fn read(&self, inode: u32) -> io::Result<[u64; TYPES]> {
        let copies = self.held.get(&inode)?.unwrap_or_default();
        Ok(std::array::from_fn(|i| copies.iter().map(|copy| copy.events[i]).sum()))
    }

    pub(super) fn len(&self) -> usize {
        self.state.lock().listed.len() - 1
    }
}

const fn bucket(cookie: u64) -> Namespace {
    Namespace {
        cookie,
        tat: [0; TYPES],
    }
}
