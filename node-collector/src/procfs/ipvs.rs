//! `/proc/net/ip_vs_stats`: two lines of titles, a line of hexadecimal totals, then rates.
//!
//! ```text
//!    Total Incoming Outgoing         Incoming         Outgoing
//!    Conns  Packets  Packets            Bytes            Bytes
//!        3       14       10              4F0              3A0
//! ```

use super::number::hex64;
use super::{ParseError, lines, words};

/// Since the namespace began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Totals {
    pub connections: i64,
    pub incoming_packets: i64,
    pub outgoing_packets: i64,
    pub incoming_bytes: i64,
    pub outgoing_bytes: i64,
}

const TITLES: [&[&[u8]]; 2] = [
    &[b"Total", b"Incoming", b"Outgoing", b"Incoming", b"Outgoing"],
    &[b"Conns", b"Packets", b"Packets", b"Bytes", b"Bytes"],
];

/// The titles have no name of their own for a column, so they must be those known: packets are not bytes.
pub fn parse(text: &[u8]) -> Result<Totals, ParseError> {
    let mut lines = lines(text).enumerate();
    for titles in TITLES {
        let (number, line) = lines.next().unwrap_or_default();
        if !words(line).eq(titles.iter().copied()) {
            return Err(ParseError::Shape {
                line: number + 1,
                what: "expected the titles of connections, packets and bytes",
            });
        }
    }
    let line = lines.next().map_or(&b""[..], |(_, line)| line);
    let mut values = [0; 5];
    let mut count = 0;
    for word in words(line) {
        let value = hex64(word).ok_or_else(|| ParseError::not_a_number(3, word))?;
        if let Some(place) = values.get_mut(count) {
            *place = value;
        }
        count += 1;
    }
    if count != values.len() {
        return Err(ParseError::Uneven {
            line: 3,
            names: values.len(),
            values: count,
        });
    }
    let [
        connections,
        incoming_packets,
        outgoing_packets,
        incoming_bytes,
        outgoing_bytes,
    ] = values;
    Ok(Totals {
        connections,
        incoming_packets,
        outgoing_packets,
        incoming_bytes,
        outgoing_bytes,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "   Total Incoming Outgoing         Incoming         Outgoing\n   Conns  Packets  Packets            Bytes            Bytes\n       3       1F       10              4F0   FFFFFFFFFFFFFFFF\n\n Conns/s   Pkts/s   Pkts/s          Bytes/s          Bytes/s\n       0        0        0                0                0\n";

    #[test]
    fn packets_are_packets_and_bytes_are_bytes() {
        assert_eq!(
            parse(TEXT.as_bytes()),
            Ok(Totals {
                connections: 3,
                incoming_packets: 31,
                outgoing_packets: 16,
                incoming_bytes: 0x4f0,
                outgoing_bytes: i64::MAX,
            })
        );
    }

    #[test]
    fn other_titles_or_another_number_of_values_are_errors() {
        assert!(parse(TEXT.replacen("Packets", "Bytes", 1).as_bytes()).is_err());
        assert!(parse(TEXT.replacen("4F0", "4F0 1", 1).as_bytes()).is_err());
        assert!(parse(TEXT.replacen("4F0", "", 1).as_bytes()).is_err());
        assert!(parse(TEXT.replacen("4F0", "4G0", 1).as_bytes()).is_err());
        assert!(parse(b"").is_err());
    }
}
