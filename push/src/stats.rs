//! What became of what was to be sent.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;
use tokio::sync::watch;

use crate::Timed;

/// Why something was not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Reason {
    /// The queue was full.
    Full,
    /// The other side said that it does not want it.
    Refused,
    /// It was tried for as long as it may be.
    GivenUp,
    /// The end came before.
    Ended,
}

impl Reason {
    pub const ALL: [Self; 4] = [Self::Full, Self::Refused, Self::GivenUp, Self::Ended];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Full => "queue_full",
            Self::Refused => "refused",
            Self::GivenUp => "given_up",
            Self::Ended => "ended",
        }
    }
}

/// Items that were lost for one reason, and the times of the first and the last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loss {
    pub reason: Reason,
    pub count: u64,
    pub from_ns: u64,
    pub to_ns: u64,
    /// What the other side, or the system, said last.
    pub detail: String,
}

/// Counters since the start, and what is known of the other side.
#[derive(Debug, Default)]
pub struct Stats {
    sent: AtomicU64,
    retries: AtomicU64,
    dropped: [AtomicU64; Reason::ALL.len()],
    failing: AtomicBool,
    last_error: Mutex<String>,
    /// Not yet told, by reason.
    losses: Mutex<Vec<Loss>>,
    /// Items whose fate is known, one way or the other.
    settled: watch::Sender<u64>,
}

/// A look at [`Stats`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    pub sent: u64,
    pub retries: u64,
    /// In the order of [`Reason::ALL`].
    pub dropped: [u64; Reason::ALL.len()],
    /// The last try failed.
    pub failing: bool,
    /// Why the last try that failed did; empty: none did.
    pub last_error: String,
}

impl Stats {
    pub fn state(&self) -> State {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        State {
            sent: get(&self.sent),
            retries: get(&self.retries),
            dropped: self.dropped.each_ref().map(get),
            failing: self.failing.load(Ordering::Relaxed),
            last_error: self.last_error.lock().clone(),
        }
    }

    /// What was lost since this was asked last, one entry for each reason.
    pub fn take_losses(&self) -> Vec<Loss> {
        std::mem::take(&mut self.losses.lock())
    }

    pub(crate) fn sent(&self, items: &[impl Timed]) {
        let count = items.iter().map(Timed::count).sum();
        self.sent.fetch_add(count, Ordering::Relaxed);
        self.settle(items.len());
    }

    fn settle(&self, items: usize) {
        self.settled.send_modify(|settled| *settled += items as u64);
    }

    pub(crate) fn settled(&self) -> watch::Receiver<u64> {
        self.settled.subscribe()
    }

    pub(crate) fn retried(&self) {
        self.retries.fetch_add(1, Ordering::Relaxed);
    }

    /// Whether it failed already.
    pub(crate) fn failed(&self, why: &str) -> bool {
        why.clone_into(&mut self.last_error.lock());
        self.failing.swap(true, Ordering::Relaxed)
    }

    /// Whether it failed before.
    pub(crate) fn worked(&self) -> bool {
        self.failing.swap(false, Ordering::Relaxed)
    }

    /// Sent, without `rejected` of what is counted.
    pub(crate) fn sent_partly(&self, items: &[impl Timed], rejected: u64, why: &str) {
        let count: u64 = items.iter().map(Timed::count).sum();
        self.sent.fetch_add(count.saturating_sub(rejected), Ordering::Relaxed);
        self.note(items, rejected, Reason::Refused, why);
        self.settle(items.len());
    }

    pub(crate) fn lose(&self, items: &[impl Timed], reason: Reason, detail: &str) {
        self.note(items, items.iter().map(Timed::count).sum(), reason, detail);
        self.settle(items.len());
    }

    /// Of these items, so much is lost.
    fn note(&self, items: &[impl Timed], count: u64, reason: Reason, detail: &str) {
        let times = || items.iter().map(Timed::time_ns);
        let (Some(from_ns), Some(to_ns)) = (times().min(), times().max()) else {
            return;
        };
        self.dropped[reason as usize].fetch_add(count, Ordering::Relaxed);
        let mut losses = self.losses.lock();
        match losses.iter_mut().find(|loss| loss.reason == reason) {
            Some(loss) => {
                loss.count += count;
                loss.from_ns = loss.from_ns.min(from_ns);
                loss.to_ns = loss.to_ns.max(to_ns);
                detail.clone_into(&mut loss.detail);
            }
            None => losses.push(Loss {
                reason,
                count,
                from_ns,
                to_ns,
                detail: detail.to_owned(),
            }),
        }
    }
}
