//! What tells a filter that its collector lives, as it may outlive it: the time of the last round. A filter that has not heard
//! of it for three rounds and a minute hands packets on uncounted, until it does.

use std::io;

use sonde_ebpf_common::flow::Look;

use crate::kernel::clock::monotonic_ns;
use crate::kernel::sys::{BPF_ANY, RawMap};

pub(in super::super) struct Beat {
    last: RawMap<u32, u64>,
    looks: RawMap<u32, Look>,
    /// Packets that went uncounted until it was asked last.
    passed: u64,
}

impl Beat {
    /// The first one comes before any filter.
    pub(in super::super) fn new(last: RawMap<u32, u64>, looks: RawMap<u32, Look>) -> io::Result<Self> {
        let mut beat = Self { last, looks, passed: 0 };
        beat.beat()?;
        Ok(beat)
    }

    /// Says that the collector lives. Gives on whether it was taken to be gone.
    pub(super) fn beat(&mut self) -> io::Result<bool> {
        self.last.set(&0, &monotonic_ns(), BPF_ANY)?;
        let copies = self.looks.get(&0)?.unwrap_or_default();
        let passed = copies.iter().map(|look| look.passed).sum();
        Ok(std::mem::replace(&mut self.passed, passed) != passed)
    }
}
