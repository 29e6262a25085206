//! What all records of the rings begin with.

/// Frames of a stack.
pub const STACK_FRAMES: usize = 64;

/// First word of every record: which struct it is.
pub mod kind {
    pub const DROP: u32 = 1;
    pub const RETRANSMIT: u32 = 2;
    pub const RESET: u32 = 3;
    pub const NET_SOFTIRQ: u32 = 4;
    pub const SOCKET_LATENCY: u32 = 5;
    pub const VIRTCMD: u32 = 6;
    pub const NETIFTXLAT_QDISC: u32 = 7;
    pub const NETIFTXLAT_XMIT: u32 = 8;
    pub const RXKERNEL: u32 = 9;
    pub const TXKERNEL: u32 = 10;
}

record! {
    /// The first two words of every record.
    #[derive(Debug)]
    pub struct Start {
        /// See [`kind`].
        pub kind: u32,
        /// Size of the whole record, stack included.
        pub size: u32,
    }
}

record! {
    /// How records begin. 40 bytes.
    #[derive(Debug)]
    pub struct Head {
        pub kind: u32,
        /// Size of the whole record, stack included.
        pub size: u32,
        /// CLOCK_MONOTONIC.
        pub ktime_ns: u64,
        pub cookie: u64,
        /// Inode; 0: not known.
        pub netns: u32,
        pub cpu: u32,
        /// Of the running task, which in a softirq is anybody.
        pub tgid: u32,
        /// What bpf_get_stack returned: bytes, or a negative error; 0: no stack was asked for.
        pub stack_bytes: i32,
    }
}

const _: () = assert!(size_of::<Head>() == 40);

/// How often a CPU may wake the reader of the rings, which in turn looks again at least as often for a while after it
/// found something.
pub const WAKE_EVERY_NS: u64 = 2_000_000;
