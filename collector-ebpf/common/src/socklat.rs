//! Probe `socketlatency`: what is kept of sockets, map keys, and the event record.

use crate::connection::Connection;
use crate::record::Head;

/// What a time is of.
pub mod operation {
    /// From when the oldest byte (of a datagram: the oldest one) could be read to when it was.
    pub const READ: u16 = 0;
    /// From when a send had put its bytes into the socket to when the last of them went to the device; of a datagram from
    /// when it began to wait for its next hop, without which it takes no time.
    pub const SEND: u16 = 1;
}

pub const TCP: u16 = 6;
pub const UDP: u16 = 17;

record! {
    /// What times are counted by. 16 bytes.
    #[derive(Debug, PartialEq, Eq, Hash)]
    pub struct Key {
        pub cookie: u64,
        pub netns: u32,
        /// See [`operation`].
        pub operation: u16,
        /// [`TCP`] or [`UDP`].
        pub protocol: u16,
    }
}

/// Arrivals remembered of one socket.
pub const MARKS: usize = 8;

record! {
    /// Bytes that came at one time: those before `seq` that no mark before has.
    #[derive(Debug, Default)]
    pub struct Mark {
        /// CLOCK_MONOTONIC.
        pub ktime_ns: u64,
        pub seq: u32,
        pub pad: u32,
    }
}

record! {
    /// What waits in a TCP socket to be read. By the socket's address. 200 bytes.
    #[derive(Debug)]
    pub struct Reads {
        pub cookie: u64,
        pub netns: u32,
        /// Marks in use, the oldest first.
        pub count: u32,
        /// When the last slow read of it was told.
        pub told_ns: u64,
        /// Sequence number that the reader had come to when it was looked last.
        pub copied: u32,
        pub pad: u32,
        pub connection: Connection,
        pub marks: [Mark; MARKS],
    }
}

record! {
    /// What waits in a UDP socket to be read. By the socket's address.
    #[derive(Debug)]
    pub struct Datagrams {
        /// The oldest one came no later than this; 0: there is none. CLOCK_MONOTONIC.
        pub since_ns: u64,
        /// When the socket was last seen.
        pub seen_ns: u64,
    }
}

record! {
    /// What waits in a TCP socket to be sent. By the socket's address. 64 bytes.
    #[derive(Debug)]
    pub struct Sends {
        pub cookie: u64,
        /// When the send call ended that had put the bytes before `seq` there. CLOCK_MONOTONIC.
        pub ktime_ns: u64,
        pub netns: u32,
        pub seq: u32,
        /// Of the process that called.
        pub tgid: u32,
        /// The same moment in jiffies.
        pub jiffies: u32,
        /// For how many jiffies the peer's window, and the socket's own buffer, had held back sending until then.
        pub held: [u32; 2],
        /// Own and peer, network byte order.
        pub ports: [u16; 2],
        pub pad: u32,
        pub comm: [u8; 16],
    }
}

record! {
    /// A datagram that waits until it is known where its next hop is. By the packet's address. 56 bytes.
    #[derive(Debug)]
    pub struct Held {
        pub cookie: u64,
        /// Address of the socket.
        pub sk: u64,
        /// When it began to wait. CLOCK_MONOTONIC.
        pub ktime_ns: u64,
        pub netns: u32,
        /// Of the process that called.
        pub tgid: u32,
        pub comm: [u8; 16],
        pub pad: u64,
    }
}

record! {
    /// What a send call that has not come back yet left waiting. By thread.
    #[derive(Debug)]
    pub struct Holding {
        /// Address of the socket.
        pub sk: u64,
        /// Of the last packet.
        pub skb: u64,
    }
}

/// What keeps a socket from sending: `enum tcp_chrono`, and one more.
pub mod limited {
    /// Something was on its way, and nothing below held it back: congestion window, pacing, Nagle.
    pub const BUSY: u32 = 1;
    pub const RWND: u32 = 2;
    pub const SNDBUF: u32 = 3;
    /// The link-layer address of the next hop was not known.
    pub const NEIGHBOUR: u32 = 4;
}

record! {
    /// One slow read or send. 120 bytes.
    #[derive(Debug)]
    pub struct Record {
        pub head: Head,
        pub connection: Connection,
        pub latency_ns: u64,
        /// Of the reader or sender, 0: not known. Not the running task's of the head.
        pub tgid: u32,
        /// Bytes that still wait.
        pub waiting: u32,
        /// See [`operation`].
        pub operation: u16,
        pub protocol: u16,
        /// What took most of the time, see [`limited`]; 0: not known, or a read.
        pub limited: u32,
        pub comm: [u8; 16],
    }
}

const _: () = assert!(size_of::<Key>() == 16);
const _: () = assert!(size_of::<Reads>() == 200);
const _: () = assert!(size_of::<Sends>() == 64);
const _: () = assert!(size_of::<Held>() == 56);
const _: () = assert!(size_of::<Record>() == 120);
