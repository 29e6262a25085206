//! A `BatchBody` to and from the one zstd frame that travels as `Batch.body`.

use prost::Message as _;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};

use crate::limits::{MAX_BATCH_BYTES, MAX_BODY_BYTES, MAX_ELEMENTS};
use crate::v1::BatchBody;

/// Fast enough for a node that carries other people's load; higher levels gain a few percent on such columns.
const LEVEL: i32 = 1;

/// Why a body cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    #[error("batch of {0} bytes, at most {MAX_BATCH_BYTES} are accepted")]
    TooLong(usize),
    #[error("batch body is not one zstd frame of at most {MAX_BODY_BYTES} bytes: {0}")]
    Zstd(std::io::Error),
    #[error("batch body of {0} strings, pods, events, columns and the like, at most {MAX_ELEMENTS} are accepted")]
    TooMany(usize),
    #[error("batch body is not a BatchBody message: {0}")]
    Protobuf(#[from] prost::DecodeError),
}

/// Encodes and compresses.
pub fn encode(body: &BatchBody) -> Vec<u8> {
    let plain = body.encode_to_vec();
    zstd::bulk::compress(&plain, LEVEL).expect("compression into a growing buffer does not fail")
}

/// How many bytes the frame says it holds, at most what [`decode`] will make of it; [`MAX_BODY_BYTES`] where it does not
/// say. A hostile frame may declare more than that, and is then refused.
pub fn plain_size(bytes: &[u8]) -> usize {
    let declared = zstd::zstd_safe::get_frame_content_size(bytes).ok().flatten();
    match declared {
        Some(size) if size > 0 => usize::try_from(size).unwrap_or(usize::MAX),
        _ => MAX_BODY_BYTES,
    }
}

/// Decompresses and decodes; never allocates beyond [`MAX_BODY_BYTES`].
pub fn decode(bytes: &[u8]) -> Result<BatchBody, BodyError> {
    if bytes.len() > MAX_BATCH_BYTES {
        return Err(BodyError::TooLong(bytes.len()));
    }
    if bytes.is_empty() {
        return Err(BodyError::Zstd(std::io::Error::other("it is empty")));
    }
    // The frame says its own size, but a hostile one lies: the declared size only picks the capacity.
    let capacity = plain_size(bytes);
    if capacity > MAX_BODY_BYTES {
        return Err(BodyError::Zstd(std::io::Error::other(format!(
            "frame declares {capacity} bytes"
        ))));
    }
    let plain = zstd::bulk::decompress(bytes, capacity).map_err(BodyError::Zstd)?;
    let elements = elements(&plain)?;
    if elements > MAX_ELEMENTS {
        return Err(BodyError::TooMany(elements));
    }
    Ok(BatchBody::decode(plain.as_slice())?)
}

/// Counts what becomes a value of its own in memory, without making anything of it: the fields of the body, and inside
/// pods, row groups and events those that are lists of texts or messages.
fn elements(mut plain: &[u8]) -> Result<usize, prost::DecodeError> {
    const PODS: u32 = 3;
    const ROWS: u32 = 4;
    const EVENTS: u32 = 5;
    let mut count = 0;
    while !plain.is_empty() {
        let (tag, wire_type) = decode_key(&mut plain)?;
        let inside = match tag {
            PODS => &[7, 8][..], // ips, labels
            ROWS => &[5],        // columns
            EVENTS => &[22],     // attributes
            _ => &[],
        };
        let before = plain;
        skip_field(wire_type, tag, &mut plain, DecodeContext::default())?;
        count += 1;
        if wire_type == WireType::LengthDelimited && !inside.is_empty() {
            let mut message = &before[..before.len() - plain.len()];
            decode_varint(&mut message)?;
            count += of_fields(message, inside)?;
        }
    }
    Ok(count)
}

fn of_fields(mut message: &[u8], tags: &[u32]) -> Result<usize, prost::DecodeError> {
    let mut count = 0;
    while !message.is_empty() {
        let (tag, wire_type) = decode_key(&mut message)?;
        skip_field(wire_type, tag, &mut message, DecodeContext::default())?;
        count += usize::from(tags.contains(&tag));
    }
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_comes_back_as_it_went() {
        let body = BatchBody {
            strings: vec![String::new(), "NETFILTER_DROP".into()],
            ..Default::default()
        };
        assert_eq!(decode(&encode(&body)).unwrap(), body);
    }

    #[test]
    fn garbage_and_bombs_are_refused() {
        for bytes in [&b""[..], b"not zstd"] {
            assert!(matches!(decode(bytes), Err(BodyError::Zstd(_))));
        }
        let bomb = zstd::bulk::compress(&vec![0; MAX_BODY_BYTES + 1], 1).unwrap();
        assert!(bomb.len() < MAX_BATCH_BYTES);
        assert!(matches!(decode(&bomb), Err(BodyError::Zstd(_))));
        let crowd = BatchBody {
            strings: vec![String::new(); MAX_ELEMENTS + 1],
            ..Default::default()
        };
        assert!(matches!(decode(&encode(&crowd)), Err(BodyError::TooMany(_))));
        // Nor inside what there is few of.
        let columns = BatchBody {
            rows: vec![crate::v1::Rows {
                columns: vec![crate::v1::Column::default(); MAX_ELEMENTS],
                ..Default::default()
            }],
            ..Default::default()
        };
        assert!(matches!(decode(&encode(&columns)), Err(BodyError::TooMany(_))));
        let not_a_body = zstd::bulk::compress(&[0xff; 64], 1).unwrap();
        assert!(matches!(decode(&not_a_body), Err(BodyError::Protobuf(_))));
    }
}
