//! Causes of a gap. A fixed set, so that they can be counted and searched.

/// The token bucket of (network namespace, type) held events back.
pub const RATE_LIMITED: &str = "rate_limited";
/// The ring buffer between kernel and collector was full.
pub const RING_FULL: &str = "ring_full";
/// The kernel skipped runs of a program (recursion guard): counts are low by this number.
pub const PROGRAM_SKIPPED: &str = "program_skipped";
/// A map was full: what it should have counted went to the overflow slot.
pub const MAP_FULL: &str = "map_full";
/// The spool was full and data was dropped from it, or the disk did not take what was to be written (then `detail` says why).
pub const SPOOL_FULL: &str = "spool_full";
/// The spool held bytes that could not be read back.
pub const SPOOL_DAMAGED: &str = "spool_damaged";
/// The aggregator refused a batch for its content.
pub const POISON_BATCH: &str = "poison_batch";
/// The collector was not running.
pub const COLLECTOR_DOWN: &str = "collector_down";
/// A source could not be read.
pub const READ_FAILED: &str = "read_failed";
/// A record from the kernel could not be decoded.
pub const BAD_RECORD: &str = "bad_record";
/// A sink of the collector could not deliver events. What the aggregator has is whole.
pub const SINK_LOST: &str = "sink_lost";
/// The configuration had the probe, or its events, switched off while the collector ran.
pub const SWITCHED_OFF: &str = "switched_off";

/// UTC did not go on as before: the clock was set, or the machine slept. The span is what was never there, or was there
/// twice; `detail` says how far. Events and rows on both sides of it have the time of the clock as it was then.
pub const CLOCK_STEP: &str = "clock_step";
/// Programs took more of the CPU than they may: a probe looked at less, or told less.
pub const GOVERNOR: &str = "governor";

/// All of them.
pub const ALL: [&str; 14] = [
    RATE_LIMITED,
    RING_FULL,
    PROGRAM_SKIPPED,
    MAP_FULL,
    SPOOL_FULL,
    SPOOL_DAMAGED,
    POISON_BATCH,
    COLLECTOR_DOWN,
    READ_FAILED,
    BAD_RECORD,
    SINK_LOST,
    SWITCHED_OFF,
    GOVERNOR,
    CLOCK_STEP,
];
