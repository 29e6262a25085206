//! CLOCK_MONOTONIC, in which the kernel side stamps, as UTC.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

/// How long a mapping is trusted: UTC may be stepped or slewed at any time.
const REFRESH_NS: u64 = 1_000_000_000;

static OFFSET: AtomicI64 = AtomicI64::new(0);
/// CLOCK_MONOTONIC of the last reading, 0 = never.
static READ_AT: AtomicU64 = AtomicU64::new(0);

/// UTC minus CLOCK_MONOTONIC, as it was at most a second ago.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clock {
    offset_ns: i64,
}

/// The mapping of now. Cheap: the clocks are read at most once a second.
pub fn clock() -> Clock {
    let now = monotonic_ns();
    let read_at = READ_AT.load(Ordering::Relaxed);
    if read_at == 0 || now.saturating_sub(read_at) >= REFRESH_NS {
        OFFSET.store(measure(), Ordering::Relaxed);
        READ_AT.store(now, Ordering::Relaxed);
    }
    Clock {
        offset_ns: OFFSET.load(Ordering::Relaxed),
    }
}

impl Clock {
    pub fn utc_ns(self, ktime_ns: u64) -> u64 {
        ktime_ns.saturating_add_signed(self.offset_ns)
    }
}

/// Of three readings the one that took least: a preemption between two clocks would be an error of its length.
fn measure() -> i64 {
    (0..3)
        .map(|_| {
            let before = monotonic_ns();
            let utc = read(libc::CLOCK_REALTIME);
            let after = monotonic_ns();
            let middle = before + (after - before) / 2;
            (after - before, utc as i64 - middle as i64)
        })
        .min()
        .map_or(0, |(_, offset)| offset)
}

pub(crate) fn monotonic_ns() -> u64 {
    read(libc::CLOCK_MONOTONIC)
}

fn read(id: libc::clockid_t) -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a valid timespec; the call writes nothing else. It cannot fail for these two clocks.
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
        let slack = 50_000_000; // the mapping may be a second old and UTC slewed since
        assert!(
            mapped + slack >= before && mapped <= after + slack,
            "{before} {mapped} {after}"
        );
    }
}
