//! Probe `dns`: queries that wait, and what is counted of them.

use crate::latency::Latency;

/// Queries that may wait for their answer at once.
pub const WAITING: u32 = 8192;

record! {
    /// A query. 48 bytes.
    #[derive(Debug, PartialEq, Eq, Hash)]
    pub struct QueryKey {
        pub cookie: u64,
        pub netns: u32,
        /// Of the message, as it is in the packet.
        pub id: u16,
        /// Of the client, host byte order.
        pub port: u16,
        /// IPv4 in the first four bytes.
        pub client: [u32; 4],
        pub server: [u32; 4],
    }
}

record! {
    /// When it was sent.
    #[derive(Debug)]
    pub struct Query {
        /// CLOCK_MONOTONIC, of the first time.
        pub since_ns: u64,
        /// The device that it was sent by.
        pub ifindex: u32,
        pub pad: u32,
    }
}

record! {
    /// What is counted by. 16 bytes.
    #[derive(Debug, PartialEq, Eq, Hash)]
    pub struct Key {
        pub cookie: u64,
        pub netns: u32,
        pub pad: u32,
    }
}

record! {
    /// One CPU's counts of a namespace. Only ever grows.
    #[derive(Debug, Default, PartialEq, Eq)]
    pub struct Count {
        pub latency: Latency,
        pub queries: u64,
        /// Sent again while the first one waited.
        pub retries: u64,
        /// By position in [`answer`].
        pub answers: [u64; answer::KINDS],
        /// Of them, how many say that they were cut off.
        pub truncated: u64,
    }
}

pub mod answer {
    positions! {
        KINDS:
        NOERROR,
        SERVFAIL,
        NXDOMAIN,
        REFUSED,
        OTHER,
    }
}

const _: () = assert!(size_of::<QueryKey>() == 48);
