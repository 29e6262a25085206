//! Changes an input as fuzzers do: bits, numbers on the edge, pieces cut out, doubled or taken from another input.

/// The same sequence for the same name.
pub(crate) struct Change(u64);

/// Longer ones are cut: the paths that only they lead to are for the fuzzer.
const LONGEST: usize = 16 << 10;

impl Change {
    pub(crate) fn new(name: &str) -> Self {
        // FNV-1a; not 0, from which nothing would follow.
        let seed = name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        Self(seed | 1)
    }

    /// xorshift64.
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// Below `end`; 0 where that is 0.
    fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }

    pub(crate) fn one_of(&mut self, inputs: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = inputs[self.below(inputs.len())].clone();
        for _ in 0..=self.below(4) {
            self.change(&mut bytes, inputs);
        }
        bytes.truncate(LONGEST);
        bytes
    }

    fn change(&mut self, bytes: &mut Vec<u8>, inputs: &[Vec<u8>]) {
        let at = self.below(bytes.len());
        let len = self.below((bytes.len() - at).min(64)) + 1;
        let piece = at..(at + len).min(bytes.len());
        match self.below(8) {
            0 => bytes
                .iter_mut()
                .skip(at)
                .take(1)
                .for_each(|byte| *byte ^= 1 << self.below(8)),
            1 => bytes
                .iter_mut()
                .skip(at)
                .take(1)
                .for_each(|byte| *byte = self.next() as u8),
            2 => self.number(&mut bytes[at..]),
            3 => bytes.truncate(at),
            4 => drop(bytes.drain(piece)),
            5 => {
                let piece = bytes[piece].to_vec();
                bytes.splice(at..at, piece);
            }
            6 => {
                let other = &inputs[self.below(inputs.len())];
                let from = self.below(other.len());
                let end = (from + len).min(other.len());
                bytes.splice(piece, other[from..end].iter().copied());
            }
            _ => {
                let noise: Vec<u8> = (0..len).map(|_| self.next() as u8).collect();
                bytes.splice(at..at, noise);
            }
        }
    }

    /// Writes a number on the edge of what its width holds, or near 0, in either byte order.
    fn number(&mut self, bytes: &mut [u8]) {
        let width = [1, 2, 4, 8][self.below(4)].min(bytes.len());
        let near = self.below(5) as u64;
        let number = match self.below(4) {
            0 => near,
            1 => u64::MAX - near,
            2 => u64::MAX >> 1,
            _ => 1 << self.below(64),
        };
        let mut number = number.to_le_bytes();
        if self.below(2) == 0 {
            number[..width].reverse();
        }
        bytes[..width].copy_from_slice(&number[..width]);
    }
}
