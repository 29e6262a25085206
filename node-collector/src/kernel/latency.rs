//! Histograms of times: from the kernel side's record to columns of a table.
//!
//! A probe of times declares [`LATENCY_BOUNDS`] and the three thresholds as columns, in this order:
//! `ColumnSpec::histogram("latency_seconds", "seconds", "...", LATENCY_BOUNDS).scaled(1e-9)`, then three counters
//! for what took longer than 1, 10 and 100 ms; [`push`] gives their values.

use std::io;

use sonde_ebpf_common::latency::{Latency, SLOTS};

use super::counted::Value;
use super::sys::RawMap;

/// Upper bounds of all slots but the last, in seconds: 1.024 us, 2.048 us, ... 17.2 s.
pub(crate) const LATENCY_BOUNDS: &[f64] = &bounds();

const fn bounds() -> [f64; SLOTS - 1] {
    let mut bounds = [0.0; SLOTS - 1];
    let mut slot = 0;
    while slot < bounds.len() {
        bounds[slot] = (1u64 << (slot + 10)) as f64 / 1e9;
        slot += 1;
    }
    bounds
}

/// Values of a histogram of [`LATENCY_BOUNDS`] in nanoseconds, and of the three counters behind it.
pub(crate) fn push(values: &mut Vec<i64>, latency: &Latency) {
    push_histogram(values, latency);
    values.extend(latency.over.map(|n| n as i64));
}

/// The histogram alone.
pub(crate) fn push_histogram(values: &mut Vec<i64>, latency: &Latency) {
    let slots = latency.slots.iter();
    values.extend(slots.chain([&latency.sum_ns]).map(|n| *n as i64));
}

/// All CPUs together, of a per-CPU array of times.
pub(crate) fn sum(times: &RawMap<u32, Latency>, at: u32) -> io::Result<Latency> {
    let mut sum = Latency::default();
    for copy in times.get(&at)?.unwrap_or_default() {
        sum.add(&copy);
    }
    Ok(sum)
}

impl Value for Latency {
    fn add(&mut self, other: &Self) {
        Self::add(self, other);
    }

    fn count(&self) -> u64 {
        Self::count(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalogue::ColumnSpec;
    use sonde_ebpf_common::latency::slot;

    #[test]
    fn a_time_lies_below_the_bound_of_its_slot_and_not_below_the_one_before() {
        for bound in LATENCY_BOUNDS {
            let ns = (bound * 1e9).round() as u64;
            for ns in [ns - 1, ns, ns + 1] {
                let slot = slot(ns);
                let seconds = ns as f64 / 1e9;
                assert!(LATENCY_BOUNDS.get(slot).is_none_or(|upper| seconds < *upper), "{ns}");
                assert!(slot == 0 || seconds >= LATENCY_BOUNDS[slot - 1], "{ns}");
            }
        }
        assert_eq!(LATENCY_BOUNDS.len(), SLOTS - 1);
        assert_eq!((LATENCY_BOUNDS[0], LATENCY_BOUNDS[10]), (1.024e-6, 1.048_576e-3));
    }

    #[test]
    fn a_histogram_has_as_many_values_as_its_column() {
        let column = ColumnSpec::histogram("latency_seconds", "seconds", "time of something", LATENCY_BOUNDS);
        let mut latency = Latency {
            sum_ns: 77,
            over: [3, 2, 1],
            ..Latency::default()
        };
        (latency.slots[0], latency.slots[SLOTS - 1]) = (5, 6);
        let mut values = Vec::new();
        push(&mut values, &latency);
        assert_eq!(values.len(), column.width() + 3);
        assert_eq!((values[0], values[SLOTS - 1]), (5, 6));
        assert_eq!(values[SLOTS..], [77, 3, 2, 1]);
    }
}
