//! Netlink messages and attributes in a buffer. Nothing here trusts a length.

/// `struct nlmsghdr` without its process id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub kind: u16,
    pub flags: u16,
    pub sequence: u32,
}

/// The messages of a buffer with their payloads; ends at the first that does not fit.
pub(super) fn messages(buffer: &[u8]) -> impl Iterator<Item = (Header, &[u8])> {
    let mut rest = buffer;
    std::iter::from_fn(move || {
        let len = u32::from_ne_bytes(rest.get(..4)?.try_into().ok()?) as usize;
        let message = rest.get(..len).filter(|m| m.len() >= 16)?;
        let header = Header {
            kind: u16::from_ne_bytes([message[4], message[5]]),
            flags: u16::from_ne_bytes([message[6], message[7]]),
            sequence: u32::from_ne_bytes([message[8], message[9], message[10], message[11]]),
        };
        rest = rest.get(aligned(len)..).unwrap_or_default();
        Some((header, &message[16..]))
    })
}

/// The attributes of a payload: type without its flags, value.
pub(super) fn attributes(payload: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = payload;
    std::iter::from_fn(move || {
        let len = usize::from(u16::from_ne_bytes(rest.get(..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(rest.get(2..4)?.try_into().ok()?);
        let value = rest.get(4..len)?;
        rest = rest.get(aligned(len)..).unwrap_or_default();
        Some((kind & 0x3fff, value))
    })
}

/// The messages of a buffer; an error ends them where one does not fit.
pub(super) fn messages_of(buffer: &[u8]) -> impl Iterator<Item = Result<(Header, &[u8]), ()>> {
    let mut rest = buffer;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let Some(message) = messages(rest).next() else {
            rest = &[];
            return Some(Err(()));
        };
        rest = rest.get(aligned(16 + message.1.len())..).unwrap_or_default();
        Some(Ok(message))
    })
}

/// The attributes of a payload; an error ends them where one does not fit.
pub(super) fn attributes_of(payload: &[u8]) -> impl Iterator<Item = Result<(u16, &[u8]), ()>> {
    let mut rest = payload;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let Some(attribute) = attributes(rest).next() else {
            rest = &[];
            return Some(Err(()));
        };
        rest = rest.get(aligned(4 + attribute.1.len())..).unwrap_or_default();
        Some(Ok(attribute))
    })
}

/// A request: header, payload, attributes.
pub(super) fn request(kind: u16, flags: u16, sequence: u32, payload: &[u8], attributes: &[(u16, &[u8])]) -> Vec<u8> {
    let mut out = vec![0; 16];
    out.extend_from_slice(payload);
    for (kind, value) in attributes {
        out.resize(aligned(out.len()), 0);
        out.extend_from_slice(&(4 + value.len() as u16).to_ne_bytes());
        out.extend_from_slice(&kind.to_ne_bytes());
        out.extend_from_slice(value);
    }
    let len = out.len() as u32;
    out[..4].copy_from_slice(&len.to_ne_bytes());
    out[4..6].copy_from_slice(&kind.to_ne_bytes());
    out[6..8].copy_from_slice(&flags.to_ne_bytes());
    out[8..12].copy_from_slice(&sequence.to_ne_bytes());
    out
}

/// A payload that is followed by attributes, for who asks with both.
pub(super) fn with_attributes(payload: &[u8], attributes: &[(u16, &[u8])]) -> Vec<u8> {
    request(0, 0, 0, payload, attributes).split_off(16)
}

pub(super) const fn aligned(len: usize) -> usize {
    (len + 3) & !3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let message = request(18, 5, 7, &[1, 2, 3, 4], &[(3, b"eth0\0"), (29, &8u32.to_ne_bytes())]);
        let mut two = message.clone();
        two.resize(aligned(two.len()), 0);
        two.extend_from_slice(&message);
        let all: Vec<_> = messages(&two).collect();
        assert_eq!(all.len(), 2);
        assert_eq!(
            all[1].0,
            Header {
                kind: 18,
                flags: 5,
                sequence: 7
            }
        );
        let attributes: Vec<_> = attributes(&all[1].1[4..]).collect();
        assert_eq!(attributes, [(3, &b"eth0\0"[..]), (29, &8u32.to_ne_bytes()[..])]);
    }

    #[test]
    fn lengths_that_lie_end_the_walk() {
        let message = request(18, 0, 1, &[0; 16], &[(1, &[9; 8])]);
        for cut in 0..message.len() {
            assert_eq!(messages(&message[..cut]).count(), 0, "{cut}");
        }
        for len in [0u32, 1, 15, 1 << 31, u32::MAX] {
            let mut lying = message.clone();
            lying[..4].copy_from_slice(&len.to_ne_bytes());
            assert_eq!(messages(&lying).count(), 0, "{len}");
        }
        for len in [0u16, 3, 100, u16::MAX] {
            let mut attribute = vec![0; 12];
            attribute[..2].copy_from_slice(&len.to_ne_bytes());
            assert_eq!(attributes(&attribute).count(), 0, "{len}");
        }
    }
}
