//! A histogram of times, and the thresholds that people ask for.

/// Slots of a histogram. Slot `i` counts times below `2^(i+10)` ns that no lower slot counts: 1.024 us, 2.048 us, ...
/// 17.2 s; the last one counts everything above.
pub const SLOTS: usize = 26;

/// Times above each of these are counted exactly too, in nanoseconds.
pub const THRESHOLDS: [u64; 3] = [1_000_000, 10_000_000, 100_000_000];

record! {
    /// One CPU's times. Only ever grows. 240 bytes.
    #[derive(Debug, Default, PartialEq, Eq)]
    pub struct Latency {
        pub sum_ns: u64,
        pub slots: [u64; SLOTS],
        /// Above 1, 10 and 100 ms.
        pub over: [u64; THRESHOLDS.len()],
    }
}

/// The slot of a time. Without a branch but the last, and without a loop: the verifier follows each.
#[inline(always)]
pub const fn slot(ns: u64) -> usize {
    let slot = u64::BITS as usize - (ns >> 10).leading_zeros() as usize;
    if slot < SLOTS { slot } else { SLOTS - 1 }
}

impl Latency {
    pub fn add(&mut self, other: &Self) {
        self.sum_ns += other.sum_ns;
        for (mine, theirs) in self.slots.iter_mut().zip(other.slots) {
            *mine += theirs;
        }
        for (mine, theirs) in self.over.iter_mut().zip(other.over) {
            *mine += theirs;
        }
    }

    pub fn count(&self) -> u64 {
        self.slots.iter().sum()
    }
}

const _: () = assert!(size_of::<Latency>() == 240);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_ends_right_below_its_bound() {
        assert_eq!((slot(0), slot(1), slot(1023)), (0, 0, 0));
        for i in 0..SLOTS - 1 {
            let bound = 1u64 << (i + 10);
            assert_eq!(slot(bound - 1), i, "{bound}");
            assert_eq!(slot(bound), i + 1, "{bound}");
        }
        assert_eq!(slot(u64::MAX), SLOTS - 1);
        assert_eq!(slot(1 << 35), SLOTS - 1);
    }
}
