//! What the kernel side could not do, counted.

use crate::limit::TYPES;

positions! {
    COUNTERS:
    PACKETLOSS,
    TCPRETRANS,
    TCPRESET,
    SOCKETLATENCY,
    CONNECT,
    VIRTCMDLATENCY,
    NETIFTXLAT,
    KERNELLATENCY,
    FLOW,
    DNS,
}

record! {
    /// Of one CPU. Only ever grows.
    #[derive(Debug, Default)]
    pub struct Lost {
        /// By position above: counted under no key as the probe's map was full.
        pub uncounted: [u64; COUNTERS],
        /// By position in [`crate::limit`]: events for which their ring had no room.
        pub ring_full: [u64; TYPES],
    }
}
