//! How readings of probes are kept: keyframes and differences to them.
//!
//! The series (subject and labels) of a probe on a node are laid out in slots, and slots in chunks of up to some thousand
//! values. A chunk has a *frame*: a row of `key_<probe>` for each slot, with its values when it came in, and then for each
//! reading one row of `delta_<probe>`, whose arrays hold, over the slots, how far each value is from its keyframe. A
//! column in which nothing moved is null. So a reading is one row for a whole chunk, and an idle pod costs next to nothing.
//!
//! All frames of a probe on a node are laid out anew ([`Layout`]) after a number of readings, at the end of a UTC day, when
//! the table has grown wider, and when too many slots are empty. Series that move most come first, since an array goes
//! from the first slot that moved to the last.
//!
//! What is here in memory is what the tables hold: after an error nobody knows, so [`Frames::clear`] and all begin anew.

mod chunk;
mod layout;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use sonde_proto::{ABSENT, v1};
use tokio::time::Instant;

use super::batch::StreamProbe;
use super::catalogue::Definition;
use super::copy::CopyBuffer;
use super::encode::Numbers;
use super::partitions::Day;
use chunk::Scratch;
pub(super) use chunk::{ABSENT_NARROW, ABSENT_WIDE};
use layout::Layout;

/// Readings after which the frames of a probe begin anew: long enough that keyframes cost little, short enough that
/// differences stay small.
const READINGS: u32 = 120;
/// The same where nothing is known yet about which series move.
const FIRST_READINGS: u32 = 8;
/// What has not been written to for so long takes no memory any more.
const IDLE: Duration = Duration::from_secs(1800);

/// Numbers of frames that nobody else has.
#[derive(Debug, Default)]
pub(super) struct Ids {
    blocks: Vec<std::ops::Range<i64>>,
}

impl Ids {
    /// How many a value of the sequence `sonde_store.frame_blocks` stands for.
    const BLOCK: i64 = 65_536;

    pub(super) fn left(&self) -> usize {
        self.blocks.iter().map(|b| (b.end - b.start) as usize).sum()
    }

    pub(super) fn add(&mut self, block: i64) {
        self.blocks.push(block * Self::BLOCK..(block + 1) * Self::BLOCK);
    }

    fn next(&mut self) -> i64 {
        loop {
            let block = self
                .blocks
                .last_mut()
                .expect("the caller asked for as many as can be needed");
            if let Some(id) = block.next() {
                return id;
            }
            self.blocks.pop();
        }
    }
}

/// Where one reading goes.
pub(super) struct Out<'a> {
    pub(super) keys: &'a mut CopyBuffer,
    pub(super) deltas: &'a mut CopyBuffer,
    pub(super) ids: &'a mut Ids,
}

/// What the newest frames of all probes of all nodes hold.
#[derive(Debug, Default)]
pub(super) struct Frames {
    layouts: HashMap<i32, HashMap<Arc<str>, Layout>>,
    scratch: Scratch,
}

/// One reading with the numbers of the tables.
pub(super) struct Reading<'a> {
    time_ns: u64,
    day: Day,
    node_id: i32,
    /// For each row: the pod, then the labels in the order of the table.
    keys: Vec<i32>,
    /// Numbers in `keys` that belong to one row.
    stride: usize,
    /// For each cell of the table, where its values are.
    cells: Vec<Cell<'a>>,
    rows: usize,
}

/// The values of one number of a table: a column, or one of the numbers of a histogram.
#[derive(Clone, Copy)]
struct Cell<'a> {
    /// Empty: this collector has none.
    values: &'a [i64],
    width: usize,
    at: usize,
}

impl Cell<'_> {
    fn of_row(&self, row: usize) -> i64 {
        self.values.get(row * self.width + self.at).copied().unwrap_or(ABSENT)
    }
}

impl<'a> Reading<'a> {
    pub(super) fn new(
        table: &Definition,
        probe: &StreamProbe,
        node_id: i32,
        rows: &'a v1::Rows,
        numbers: &Numbers,
    ) -> Self {
        let labels = probe.said.labels.len();
        let stride = 1 + table.labels.len();
        let mut keys = Vec::with_capacity(rows.subjects.len() * stride);
        for (row, subject) in rows.subjects.iter().enumerate() {
            keys.push(numbers.subject(*subject));
            for at in 0..table.labels.len() {
                let said = probe.label_at.get(at).copied().flatten();
                let word = said.map_or(0, |said| rows.labels[row * labels + said]);
                keys.push(numbers.words[word as usize]);
            }
        }
        let mut cells = Vec::with_capacity(table.cells());
        for (at, column) in table.columns.iter().enumerate() {
            let said = probe.column_at.get(at).copied().flatten();
            let values = said
                .and_then(|said| rows.columns.get(said))
                .map_or(&[][..], |c| &c.values);
            let width = column.width();
            cells.extend((0..width).map(|at| Cell { values, width, at }));
        }
        Self {
            time_ns: rows.time_ns,
            day: Day::of(rows.time_ns),
            node_id,
            keys,
            stride,
            cells,
            rows: rows.subjects.len(),
        }
    }

    fn key(&self, row: usize) -> &[i32] {
        &self.keys[row * self.stride..(row + 1) * self.stride]
    }
}

impl Frames {
    /// Frames that one reading can need at most.
    pub(super) fn most_ids(rows: usize) -> usize {
        // At worst each row is new, moves at once, and does both in a layout that is given up for the next one.
        3 * rows + 3
    }

    /// Writes a reading of a probe: keyframes of what is new, and the differences.
    pub(super) fn write(&mut self, table: &Definition, probe: &str, reading: &Reading<'_>, out: &mut Out<'_>) {
        let scratch = &mut self.scratch;
        let of_node = self.layouts.entry(reading.node_id).or_default();
        let known = of_node.get_mut(probe).filter(|layout| layout.takes(reading));
        if let Some(layout) = known
            && layout.write(table, reading, scratch, out)
        {
            return;
        }
        let before = of_node.remove(probe);
        let mut layout = Layout::begin(table, reading, before.as_ref(), out);
        let written = layout.write(table, reading, scratch, out);
        debug_assert!(written, "a layout that was made for a reading has no empty slots");
        of_node.insert(probe.into(), layout);
    }

    /// What the tables hold is not known any more.
    pub(super) fn clear(&mut self) {
        self.layouts.clear();
    }

    /// Forgets what nobody writes to.
    pub(super) fn prune(&mut self) {
        let now = Instant::now();
        self.layouts.retain(|_, of_node| {
            of_node.retain(|_, layout| now.duration_since(layout.used) < IDLE);
            !of_node.is_empty()
        });
    }
}
