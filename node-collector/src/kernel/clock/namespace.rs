//! In a time namespace CLOCK_MONOTONIC and CLOCK_BOOTTIME are shifted for its processes, and for nobody else (Linux 5.6). Our
//! programs stamp by the kernel's own clock, so what we read is put back by the shift.

use std::sync::LazyLock;

/// Nanoseconds by which the clocks of this process are ahead of the kernel's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Shift {
    pub(super) monotonic_ns: i64,
    pub(super) boot_ns: i64,
}

/// It cannot change while a process is in a namespace, and only a fork or an exec leads into another one.
pub(super) static SHIFT: LazyLock<Shift> = LazyLock::new(|| {
    // Of this process, whatever `host.proc` says. Kernels without time namespaces have no such file.
    let text = std::fs::read_to_string("/proc/self/timens_offsets").unwrap_or_default();
    let shift = parse(&text);
    if shift != Shift::default() {
        tracing::info!(
            monotonic_seconds = shift.monotonic_ns / 1_000_000_000,
            boot_seconds = shift.boot_ns / 1_000_000_000,
            "in a time namespace: its clocks are put back to the kernel's, by which events are stamped"
        );
    }
    shift
});

/// Lines of a clock's name, seconds and nanoseconds, the latter always ahead.
fn parse(text: &str) -> Shift {
    let of = |clock: &str| {
        text.lines().find_map(|line| {
            let mut words = line.split_whitespace();
            (words.next()? == clock).then_some(())?;
            let (seconds, nanos): (i64, i64) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
            seconds.checked_mul(1_000_000_000)?.checked_add(nanos)
        })
    };
    Shift {
        monotonic_ns: of("monotonic").unwrap_or(0),
        boot_ns: of("boottime").unwrap_or(0),
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::kernel::clock::{clock, measure, monotonic_ns};

    #[test]
    fn a_shift_is_read_as_the_kernel_writes_it() {
        let shift = |monotonic_ns, boot_ns| Shift { monotonic_ns, boot_ns };
        let here = "monotonic           0         0\nboottime            0         0\n";
        assert_eq!(parse(here), shift(0, 0));
        let there = "monotonic      864000         7\nboottime           -2 500000000\n";
        assert_eq!(parse(there), shift(864_000_000_000_007, -1_500_000_000));
        assert_eq!(parse(""), shift(0, 0));
        assert_eq!(parse("monotonic junk\nboottime 1"), shift(0, 0));
    }

    const BEFORE: &str = "SONDE_TEST_MONOTONIC_BEFORE";

    /// Runs itself once more in a time namespace.
    #[test]
    fn in_a_time_namespace_events_have_the_time_that_they_have_outside() {
        if let Ok(before) = std::env::var(BEFORE) {
            return inside(before.parse().unwrap());
        }
        let name = "kernel::clock::namespace::tests::in_a_time_namespace_events_have_the_time_that_they_have_outside";
        let run = Command::new("unshare")
            .args(["--time", "--monotonic", "864000", "--boottime", "86400", "--"])
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", name, "--nocapture"])
            .env(BEFORE, monotonic_ns().to_string())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&run.stdout).into_owned() + &String::from_utf8_lossy(&run.stderr);
        assert!(run.status.success(), "{said}");
        assert!(said.contains("1 passed"), "{said}");
    }

    fn inside(before: u64) {
        const DAY: i64 = 86_400_000_000_000;
        assert_eq!((SHIFT.monotonic_ns, SHIFT.boot_ns), (10 * DAY, DAY));
        let now = monotonic_ns();
        // What a program of the kernel stamps now lies after what was read outside, and less than a day after it.
        assert!(now >= before && now - before < DAY as u64, "{before} {now}");
        let (utc, mapped) = (sonde_common::time::now_ns(), clock().utc_ns(now));
        assert!(utc.abs_diff(mapped) < DAY as u64, "{utc} {mapped}");
        // The machine is not said to have slept.
        let sample = measure();
        assert!(sample.boot_ns >= sample.monotonic_ns);
    }
}
