//! Probe `tcpreset`: map keys, counts and the event record.

use crate::connection::Connection;
use crate::record::Head;

/// Which side of what.
pub mod kind {
    /// Sent in answer to a segment that belongs to no socket.
    pub const NOSOCK: u32 = 0;
    /// Sent in answer to a segment that its socket does not accept.
    pub const PROCESS: u32 = 1;
    /// Sent as the socket's own side gives the connection up.
    pub const ACTIVE: u32 = 2;
    pub const RECEIVE: u32 = 3;
}

record! {
    /// What resets are counted by. 16 bytes.
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
    pub struct Resets {
        pub resets: u64,
    }
}

/// A socket that was shut down and gets data "receives" a reset in the kernel's eyes, and then sends one, on the same CPU
/// and in the same call. So a reset received in such a state is held until it is clear that none is sent. The call takes
/// microseconds, but a virtual machine may stand still in the middle of it.
pub const HOLD_NS: u64 = 100_000_000;

/// Entries of the maps below that are indexed by [`slot`].
pub const HELD: u32 = 64;
/// Many, as a place may be taken by another socket of the machine before it was read.
pub const STATES: u32 = 8192;

/// Place of a socket by its address, in a map of a power of two of entries.
#[inline(always)]
pub const fn slot(socket: u64, entries: u32) -> u32 {
    // Sockets are some KiB apart.
    ((socket >> 6) ^ (socket >> 16)) as u32 & (entries - 1)
}

record! {
    /// A received reset that is not counted yet.
    #[derive(Debug, PartialEq, Eq)]
    pub struct Held {
        /// Address of the socket, 0: none is held.
        pub socket: u64,
        /// CLOCK_MONOTONIC.
        pub ktime_ns: u64,
        pub cookie: u64,
        pub netns: u32,
        pub pad: u32,
    }
}

record! {
    /// A received reset that was told of with [`flag::HELD`].
    #[derive(Debug, PartialEq, Eq)]
    pub struct Told {
        pub socket: u64,
        pub ktime_ns: u64,
        /// 1: it was none.
        pub mistaken: u64,
    }
}

record! {
    /// The state a socket was in before it became TCP_CLOSE.
    #[derive(Debug)]
    pub struct Closed {
        pub socket: u64,
        pub state: u64,
    }
}

/// `Record::flags`.
pub mod flag {
    /// Only a reset if its [`super::Told`] does not say otherwise once the call that it was made in is over.
    pub const HELD: u32 = 1;
}

/// The kernel gives no reason.
pub const NO_REASON: u32 = u32::MAX;

record! {
    /// One reset. 104 bytes.
    #[derive(Debug)]
    pub struct Record {
        pub head: Head,
        /// For what was received, the socket's own end first; for what was sent, the sender.
        pub connection: Connection,
        /// Address of the socket; 0: none.
        pub socket: u64,
        /// See [`kind`].
        pub kind: u32,
        /// `enum sk_rst_reason` of the running kernel, or [`NO_REASON`].
        pub reason: u32,
        pub flags: u32,
        pub pad: u32,
    }
}

const _: () = assert!(size_of::<Record>() == 104);
