//! A gzip member (RFC 1952) of which the long part is packed once and the short part for each request.
//!
//! The long part ends at a byte and refers to nothing before itself; the short one, packed on its own, refers to nothing in
//! the long one. So the two streams one after another are one stream, and the checksum is that of both.

use flate2::{Compress, Compression, Crc, FlushCompress, Status};

/// Method deflate, no name, no time, unknown system.
const HEADER: [u8; 10] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];
/// A page is several times smaller already at the fastest level; the next ones cost more time than they save.
const LEVEL: Compression = Compression::fast();

/// A part without its end.
#[derive(Clone, Debug, Default)]
pub(super) struct Packed {
    bytes: Vec<u8>,
    crc: u32,
    length: u64,
}

/// Packs what comes piece by piece.
pub(super) struct Packer {
    compress: Compress,
    crc: Crc,
    bytes: Vec<u8>,
}

impl Packer {
    pub(super) fn new() -> Self {
        Self {
            compress: Compress::new(LEVEL, false),
            crc: Crc::new(),
            bytes: Vec::new(),
        }
    }

    pub(super) fn add(&mut self, text: &str) {
        self.crc.update(text.as_bytes());
        self.pack(text.as_bytes(), FlushCompress::None);
    }

    /// To be followed by another part.
    pub(super) fn part(mut self) -> Packed {
        self.pack(&[], FlushCompress::Full);
        self.finish()
    }

    fn finish(self) -> Packed {
        Packed {
            crc: self.crc.sum(),
            length: self.compress.total_in(),
            bytes: self.bytes,
        }
    }

    fn pack(&mut self, mut input: &[u8], flush: FlushCompress) {
        loop {
            self.bytes.reserve(input.len() / 8 + 1024);
            let before = self.compress.total_in();
            let status = self
                .compress
                .compress_vec(input, &mut self.bytes, flush)
                .expect("packing into memory cannot fail: the state is our own and there is room");
            input = &input[(self.compress.total_in() - before) as usize..];
            let done = match flush {
                FlushCompress::Finish => status == Status::StreamEnd,
                // Room that is left means that nothing waits inside.
                _ => self.bytes.len() < self.bytes.capacity(),
            };
            if input.is_empty() && done {
                return;
            }
        }
    }
}

/// The member of a part and what follows it.
pub(super) fn member(first: &Packed, rest: &str) -> Vec<u8> {
    let mut packer = Packer::new();
    packer.add(rest);
    packer.pack(&[], FlushCompress::Finish);
    let last = packer.finish();
    let mut crc = crc32fast::Hasher::new_with_initial_len(first.crc, first.length);
    crc.combine(&crc32fast::Hasher::new_with_initial_len(last.crc, last.length));
    let mut out = Vec::with_capacity(HEADER.len() + first.bytes.len() + last.bytes.len() + 8);
    out.extend_from_slice(&HEADER);
    out.extend_from_slice(&first.bytes);
    out.extend_from_slice(&last.bytes);
    out.extend_from_slice(&crc.finalize().to_le_bytes());
    // The length modulo 2^32, as the format has it.
    out.extend_from_slice(&((first.length + last.length) as u32).to_le_bytes());
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read as _;

    fn packed(pieces: &[&str]) -> Packed {
        let mut packer = Packer::new();
        for piece in pieces {
            packer.add(piece);
        }
        packer.part()
    }

    fn unpacked(member: &[u8]) -> String {
        let mut text = String::new();
        // Reads one member and checks its checksum and length.
        flate2::bufread::GzDecoder::new(member)
            .read_to_string(&mut text)
            .unwrap();
        text
    }

    #[test]
    fn both_parts_come_out_as_one_text() {
        let long: String = (0..100_000)
            .map(|i| format!("series{{a=\"{i}\"}} {}\n", i * 7919))
            .collect();
        for (pieces, rest) in [
            (vec![], ""),
            (vec![""], "x"),
            (vec!["abc"], ""),
            (vec!["abc", "", "def"], "abc def"),
            (vec![long.as_str(), "middle", long.as_str()], long.as_str()),
        ] {
            let first = packed(&pieces);
            assert_eq!(first.length, pieces.concat().len() as u64);
            assert!(unpacked(&member(&first, rest)) == pieces.concat() + rest);
            assert!(unpacked(&member(&first, "again")) == pieces.concat() + "again");
        }
        assert!(packed(&[&long]).bytes.len() * 3 < long.len());
    }

    #[test]
    fn what_cannot_be_packed_comes_out_all_the_same() {
        let mut state = 1_u64;
        let noise: String = (0..300_000)
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                char::from_u32(0x20 + (state >> 33) as u32 % 0x2000).unwrap()
            })
            .collect();
        assert!(unpacked(&member(&packed(&[&noise]), &noise)) == noise.repeat(2));
    }
}
