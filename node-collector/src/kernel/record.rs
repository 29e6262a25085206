//! Records of the rings, checked: what all have in common.

use sonde_ebpf_common::record::{Head, STACK_FRAMES, Start};
use zerocopy::{FromBytes, Immutable, KnownLayout};

use std::sync::Arc;

use crate::event::NetnsKey;

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    #[error("record of {0} bytes is no record")]
    Short(usize),
    #[error("record says it has {said} bytes, it has {have}")]
    SaidSize { said: u32, have: usize },
    #[error("record of {have} bytes, expected {want}, with or without a stack")]
    Size { have: usize, want: usize },
    #[error("record says its stack has {0} bytes")]
    Stack(i32),
    #[error("record says {what} is {value}")]
    Value { what: &'static str, value: u64 },
}

const STACK_BYTES: usize = STACK_FRAMES * 8;

/// The kind of a record whose size is as it says.
pub(crate) fn kind(bytes: &[u8]) -> Result<u32, RecordError> {
    let (start, _) = Start::read_from_prefix(bytes).map_err(|_| RecordError::Short(bytes.len()))?;
    if start.size as usize != bytes.len() {
        return Err(RecordError::SaidSize {
            said: start.size,
            have: bytes.len(),
        });
    }
    Ok(start.kind)
}

/// A record that begins with a [`Head`] (which `head` gives), and the addresses of its stack, innermost first.
pub(crate) fn parse<T: FromBytes + KnownLayout + Immutable>(
    bytes: &[u8],
    head: impl Fn(&T) -> &Head,
) -> Result<(T, Vec<u64>), RecordError> {
    let size = RecordError::Size {
        have: bytes.len(),
        want: size_of::<T>(),
    };
    let Ok((record, rest)) = T::read_from_prefix(bytes) else {
        return Err(size);
    };
    if !rest.is_empty() && rest.len() != STACK_BYTES {
        return Err(size);
    }
    let stack = stack(head(&record).stack_bytes, rest)?;
    Ok((record, stack))
}

/// The addresses of a stack of which `taken` bytes are said to be filled.
pub(crate) fn stack(taken: i32, room: &[u8]) -> Result<Vec<u64>, RecordError> {
    // A stack that could not be taken (negative) is none; one beyond its room cannot be.
    let bytes = usize::try_from(taken).unwrap_or(0);
    if bytes > room.len() || !bytes.is_multiple_of(8) {
        return Err(RecordError::Stack(taken));
    }
    let words = room[..bytes].chunks_exact(8);
    Ok(words
        .filter_map(|word| word.try_into().ok().map(u64::from_ne_bytes))
        .take_while(|at| *at != 0)
        .collect())
}

/// The name of a task.
pub(crate) fn comm(bytes: &[u8; 16]) -> Option<Arc<str>> {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    (end != 0).then(|| String::from_utf8_lossy(&bytes[..end]).into())
}

/// Where the record is from; `None`: the kernel side could not tell.
pub(crate) fn netns(head: &Head) -> Option<NetnsKey> {
    (head.netns != 0).then_some(NetnsKey {
        inode: head.netns,
        cookie: head.cookie,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerocopy::IntoBytes as _;

    fn head(size: usize, stack_bytes: i32) -> Head {
        Head {
            kind: 9,
            size: size as u32,
            ktime_ns: 1,
            cookie: 2,
            netns: 3,
            cpu: 4,
            tgid: 5,
            stack_bytes,
        }
    }

    fn read(bytes: &[u8]) -> Result<Vec<u64>, RecordError> {
        parse::<Head>(bytes, |head| head).map(|(_, stack)| stack)
    }

    #[test]
    fn a_record_is_as_long_as_it_says_and_its_stack_as_long_as_was_taken() {
        let alone = head(40, 0);
        assert_eq!((kind(alone.as_bytes()), read(alone.as_bytes())), (Ok(9), Ok(vec![])));
        for len in 0..40 {
            assert!(kind(&alone.as_bytes()[..len]).is_err(), "{len}");
            assert!(read(&alone.as_bytes()[..len]).is_err(), "{len}");
        }
        // What lies behind the frames is left over from an older record.
        let stacked = |taken| [head(40 + STACK_BYTES, taken).as_bytes(), &[7; STACK_BYTES]].concat();
        assert_eq!(kind(&stacked(16)), Ok(9));
        assert_eq!(read(&stacked(16)), Ok(vec![0x0707_0707_0707_0707; 2]));
        assert_eq!(read(&stacked(-14)), Ok(vec![]));
        assert_eq!(read(&stacked(520)), Err(RecordError::Stack(520)));
        assert_eq!(read(&stacked(12)), Err(RecordError::Stack(12)));
        assert!(matches!(read(&stacked(0)[..48]), Err(RecordError::Size { .. })));
        assert_eq!(read(head(40, 8).as_bytes()), Err(RecordError::Stack(8)));
    }
}
