//! Who sets the clock is noticed at once: the kernel cancels a timer of ours then (Linux 3.0), and after a sleep.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::io::Errno;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::event::Gap;

/// Also looked at without being told, should the kernel not tell.
const LOOK: Duration = Duration::from_secs(1);

/// Reads the clocks anew whenever they may not go together any more, and hands on what came of it. Never ends.
pub(crate) async fn watch(tell: impl Fn(Vec<Gap>)) {
    let mut set = Set::new();
    if let Err(error) = &set {
        tracing::warn!(%error, "that the clock is set is noticed within a second only");
    }
    loop {
        match &mut set {
            Ok(set) => _ = tokio::time::timeout(LOOK, set.happened()).await,
            Err(_) => tokio::time::sleep(LOOK).await,
        }
        super::refresh();
        let gaps: Vec<Gap> = super::steps().into_iter().map(super::Step::gap).collect();
        for gap in &gaps {
            tracing::warn!(what = gap.detail, "the clock made a step");
        }
        if !gaps.is_empty() {
            tell(gaps);
        }
    }
}

/// A timer far away that is only there to be cancelled.
struct Set(AsyncFd<OwnedFd>);

impl Set {
    fn new() -> io::Result<Self> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer = timerfd_create(TimerfdClockId::Realtime, flags)?;
        arm(&timer)?;
        // SAFETY: an `OwnedFd` is the same open descriptor until it is dropped, with the registration that owns it.
        let timer = unsafe { AsyncFd::register_with_interest(timer, Interest::READABLE) }?;
        Ok(Self(timer))
    }

    async fn happened(&mut self) -> io::Result<()> {
        loop {
            let mut ready = self.0.readable().await?;
            let read = rustix::io::read(self.0.get_ref(), &mut [0; 8]);
            ready.clear_ready();
            if read != Err(Errno::AGAIN) {
                return arm(self.0.get_ref());
            }
        }
    }
}

fn arm(timer: &OwnedFd) -> io::Result<()> {
    let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
    let never = Itimerspec {
        it_interval: zero,
        // The year 2200.
        it_value: Timespec {
            tv_sec: 7_258_118_400,
            tv_nsec: 0,
        },
    };
    let flags = TimerfdTimerFlags::ABSTIME | TimerfdTimerFlags::CANCEL_ON_SET;
    timerfd_settime(timer, flags, &never)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_kernel_takes_such_a_timer_and_leaves_it_alone_while_nobody_sets_the_clock() {
        let mut set = Set::new().unwrap();
        let soon = Duration::from_millis(100);
        assert!(tokio::time::timeout(soon, set.happened()).await.is_err());
    }
}
