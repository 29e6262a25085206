//! Bounds on what one side accepts from the other. A message beyond one of them is refused with a status that names it.

/// A hello as it travels. The catalogue of all probes takes a tenth of it.
pub const MAX_HELLO_BYTES: usize = 1 << 20;
/// A batch as it travels, compressed.
pub const MAX_BATCH_BYTES: usize = 8 << 20;
/// A batch after decompression: what a zstd frame may grow to. Decoded it may take several times as much memory.
pub const MAX_BODY_BYTES: usize = 16 << 20;
/// Strings, stacks, pods, row groups, events and gaps of a batch, with the columns, addresses, labels and attributes inside
/// them, all together: an empty one takes two bytes on the wire and up to hundreds in memory.
pub const MAX_ELEMENTS: usize = 400_000;
/// Probes of a catalogue.
pub const MAX_PROBES: usize = 256;
/// Columns of a probe: PostgreSQL allows 1,600 in a table.
pub const MAX_COLUMNS: usize = 400;
/// Numbers in a row of a probe: one for each counter and gauge, and those of its histograms. Each takes two columns of a
/// table.
pub const MAX_CELLS: usize = 480;
/// Labels of a probe.
pub const MAX_LABELS: usize = 16;
/// A node name: a DNS subdomain as Kubernetes has it.
pub const MAX_NODE_NAME: usize = 253;
/// A name of a probe, label or column. PostgreSQL cuts identifiers at 63 bytes; `probe_` and suffixes need room.
pub const MAX_NAME: usize = 48;
/// A string in the dictionary of a batch.
pub const MAX_STRING: usize = 4096;
/// A string that is a label of a row or a word of an event (probe, type, reason, protocol, comm, state, interface):
/// these are looked up through an index, and PostgreSQL bounds what an index entry may hold.
pub const MAX_WORD: usize = 1024;
/// 2020-01-01 UTC: a clock that says less was never set.
pub const EARLIEST_NS: u64 = 1_577_836_800_000_000_000;
/// Addresses of a pod.
pub const MAX_IPS: usize = 64;
/// Labels of a pod.
pub const MAX_POD_LABELS: usize = 256;
/// A name, key or value of a pod. A label of Kubernetes fits many times.
pub const MAX_POD_TEXT: usize = 1024;
/// Frames of a stack.
pub const MAX_FRAMES: usize = 256;
/// Attributes of an event.
pub const MAX_ATTRIBUTES: usize = 64;
/// How far ahead of the aggregator's clock a row or event may be.
pub const MAX_FUTURE_NS: u64 = 600 * 1_000_000_000;
