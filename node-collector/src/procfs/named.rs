//! `/proc/net/snmp6`: a name and a value a line, in an order that is fixed while a kernel runs.

use std::collections::HashMap;

use sonde_proto::ABSENT;

use super::number::decimal;
use super::{ParseError, lines, words};

/// The wanted counters of such a file.
#[derive(Debug)]
pub struct Named {
    count: usize,
    wanted: HashMap<&'static [u8], usize>,
    /// What stands on each line, from the last reading: saves the look-up.
    order: Vec<(Vec<u8>, Option<usize>)>,
}

impl Named {
    /// `""` stands for a counter that this file never has.
    pub fn new(wanted: &[&'static str]) -> Self {
        let count = wanted.len();
        let wanted = wanted
            .iter()
            .enumerate()
            .filter(|(_, name)| !name.is_empty())
            .map(|(i, name)| (name.as_bytes(), i))
            .collect();
        Self {
            count,
            wanted,
            order: Vec::new(),
        }
    }

    /// Fills `out` in the order wanted, [`ABSENT`] where the kernel has no such name. Whether one of them is there.
    pub fn parse(&mut self, text: &[u8], out: &mut [i64]) -> Result<bool, ParseError> {
        assert_eq!(out.len(), self.count);
        out.fill(ABSENT);
        let mut found = false;
        for (number, line) in lines(text).enumerate() {
            let (place, rest) = match self.order.get(number) {
                Some((name, place)) if is_named(line, name) => (*place, &line[name.len()..]),
                _ => self.learn(number, line),
            };
            let Some(place) = place else {
                continue;
            };
            let word = rest.trim_ascii();
            let Some(value) = decimal(word) else {
                out.fill(ABSENT);
                return Err(if words(word).count() == 1 {
                    ParseError::not_a_number(number + 1, word)
                } else {
                    ParseError::Shape {
                        line: number + 1,
                        what: "expected a name and one value",
                    }
                });
            };
            out[place] = value;
            found = true;
        }
        Ok(found)
    }

    /// What stands on a line that is not the one known there, and what follows its name.
    fn learn<'a>(&mut self, number: usize, line: &'a [u8]) -> (Option<usize>, &'a [u8]) {
        let end = line.iter().position(is_blank).unwrap_or(line.len());
        let (name, rest) = line.split_at(end);
        let place = self.wanted.get(name).copied();
        // A file that got longer in the middle is learnt anew from there on.
        self.order.truncate(number);
        if self.order.len() == number {
            self.order.push((name.to_vec(), place));
        }
        (place, rest)
    }
}

fn is_named(line: &[u8], name: &[u8]) -> bool {
    line.starts_with(name) && line.get(name.len()).is_none_or(is_blank)
}

fn is_blank(byte: &u8) -> bool {
    matches!(byte, b' ' | b'\t')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_found_by_name_in_any_order() {
        let mut named = Named::new(&["Ip6InReceives", "Udp6MemErrors"]);
        let mut out = [0; 2];
        let old = "Ip6InReceives                   \t12\nUdp6InDatagrams\t3\n";
        assert_eq!(named.parse(old.as_bytes(), &mut out), Ok(true));
        assert_eq!(out, [12, ABSENT]);
        let new = "Ip6New\t1\nIp6InReceives\t13\nUdp6InDatagrams\t4\nUdp6MemErrors\t5\n";
        for _ in 0..2 {
            assert_eq!(named.parse(new.as_bytes(), &mut out), Ok(true));
            assert_eq!(out, [13, 5]);
        }
        assert_eq!(named.parse(b"", &mut out), Ok(false));
    }

    #[test]
    fn broken_lines_are_errors_with_their_number() {
        let mut named = Named::new(&["", "A"]);
        let mut out = [0; 2];
        for text in ["X 1\nA\n", "X 1\nA 1 2\n"] {
            assert_eq!(
                named.parse(text.as_bytes(), &mut out),
                Err(ParseError::Shape {
                    line: 2,
                    what: "expected a name and one value"
                })
            );
        }
        let error = named.parse(b"A x\n", &mut out);
        assert_eq!(
            error,
            Err(ParseError::NotANumber {
                line: 1,
                found: "x".into()
            })
        );
        assert_eq!(out, [ABSENT; 2]);
    }
}
