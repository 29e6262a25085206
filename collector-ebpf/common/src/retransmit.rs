//! Probe `tcpretrans`: map key, count and the event record.

use crate::connection::Connection;
use crate::record::Head;

/// Why a segment was sent again.
pub mod kind {
    pub const SYN: u32 = 0;
    pub const SYN_ACK: u32 = 1;
    pub const FAST: u32 = 2;
    pub const RTO: u32 = 3;
    pub const TLP: u32 = 4;
    pub const LOSS_RECOVERY: u32 = 5;
    pub const OTHER: u32 = 6;
}

record! {
    /// What retransmits are counted by. 16 bytes.
    #[derive(Debug, PartialEq, Eq, Hash)]
    pub struct Key {
        pub cookie: u64,
        pub netns: u32,
        /// See [`kind`].
        pub kind: u32,
    }
}

record! {
    /// One CPU's count of a key. Only ever grows.
    #[derive(Debug, Default, PartialEq, Eq)]
    pub struct Segments {
        pub segments: u64,
    }
}

record! {
    /// One buffer sent again. 88 bytes.
    #[derive(Debug)]
    pub struct Record {
        pub head: Head,
        pub connection: Connection,
        /// In that buffer.
        pub segments: u32,
        pub kind: u32,
    }
}

const _: () = assert!(size_of::<Record>() == 88);
