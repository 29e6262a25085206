//! `/proc/net/dev`: a line of counters for each device, below two lines of titles.

use sonde_proto::ABSENT;

use super::number::decimal;
use super::{ParseError, lines, words};

/// Directions as the second line of titles parts them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Receive,
    Transmit,
}

/// The wanted counters of each device.
#[derive(Debug)]
pub struct Devices {
    wanted: &'static [(Side, &'static str)],
    titles: Vec<u8>,
    places: Vec<Option<u16>>,
}

impl Devices {
    pub fn new(wanted: &'static [(Side, &'static str)]) -> Self {
        Self {
            wanted,
            titles: Vec::new(),
            places: Vec::new(),
        }
    }

    /// Calls `each` with the name and the wanted counters of every device; nothing is called when the text is broken
    /// before it.
    pub fn parse(
        &mut self,
        text: &[u8],
        out: &mut [i64],
        mut each: impl FnMut(&str, &[i64]),
    ) -> Result<(), ParseError> {
        assert_eq!(out.len(), self.wanted.len());
        let mut lines = lines(text).enumerate();
        let titles = lines.nth(1).map_or(&b""[..], |(_, line)| line);
        if titles != self.titles || titles.is_empty() {
            self.learn(titles)?;
        }
        for (number, line) in lines {
            let shape = |what| ParseError::Shape { line: number + 1, what };
            let colon = memchr::memchr(b':', line).ok_or(shape("expected a device name and a colon"))?;
            let name = std::str::from_utf8(line[..colon].trim_ascii())
                .map_err(|_| shape("expected a device name of UTF-8"))?;
            self.values(&line[colon + 1..], number + 1, out)?;
            each(name, out);
        }
        Ok(())
    }

    fn learn(&mut self, titles: &[u8]) -> Result<(), ParseError> {
        let mut parts = titles.split(|b| *b == b'|').skip(1);
        let (Some(receive), Some(transmit), None) = (parts.next(), parts.next(), parts.next()) else {
            return Err(ParseError::Shape {
                line: 2,
                what: "expected titles of receive and transmit columns",
            });
        };
        let place = |side: Side, title: &[u8]| {
            let place = self
                .wanted
                .iter()
                .position(|(s, t)| *s == side && t.as_bytes() == title)?;
            Some(place as u16)
        };
        self.places = words(receive)
            .map(|title| place(Side::Receive, title))
            .chain(words(transmit).map(|title| place(Side::Transmit, title)))
            .collect();
        self.titles = titles.to_vec();
        Ok(())
    }

    fn values(&self, line: &[u8], number: usize, out: &mut [i64]) -> Result<(), ParseError> {
        out.fill(ABSENT);
        let mut count = 0;
        for word in words(line) {
            if let Some(Some(place)) = self.places.get(count) {
                out[usize::from(*place)] = decimal(word).ok_or_else(|| ParseError::not_a_number(number, word))?;
            }
            count += 1;
        }
        if count == self.places.len() {
            return Ok(());
        }
        Err(ParseError::Uneven {
            line: number,
            names: self.places.len(),
            values: count,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WANTED: &[(Side, &str)] = &[
        (Side::Receive, "bytes"),
        (Side::Transmit, "bytes"),
        (Side::Transmit, "carrier"),
    ];
    const TITLES: &str = "\
Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
";

    fn parse(text: &str) -> Result<Vec<(String, Vec<i64>)>, ParseError> {
        let mut rows = Vec::new();
        let mut out = [0; 3];
        Devices::new(WANTED)
            .parse(text.as_bytes(), &mut out, |name, values| {
                rows.push((name.to_owned(), values.to_vec()))
            })
            .map(|()| rows)
    }

    #[test]
    fn each_device_has_its_counters() {
        // Names as long as they may be leave no blank before the value.
        let text = format!(
            "{TITLES}    lo:  10 1 0 0 0 0 0 0 20 1 0 0 0 0 0 0\nabcdefghijklmno:18446744073709551615 1 0 0 0 0 0 0 21 1 0 0 0 0 7 0\n"
        );
        assert_eq!(
            parse(&text).unwrap(),
            [
                ("lo".to_owned(), vec![10, 20, 0]),
                ("abcdefghijklmno".to_owned(), vec![i64::MAX, 21, 7])
            ]
        );
        assert_eq!(parse(TITLES).unwrap(), []);
    }

    #[test]
    fn a_column_that_moved_is_followed_by_its_title() {
        let text = "Inter-| Receive | Transmit\n face |new bytes|bytes\n lo: 1 2 3\n";
        assert_eq!(parse(text).unwrap(), [("lo".to_owned(), vec![2, 3, ABSENT])]);
    }

    #[test]
    fn broken_text_is_an_error_with_its_line() {
        for (text, line) in [
            (String::new(), 2),
            ("a\nb\n".into(), 2),
            (format!("{TITLES}lo 1\n"), 3),
            (format!("{TITLES}lo: 1 2\n"), 3),
        ] {
            let error = parse(&text).unwrap_err();
            assert!(
                error.to_string().starts_with(&format!("line {line}:")),
                "{text:?} {error}"
            );
        }
    }
}
