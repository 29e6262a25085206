//! CLOCK_MONOTONIC of the kernel, in which its side stamps, as UTC.

mod namespace;
mod timeline;
mod watch;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};

use arc_swap::ArcSwap;
use parking_lot::Mutex;

use namespace::SHIFT;
use timeline::{Sample, Step, Timeline};
pub(crate) use watch::watch;

/// How long a mapping is trusted where nobody says that the clock was set.
const REFRESH_NS: u64 = 1_000_000_000;
/// Steps that nobody asked for are no more than these.
const UNTOLD: usize = 100;

static NOW: LazyLock<ArcSwap<Timeline>> = LazyLock::new(|| ArcSwap::from_pointee(Timeline::new(measure())));
/// CLOCK_MONOTONIC of the last reading, 0 = never.
static READ_AT: AtomicU64 = AtomicU64::new(0);
/// Held while the clocks are read.
static STEPS: Mutex<Vec<Step>> = Mutex::new(Vec::new());

/// UTC at moments of CLOCK_MONOTONIC, by the clock as it was then. Steps are known as far as they were seen until now.
#[derive(Clone, Debug)]
pub struct Clock(Arc<Timeline>);

/// The mapping of now. Cheap: the clocks are read at most once a second.
pub fn clock() -> Clock {
    let now = monotonic_ns();
    let read_at = READ_AT.load(Ordering::Relaxed);
    if read_at == 0 || now.saturating_sub(read_at) >= REFRESH_NS {
        refresh();
    }
    Clock(NOW.load_full())
}

impl Clock {
    pub fn utc_ns(&self, ktime_ns: u64) -> u64 {
        self.0.utc_ns(ktime_ns)
    }
}

/// Reads the clocks.
fn refresh() {
    let mut steps = STEPS.lock();
    let now = measure();
    let mut timeline = Timeline::clone(&NOW.load());
    let step = timeline.observe(now);
    if steps.len() < UNTOLD {
        steps.extend(step);
    }
    NOW.store(Arc::new(timeline));
    READ_AT.store(now.monotonic_ns, Ordering::Relaxed);
}

/// Steps that were seen since the last call.
fn steps() -> Vec<Step> {
    std::mem::take(&mut *STEPS.lock())
}

/// Of three readings the one that took least: a preemption between two clocks would be an error of its length.
fn measure() -> Sample {
    let read = || {
        let before = monotonic_ns();
        let (utc_ns, boot_ns) = (read(libc::CLOCK_REALTIME), boot_ns());
        let after = monotonic_ns();
        Sample {
            monotonic_ns: before + (after - before) / 2,
            boot_ns,
            utc_ns,
            slack_ns: after - before,
        }
    };
    [read(), read(), read()]
        .into_iter()
        .min_by_key(|sample| sample.slack_ns)
        .unwrap_or_default()
}

/// As the kernel has it, also in a time namespace.
pub(crate) fn monotonic_ns() -> u64 {
    read(libc::CLOCK_MONOTONIC).saturating_add_signed(-SHIFT.monotonic_ns)
}

/// The same with the time that the machine slept.
pub(crate) fn boot_ns() -> u64 {
    read(libc::CLOCK_BOOTTIME).saturating_add_signed(-SHIFT.boot_ns)
}

fn read(id: libc::clockid_t) -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a valid timespec; the call writes nothing else. It cannot fail for these clocks.
    unsafe { libc::clock_gettime(id, &mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn now_in_both_clocks_is_the_same_instant() {
        let before = sonde_common::time::now_ns();
        let mapped = clock().utc_ns(monotonic_ns());
        let after = sonde_common::time::now_ns();
        let slack = 50_000_000; // what a preemption while the clocks are read may make of it
        assert!(
            mapped + slack >= before && mapped <= after + slack,
            "{before} {mapped} {after}"
        );
    }

    #[test]
    fn clocks_that_nobody_sets_make_no_step() {
        let mut timeline = Timeline::new(measure());
        for _ in 0..10_000 {
            assert_eq!(timeline.observe(measure()), None);
        }
    }
}
