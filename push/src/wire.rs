//! Protocol buffers written straight into a buffer: a request of a million values is not first built as a million objects.

use prost::encoding::{WireType, encode_key, encode_varint};

/// A message in the making. Fields of value 0 are written too, which every reader takes.
#[derive(Debug, Default)]
pub struct Wire {
    out: Vec<u8>,
}

impl Wire {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn len(&self) -> usize {
        self.out.len()
    }

    pub fn is_empty(&self) -> bool {
        self.out.is_empty()
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.out
    }

    /// Types int32, int64, uint32, uint64, bool, enum. A negative number is given as `value as u64`.
    pub fn varint(&mut self, field: u32, value: u64) {
        encode_key(field, WireType::Varint, &mut self.out);
        encode_varint(value, &mut self.out);
    }

    pub fn fixed64(&mut self, field: u32, value: u64) {
        encode_key(field, WireType::SixtyFourBit, &mut self.out);
        self.out.extend(value.to_le_bytes());
    }

    pub fn double(&mut self, field: u32, value: f64) {
        self.fixed64(field, value.to_bits());
    }

    /// A string, bytes, or a message that is written already.
    pub fn bytes(&mut self, field: u32, value: impl AsRef<[u8]>) {
        let value = value.as_ref();
        encode_key(field, WireType::LengthDelimited, &mut self.out);
        encode_varint(value.len() as u64, &mut self.out);
        self.out.extend_from_slice(value);
    }

    /// Fields that are written already, of this very message.
    pub fn fields(&mut self, written: &[u8]) {
        self.out.extend_from_slice(written);
    }

    /// Numbers of a packed field of type fixed64 or double.
    pub fn packed64(&mut self, field: u32, values: impl IntoIterator<Item = u64>) {
        self.message(field, |w| {
            for value in values {
                w.out.extend(value.to_le_bytes());
            }
        });
    }

    /// Numbers of a packed field of a varint type.
    pub fn packed_varint(&mut self, field: u32, values: impl IntoIterator<Item = u64>) {
        self.message(field, |w| {
            for value in values {
                encode_varint(value, &mut w.out);
            }
        });
    }

    /// A message within this one.
    pub fn message(&mut self, field: u32, write: impl FnOnce(&mut Self)) {
        encode_key(field, WireType::LengthDelimited, &mut self.out);
        // The length comes first and is known last. Most are shorter than 128 bytes, whose length is one byte.
        let at = self.out.len();
        self.out.push(0);
        write(self);
        let mut length = Vec::with_capacity(5);
        encode_varint((self.out.len() - at - 1) as u64, &mut length);
        if let [one] = length[..] {
            self.out[at] = one;
        } else {
            self.out.splice(at..=at, length);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Message as _;

    #[derive(Clone, PartialEq, prost::Message)]
    struct Inner {
        #[prost(string, tag = "1")]
        text: String,
        #[prost(fixed64, repeated, tag = "16")]
        fixed: Vec<u64>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    struct Outer {
        #[prost(int64, tag = "1")]
        int: i64,
        #[prost(double, tag = "2")]
        double: f64,
        #[prost(message, repeated, tag = "3")]
        inner: Vec<Inner>,
        #[prost(uint32, repeated, tag = "4")]
        packed: Vec<u32>,
    }

    #[test]
    fn what_is_written_is_what_prost_reads() {
        for length in [0, 1, 125, 126, 127, 128, 16_383, 16_384, 100_000] {
            let inner = Inner {
                text: "é".repeat(length / 2),
                fixed: vec![0, u64::MAX],
            };
            let outer = Outer {
                int: -5,
                double: f64::MIN_POSITIVE,
                inner: vec![inner.clone(), Inner::default()],
                packed: vec![0, 300, u32::MAX],
            };
            let mut wire = Wire::new();
            wire.varint(1, -5_i64 as u64);
            wire.double(2, outer.double);
            wire.message(3, |w| {
                w.bytes(1, &inner.text);
                w.packed64(16, inner.fixed.iter().copied());
            });
            wire.message(3, |_| {});
            wire.packed_varint(4, outer.packed.iter().map(|n| u64::from(*n)));
            assert_eq!(Outer::decode(wire.as_bytes()).unwrap(), outer);
        }
    }
}
