//! Probe `virtcmdlatency`: the event record.

use crate::record::Head;

record! {
    /// One slow command; who gave it is in the head. 64 bytes.
    #[derive(Debug)]
    pub struct Record {
        pub head: Head,
        pub latency_ns: u64,
        pub comm: [u8; 16],
    }
}

const _: () = assert!(size_of::<Record>() == 64);
