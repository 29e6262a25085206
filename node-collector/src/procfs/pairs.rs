//! `/proc/net/snmp` and `/proc/net/netstat`: a line of names, then a line of values, each begun by its group.
//!
//! ```text
//! Udp: InDatagrams NoPorts InErrors OutDatagrams
//! Udp: 12 0 0 15
//! ```
//! Kernels add names in the middle and at the end, so only names count. The line of names never changes while a kernel
//! runs: its layout is worked out once and then only compared.

use sonde_proto::ABSENT;

use super::number::decimal;
use super::{ParseError, words};

/// The wanted counters of one group.
#[derive(Debug)]
pub struct Group {
    /// With its colon: `TcpExt:`.
    prefix: &'static str,
    wanted: &'static [&'static str],
    names: Vec<u8>,
    /// For each value of the line: its place among the wanted ones.
    places: Vec<Option<u16>>,
}

impl Group {
    pub fn new(prefix: &'static str, wanted: &'static [&'static str]) -> Self {
        assert!(prefix.ends_with(':') && wanted.len() < usize::from(u16::MAX));
        Self {
            prefix,
            wanted,
            names: Vec::new(),
            places: Vec::new(),
        }
    }

    /// Fills `out` in the order wanted, [`ABSENT`] where the kernel has no such name. Whether the group is there.
    pub fn parse(&mut self, text: &[u8], out: &mut [i64]) -> Result<bool, ParseError> {
        assert_eq!(out.len(), self.wanted.len());
        out.fill(ABSENT);
        let mut lines = super::lines(text).enumerate();
        while let Some((number, line)) = lines.next() {
            let Some(names) = line.strip_prefix(self.prefix.as_bytes()) else {
                continue;
            };
            let Some(values) = lines.next().and_then(|(_, l)| l.strip_prefix(self.prefix.as_bytes())) else {
                return Err(ParseError::Shape {
                    line: number + 2,
                    what: "expected the values of the names above",
                });
            };
            if names != self.names {
                self.learn(names);
            }
            let result = self.values(values, number + 2, out);
            if result.is_err() {
                out.fill(ABSENT);
            }
            return result.map(|()| true);
        }
        Ok(false)
    }

    fn learn(&mut self, names: &[u8]) {
        self.names = names.to_vec();
        self.places = words(names)
            .map(|name| {
                let place = self.wanted.iter().position(|w| w.as_bytes() == name)?;
                Some(place as u16)
            })
            .collect();
    }

    fn values(&self, line: &[u8], number: usize, out: &mut [i64]) -> Result<(), ParseError> {
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

    const SNMP_4_19: &str = "\
Ip: Forwarding DefaultTTL InReceives
Ip: 1 64 1000
Tcp: RtoAlgorithm RtoMin RtoMax MaxConn ActiveOpens InSegs
Tcp: 1 200 120000 -1 5 6
Udp: InDatagrams NoPorts
Udp: 7 8
";

    #[test]
    fn counters_are_found_by_name_wherever_they_stand() {
        let mut group = Group::new("Tcp:", &["InSegs", "MaxConn", "Newer"]);
        let mut out = [0; 3];
        assert_eq!(group.parse(SNMP_4_19.as_bytes(), &mut out), Ok(true));
        assert_eq!(out, [6, -1, ABSENT]);

        // A newer kernel put a column before the ones we know and one behind them.
        let newer = "Tcp: Extra MaxConn InSegs Newer\nTcp: 9 -1 60 70\n";
        assert_eq!(group.parse(newer.as_bytes(), &mut out), Ok(true));
        assert_eq!(out, [60, -1, 70]);
    }

    #[test]
    fn a_group_that_is_not_there_is_absent_not_an_error() {
        let mut out = [0; 1];
        let mut group = Group::new("MPTcpExt:", &["MPCapableSYNRX"]);
        assert_eq!(group.parse(SNMP_4_19.as_bytes(), &mut out), Ok(false));
        assert_eq!(out, [ABSENT]);
        assert_eq!(group.parse(b"", &mut out), Ok(false));
    }

    #[test]
    fn a_prefix_is_a_whole_group() {
        let text = "UdpLite: InDatagrams\nUdpLite: 5\nUdp: InDatagrams\nUdp: 7\n";
        let mut out = [0; 1];
        assert_eq!(
            Group::new("Udp:", &["InDatagrams"]).parse(text.as_bytes(), &mut out),
            Ok(true)
        );
        assert_eq!(out, [7]);
    }

    #[test]
    fn broken_text_is_an_error_with_its_line_and_leaves_nothing_behind() {
        let mut group = Group::new("Udp:", &["InDatagrams", "NoPorts"]);
        for (text, error) in [
            (
                "Udp: InDatagrams NoPorts\nUdp: 7\n",
                ParseError::Uneven {
                    line: 2,
                    names: 2,
                    values: 1,
                },
            ),
            (
                "Udp: InDatagrams NoPorts\nUdp: 7 8 9\n",
                ParseError::Uneven {
                    line: 2,
                    names: 2,
                    values: 3,
                },
            ),
            (
                "Udp: InDatagrams NoPorts\nUdp: x 8\n",
                ParseError::NotANumber {
                    line: 2,
                    found: "x".into(),
                },
            ),
            (
                "Ip: A\nIp: 1\nUdp: InDatagrams NoPorts\n",
                ParseError::Shape {
                    line: 4,
                    what: "expected the values of the names above",
                },
            ),
        ] {
            let mut out = [1, 1];
            assert_eq!(group.parse(text.as_bytes(), &mut out), Err(error), "{text}");
            assert!(!out.contains(&1), "{text}");
        }
    }
}
