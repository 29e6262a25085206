//! PostgreSQL's binary COPY format, written straight into one buffer: big-endian, a field count for each row, a length
//! before each field, -1 for null. See "Binary Format" in PostgreSQL's documentation of COPY.

use std::net::IpAddr;

use super::query::POSTGRES_EPOCH;

/// Bytes before the first row.
const HEADER: usize = 19;
const OID_INT8: u32 = 20;
const OID_INT2: u32 = 21;
const OID_INT4: u32 = 23;
const OID_FLOAT8: u32 = 701;
/// `PGSQL_AF_INET`, and the number after it for IPv6, on every platform.
const FAMILY_V4: u8 = 2;
const FAMILY_V6: u8 = 3;

/// Rows on their way into a table. Keeps its memory from one table to the next.
#[derive(Debug, Default)]
pub(super) struct CopyBuffer {
    bytes: Vec<u8>,
}

impl CopyBuffer {
    /// Begins the data of one COPY.
    pub(super) fn begin(&mut self) {
        self.bytes.clear();
        // No flags, no header extension.
        self.bytes.extend_from_slice(b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0");
    }

    /// Whether there is a row since it was begun.
    pub(super) fn has_rows(&self) -> bool {
        self.bytes.len() > HEADER
    }

    /// Ends the data of one COPY.
    pub(super) fn end(&mut self) {
        self.bytes.extend_from_slice(&(-1_i16).to_be_bytes());
    }

    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Takes back what was written beyond a length that it had.
    pub(super) fn cut(&mut self, to: usize) {
        self.bytes.truncate(to);
    }

    /// What is in it has been sent.
    pub(super) fn sent(&mut self) {
        self.bytes.clear();
    }

    /// Gives memory back after an unusually large load.
    pub(super) fn shrink(&mut self, to: usize) {
        self.bytes.clear();
        self.bytes.shrink_to(to);
    }

    pub(super) fn row(&mut self, fields: usize) {
        let fields = i16::try_from(fields).expect("a table has at most 1,600 columns");
        self.bytes.extend_from_slice(&fields.to_be_bytes());
    }

    pub(super) fn null(&mut self) {
        self.bytes.extend_from_slice(&(-1_i32).to_be_bytes());
    }

    pub(super) fn i16(&mut self, value: i16) {
        self.field(&value.to_be_bytes());
    }

    pub(super) fn i32(&mut self, value: i32) {
        self.field(&value.to_be_bytes());
    }

    pub(super) fn i64(&mut self, value: i64) {
        self.field(&value.to_be_bytes());
    }

    pub(super) fn opt_i32(&mut self, value: Option<i32>) {
        match value {
            Some(value) => self.i32(value),
            None => self.null(),
        }
    }

    pub(super) fn opt_i64(&mut self, value: Option<i64>) {
        match value {
            Some(value) => self.i64(value),
            None => self.null(),
        }
    }

    /// `timestamptz`: whole microseconds; what is finer is cut off.
    pub(super) fn time(&mut self, unix_ns: u64) {
        self.i64((unix_ns / 1000) as i64 - POSTGRES_EPOCH);
    }

    /// `text`; without NUL.
    pub(super) fn text(&mut self, value: &str) {
        self.field(value.as_bytes());
    }

    /// `jsonb`: a format version, then the text.
    pub(super) fn jsonb(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        let at = self.bytes.len();
        self.bytes.extend_from_slice(&[0, 0, 0, 0, 1]);
        write(&mut self.bytes);
        self.close(at);
    }

    /// `inet` of one host, from 4 or 16 bytes in network order.
    pub(super) fn inet(&mut self, address: Option<IpAddr>) {
        let (family, bits, octets): (u8, u8, &[u8]) = match &address {
            None => return self.null(),
            Some(IpAddr::V4(v4)) => (FAMILY_V4, 32, &v4.octets()),
            Some(IpAddr::V6(v6)) => (FAMILY_V6, 128, &v6.octets()),
        };
        let at = self.bytes.len();
        self.bytes
            .extend_from_slice(&[0, 0, 0, 0, family, bits, 0, octets.len() as u8]);
        self.bytes.extend_from_slice(octets);
        self.close(at);
    }

    /// `bigint[]` of one dimension; `absent` becomes a null element.
    pub(super) fn i64_array(&mut self, values: &[i64], absent: i64) {
        let at = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 4]);
        let has_null = values.contains(&absent);
        for word in [1, u32::from(has_null), OID_INT8, values.len() as u32, 1] {
            self.bytes.extend_from_slice(&word.to_be_bytes());
        }
        for value in values {
            if *value == absent {
                self.null()
            } else {
                self.i64(*value)
            }
        }
        self.close(at);
    }

    /// `smallint[]` of one dimension.
    pub(super) fn i16_array(&mut self, values: &[i16]) {
        self.array(OID_INT2, 1, values.iter(), |out, value| out.i16(*value));
    }

    /// `int[]` of one dimension whose first element has the index `first`.
    pub(super) fn narrow_array(&mut self, values: impl ExactSizeIterator<Item = i32>, first: i32) {
        self.array(OID_INT4, first, values, |out, value| out.i32(value));
    }

    /// `bigint[]` of one dimension whose first element has the index `first`.
    pub(super) fn wide_array(&mut self, values: &[i64], first: i32) {
        self.array(OID_INT8, first, values.iter(), |out, value| out.i64(*value));
    }

    pub(super) fn opt_f64(&mut self, value: Option<f64>) {
        match value {
            Some(value) => self.field(&value.to_be_bytes()),
            None => self.null(),
        }
    }

    /// `integer[]` of one dimension.
    pub(super) fn i32_array(&mut self, values: impl ExactSizeIterator<Item = Option<i32>>) {
        self.array(OID_INT4, 1, values, |out, value| out.opt_i32(value));
    }

    /// `double precision[]` of one dimension.
    pub(super) fn f64_array(&mut self, values: impl ExactSizeIterator<Item = Option<f64>>) {
        self.array(OID_FLOAT8, 1, values, |out, value| out.opt_f64(value));
    }

    /// Dimensions, flags, type of the elements, length, index of the first. Whether it has nulls may be said although it
    /// has none.
    fn array<T>(
        &mut self,
        oid: u32,
        first: i32,
        values: impl ExactSizeIterator<Item = T>,
        write: impl Fn(&mut Self, T),
    ) {
        let at = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 4]);
        for word in [1, 1, oid, values.len() as u32, first as u32] {
            self.bytes.extend_from_slice(&word.to_be_bytes());
        }
        values.for_each(|value| write(self, value));
        self.close(at);
    }

    fn field(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(&(bytes.len() as i32).to_be_bytes());
        self.bytes.extend_from_slice(bytes);
    }

    /// Writes the length of a field whose length word is at `at`.
    fn close(&mut self, at: usize) {
        let length = i32::try_from(self.bytes.len() - at - 4).expect("a field is far smaller than a batch");
        self.bytes[at..at + 4].copy_from_slice(&length.to_be_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field(write: impl FnOnce(&mut CopyBuffer)) -> Vec<u8> {
        let mut buffer = CopyBuffer::default();
        write(&mut buffer);
        buffer.bytes
    }

    #[test]
    fn fields_are_as_postgresql_documents_them() {
        assert_eq!(field(|b| b.null()), [0xff; 4]);
        assert_eq!(field(|b| b.i16(-2)), [0, 0, 0, 2, 0xff, 0xfe]);
        assert_eq!(field(|b| b.i32(258)), [0, 0, 0, 4, 0, 0, 1, 2]);
        assert_eq!(field(|b| b.text("ab")), [0, 0, 0, 2, b'a', b'b']);
        assert_eq!(field(|b| b.jsonb(|out| out.extend(b"{}"))), [0, 0, 0, 3, 1, b'{', b'}']);
        // One microsecond after 2000-01-01.
        let time = field(|b| b.time(946_684_800_000_001_999));
        assert_eq!(time, [0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 1]);
        let before = field(|b| b.time(946_684_799_999_999_000));
        assert_eq!(before[4..], [0xff; 8]);
        let v4 = field(|b| b.inet(Some("10.0.0.1".parse().unwrap())));
        assert_eq!(v4, [0, 0, 0, 8, 2, 32, 0, 4, 10, 0, 0, 1]);
        let v6 = field(|b| b.inet(Some("::1".parse().unwrap())));
        assert_eq!((v6.len(), &v6[..8]), (24, &[0, 0, 0, 20, 3, 128, 0, 16][..]));
    }

    #[test]
    fn an_array_says_whether_it_has_nulls() {
        let array = field(|b| b.i64_array(&[5, i64::MIN], i64::MIN));
        let head = [0, 0, 0, 36, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 20, 0, 0, 0, 2, 0, 0, 0, 1];
        assert_eq!(array[..24], head);
        assert_eq!(
            array[24..],
            [0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 5, 0xff, 0xff, 0xff, 0xff]
        );
        assert_eq!(field(|b| b.i64_array(&[1], i64::MIN))[11], 0);
        let from_7 = field(|b| b.narrow_array([1, -1].into_iter(), 7));
        let head = [0, 0, 0, 36, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 23, 0, 0, 0, 2, 0, 0, 0, 7];
        assert_eq!(from_7[..24], head);
        assert_eq!(
            from_7[24..],
            [0, 0, 0, 4, 0, 0, 0, 1, 0, 0, 0, 4, 0xff, 0xff, 0xff, 0xff]
        );
    }
}
