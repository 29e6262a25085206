//! `/proc/net/protocols`: a line for each protocol, below a line of titles.
//!
//! `protocol  size sockets  memory press maxhdr  slab module ...`: `press` is `yes` while the protocol is under memory
//! pressure, `no` while it is not, `NI` where it has no such thing.

use super::{ParseError, lines, words};

/// Whether the protocol is under memory pressure; `None` where the kernel does not tell.
pub fn is_under_pressure(text: &[u8], protocol: &str) -> Result<Option<bool>, ParseError> {
    let mut lines = lines(text).enumerate();
    let titles = lines.next().map_or(&b""[..], |(_, line)| line);
    // Behind the protocol's name.
    let Some(place) = words(titles).skip(1).position(|title| title == b"press") else {
        return Ok(None);
    };
    for (number, line) in lines {
        let mut words = words(line);
        if words.next() != Some(protocol.as_bytes()) {
            continue;
        }
        return match words.nth(place) {
            Some(b"yes") => Ok(Some(true)),
            Some(b"no") => Ok(Some(false)),
            Some(b"NI") => Ok(None),
            _ => Err(ParseError::Shape {
                line: number + 1,
                what: "expected yes, no or NI of memory pressure",
            }),
        };
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pressure_is_yes_no_or_not_told() {
        let text = "protocol  size sockets  memory press maxhdr  slab\nUDPv6 1 0 0 NI 0 yes\nTCPv6 2 1 3 yes 320 yes\nTCP 2 1 3 no 320 yes\nX 1\n";
        let of = |protocol| is_under_pressure(text.as_bytes(), protocol);
        assert_eq!(of("TCP"), Ok(Some(false)));
        assert_eq!(of("TCPv6"), Ok(Some(true)));
        assert_eq!(of("UDPv6"), Ok(None));
        assert_eq!(of("SCTP"), Ok(None));
        assert!(of("X").is_err());
        assert_eq!(is_under_pressure(b"protocol size\nTCP 1\n", "TCP"), Ok(None));
        assert_eq!(
            is_under_pressure(b"press size\nTCP 1\n", "TCP"),
            Ok(None),
            "no protocol before it"
        );
    }
}
