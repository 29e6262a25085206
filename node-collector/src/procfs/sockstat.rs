//! `/proc/net/sockstat` and `sockstat6`: a protocol, then names and values on the same line.
//!
//! `TCP: inuse 1 orphan 0 tw 0 alloc 1 mem 292`: of these the kernel keeps `inuse` and `tw` for the network namespace;
//! `orphan`, `alloc` and every `mem` (pages) are the node's, whichever namespace asks.

use sonde_proto::ABSENT;

use super::number::decimal;
use super::{ParseError, lines, words};

/// A counter by protocol (with its colon) and name.
pub type Name = (&'static str, &'static str);

/// Fills `out` in the order of `wanted`, [`ABSENT`] where the kernel has no such name.
pub fn parse(text: &[u8], wanted: &[Name], out: &mut [i64]) -> Result<(), ParseError> {
    assert_eq!(out.len(), wanted.len());
    out.fill(ABSENT);
    for (number, line) in lines(text).enumerate() {
        let mut words = words(line);
        let protocol = words.next().unwrap_or_default();
        while let Some(name) = words.next() {
            let Some(value) = words.next() else {
                out.fill(ABSENT);
                return Err(ParseError::Shape {
                    line: number + 1,
                    what: "expected a value for each name",
                });
            };
            let place = wanted
                .iter()
                .position(|(p, n)| p.as_bytes() == protocol && n.as_bytes() == name);
            if let Some(place) = place {
                let Some(value) = decimal(value) else {
                    out.fill(ABSENT);
                    return Err(ParseError::not_a_number(number + 1, value));
                };
                out[place] = value;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const WANTED: &[Name] = &[("TCP:", "inuse"), ("TCP:", "mem"), ("UDP:", "mem"), ("FRAG:", "memory")];

    #[test]
    fn names_belong_to_their_protocol() {
        let text =
            "sockets: used 17\nTCP: inuse 3 orphan 0 tw 0 alloc 1 mem 292\nUDP: inuse 2 mem 5\nUDPLITE: inuse 9\n";
        let mut out = [0; 4];
        assert_eq!(parse(text.as_bytes(), WANTED, &mut out), Ok(()));
        assert_eq!(out, [3, 292, 5, ABSENT]);
    }

    #[test]
    fn broken_text_is_an_error_with_its_line() {
        let mut out = [0; 4];
        assert_eq!(
            parse(b"sockets: used 1\nTCP: inuse\n", WANTED, &mut out),
            Err(ParseError::Shape {
                line: 2,
                what: "expected a value for each name"
            })
        );
        assert_eq!(
            parse(b"TCP: inuse x\n", WANTED, &mut out),
            Err(ParseError::NotANumber {
                line: 1,
                found: "x".into()
            })
        );
        assert_eq!(out, [ABSENT; 4]);
    }
}
