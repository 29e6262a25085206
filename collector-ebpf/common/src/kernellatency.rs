//! Probe `kernellatency`: packets on their way up, what the ways took, and the event record.

use crate::latency::Latency;
use crate::packet::Packet;
use crate::record::Head;

/// Places for packets on their way from a device to a socket.
pub const ARRIVALS: usize = 1 << 14;

record! {
    /// A packet that a device gave to the stack.
    #[derive(Debug)]
    pub struct Arrival {
        /// Its address as a number. 0: nothing.
        pub skb: u64,
        /// CLOCK_MONOTONIC.
        pub since_ns: u64,
        /// Address of the device as a number.
        pub device: u64,
        /// Whether it waits for its CPU still, see [`stage`].
        pub stage: u32,
        pub ifindex: u32,
    }
}

/// `Arrival::stage`.
pub mod stage {
    /// Put into the queue of a CPU (netif_rx): the stack has not seen it yet.
    pub const WAITS: u32 = 1;
    /// In the stack.
    pub const RECEIVED: u32 = 2;
}

record! {
    /// What times are counted by. 16 bytes.
    #[derive(Debug, PartialEq, Eq, Hash)]
    pub struct Key {
        pub cookie: u64,
        pub netns: u32,
        pub pad: u32,
    }
}

record! {
    /// One CPU's times of a namespace. Only ever grows.
    #[derive(Debug, Default, PartialEq, Eq)]
    pub struct Times {
        pub receive: Latency,
        pub send: Latency,
        /// Segments that reached a socket of which it is not known when they arrived.
        pub unmatched: u64,
    }
}

record! {
    /// A packet that took long. 192 bytes.
    #[derive(Debug)]
    pub struct Record {
        pub head: Head,
        pub latency_ns: u64,
        /// Of the device that it came or goes by. 0: not known.
        pub ifindex: u32,
        pub len: u32,
        pub packet: Packet,
    }
}

const _: () = assert!(size_of::<Record>() == 192);
