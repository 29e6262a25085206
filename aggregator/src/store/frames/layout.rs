//! The frames of one probe on one node: which series has which slot.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use sonde_proto::ABSENT;
use tokio::time::Instant;

use super::chunk::{Chunk, Scratch};
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
    /// Whose each slot is: for each the key, and which of the rows that are alike in it. What is in several slots is in
    /// the last of them.
    series: Vec<i32>,
    chunks: Vec<Chunk>,
    /// The slots of the last reading's rows: usually those of the next.
    last: Vec<u32>,
    readings_left: u32,
    pub(super) used: Instant,
}

/// Pod and labels; and, for rows of one reading that are alike in these, which of them it is.
type Series<'a> = (&'a [i32], i32);

impl Layout {
    /// Gives each row of a reading a slot; what `before` knew of them tells which of them move.
    pub(super) fn begin(table: &Definition, reading: &Reading<'_>, before: Option<&Self>, out: &mut Out<'_>) -> Self {
        let cells = table.cells();
        let mut new = Self {
            day: reading.day,
            shape: (reading.stride, cells),
            chunk_slots: chunk_slots(reading.rows, cells),
            series: Vec::with_capacity(reading.rows * (reading.stride + 1)),
            chunks: Vec::new(),
            last: Vec::new(),
            readings_left: before.map_or(FIRST_READINGS, |_| READINGS),
            used: Instant::now(),
        };
        let before = before.filter(|b| b.shape == new.shape);
        let series = series_of(reading);
        let slots_before = before.map(Self::slots).unwrap_or_default();
        let known: Vec<Option<(&Chunk, usize)>> = series
            .iter()
            .map(|s| before.zip(slots_before.get(s)).map(|(b, slot)| b.place(*slot)))
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
            slots[row] = new.append(table, reading, row, series[row], before, out);
        }
        new.last = slots;
        new
    }

    /// Whether a reading can be written as differences to these frames.
    pub(super) fn takes(&self, reading: &Reading<'_>) -> bool {
        self.readings_left > 0 && self.day == reading.day && self.shape == (reading.stride, reading.cells.len())
    }

    /// Writes a reading. False: too much of it is missing; nothing was written of it but keyframes.
    pub(super) fn write(
        &mut self,
        table: &Definition,
        reading: &Reading<'_>,
        scratch: &mut Scratch,
        out: &mut Out<'_>,
    ) -> bool {
        let begin = out.deltas.len();
        let mut slots = self.resolve(table, reading, out);
        let mut rows_of: Vec<Vec<Option<usize>>> = self.chunks.iter().map(|chunk| vec![None; chunk.slots()]).collect();
        for (row, slot) in slots.iter().enumerate() {
            let (chunk, at) = (*slot as usize / self.chunk_slots, *slot as usize % self.chunk_slots);
            rows_of[chunk][at] = Some(row);
        }
        let (mut all, mut there) = (0, 0);
        let mut number = 0;
        // What takes another keyframe goes to the end, where it is still to come.
        while number < self.chunks.len() {
            if rows_of[number].iter().any(Option::is_some) {
                let chunk = &mut self.chunks[number];
                if let Err(too_far) = chunk.write(reading, &rows_of[number], scratch, out.deltas) {
                    self.renew(table, reading, number, &too_far, (&mut slots, &mut rows_of), out);
                    continue;
                }
                all += rows_of[number].len();
                there += rows_of[number].iter().flatten().count();
            }
            number += 1;
        }
        if all - there > FEW.max(all / 2) {
            out.deltas.cut(begin);
            return false;
        }
        self.last = slots;
        self.readings_left -= 1;
        self.used = Instant::now();
        true
    }

    /// The slot of each row; those that have none get one.
    fn resolve(&mut self, table: &Definition, reading: &Reading<'_>, out: &mut Out<'_>) -> Vec<u32> {
        let last = std::mem::take(&mut self.last);
        let same = |(row, slot): (usize, &u32)| self.series_in(*slot).0 == reading.key(row);
        if last.len() == reading.rows && last.iter().enumerate().all(same) {
            return last;
        }
        let series = series_of(reading);
        let known: Vec<Option<u32>> = {
            let slots = self.slots();
            series.iter().map(|series| slots.get(series).copied()).collect()
        };
        let slots = known.into_iter().enumerate();
        slots
            .map(|(row, slot)| slot.unwrap_or_else(|| self.append(table, reading, row, series[row], |_| ABSENT, out)))
            .collect()
    }

    /// A value that comes where its keyframe has none, or that is too far from it, takes another keyframe: the series
    /// moves to a new slot, and its old one is empty from now on.
    fn renew(
        &mut self,
        table: &Definition,
        reading: &Reading<'_>,
        chunk: usize,
        too_far: &[usize],
        (slots, rows_of): (&mut [u32], &mut Vec<Vec<Option<usize>>>),
        out: &mut Out<'_>,
    ) {
        for at in too_far {
            let row = rows_of[chunk][*at].take().expect("a value is of a row");
            let base: Vec<i64> = (0..reading.cells.len())
                .map(|cell| self.chunks[chunk].base(cell, *at))
                .collect();
            let (_, again) = self.series_in(slots[row]);
            let slot = self.append(table, reading, row, (reading.key(row), again), |cell| base[cell], out);
            slots[row] = slot;
            rows_of.resize_with(self.chunks.len(), Vec::new);
            let (chunk, at) = (slot as usize / self.chunk_slots, slot as usize % self.chunk_slots);
            rows_of[chunk].resize(at + 1, None);
            rows_of[chunk][at] = Some(row);
        }
    }

    fn series_in(&self, slot: u32) -> Series<'_> {
        let stride = self.shape.0;
        let series = &self.series[slot as usize * (stride + 1)..][..=stride];
        (&series[..stride], series[stride])
    }

    /// Where each series is.
    fn slots(&self) -> HashMap<Series<'_>, u32> {
        let all = (self.series.len() / (self.shape.0 + 1)) as u32;
        (0..all).map(|slot| (self.series_in(slot), slot)).collect()
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
        (key, again): Series<'_>,
        before: impl Fn(usize) -> i64,
        out: &mut Out<'_>,
    ) -> u32 {
        if self.chunks.last().is_none_or(|chunk| chunk.slots() == self.chunk_slots) {
            self.chunks.push(Chunk::new(out.ids.next(), reading.cells.len()));
        }
        self.series.extend(key);
        self.series.push(again);
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

fn series_of<'a>(reading: &'a Reading<'_>) -> Vec<Series<'a>> {
    let mut seen: HashMap<&[i32], i32> = HashMap::with_capacity(reading.rows);
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
        series.push((key, again));
    }
    series
}
