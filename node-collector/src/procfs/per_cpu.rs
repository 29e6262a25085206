//! `/proc/net/stat/*`: a line of names, then a line of hexadecimal values for each CPU that is possible.
//!
//! ```text
//! entries  clashres found new invalid ...
//! 00000003  00000000 00000002 00000000 00000001 ...
//! ```
//! Names come, go and move between kernels, so only names count. `entries` is one number, repeated on each line; the
//! others are each CPU's own.

use sonde_proto::ABSENT;

use super::number::hex64;
use super::{ParseError, lines, words};

/// The one column that is not a CPU's.
const SHARED: &[u8] = b"entries";

/// The wanted columns of such a file.
#[derive(Debug)]
pub struct PerCpu {
    wanted: &'static [&'static str],
    names: Vec<u8>,
    /// For each value of a line: its place among the wanted ones, and whether it is the same on each line.
    places: Vec<Option<(u16, bool)>>,
}

impl PerCpu {
    pub fn new(wanted: &'static [&'static str]) -> Self {
        Self {
            wanted,
            names: Vec::new(),
            places: Vec::new(),
        }
    }

    /// Fills `out` in the order wanted with the sums over the CPUs, [`ABSENT`] where the kernel has no such name.
    /// Whether there was a CPU.
    pub fn parse(&mut self, text: &[u8], out: &mut [i64]) -> Result<bool, ParseError> {
        assert_eq!(out.len(), self.wanted.len());
        let result = self.sum(text, out);
        if !matches!(result, Ok(true)) {
            out.fill(ABSENT);
        }
        result
    }

    fn sum(&mut self, text: &[u8], out: &mut [i64]) -> Result<bool, ParseError> {
        let mut lines = lines(text).enumerate();
        let Some((_, names)) = lines.next() else {
            return Ok(false);
        };
        if names != self.names {
            self.learn(names);
        }
        out.fill(ABSENT);
        let mut cpus = 0;
        for (number, line) in lines {
            let mut count = 0;
            for word in words(line) {
                if let Some(Some((place, shared))) = self.places.get(count) {
                    let value = hex64(word).ok_or_else(|| ParseError::not_a_number(number + 1, word))?;
                    let sum = &mut out[usize::from(*place)];
                    *sum = if *shared || *sum == ABSENT {
                        value
                    } else {
                        sum.saturating_add(value)
                    };
                }
                count += 1;
            }
            if count != self.places.len() {
                return Err(ParseError::Uneven {
                    line: number + 1,
                    names: self.places.len(),
                    values: count,
                });
            }
            cpus += 1;
        }
        Ok(cpus > 0)
    }

    fn learn(&mut self, names: &[u8]) {
        self.names = names.to_vec();
        self.places = words(names)
            .map(|name| {
                let place = self.wanted.iter().position(|w| w.as_bytes() == name)?;
                Some((place as u16, name == SHARED))
            })
            .collect();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WANTED: &[&str] = &["entries", "invalid", "clashres", "chainlength"];

    fn parse(text: &str) -> (Result<bool, ParseError>, [i64; 4]) {
        let mut out = [1; 4];
        let result = PerCpu::new(WANTED).parse(text.as_bytes(), &mut out);
        (result, out)
    }

    #[test]
    fn cpus_are_summed_by_name_and_what_is_shared_is_not() {
        let text =
            "entries  clashres found new invalid\n0000000a  00000001 0 0 ffffffff\n0000000a  00000002 0 0 00000001\n";
        assert_eq!(parse(text), (Ok(true), [10, 0x1_0000_0000, 3, ABSENT]));
        // 4.19 has `searched` in the place of `clashres`.
        let old = "entries  searched found new invalid ignore\n00000003  00000009 0 0 00000005 00000007\n";
        assert_eq!(parse(old), (Ok(true), [3, 5, ABSENT, ABSENT]));
        assert_eq!(parse("entries\n"), (Ok(false), [ABSENT; 4]));
        assert_eq!(parse(""), (Ok(false), [ABSENT; 4]));
    }

    #[test]
    fn broken_text_is_an_error_with_its_line_and_leaves_nothing_behind() {
        let (result, out) = parse("entries invalid\n1 2\n1\n");
        assert_eq!(
            result,
            Err(ParseError::Uneven {
                line: 3,
                names: 2,
                values: 1
            })
        );
        assert_eq!(out, [ABSENT; 4]);
        let (result, out) = parse("entries invalid\n1 2 3\n");
        assert_eq!(
            result,
            Err(ParseError::Uneven {
                line: 2,
                names: 2,
                values: 3
            })
        );
        assert_eq!(out, [ABSENT; 4]);
        let (result, out) = parse("entries invalid\n1 zz\n");
        assert_eq!(
            result,
            Err(ParseError::NotANumber {
                line: 2,
                found: "zz".into()
            })
        );
        assert_eq!(out, [ABSENT; 4]);
    }
}
