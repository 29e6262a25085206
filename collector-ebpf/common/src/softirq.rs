//! Probe `net_softirq`: places in the array of times, and the event record.

use crate::record::Head;

/// `enum` of include/linux/interrupt.h: part of the kernel's interface, /proc/softirqs has this order.
pub mod vector {
    pub const NET_TX: u32 = 2;
    pub const NET_RX: u32 = 3;
}

/// What is measured of a vector.
pub mod phase {
    /// From the first raise to the entry of the handler.
    pub const SCHED: u32 = 0;
    /// From entry to exit.
    pub const EXECUTE: u32 = 1;
}

/// Places in the array: two phases of two vectors.
pub const PLACES: u32 = 4;

/// `vector` is NET_TX or NET_RX.
#[inline(always)]
pub const fn place(vector: u32, phase: u32) -> u32 {
    (vector & 1) * 2 + phase
}

record! {
    /// What is going on at a CPU, by lowest bit of the vector. CLOCK_MONOTONIC, 0: nothing.
    #[derive(Debug)]
    pub struct Going {
        pub raised: [u64; 2],
        pub entered: [u64; 2],
    }
}

record! {
    /// One slow phase; its CPU is in the head. 56 bytes.
    #[derive(Debug)]
    pub struct Record {
        pub head: Head,
        pub latency_ns: u64,
        pub vector: u32,
        pub phase: u32,
    }
}

const _: () = assert!(size_of::<Record>() == 56);
const _: () = assert!(place(vector::NET_RX, phase::EXECUTE) == PLACES - 1);
const _: () = assert!(place(vector::NET_TX, phase::SCHED) == 0);
