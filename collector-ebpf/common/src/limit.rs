//! The token bucket of each (network namespace, event type).

positions! {
    TYPES:
    PACKETLOSS,
    /// Drops at a place that user space has not classified yet: they must not eat the tokens of real ones.
    PACKETLOSS_NEW_SITE,
    TCPRETRANS,
    TCPRESET_NOSOCK,
    TCPRESET_PROCESS,
    TCPRESET_ACTIVE,
    TCPRESET_RECEIVE,
    NETSOFTIRQ_SCHED_SLOW,
    NETSOFTIRQ_SCHED_100MS,
    NETSOFTIRQ_EXCUTE_SLOW,
    NETSOFTIRQ_EXCUTE_100MS,
    SOCKETLAT_READSLOW,
    SOCKETLAT_SENDSLOW,
    VIRTCMDEXCUTE,
    VIRTCMDEXCUTE_100MS,
    NETIFTXLAT_QDISC,
    NETIFTXLAT_XMIT,
    RXKERNEL_SLOW,
    TXKERNEL_SLOW,
}

/// The inode under which everything goes that belongs to no listed namespace.
pub const UNKNOWN: u32 = 0;

record! {
    /// What the kernel side knows of a network namespace that the collector listed, by inode.
    #[derive(Debug)]
    pub struct Namespace {
        /// 0: the kernel gives none to user space, so the inode alone must do.
        pub cookie: u64,
        /// CLOCK_MONOTONIC at which each type's bucket will be full again (GCRA's theoretical arrival time).
        pub tat: [u64; TYPES],
    }
}

/// Namespaces whose answer a CPU remembers. A power of two.
pub const RECENT: u32 = 64;

record! {
    /// Whether a namespace is listed, as one CPU last learned it.
    #[derive(Debug)]
    pub struct Learned {
        pub cookie: u64,
        /// Its inode, 31 bits of which state of the list, and whether it was listed. 0: nothing yet.
        pub answer: u64,
    }
}

record! {
    /// Events that buckets held back, per CPU, by inode. Only ever grows.
    #[derive(Debug, Default)]
    pub struct Held {
        pub events: [u64; TYPES],
    }
}
