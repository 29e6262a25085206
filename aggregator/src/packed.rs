//! Columns of integers in little memory. Most numbers of a kernel are 0, and those of a column are of about one size: a
//! column is a bit for each number that is not 0, and then these, each in as many bytes as the longest of them needs.

use sonde_proto::ABSENT;

/// First byte of a column of which every number is absent. Any other is how many bytes a number takes, none: all are 0.
const ALL_ABSENT: u8 = 0xff;
/// Numbers are read and written as eight bytes, of which some may belong to what follows.
const WORD: usize = size_of::<u64>();

/// Columns one behind the other. How many numbers each has, who made it knows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Packed {
    /// Where each column begins in `bytes`.
    starts: Box<[u32]>,
    bytes: Box<[u8]>,
}

/// Packs columns; keeps its memory from one use to the next.
#[derive(Debug, Default)]
pub(crate) struct Packer {
    starts: Vec<u32>,
    bytes: Vec<u8>,
    codes: Vec<u64>,
}

impl Packer {
    /// One column more.
    pub(crate) fn column(&mut self, values: &[i64]) {
        self.starts.push(self.bytes.len() as u32);
        let head = self.bytes.len();
        self.bytes.push(0);
        self.codes.clear();
        self.codes.resize(values.len(), 0);
        let (mut used, mut all) = (0, 0);
        for eight in values.chunks(8) {
            let mut mask = 0;
            for (bit, value) in eight.iter().enumerate() {
                let code = code_of(*value);
                let is_set = code != 0;
                self.codes[used] = code;
                used += usize::from(is_set);
                mask |= u8::from(is_set) << bit;
                all |= code;
            }
            self.bytes.push(mask);
        }
        if all == 0 {
            self.bytes.truncate(head + 1);
            return;
        }
        if all == ABSENT_CODE && used == values.len() {
            self.bytes.truncate(head);
            self.bytes.push(ALL_ABSENT);
            return;
        }
        let width = WORD - all.leading_zeros() as usize / 8;
        self.bytes[head] = width as u8;
        let mut at = self.bytes.len();
        let end = at + used * width;
        self.bytes.resize(end + WORD, 0);
        for code in &self.codes[..used] {
            self.bytes[at..at + WORD].copy_from_slice(&code.to_le_bytes());
            at += width;
        }
        self.bytes.truncate(end);
    }

    /// One column more, of which every number is absent.
    pub(crate) fn absent(&mut self) {
        self.starts.push(self.bytes.len() as u32);
        self.bytes.push(ALL_ABSENT);
    }

    /// All columns since the last time.
    pub(crate) fn finish(&mut self) -> Packed {
        // So that the last number can be read as a whole word.
        self.bytes.extend_from_slice(&[0; WORD]);
        let packed = Packed {
            starts: self.starts.as_slice().into(),
            bytes: self.bytes.as_slice().into(),
        };
        self.starts.clear();
        self.bytes.clear();
        packed
    }
}

impl Packed {
    /// The numbers of a column, of which there are `count`, behind what is in `out`.
    pub(crate) fn unpack(&self, column: usize, count: usize, out: &mut Vec<i64>) {
        let from = out.len();
        let (width, masks, mut numbers) = match self.parts(column, count) {
            Parts::Same(value) => return out.resize(from + count, value),
            Parts::Each { width, masks, numbers } => (width, masks, numbers),
        };
        out.resize(from + count, 0);
        for (eight, mask) in out[from..].chunks_mut(8).zip(masks) {
            let mut mask = *mask;
            while mask != 0 {
                eight[mask.trailing_zeros() as usize] = value_of(number(numbers, width));
                numbers = &numbers[width..];
                mask &= mask - 1;
            }
        }
    }

    /// One number of a column that has `count`.
    pub(crate) fn get(&self, column: usize, count: usize, at: usize) -> i64 {
        match self.parts(column, count) {
            Parts::Same(value) => value,
            Parts::Each { masks, .. } if masks[at / 8] & 1 << (at % 8) == 0 => 0,
            Parts::Each { width, masks, numbers } => {
                let whole: u32 = masks[..at / 8].iter().map(|mask| mask.count_ones()).sum();
                let before = whole + (masks[at / 8] & ((1 << (at % 8)) - 1)).count_ones();
                value_of(number(&numbers[before as usize * width..], width))
            }
        }
    }

    fn parts(&self, column: usize, count: usize) -> Parts<'_> {
        let bytes = &self.bytes[self.starts[column] as usize..];
        match bytes[0] {
            0 => Parts::Same(0),
            ALL_ABSENT => Parts::Same(ABSENT),
            width => {
                let (masks, numbers) = bytes[1..].split_at(count.div_ceil(8));
                Parts::Each {
                    width: usize::from(width),
                    masks,
                    numbers,
                }
            }
        }
    }
}

enum Parts<'a> {
    Same(i64),
    Each {
        width: usize,
        masks: &'a [u8],
        numbers: &'a [u8],
    },
}

fn number(bytes: &[u8], width: usize) -> u64 {
    let word = u64::from_le_bytes(bytes[..WORD].try_into().expect("a word is eight bytes"));
    word & u64::MAX >> (64 - 8 * width)
}

const ABSENT_CODE: u64 = 1;

/// Small for what is near 0, on either side: 0 is 0, absent is 1, then -1, 1, -2, 2.
fn code_of(value: i64) -> u64 {
    let zigzag = ((value << 1) ^ (value >> 63)).cast_unsigned();
    // What is absent, the lowest number, would come out as 0.
    zigzag.wrapping_add(u64::from(value != 0)) | u64::from(value == ABSENT)
}

fn value_of(code: u64) -> i64 {
    if code == ABSENT_CODE {
        return ABSENT;
    }
    let zigzag = code - 1;
    (zigzag >> 1).cast_signed() ^ -(zigzag & 1).cast_signed()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pack(columns: &[Vec<i64>]) -> Packed {
        let mut packer = Packer::default();
        // What was packed before leaves nothing behind.
        packer.column(&[1, 2, i64::MAX]);
        packer.finish();
        columns.iter().for_each(|column| packer.column(column));
        packer.finish()
    }

    #[test]
    fn what_is_packed_comes_out_as_it_was() {
        let edges = [
            0,
            1,
            -1,
            ABSENT,
            ABSENT + 1,
            i64::MAX,
            i64::MIN / 2,
            127,
            128,
            -129,
            1 << 40,
        ];
        let mut rng = fastrand::Rng::with_seed(1);
        for round in 0..2000 {
            let columns: Vec<Vec<i64>> = (0..rng.usize(1..8))
                .map(|_| {
                    let (count, bits, kind) = (rng.usize(0..80), rng.u32(0..64), rng.u8(0..6));
                    let number = |_| match kind {
                        0 => 0,
                        1 => ABSENT,
                        2 => edges[rng.usize(..edges.len())],
                        3 if rng.u8(0..3) > 0 => 0,
                        _ => rng.i64(..) >> bits,
                    };
                    (0..count).map(number).collect()
                })
                .collect();
            let packed = pack(&columns);
            for (at, column) in columns.iter().enumerate() {
                let mut out = vec![7];
                packed.unpack(at, column.len(), &mut out);
                assert_eq!(out[1..], *column, "round {round}");
                for (place, value) in column.iter().enumerate() {
                    assert_eq!(packed.get(at, column.len(), place), *value, "round {round}");
                }
            }
        }
    }

    #[test]
    fn a_column_is_as_long_as_its_numbers_that_are_not_0() {
        let long = |column: Vec<i64>| pack(&[column]).bytes.len() - WORD;
        assert_eq!(long(vec![0; 100]), 1);
        assert_eq!(long(vec![ABSENT; 100]), 1);
        assert_eq!(long(vec![]), 1);
        assert_eq!(long([vec![0; 98], vec![100, 3]].concat()), 1 + 13 + 2);
        assert_eq!(long(vec![70_000; 8]), 1 + 1 + 8 * 3);
    }
}
