//! Probe `netiftxlat`: where packets wait, what that took, and the event record.

use crate::latency::Latency;
use crate::packet::Packet;
use crate::record::Head;

/// Places for packets on their way through queueing disciplines. Many, as what waits long is what matters, and all that is
/// queued meanwhile may take its place.
pub const QUEUED: usize = 1 << 16;
/// Devices that one packet may be in at once: a tunnel over a VLAN over a bond. The kernel itself ends at 8.
pub const NESTED: usize = 8;

record! {
    /// A packet that was handed to a queueing discipline.
    #[derive(Debug)]
    pub struct Queued {
        /// Its address as a number, or the time stamp that segments made of it will have too. 0: nothing.
        pub key: u64,
        /// `skb->tstamp`.
        pub tstamp: u64,
        /// CLOCK_MONOTONIC.
        pub since_ns: u64,
        /// 0 in the entry by time stamp.
        pub len: u32,
        pub pad: u32,
    }
}

record! {
    /// What times are counted by. 32 bytes.
    #[derive(Debug, PartialEq, Eq, Hash)]
    pub struct Key {
        pub cookie: u64,
        pub netns: u32,
        pub pad: u32,
        /// Name of the device: an index would say nothing outside its namespace.
        pub device: [u64; 2],
    }
}

record! {
    /// One CPU's times of a key. Only ever grows.
    #[derive(Debug, Default, PartialEq, Eq)]
    pub struct Times {
        pub qdisc: Latency,
        pub xmit: Latency,
        /// Packets handed to the driver of which it is not known when they were queued.
        pub unmatched: u64,
    }
}

/// Of a packet of which it is not known when it was queued.
pub const UNMATCHED: u64 = u64::MAX;

record! {
    /// A packet that a driver is at work on.
    #[derive(Debug)]
    pub struct InDriver {
        /// Its address as a number.
        pub skb: u64,
        /// The device's likewise: one packet may be in several, of a tunnel and of what that sends over.
        pub on: u64,
        /// CLOCK_MONOTONIC. 0: not looked at.
        pub since_ns: u64,
        /// How long it waited before, [`UNMATCHED`] where that is not known: counted together with the driver's time.
        pub queued_ns: u64,
        pub key: Key,
        pub ifindex: u32,
        pub len: u32,
        pub packet: Packet,
    }
}

record! {
    /// Of one CPU.
    #[derive(Debug)]
    pub struct Drivers {
        /// How many of `at` are in use.
        pub depth: u32,
        pub pad: u32,
        pub at: [InDriver; NESTED],
    }
}

record! {
    /// A packet that took long. 208 bytes.
    #[derive(Debug)]
    pub struct Record {
        pub head: Head,
        pub latency_ns: u64,
        pub device: [u8; 16],
        pub ifindex: u32,
        /// With its link-layer header.
        pub len: u32,
        pub packet: Packet,
    }
}

const _: () = assert!(size_of::<Times>() == 488);
const _: () = assert!(size_of::<Record>() == 208);
