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
        /// Address of the device as a number; of a packet on its way down, of the socket.
        pub owner: u64,
        /// How far it is, see [`stage`].
        pub stage: u32,
        pub ifindex: u32,
        /// When the IP layer had it, and when it was through it; 0: not seen.
        pub ip_ns: u64,
        pub delivered_ns: u64,
        /// How long netfilter's hooks had it, and since when they have it now.
        pub hooks_ns: u64,
        pub hooked_ns: u64,
        /// How many of them it is in: one may call another.
        pub hook_depth: u32,
        /// Runs of hooks that it was through.
        pub hook_runs: u32,
    }
}

impl Arrival {
    /// Before it was anywhere.
    pub const fn new(skb: u64, since_ns: u64, owner: u64, stage: u32, ifindex: u32) -> Self {
        Self {
            skb,
            since_ns,
            owner,
            stage,
            ifindex,
            ip_ns: 0,
            delivered_ns: 0,
            hooks_ns: 0,
            hooked_ns: 0,
            hook_depth: 0,
            hook_runs: 0,
        }
    }
}

/// `Arrival::stage`.
pub mod stage {
    /// Put into the queue of a CPU (netif_rx): the stack has not seen it yet.
    pub const WAITS: u32 = 1;
    /// In the stack.
    pub const RECEIVED: u32 = 2;
    /// On its way down, from the IP layer on.
    pub const SENT: u32 = 3;
}

record! {
    /// Packets in netfilter's hooks on one CPU, for kernels whose exits do not say with what they were entered.
    #[derive(Debug)]
    pub struct Hooked {
        pub depth: u64,
        /// Their addresses as numbers.
        pub skbs: [u64; HOOKED],
    }
}

/// A hook that sends or receives a packet itself runs hooks within hooks. A power of two.
pub const HOOKED: usize = 8;

record! {
    /// What times are counted by. 16 bytes.
    #[derive(Debug, PartialEq, Eq, Hash)]
    pub struct Key {
        pub cookie: u64,
        pub netns: u32,
        /// IPPROTO_TCP or IPPROTO_UDP.
        pub protocol: u32,
    }
}

pub const TCP: u32 = 6;
pub const UDP: u32 = 17;

record! {
    /// One CPU's times of a namespace and protocol. Only ever grows.
    #[derive(Debug, Default, PartialEq, Eq)]
    pub struct Times {
        pub receive: Latency,
        pub send: Latency,
        /// Of these, what netfilter's hooks had.
        pub receive_hooks: Latency,
        pub send_hooks: Latency,
        /// Packets that reached a socket of which it is not known when they arrived.
        pub unmatched: u64,
    }
}

record! {
    /// A packet that took long. 224 bytes.
    #[derive(Debug)]
    pub struct Record {
        pub head: Head,
        pub latency_ns: u64,
        /// Parts of it, [`UNKNOWN`] where they were not seen: received, until the IP layer had it; the IP layer without
        /// hooks; netfilter's hooks; above the IP layer.
        pub device_ns: u64,
        pub ip_ns: u64,
        pub hooks_ns: u64,
        pub transport_ns: u64,
        /// Of the device that it came or goes by. 0: not known.
        pub ifindex: u32,
        pub len: u32,
        pub packet: Packet,
    }
}

/// A part of the time that is not known.
pub const UNKNOWN: u64 = u64::MAX;

const _: () = assert!(size_of::<Record>() == 224);
