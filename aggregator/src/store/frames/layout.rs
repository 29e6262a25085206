//! The frames of one probe on one node: which series has which slot.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use sonde_proto::ABSENT;
use tokio::time::Instant;

use super::chunk::Chunk;
use super::{FIRST_READINGS, Out, READINGS, Reading};
use crate::store::catalogue::Definition;
use crate::store::partitions::Day;

/// Values that a chunk is meant to have: its rows then mostly fit into a page several times, and are not compressed.
const CHUNK_VALUES: usize = 1600;
const CHUNK_SLOTS: std::ops::RangeInclusive<usize> = 16..=128;
/// Slots of a chunk for series that come later.
const ROOM_TO_GROW: usize = 6;
/// Empty slots that may always be.
const FEW: usize = 8;

#[derive(Debug)]
pub(super) struct Layout {
    day: Day,
    /// Labels and cells of the table when it began.
    shape: (usize, usize),
    chunk_slots: usize,
    slots: HashMap<Series, u32>,
    chunks: Vec<Chunk>,
    /// The keys of the last reading and the slots they had: usually those of the next.
    last: (Vec<i32>, Vec<u32>),
    readings_left: u32,
    pub(super) used: Instant,
}

/// Pod and labels; and, for rows of one reading that are alike in these, which of them it is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Series {
    key: Box<[i32]>,
    again: u32,
}

impl Layout {
    /// Gives each row of a reading a slot; what `before` knew of them tells which of them move.
    pub(super) fn begin(table: &Definition, reading: &Reading<'_>, before: Option<&Self>, out: &mut Out<'_>) -> Self {
        let cells = table.cells();
        let mut new = Self {
            day: reading.day,
            shape: (reading.stride, cells),
            chunk_slots: chunk_slots(reading.rows, cells),
            slots: HashMap::with_capacity(reading.rows),
            chunks: Vec::new(),
            last: Default::default(),
            readings_left: before.map_or(FIRST_READINGS, |_| READINGS),
            used: Instant::now(),
        };
        let before = before.filter(|b| b.shape == new.shape);
        let series = series_of(reading);
        let known: Vec<Option<(&Chunk, usize)>> = series
            .iter()
            .map(|s| before.and_then(|b| b.slots.get(s).map(|slot| b.place(*slot))))
            .collect();
        let moved = |row: usize| {
            known[row].map_or(0, |(chunk, at)| {
                let cells = reading.cells.iter().enumerate();
                cells
                    .filter(|(cell, values)| chunk.base(*cell, at) != values.of_row(row))
                    .count()
            })
        };
        let mut order: Vec<(usize, usize)> = (0..reading.rows).map(|row| (moved(row), row)).collect();
        order.sort_by_key(|(moved, row)| (std::cmp::Reverse(*moved), *row));
        let mut slots = vec![0; reading.rows];
        for (_, row) in order {
            let before = |cell| known[row].map_or(ABSENT, |(chunk, at)| chunk.base(cell, at));
            slots[row] = new.append(table, reading, row, before, out);
        }
        for (series, slot) in series.into_iter().zip(&slots) {
            new.slots.insert(series, *slot);
        }
        new.last = (reading.keys.clone(), slots);
        new
    }

    /// Whether a reading can be written as differences to these frames.
    pub(super) fn takes(&self, reading: &Reading<'_>) -> bool {
        self.readings_left > 0 && self.day == reading.day && self.shape == (reading.stride, reading.cells.len())
    }

    /// Writes a reading. False: too much of it is missing; nothing was written of it but keyframes.
    pub(super) fn write(&mut self, table: &Definition, reading: &Reading<'_>, out: &mut Out<'_>) -> bool {
        let mut slots = self.resolve(table, reading, out);
        self.renew(table, reading, &mut slots, out);
        let mut rows_of: Vec<Vec<Option<usize>>> = self.chunks.iter().map(|chunk| vec![None; chunk.slots()]).collect();
        for (row, slot) in slots.iter().enumerate() {
            let (chunk, at) = (*slot as usize / self.chunk_slots, *slot as usize % self.chunk_slots);
            rows_of[chunk][at] = Some(row);
        }
        let touched = |rows: &&Vec<Option<usize>>| rows.iter().any(Option::is_some);
        let (all, there) = rows_of.iter().filter(touched).fold((0, 0), |(all, there), rows| {
            (all + rows.len(), there + rows.iter().flatten().count())
        });
        if all - there > FEW.max(all / 2) {
            return false;
        }
        for (chunk, rows) in self.chunks.iter().zip(&rows_of) {
            if rows.iter().any(Option::is_some) {
                chunk.write(reading, rows, out.deltas);
            }
        }
        self.last = (reading.keys.clone(), slots);
        self.readings_left -= 1;
        self.used = Instant::now();
        true
    }

    /// The slot of each row; those that have none get one.
    fn resolve(&mut self, table: &Definition, reading: &Reading<'_>, out: &mut Out<'_>) -> Vec<u32> {
        if self.last.1.len() == reading.rows && self.last.0 == reading.keys {
            return std::mem::take(&mut self.last.1);
        }
        let series = series_of(reading);
        let mut slots = Vec::with_capacity(reading.rows);
        for (row, series) in series.into_iter().enumerate() {
            let slot = match self.slots.get(&series) {
                Some(slot) => *slot,
                None => {
                    let slot = self.append(table, reading, row, |_| ABSENT, out);
                    self.slots.insert(series, slot);
                    slot
                }
            };
            slots.push(slot);
        }
        slots
    }

    /// A value that comes where its keyframe has none, or that is too far from it, takes another keyframe: the series
    /// moves to a new slot, and its old one is empty from now on.
    fn renew(&mut self, table: &Definition, reading: &Reading<'_>, slots: &mut [u32], out: &mut Out<'_>) {
        let mut series = Vec::new();
        for (row, slot) in slots.iter_mut().enumerate() {
            let (chunk, at) = self.place(*slot);
            if chunk.can_hold(reading, row, at) {
                continue;
            }
            let base: Vec<i64> = (0..reading.cells.len()).map(|cell| chunk.base(cell, at)).collect();
            *slot = self.append(table, reading, row, |cell| base[cell], out);
            if series.is_empty() {
                series = series_of(reading);
            }
            self.slots.insert(series[row].clone(), *slot);
        }
    }

    fn place(&self, slot: u32) -> (&Chunk, usize) {
        let slot = slot as usize;
        (&self.chunks[slot / self.chunk_slots], slot % self.chunk_slots)
    }

    /// A new slot for a row. A value that it does not have now is what it was `before`: then it may come and go without
    /// another keyframe.
    fn append(
        &mut self,
        table: &Definition,
        reading: &Reading<'_>,
        row: usize,
        before: impl Fn(usize) -> i64,
        out: &mut Out<'_>,
    ) -> u32 {
        if self.chunks.last().is_none_or(|chunk| chunk.slots() == self.chunk_slots) {
            self.chunks
                .push(Chunk::new(out.ids.next(), self.chunk_slots, reading.cells.len()));
        }
        let chunks = self.chunks.len();
        let chunk = &mut self.chunks[chunks - 1];
        let at = chunk.push(table, reading, row, before, out.keys);
        ((chunks - 1) * self.chunk_slots + at) as u32
    }
}

/// Few enough for an array of each cell, and for a node of few series hardly more than these: slots take memory, whether
/// they are used or not.
fn chunk_slots(rows: usize, cells: usize) -> usize {
    let most = (CHUNK_VALUES / cells.max(1)).clamp(*CHUNK_SLOTS.start(), *CHUNK_SLOTS.end());
    let chunks = rows.div_ceil(most).max(1);
    (rows.div_ceil(chunks) + ROOM_TO_GROW).clamp(*CHUNK_SLOTS.start(), most)
}

fn series_of(reading: &Reading<'_>) -> Vec<Series> {
    let mut seen: HashMap<&[i32], u32> = HashMap::with_capacity(reading.rows);
    let mut series = Vec::with_capacity(reading.rows);
    for row in 0..reading.rows {
        let key = reading.key(row);
        let again = match seen.entry(key) {
            Entry::Occupied(mut entry) => {
                *entry.get_mut() += 1;
                *entry.get()
            }
            Entry::Vacant(entry) => *entry.insert(0),
        };
        series.push(Series { key: key.into(), again });
    }
    series
}
