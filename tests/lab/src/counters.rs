//! The second source of truth: what nftables, tc and the network stack counted themselves. Parsers only.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::error::{LabError, Result};

/// `Udp.NoPorts`, `TcpExt.ListenOverflows`, `Ip6.InNoRoutes` and so on, as the kernel names them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters(BTreeMap<String, i64>);

impl Counters {
    /// `None` where this kernel has no such counter.
    pub fn get(&self, name: &str) -> Option<i64> {
        self.0.get(name).copied()
    }

    /// How much `name` grew since `before`.
    pub fn since(&self, before: &Self, name: &str) -> Result<u64> {
        let now = self.get(name).and_then(|now| now.checked_sub(before.get(name)?));
        now.and_then(|growth| u64::try_from(growth).ok())
            .ok_or_else(|| LabError::Unexpected {
                what: format!("counter {name}"),
                expected: "one that is there and only grows",
                found: format!("{:?} then {:?}", before.get(name), self.get(name)),
            })
    }

    pub(crate) fn merge(&mut self, other: Self) {
        self.0.extend(other.0);
    }
}

fn unexpected(what: &str, expected: &'static str, found: &str) -> LabError {
    LabError::Unexpected {
        what: what.to_owned(),
        expected,
        found: found.to_owned(),
    }
}

/// `/proc/net/snmp` and `netstat`: a line of names, then a line of numbers, both with the group in front.
pub(crate) fn parse_pairs(text: &str) -> Result<Counters> {
    let mut counters = BTreeMap::new();
    let mut lines = text.lines();
    while let Some(names) = lines.next() {
        let values = lines.next().unwrap_or_default();
        let (Some((group, names)), Some((same, values))) = (names.split_once(": "), values.split_once(": ")) else {
            return Err(unexpected("/proc/net/snmp", "lines of `Group: ...`", names));
        };
        if group != same || names.split(' ').count() != values.split(' ').count() {
            return Err(unexpected("/proc/net/snmp", "as many numbers as names", group));
        }
        for (name, value) in names.split(' ').zip(values.split(' ')) {
            let number = value
                .parse()
                .map_err(|_| unexpected("/proc/net/snmp", "a number", value))?;
            counters.insert(format!("{group}.{name}"), number);
        }
    }
    Ok(Counters(counters))
}

/// `/proc/net/snmp6`: `Ip6InNoRoutes  3`.
pub(crate) fn parse_snmp6(text: &str) -> Result<Counters> {
    let mut counters = BTreeMap::new();
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace();
        let (Some(name), Some(Ok(number))) = (words.next(), words.next().map(str::parse)) else {
            return Err(unexpected("/proc/net/snmp6", "a name and a number", line));
        };
        let Some(split) = name.find('6').map(|at| at + 1) else {
            return Err(unexpected("/proc/net/snmp6", "a name with its group", name));
        };
        let (group, rest) = name.split_at(split);
        counters.insert(format!("{group}.{rest}"), number);
    }
    Ok(Counters(counters))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NftCounter {
    pub packets: u64,
    pub bytes: u64,
}

pub(crate) fn parse_nft_counters(text: &str) -> Result<BTreeMap<String, NftCounter>> {
    let what = "nft -j list counters";
    let document: Value = serde_json::from_str(text).map_err(|_| unexpected(what, "JSON", text))?;
    let objects = document["nftables"].as_array();
    let objects = objects.ok_or_else(|| unexpected(what, "`nftables`", text))?;
    objects
        .iter()
        .map(|object| &object["counter"])
        .filter(|counter| counter.is_object())
        .map(|counter| {
            let parsed = (|| {
                let packets = counter["packets"].as_u64()?;
                let bytes = counter["bytes"].as_u64()?;
                Some((counter["name"].as_str()?.to_owned(), NftCounter { packets, bytes }))
            })();
            parsed.ok_or_else(|| unexpected(what, "name, packets and bytes", &counter.to_string()))
        })
        .collect()
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Qdisc {
    pub kind: String,
    pub packets: u64,
    pub drops: u64,
    /// Packets that wait.
    pub queue_length: u64,
}

pub(crate) fn parse_qdisc(text: &str) -> Result<Qdisc> {
    let what = "tc -s -j qdisc show";
    let document: Value = serde_json::from_str(text).map_err(|_| unexpected(what, "JSON", text))?;
    let root = &document[0];
    let parsed = (|| {
        Some(Qdisc {
            kind: root["kind"].as_str()?.to_owned(),
            packets: root["packets"].as_u64()?,
            drops: root["drops"].as_u64()?,
            queue_length: root["qlen"].as_u64()?,
        })
    })();
    parsed.ok_or_else(|| unexpected(what, "kind, packets, drops and qlen of a root", text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn snmp_gives_a_number_for_each_name() {
        let counters = parse_pairs("Tcp: MaxConn InErrs\nTcp: -1 7\nUdp: NoPorts\nUdp: 3\n").unwrap();
        assert_eq!(counters.get("Tcp.MaxConn"), Some(-1));
        assert_eq!(counters.get("Tcp.InErrs"), Some(7));
        assert_eq!(counters.get("Udp.NoPorts"), Some(3));
        assert_eq!(counters.get("Udp.Nothing"), None);
    }

    #[test]
    fn a_broken_snmp_is_an_error_that_says_where() {
        for (text, place) in [
            ("Tcp: A B\nTcp: 1\n", "as many numbers"),
            ("Tcp: A\nUdp: 1\n", "as many"),
            ("Tcp: A\nTcp: x\n", "number"),
            ("Tcp\n", "lines of"),
        ] {
            let error = parse_pairs(text).unwrap_err().to_string();
            assert!(error.contains(place), "{text:?}: {error}");
        }
    }

    #[test]
    fn snmp6_names_are_split_after_the_group() {
        let counters =
            parse_snmp6("Ip6InNoRoutes      \t2\nUdp6NoPorts \t4\nIcmp6OutType128 1\nUdpLite6InErrors 0\n").unwrap();
        assert_eq!(counters.get("Ip6.InNoRoutes"), Some(2));
        assert_eq!(counters.get("Udp6.NoPorts"), Some(4));
        assert_eq!(counters.get("Icmp6.OutType128"), Some(1));
        assert!(parse_snmp6("Ip6InNoRoutes x").is_err());
    }

    #[test]
    fn growth_needs_a_counter_that_is_there_and_does_not_fall() {
        let at = |n| parse_snmp6(&format!("Udp6NoPorts {n}")).unwrap();
        assert_eq!(at(9).since(&at(4), "Udp6.NoPorts").unwrap(), 5);
        assert!(at(4).since(&at(9), "Udp6.NoPorts").is_err());
        assert!(at(4).since(&at(4), "Udp6.Other").is_err());
    }

    #[test]
    fn nft_counters_and_qdiscs_are_read_from_json() {
        let text = r#"{"nftables": [{"metainfo": {"version": "1.0.6"}}, {"counter": {"family": "inet", "name": "drops", "table": "lab", "handle": 1, "packets": 4, "bytes": 240}}]}"#;
        let counters = parse_nft_counters(text).unwrap();
        assert_eq!(counters["drops"], NftCounter { packets: 4, bytes: 240 });
        assert!(parse_nft_counters(r#"{"nftables": [{"counter": {"name": "x"}}]}"#).is_err());

        let text = r#"[{"kind":"tbf","handle":"8001:","root":true,"bytes":0,"packets":3,"drops":2,"overlimits":0,"backlog":0,"qlen":1}]"#;
        let qdisc = parse_qdisc(text).unwrap();
        assert_eq!(
            (qdisc.kind.as_str(), qdisc.packets, qdisc.drops, qdisc.queue_length),
            ("tbf", 3, 2, 1)
        );
        assert!(parse_qdisc("[]").is_err());
    }
}
