//! How messages travel: Protobuf, with a bound on a hello before anything is made of it. A column of two bytes on the
//! wire takes a hundred in memory, so the bound of the transport, made for batches, would let a hello take half a
//! gigabyte.

use prost::Message;
use prost::bytes::Buf as _;
use tonic::Status;
use tonic::codec::{DecodeBuf, Decoder};
use tonic_prost::{ProstCodec, ProstDecoder, ProstEncoder};

use crate::limits::MAX_HELLO_BYTES;

/// Key of `Up.hello`: field 1, length-delimited.
const HELLO: u8 = 1 << 3 | 2;

#[derive(Debug)]
pub struct Codec<T, U>(ProstCodec<T, U>);

impl<T, U> Default for Codec<T, U> {
    fn default() -> Self {
        Self(ProstCodec::new())
    }
}

impl<T, U> tonic::codec::Codec for Codec<T, U>
where
    T: Message + Send + 'static,
    U: Message + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = ProstEncoder<T>;
    type Decoder = Bounded<U>;

    fn encoder(&mut self) -> Self::Encoder {
        tonic::codec::Codec::encoder(&mut self.0)
    }

    fn decoder(&mut self) -> Self::Decoder {
        Bounded(tonic::codec::Codec::decoder(&mut self.0))
    }
}

#[derive(Debug)]
pub struct Bounded<U>(ProstDecoder<U>);

impl<U: Message + Default> Decoder for Bounded<U> {
    type Item = U;
    type Error = Status;

    fn decode(&mut self, buf: &mut DecodeBuf<'_>) -> Result<Option<U>, Status> {
        check(buf.chunk().first().copied(), buf.remaining())?;
        self.0.decode(buf)
    }
}

/// Messages to the collector begin with the same key where they answer a hello; they are tiny.
fn check(first: Option<u8>, length: usize) -> Result<(), Status> {
    if first == Some(HELLO) && length > MAX_HELLO_BYTES {
        return Err(Status::invalid_argument(format!(
            "hello: {length} bytes, expected at most {MAX_HELLO_BYTES}"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::v1;

    #[test]
    fn a_hello_is_told_by_its_first_byte_and_bounded_and_a_batch_is_not() {
        let first = |message| v1::Up { message: Some(message) }.encode_to_vec().first().copied();
        let hello = first(v1::up::Message::Hello(v1::Hello::default()));
        let batch = first(v1::up::Message::Batch(v1::Batch::default()));
        assert!(check(hello, MAX_HELLO_BYTES).is_ok());
        let status = check(hello, MAX_HELLO_BYTES + 1).unwrap_err();
        assert_eq!(status.message(), "hello: 1048577 bytes, expected at most 1048576");
        assert!(check(batch, crate::limits::MAX_BATCH_BYTES).is_ok());
    }
}
