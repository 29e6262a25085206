//! Filters applied to events in memory, with the same meaning as in SQL (`filter.rs`, `texts.rs`): for streams, which all look at the same
//! new events.

use std::net::IpAddr;
use std::sync::OnceLock;

use super::events::EventRow;
use super::filter::{EventFilter, Network, Terms};

/// An event, prepared to be looked at by many filters.
#[derive(Debug)]
pub struct Candidate {
    pub row: EventRow,
    ends: [Option<IpAddr>; 2],
    /// In small letters: reason, process name, stack, attributes.
    texts: OnceLock<Vec<String>>,
}

impl From<EventRow> for Candidate {
    fn from(row: EventRow) -> Self {
        let address = |text: &Option<String>| text.as_deref()?.parse().ok();
        Self {
            ends: [address(&row.saddr), address(&row.daddr)],
            texts: OnceLock::new(),
            row,
        }
    }
}

impl Candidate {
    fn texts(&self) -> &[String] {
        self.texts.get_or_init(|| {
            let row = &self.row;
            let words = [&row.reason, &row.comm].into_iter().flatten().cloned();
            let stack = row.stack.iter().map(|frames| frames.join("\n"));
            let attributes = row.attributes.iter().flat_map(|a| a.iter());
            let attributes = attributes.map(|(key, value)| match value.as_str() {
                Some(text) => format!("{key} {text}"),
                None => format!("{key} {value}"),
            });
            let texts = words.chain(stack).chain(attributes);
            texts.map(|text| text.to_lowercase()).collect()
        })
    }

    pub fn matches(&self, filter: &EventFilter) -> bool {
        let row = &self.row;
        let words = [
            (&filter.probe, Some(&row.probe)),
            (&filter.kind, Some(&row.kind)),
            (&filter.reason, row.reason.as_ref()),
            (&filter.protocol, row.protocol.as_ref()),
            (&filter.node, Some(&row.node)),
        ];
        let pods = [
            (&filter.namespace, &row.namespace),
            (&filter.pod, &row.pod),
            (&filter.workload, &row.workload),
        ];
        words
            .into_iter()
            .all(|(terms, word)| holds(terms, |term| term == word.map_or("", String::as_str)))
            && pods
                .into_iter()
                .all(|(terms, name)| holds(terms, |term| name.as_deref() == Some(term)))
            && holds(&filter.ip, |network| {
                self.ends.iter().flatten().any(|end| network.contains(*end))
            })
            && holds(&filter.port, |port| {
                [row.sport, row.dport].contains(&Some(i32::from(*port)))
            })
            && filter
                .min_latency_ns
                .is_none_or(|least| row.latency_ns.is_some_and(|ns| ns >= least))
            && (filter.q.is_empty() || self.has_text(&filter.q))
    }

    fn has_text(&self, q: &Terms<String>) -> bool {
        holds(q, |text| {
            let text = text.to_lowercase();
            self.texts().iter().any(|t| t.contains(&text))
        })
    }
}

/// One of the alternatives, if there are some, and nothing that is ruled out.
fn holds<T>(terms: &Terms<T>, is: impl Fn(&T) -> bool) -> bool {
    (terms.any.is_empty() || terms.any.iter().any(&is)) && !terms.none.iter().any(&is)
}

impl Network {
    pub(super) fn contains(&self, address: IpAddr) -> bool {
        fn same(a: &[u8], b: &[u8], bits: u8) -> bool {
            let (whole, rest) = (usize::from(bits / 8), bits % 8);
            a[..whole] == b[..whole] && (rest == 0 || (a[whole] ^ b[whole]) >> (8 - rest) == 0)
        }
        match (self.address, address) {
            (IpAddr::V4(a), IpAddr::V4(b)) => same(&a.octets(), &b.octets(), self.prefix),
            (IpAddr::V6(a), IpAddr::V6(b)) => same(&a.octets(), &b.octets(), self.prefix),
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_has_the_addresses_whose_first_bits_are_its_own() {
        let has = |network: &str, prefix, address: &str| {
            let network = Network {
                address: network.parse().unwrap(),
                prefix,
            };
            network.contains(address.parse().unwrap())
        };
        for (network, prefix, address) in [
            ("10.1.2.3", 32, "10.1.2.3"),
            ("10.1.2.3", 8, "10.255.0.0"),
            ("10.1.2.3", 15, "10.0.9.9"),
            ("0.0.0.0", 0, "255.1.1.1"),
            ("fd00::", 9, "fd7f::1"),
            ("::", 0, "fd00::1"),
        ] {
            assert!(has(network, prefix, address), "{address} in {network}/{prefix}");
        }
        for (network, prefix, address) in [
            ("10.1.2.3", 32, "10.1.2.2"),
            ("10.1.2.3", 15, "10.2.0.0"),
            ("0.0.0.0", 0, "::1"),
            ("fd00::", 9, "fd80::1"),
        ] {
            assert!(!has(network, prefix, address), "{address} not in {network}/{prefix}");
        }
    }
}
