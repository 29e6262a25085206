//! One frame: the keyframes of some slots, and readings as differences to them.

use sonde_proto::ABSENT;

use super::Reading;
use crate::packed::{Packed, Packer};
use crate::store::catalogue::{Definition, Kind};
use crate::store::copy::CopyBuffer;

/// What stands in an array for a value that is absent although its keyframe has one.
pub(in crate::store) const ABSENT_NARROW: i32 = i32::MIN;
pub(in crate::store) const ABSENT_WIDE: i64 = i64::MIN;

/// The keyframes are kept packed, as there is one for each series; those that came with this reading are packed with
/// the next.
#[derive(Debug)]
pub(super) struct Chunk {
    frame: i64,
    cells: usize,
    /// By cell, then by slot: the first of the slots.
    packed: Packed,
    packed_slots: usize,
    /// By slot, then by cell: those that came later.
    fresh: Vec<i64>,
    slots: usize,
}

/// Memory for what is worked out anew for each chunk.
#[derive(Debug, Default)]
pub(in crate::store) struct Scratch {
    packer: Packer,
    base: Vec<i64>,
    differences: Vec<i64>,
}

impl Chunk {
    pub(super) fn new(frame: i64, cells: usize) -> Self {
        Self {
            frame,
            cells,
            packed: Packed::default(),
            packed_slots: 0,
            fresh: Vec::new(),
            slots: 0,
        }
    }

    pub(super) fn slots(&self) -> usize {
        self.slots
    }

    pub(super) fn base(&self, cell: usize, slot: usize) -> i64 {
        match slot.checked_sub(self.packed_slots) {
            None => self.packed.get(cell, self.packed_slots, slot),
            Some(fresh) => self.fresh[fresh * self.cells + cell],
        }
    }

    /// Packs what came later too.
    pub(super) fn seal(&mut self, scratch: &mut Scratch) {
        if self.packed_slots == self.slots {
            return;
        }
        for cell in 0..self.cells {
            scratch.base.clear();
            if self.packed_slots > 0 {
                self.packed.unpack(cell, self.packed_slots, &mut scratch.base);
            }
            let fresh = self.fresh[cell..].iter().step_by(self.cells);
            scratch.base.extend(fresh);
            scratch.packer.column(&scratch.base);
        }
        self.packed = scratch.packer.finish();
        self.packed_slots = self.slots;
        self.fresh = Vec::new();
    }

    /// Fills the next slot with a row of a reading, and writes its keyframe.
    pub(super) fn push(
        &mut self,
        table: &Definition,
        reading: &Reading<'_>,
        row: usize,
        before: impl Fn(usize) -> i64,
        keys: &mut CopyBuffer,
    ) -> usize {
        let slot = self.slots;
        self.slots += 1;
        for (cell, values) in reading.cells.iter().enumerate() {
            let value = values.of_row(row);
            self.fresh.push(if value == ABSENT { before(cell) } else { value });
        }
        let key = reading.key(row);
        keys.row(4 + key.len() + table.columns.len());
        keys.time(reading.time_ns);
        keys.i32(reading.node_id);
        keys.i64(self.frame);
        // Arrays of PostgreSQL begin with 1.
        keys.i16(slot as i16 + 1);
        key.iter().for_each(|number| keys.i32(*number));
        let mut cell = 0;
        let mut numbers = Vec::new();
        for column in &table.columns {
            let width = column.width();
            numbers.clear();
            numbers.extend((cell..cell + width).map(|cell| self.base(cell, slot)));
            cell += width;
            match column.kind {
                Kind::Histogram if numbers.iter().all(|n| *n == ABSENT) => keys.null(),
                Kind::Histogram => keys.i64_array(&numbers, ABSENT),
                Kind::Counter | Kind::Gauge => keys.opt_i64((numbers[0] != ABSENT).then_some(numbers[0])),
            }
        }
        slot
    }

    /// One reading: for each slot the row that is in it. The error: slots of which a value cannot be written as a
    /// difference; then nothing is written.
    pub(super) fn write(
        &mut self,
        reading: &Reading<'_>,
        rows: &[Option<usize>],
        scratch: &mut Scratch,
        out: &mut CopyBuffer,
    ) -> Result<(), Vec<usize>> {
        self.seal(scratch);
        let begin = out.len();
        out.row(5 + 2 * reading.cells.len());
        out.time(reading.time_ns);
        out.i32(reading.node_id);
        out.i64(self.frame);
        out.i16(self.slots as i16);
        let empty = rows.iter().enumerate().filter(|(_, row)| row.is_none());
        let empty: Vec<i16> = empty.map(|(slot, _)| slot as i16 + 1).collect();
        if empty.is_empty() {
            out.null();
        } else {
            out.i16_array(&empty);
        }
        let mut too_far = Vec::new();
        let Scratch { base, differences, .. } = scratch;
        differences.clear();
        differences.resize(self.slots, 0);
        for (cell, values) in reading.cells.iter().enumerate() {
            base.clear();
            self.packed.unpack(cell, self.slots, base);
            let mut wide = false;
            let (mut first, mut last) = (usize::MAX, 0);
            for (slot, row) in rows.iter().enumerate() {
                let Some(row) = row else {
                    differences[slot] = 0;
                    continue;
                };
                let value = values.of_row(*row);
                let difference = if value == base[slot] {
                    0
                } else if value == ABSENT {
                    ABSENT_WIDE
                } else if let Some(difference) = difference(value, base[slot]) {
                    difference
                } else {
                    too_far.push(slot);
                    0
                };
                differences[slot] = difference;
                if difference != 0 {
                    first = first.min(slot);
                    last = slot;
                    wide |= difference != ABSENT_WIDE && !NARROW.contains(&difference);
                }
            }
            if first == usize::MAX {
                out.null();
                out.null();
                continue;
            }
            let moved = &differences[first..=last];
            if wide {
                out.null();
                out.wide_array(moved, first as i32 + 1);
            } else {
                let narrow = |d: &i64| if *d == ABSENT_WIDE { ABSENT_NARROW } else { *d as i32 };
                out.narrow_array(moved.iter().map(narrow), first as i32 + 1);
                out.null();
            }
        }
        if too_far.is_empty() {
            return Ok(());
        }
        out.cut(begin);
        too_far.sort_unstable();
        too_far.dedup();
        Err(too_far)
    }
}

/// What fits into an array of `int` beside its word for absent.
const NARROW: std::ops::RangeInclusive<i64> = i32::MIN as i64 + 1..=i32::MAX as i64;

/// `None`: it takes another keyframe.
fn difference(value: i64, base: i64) -> Option<i64> {
    if base == ABSENT {
        return None;
    }
    value.checked_sub(base).filter(|d| *d != ABSENT_WIDE)
}
