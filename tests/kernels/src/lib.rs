//! The kernel matrix: boots Debian's kernels under QEMU, runs the collector in each with every way to hook into the kernel,
//! makes real faults there, and compares what the collector says with what was done.
//!
//! `host` is what runs here: kernels from Debian's mirror, an initramfs, QEMU, the table. The program `sonde-guest` is
//! the first process of the virtual machine: `guest`. They talk in lines of JSON over a serial port: [`Line`].

use serde::{Deserialize, Serialize};

pub mod guest;
pub mod host;

/// What the guest says, a line each.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "say")]
pub enum Line {
    /// The guest runs.
    Up { release: String },
    /// A signal on one rung.
    Check(Check),
    /// Runs of programs that the kernel says it skipped while a check found something wrong, which is made again.
    Skipped { run: String, signal: String, count: u64 },
    /// The log of a collector of which a check failed.
    Log { run: String, text: String },
    /// A line of the collector's own tests.
    Tests { text: String },
    /// All went as planned, whatever the checks found.
    End,
    /// Something that the checks need does not work.
    Broken { why: String },
}

/// One signal in one run of the collector.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// Of [`crate::guest::RUNS`].
    pub run: String,
    pub signal: String,
    /// What the collector runs it on, absent: off.
    pub rung: Option<String>,
    /// Why it is off, or not on a better rung.
    pub reason: String,
    pub outcome: Outcome,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// What it said was right; with what that was.
    Right(String),
    Wrong(String),
    /// It did not run.
    Off,
}
