//! Probe `flow`: what traffic is counted by, and how much of it.

use crate::drop::Site;

pub mod direction {
    pub const INGRESS: u8 = 0;
    pub const EGRESS: u8 = 1;
}

pub mod family {
    /// Not an IP packet, or its header is not at hand.
    pub const OTHER: u8 = 0;
    pub const IPV4: u8 = 4;
    pub const IPV6: u8 = 6;
    /// Everything for which a namespace has no room left, of any address.
    pub const REST: u8 = 255;
}

/// Flows that one namespace may have in the map: what it has beyond goes to [`family::REST`], so that nobody who speaks
/// to everybody takes the room of others.
pub const PER_NAMESPACE: u64 = 1024;

record! {
    /// What traffic is counted by. 72 bytes.
    #[derive(Debug, PartialEq, Eq, Hash)]
    pub struct Key {
        pub cookie: u64,
        pub netns: u32,
        /// Host byte order. 0: none, or not asked for.
        pub sport: u16,
        pub dport: u16,
        /// IPv4 in the first four bytes.
        pub saddr: [u32; 4],
        pub daddr: [u32; 4],
        /// Name.
        pub device: [u64; 2],
        /// IP protocol number, behind extension headers.
        pub protocol: u8,
        /// See [`family`].
        pub family: u8,
        /// See [`direction`].
        pub direction: u8,
        /// Two fields, as an odd number of bytes is zeroed by a loop.
        pub pad: u8,
        pub pad_word: u32,
    }
}

record! {
    /// One CPU's count of a key. Only ever grows.
    #[derive(Debug, Default, PartialEq, Eq)]
    pub struct Count {
        /// As they are on the wire: segments of a GSO buffer count each.
        pub packets: u64,
        /// With link-layer header, without frame check sequence.
        pub bytes: u64,
        /// Packets as above that were dropped where it is a loss, but for [`DropKey`].
        pub drops: u64,
        /// Segments that TCP sent again, as the kernel counts them for RetransSegs.
        pub retransmits: u64,
    }
}

record! {
    /// What drops are counted by of which user space has not yet said whether they are a loss. 88 bytes.
    #[derive(Debug, PartialEq, Eq, Hash)]
    pub struct DropKey {
        /// As it is in the map of flows.
        pub flow: Key,
        pub site: Site,
    }
}

record! {
    /// One CPU's count of a [`DropKey`].
    #[derive(Debug, Default, PartialEq, Eq)]
    pub struct Dropped {
        pub packets: u64,
    }
}

/// Packets that a CPU lets a filter see before it looks again whether the collector lives.
pub const LOOK_EVERY: u32 = 64;

record! {
    /// What one CPU knows of the collector whose filter it runs.
    #[derive(Debug, Default)]
    pub struct Look {
        /// Packets until it looks again.
        pub left: u32,
        /// 1: the collector has not been heard of for long.
        pub gone: u32,
        /// Packets that were handed on uncounted for that. Only ever grows.
        pub passed: u64,
    }
}

record! {
    /// A device by its index, for packets that say no more than that.
    #[derive(Debug)]
    pub struct DeviceKey {
        pub cookie: u64,
        pub netns: u32,
        pub ifindex: u32,
    }
}

const _: () = assert!(size_of::<Key>() == 72);
const _: () = assert!(size_of::<DropKey>() == 88);
