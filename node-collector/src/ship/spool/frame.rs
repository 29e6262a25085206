//! One batch in a segment file: a header of 36 bytes, then the payload. All numbers are little endian.
//!
//! | bytes | what |
//! |---|---|
//! | 0..4 | length of the payload |
//! | 4..8 | CRC32C of all that follows |
//! | 8..16 | sequence |
//! | 16..24, 24..32 | Unix time of the first and the last thing inside |
//! | 32..36 | how many rows or events are inside |

use std::ops::Range;

use sonde_proto::limits::MAX_BATCH_BYTES;

pub(super) const HEADER: usize = 36;
/// The aggregator takes no higher one.
pub(super) const LAST_SEQUENCE: u64 = i64::MAX as u64;

/// What must be known of a batch without opening it, so that a gap can tell what went with it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Contents {
    pub from_ns: u64,
    pub to_ns: u64,
    /// Rows or events.
    pub count: u32,
}

impl Contents {
    pub(super) fn add(&mut self, other: Self) {
        self.from_ns = match (self.from_ns, other.from_ns) {
            (0, at) | (at, 0) => at,
            (one, another) => one.min(another),
        };
        self.to_ns = self.to_ns.max(other.to_ns);
        self.count = self.count.saturating_add(other.count);
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub len: usize,
    crc: u32,
    pub sequence: u64,
    pub contents: Contents,
}

/// Header and payload in one buffer, for one write.
pub(super) fn encode(sequence: u64, contents: Contents, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(HEADER + payload.len());
    frame.extend_from_slice(&(payload.len() as u32).to_le_bytes());
    frame.extend_from_slice(&[0; 4]);
    frame.extend_from_slice(&sequence.to_le_bytes());
    frame.extend_from_slice(&contents.from_ns.to_le_bytes());
    frame.extend_from_slice(&contents.to_ns.to_le_bytes());
    frame.extend_from_slice(&contents.count.to_le_bytes());
    frame.extend_from_slice(payload);
    let crc = crc32c::crc32c(&frame[8..]);
    frame[4..8].copy_from_slice(&crc.to_le_bytes());
    frame
}

impl Header {
    /// `None` for a length or a sequence that no batch has.
    pub(super) fn decode(bytes: &[u8; HEADER]) -> Option<Self> {
        let u32_at = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let u64_at = |at: usize| u64::from(u32_at(at)) | u64::from(u32_at(at + 4)) << 32;
        let len = u32_at(0) as usize;
        (len <= MAX_BATCH_BYTES && u64_at(8) <= LAST_SEQUENCE).then_some(Self {
            len,
            crc: u32_at(4),
            sequence: u64_at(8),
            contents: Contents {
                from_ns: u64_at(16),
                to_ns: u64_at(24),
                count: u32_at(32),
            },
        })
    }

    /// Bytes of the whole frame.
    pub(super) const fn size(&self) -> u64 {
        (HEADER + self.len) as u64
    }

    /// Whether header and payload are as they were written.
    pub(super) fn fits(&self, header: &[u8; HEADER], payload: &[u8]) -> bool {
        const CHECKED: Range<usize> = 8..HEADER;
        crc32c::crc32c_append(crc32c::crc32c(&header[CHECKED]), payload) == self.crc
    }
}
