//! What the task that speaks with the runtime and the thread that enters namespaces tell each other.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::Sandbox;

/// A storm of events from a namespace that stays unknown must not keep the runtime busy.
const WONDER_EVERY: Duration = Duration::from_millis(300);

/// The thread reads the sandboxes and says when the runtime is to be asked at once.
#[derive(Default)]
pub struct Board {
    sandboxes: ArcSwap<Vec<Arc<Sandbox>>>,
    active: AtomicBool,
    unclaimed: AtomicBool,
    nudge: Notify,
    listed: Mutex<Option<Instant>>,
    waker: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

impl std::fmt::Debug for Board {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Board")
            .field("active", &self.active)
            .field("sandboxes", &self.sandboxes.load().len())
            .finish_non_exhaustive()
    }
}

impl Board {
    /// All sandboxes the runtime had when it was asked last. While it does not answer they stay as they were.
    pub fn sandboxes(&self) -> Arc<Vec<Arc<Sandbox>>> {
        self.sandboxes.load_full()
    }

    pub(super) fn publish(&self, sandboxes: Vec<Arc<Sandbox>>) {
        if **self.sandboxes.load() == sandboxes {
            return;
        }
        self.sandboxes.store(Arc::new(sandboxes));
        self.wake();
    }

    /// Whether there is a runtime, answering or not: namespaces that runtimes make are then its to name.
    pub fn is_active(&self) -> bool {
        self.active.load(Ordering::Acquire)
    }

    pub(super) fn set_active(&self) {
        if !self.active.swap(true, Ordering::AcqRel) {
            self.wake();
        }
    }

    /// Whether there are namespaces of a runtime's making that no sandbox claims yet.
    pub(super) fn has_unclaimed(&self) -> bool {
        self.unclaimed.load(Ordering::Acquire)
    }

    pub(crate) fn set_unclaimed(&self, unclaimed: bool) {
        self.unclaimed.store(unclaimed, Ordering::Release);
    }

    /// Something happened of which the runtime may know: it is to be asked at once.
    pub fn nudge(&self) {
        self.nudge.notify_one();
    }

    /// The same of what may be none of its business, and happen again and again: not right after it was asked.
    pub(crate) fn wonder(&self) {
        if self.listed.lock().is_none_or(|listed| listed.elapsed() >= WONDER_EVERY) {
            self.nudge();
        }
    }

    pub(super) fn has_listed(&self) {
        *self.listed.lock() = Some(Instant::now());
    }

    pub(super) async fn nudged(&self) {
        self.nudge.notified().await;
    }

    /// What to call when the sandboxes have changed. Set once, by the thread.
    pub(crate) fn on_news(&self, waker: impl Fn() + Send + Sync + 'static) {
        let _ = self.waker.set(Box::new(waker));
    }

    fn wake(&self) {
        if let Some(waker) = self.waker.get() {
            waker();
        }
    }
}
