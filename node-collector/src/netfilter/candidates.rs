//! Which rules and policies of a ruleset can have dropped a packet. Knows rules and the packet's headers, no socket.
//!
//! What is found is complete as to what says "drop" or "reject" in the ruleset: where it is one, no other can have done
//! it. Not looked for: what drops only when it fails, such as NAT without a free port.

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::Arc;

use crate::event::{Direction, Observation};
use crate::netlink::nftables::trace::{Culprit, Tuple};
use crate::netlink::nftables::{Base, Chain, Does, Field, Rule, Ruleset, family};

/// How many are told in words.
const SHOWN: usize = 5;
/// Chains that a way is told with.
const STEPS: usize = 4;
/// Chains that lead to each other deeper than this are not followed; the kernel permits 16 levels of jumps.
const DEEPEST: usize = 32;

/// Where in its way through the kernel a packet was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Hook {
    Ingress,
    Prerouting,
    Input,
    Forward,
    Output,
    Postrouting,
    Egress,
}

impl Hook {
    const ALL: [Self; 7] = [
        Self::Ingress,
        Self::Prerouting,
        Self::Input,
        Self::Forward,
        Self::Output,
        Self::Postrouting,
        Self::Egress,
    ];

    const fn name(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Prerouting => "prerouting",
            Self::Input => "input",
            Self::Forward => "forward",
            Self::Output => "output",
            Self::Postrouting => "postrouting",
            Self::Egress => "egress",
        }
    }

    pub(super) fn of(seen: &Observation) -> Option<Self> {
        let name = attribute(seen, "hook")?;
        Self::ALL.into_iter().find(|hook| hook.name() == name)
    }

    /// Of what its base chain has as its number.
    fn of_chain(family: u8, number: u32) -> Option<Self> {
        Some(match (family, number) {
            (family::NETDEV, 0) | (family::INET, 5) => Self::Ingress,
            (family::NETDEV, 1) => Self::Egress,
            (family::INET | family::IPV4 | family::IPV6, number) => match number {
                0 => Self::Prerouting,
                1 => Self::Input,
                2 => Self::Forward,
                3 => Self::Output,
                4 => Self::Postrouting,
                _ => return None,
            },
            _ => return None,
        })
    }

    /// Whether a packet comes by a hook before it where it can be marked to be traced.
    pub(super) const fn is_traced(self) -> bool {
        !matches!(self, Self::Ingress | Self::Egress)
    }

    /// Whether connections are begun to be tracked here.
    pub(super) const fn tracks(self) -> bool {
        matches!(self, Self::Prerouting | Self::Output)
    }

    /// Whether a packet that goes that way comes by here.
    const fn is_on_the_way(self, direction: Direction) -> bool {
        match direction {
            Direction::Ingress => matches!(self, Self::Ingress | Self::Prerouting | Self::Input),
            Direction::Egress => matches!(self, Self::Output | Self::Postrouting | Self::Egress),
            Direction::Forward => matches!(self, Self::Forward | Self::Postrouting | Self::Egress),
            Direction::Unknown => true,
        }
    }
}

pub(super) fn attribute<'a>(seen: &'a Observation, wanted: &str) -> Option<&'a str> {
    let found = seen.attributes.iter().find(|(name, _)| *name == wanted);
    found.map(|(_, value)| &**value)
}

/// What is known of the packet.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Packet {
    hook: Option<Hook>,
    direction: Direction,
    device: Option<Arc<str>>,
    ends: Option<(IpAddr, IpAddr)>,
    layer4: Option<u8>,
    ports: Option<(u16, u16)>,
}

impl Packet {
    pub(super) fn of(seen: &Observation) -> Self {
        let layer4 = match seen.protocol.as_deref() {
            Some("TCP") => Some(6),
            Some("UDP") => Some(17),
            Some("ICMP") => Some(1),
            Some("ICMPv6") => Some(58),
            _ => attribute(seen, "ip_protocol").and_then(|number| number.parse().ok()),
        };
        Self {
            hook: Hook::of(seen),
            direction: seen.direction,
            device: seen.interface.clone(),
            ends: seen.saddr.zip(seen.daddr),
            layer4,
            ports: seen.sport.zip(seen.dport),
        }
    }

    /// The connection, where all of it is known.
    pub(super) fn tuple(&self) -> Option<Tuple> {
        let ((source, destination), (from, to)) = (self.ends?, self.ports?);
        Some(Tuple {
            protocol: self.layer4.filter(|protocol| matches!(protocol, 6 | 17))?,
            source: (source, from),
            destination: (destination, to),
        })
    }

    /// What it has in a field; `None`: not known.
    fn field(&self, field: Field) -> Option<Vec<u8>> {
        let v4 = self.ends.map(|(source, _)| source.is_ipv4());
        match field {
            Field::Family => v4.map(|v4| vec![if v4 { family::IPV4 } else { family::IPV6 }]),
            Field::Layer4 => self.layer4.map(|number| vec![number]),
            Field::Network { offset: 9, len: 1 } if v4? => self.layer4.map(|number| vec![number]),
            Field::Network { offset, len } => {
                let (source, destination) = self.ends?;
                let (start, bytes) = match (source, destination) {
                    (IpAddr::V4(a), IpAddr::V4(b)) => (12, [a.octets(), b.octets()].concat()),
                    (IpAddr::V6(a), IpAddr::V6(b)) => (8, [a.octets(), b.octets()].concat()),
                    _ => return None,
                };
                let from = offset.checked_sub(start)?;
                Some(bytes.get(from..from.checked_add(len)?)?.to_vec())
            }
            Field::Transport { offset, len } => {
                let (from, to) = self.ports?;
                let bytes = [from.to_be_bytes(), to.to_be_bytes()].concat();
                Some(bytes.get(offset..offset.checked_add(len)?)?.to_vec())
            }
        }
    }

    /// Whether it comes to the chain.
    fn comes_to(&self, chain: &Chain, base: &Base) -> bool {
        if chain.family == family::BRIDGE {
            // The frames of a stack do not tell these hooks from each other.
            return self.hook.is_none();
        }
        let Some(hook) = Hook::of_chain(chain.family, base.hook) else {
            return false;
        };
        let is_place = match self.hook {
            Some(own) => own == hook,
            None => hook.is_on_the_way(self.direction),
        };
        let is_family = match (chain.family, self.ends) {
            (family::IPV4, Some((source, _))) => source.is_ipv4(),
            (family::IPV6, Some((source, _))) => source.is_ipv6(),
            _ => true,
        };
        is_place && is_family && self.uses(base)
    }

    fn uses(&self, base: &Base) -> bool {
        let Some(own) = &self.device else { return true };
        base.devices.is_empty()
            || base.devices.iter().any(|device| match device.strip_suffix('*') {
                Some(beginning) => own.starts_with(beginning),
                None => **own == **device,
            })
    }

    fn can_match(&self, rule: &Rule) -> bool {
        rule.tests
            .iter()
            .all(|test| self.field(test.field).is_none_or(|found| test.holds(&found)))
    }
}

/// What can have dropped a packet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Candidates {
    /// How many there are.
    pub(super) count: usize,
    /// The first of them in words.
    pub(super) shown: Vec<Arc<str>>,
}

/// A rule of a chain, `None`: its policy, by their places in the ruleset.
type Place = (usize, Option<usize>);

impl Candidates {
    /// In the order in which the kernel comes to them. A rule that several ways lead to is there once.
    pub(super) fn find(ruleset: &Ruleset, packet: &Packet) -> Self {
        let mut out = Self::default();
        each(ruleset, packet, |place, path| {
            out.count += 1;
            if out.shown.len() < SHOWN {
                out.shown.push(show(ruleset, place, path).into());
            }
        });
        out
    }
}

/// In words, if it is one of the candidates.
pub(super) fn name(ruleset: &Ruleset, packet: &Packet, culprit: &Culprit) -> Option<String> {
    let mut found = None;
    each(ruleset, packet, |place, path| {
        let (chain, rule) = (&ruleset.chains[place.0], place.1);
        let handle = rule.map(|rule| chain.rules[rule].handle);
        let own = (chain.family, &*chain.table, &*chain.name, handle);
        if own == (culprit.family, &culprit.table, &culprit.chain, culprit.handle) {
            found = Some(show(ruleset, place, path));
        }
    });
    found
}

/// Each candidate once, with the chains that lead to it.
fn each(ruleset: &Ruleset, packet: &Packet, mut found: impl FnMut(Place, &[usize])) {
    let mut bases: Vec<(i32, usize)> = ruleset
        .chains
        .iter()
        .enumerate()
        .filter_map(|(at, chain)| Some((at, chain, chain.base.as_ref()?)))
        .filter(|(_, chain, base)| packet.comes_to(chain, base))
        .map(|(at, _, base)| (base.priority, at))
        .collect();
    bases.sort_unstable();
    let mut known = HashSet::new();
    for (_, base) in bases {
        // Where rules change packets, later rules were asked about another packet than the one that was dropped.
        let mut way = Walk::new(ruleset, None);
        way.follow(base, 0, &mut |_, _| ());
        let packet = (!way.changes).then_some(packet);
        Walk::new(ruleset, packet).follow(base, 0, &mut |place, path| {
            if known.insert(place) {
                found(place, path);
            }
        });
    }
}

struct Walk<'a> {
    ruleset: &'a Ruleset,
    /// Rules that it cannot match are left out.
    packet: Option<&'a Packet>,
    visited: HashSet<usize>,
    /// Chains from the base on.
    path: Vec<usize>,
    changes: bool,
}

impl<'a> Walk<'a> {
    fn new(ruleset: &'a Ruleset, packet: Option<&'a Packet>) -> Self {
        Self {
            ruleset,
            packet,
            visited: HashSet::new(),
            path: Vec::new(),
            changes: false,
        }
    }

    fn follow(&mut self, at: usize, depth: usize, found: &mut dyn FnMut(Place, &[usize])) {
        if depth > DEEPEST || !self.visited.insert(at) {
            return;
        }
        self.path.push(at);
        let ruleset = self.ruleset;
        let chain = &ruleset.chains[at];
        self.changes |= chain.changes;
        for (number, rule) in chain.rules.iter().enumerate() {
            if self.packet.is_some_and(|packet| !packet.can_match(rule)) {
                continue;
            }
            for does in &rule.does {
                match does {
                    Does::Drop | Does::Reject => found((at, Some(number)), &self.path),
                    Does::Go(to) => {
                        if let Some(to) = ruleset.chain(chain, to) {
                            self.follow(to, depth + 1, found);
                        }
                    }
                    Does::Map(_) => {}
                }
            }
        }
        if chain.base.as_ref().is_some_and(|base| base.drops) {
            found((at, None), &self.path);
        }
        self.path.pop();
    }
}

/// `inet/filter input > web rule 7 drop "no telnet"`, `ip/filter INPUT policy drop`.
fn show(ruleset: &Ruleset, (at, rule): Place, path: &[usize]) -> String {
    let chain = &ruleset.chains[at];
    let mut names: Vec<&str> = path.iter().map(|at| &*ruleset.chains[*at].name).collect();
    if names.len() > STEPS {
        names.splice(1..names.len() - (STEPS - 2), ["..."]);
    }
    let mut out = format!("{}/{} {}", family::name(chain.family), chain.table, names.join(" > "));
    let Some(rule) = rule.map(|number| &chain.rules[number]) else {
        out.push_str(" policy drop");
        return out;
    };
    let verdict = if rule.does.contains(&Does::Reject) {
        "reject"
    } else {
        "drop"
    };
    out.push_str(&format!(" rule {} {verdict}", rule.handle));
    if let Some(comment) = &rule.comment {
        out.push_str(&format!(" \"{comment}\""));
    }
    out
}

#[cfg(test)]
mod tests;
