//! One frame: the keyframes of some slots, and readings as differences to them.

use sonde_proto::ABSENT;

use super::Reading;
use crate::store::catalogue::{Definition, Kind};
use crate::store::copy::CopyBuffer;

/// What stands in an array for a value that is absent although its keyframe has one.
pub(in crate::store) const ABSENT_NARROW: i32 = i32::MIN;
pub(in crate::store) const ABSENT_WIDE: i64 = i64::MIN;

#[derive(Debug)]
pub(super) struct Chunk {
    frame: i64,
    room: usize,
    slots: usize,
    /// By cell, then by slot.
    base: Vec<i64>,
}

impl Chunk {
    pub(super) fn new(frame: i64, room: usize, cells: usize) -> Self {
        Self {
            frame,
            room,
            slots: 0,
            base: vec![ABSENT; room * cells],
        }
    }

    pub(super) fn slots(&self) -> usize {
        self.slots
    }

    pub(super) fn base(&self, cell: usize, slot: usize) -> i64 {
        self.base[cell * self.room + slot]
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
            self.base[cell * self.room + slot] = if value == ABSENT { before(cell) } else { value };
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

    /// Whether each value of a row can be written as a difference.
    pub(super) fn can_hold(&self, reading: &Reading<'_>, row: usize, slot: usize) -> bool {
        reading.cells.iter().enumerate().all(|(cell, values)| {
            let value = values.of_row(row);
            value == ABSENT || difference(value, self.base(cell, slot)).is_some()
        })
    }

    /// One reading: for each slot the row that is in it.
    pub(super) fn write(&self, reading: &Reading<'_>, rows: &[Option<usize>], out: &mut CopyBuffer) {
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
        let mut differences = vec![0; self.slots];
        for (cell, values) in reading.cells.iter().enumerate() {
            let base = &self.base[cell * self.room..][..self.slots];
            let mut wide = false;
            let (mut first, mut last) = (usize::MAX, 0);
            for (slot, row) in rows.iter().enumerate() {
                let Some(row) = row else {
                    differences[slot] = 0;
                    continue;
                };
                let value = values.of_row(*row);
                let difference = match (value == ABSENT, base[slot] == ABSENT) {
                    (true, true) => 0,
                    (true, false) => ABSENT_WIDE,
                    (false, _) => value - base[slot],
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
