//! The thread that empties the ring: records in, observations out.
//!
//! It never waits for the reader of the observations for good: while their channel is full, it leaves the ring alone,
//! and what the ring then cannot take is counted by the kernel side.

use std::collections::HashMap;
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use aya::maps::{MapData, RingBuf};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use tokio::sync::mpsc::Sender;
use tokio::sync::mpsc::error::TrySendError;

use super::listing::Listing;
use super::sites::Sites;
use crate::event::{NetnsKey, Observation};
use crate::probes::packetloss::{Class, Raw};

/// What goes to the channel at once, at most.
const BATCH: usize = 512;
/// How long to wait before the full channel is tried again.
const RETRY: Duration = Duration::from_millis(5);

/// What the thread counts.
#[derive(Debug, Default)]
pub(super) struct RingCounters {
    pub events: AtomicU64,
    pub bad_records: AtomicU64,
    /// Records of sites that turned out to be no loss.
    pub benign: AtomicU64,
    /// Times that the channel was full.
    pub waits: AtomicU64,
}

pub(super) struct RingThread {
    stop: Arc<Stop>,
    thread: Option<std::thread::JoinHandle<()>>,
}

struct Stop {
    event: EventFd,
    asked: AtomicBool,
}

impl RingThread {
    pub(super) fn start(
        ring: RingBuf<MapData>,
        sites: Arc<Sites>,
        listing: Arc<Listing>,
        counters: Arc<RingCounters>,
        events: Sender<Vec<Observation>>,
    ) -> std::io::Result<Self> {
        let event = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        let stop = Arc::new(Stop {
            event,
            asked: AtomicBool::new(false),
        });
        let reader = Reader {
            ring,
            sites,
            listing,
            counters,
            events,
            stop: Arc::clone(&stop),
        };
        let thread = std::thread::Builder::new()
            .name("sonde-ring".into())
            .spawn(move || reader.run())?;
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for RingThread {
    fn drop(&mut self) {
        self.stop.asked.store(true, Ordering::Release);
        let _ = self.stop.event.write(1);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Reader {
    ring: RingBuf<MapData>,
    sites: Arc<Sites>,
    listing: Arc<Listing>,
    counters: Arc<RingCounters>,
    events: Sender<Vec<Observation>>,
    stop: Arc<Stop>,
}

impl Reader {
    fn run(mut self) {
        let mut batch = Vec::new();
        while !self.stop.asked.load(Ordering::Acquire) {
            self.fill(&mut batch);
            if batch.is_empty() {
                self.wait(true, PollTimeout::NONE);
                continue;
            }
            self.add_suppressed(&mut batch);
            if !self.send(&mut batch) {
                return;
            }
        }
    }

    fn fill(&mut self, batch: &mut Vec<Observation>) {
        while batch.len() < BATCH {
            let Some(item) = self.ring.next() else { break };
            match Raw::parse(&item) {
                Ok(raw) => {
                    // Also of sites that the kernel side knows: the class may have come while the record was on its way.
                    if self.sites.learn(raw.site()).class == Class::Suspect {
                        batch.push(raw.observe(&*self.sites));
                    } else {
                        self.counters.benign.fetch_add(1, Ordering::Relaxed);
                    }
                }
                Err(error) => {
                    self.counters.bad_records.fetch_add(1, Ordering::Relaxed);
                    tracing::debug!(%error, "a record of the kernel side could not be read");
                }
            }
        }
    }

    /// On the first event of each namespace: how many were held back before it.
    fn add_suppressed(&self, batch: &mut [Observation]) {
        let mut seen: HashMap<Option<NetnsKey>, ()> = HashMap::new();
        for observation in batch {
            if seen.insert(observation.netns, ()).is_none() {
                observation.suppressed = self.listing.held_since_last_event(observation.netns);
            }
        }
    }

    /// `false`: nobody reads any more, or the thread shall end.
    fn send(&self, batch: &mut Vec<Observation>) -> bool {
        let mut events = std::mem::take(batch);
        let count = events.len() as u64;
        loop {
            match self.events.try_send(events) {
                Ok(()) => {
                    self.counters.events.fetch_add(count, Ordering::Relaxed);
                    return true;
                }
                Err(TrySendError::Closed(_)) => return false,
                Err(TrySendError::Full(back)) => {
                    events = back;
                    self.counters.waits.fetch_add(1, Ordering::Relaxed);
                    self.wait(false, PollTimeout::try_from(RETRY).unwrap_or(PollTimeout::ZERO));
                    if self.stop.asked.load(Ordering::Acquire) {
                        return false;
                    }
                }
            }
        }
    }

    fn wait(&self, for_ring: bool, timeout: PollTimeout) {
        let stop = PollFd::new(self.stop.event.as_fd(), PollFlags::POLLIN);
        let ring = PollFd::new(self.ring.as_fd(), PollFlags::POLLIN);
        // An interrupted wait is a wait that ended early.
        let _ = if for_ring {
            poll(&mut [stop, ring], timeout)
        } else {
            poll(&mut [stop], timeout)
        };
    }
}
