//! The ruleset of nftables in one network namespace, as far as it can drop packets (nfnetlink, NFNL_SUBSYS_NFTABLES;
//! Linux net/netfilter/nf_tables_api.c). Rules of iptables-nft are among them; those of iptables-legacy are not.
//!
//! Kept of a rule is what it does with a packet and what it demands of addresses, protocol and ports. What else it
//! demands is not understood here: such a rule may match.

mod rule;
pub mod trace;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

pub use rule::{Comparison, Does, Field, Rule, Test};

use super::dump::{DumpError, Malformed, Question, Sink, ask, dump, each_attribute};
use super::message::with_attributes;
use super::socket::Transport;

const SUBSYSTEM: u16 = 10 << 8;
const NEWCHAIN: u16 = SUBSYSTEM + 3;
const GETCHAIN: u16 = SUBSYSTEM + 4;
const NEWRULE: u16 = SUBSYSTEM + 6;
const GETRULE: u16 = SUBSYSTEM + 7;
const NEWSETELEM: u16 = SUBSYSTEM + 12;
const GETSETELEM: u16 = SUBSYSTEM + 13;
const NEWGEN: u16 = SUBSYSTEM + 15;
const GETGEN: u16 = SUBSYSTEM + 16;

/// How often a ruleset is read that changes meanwhile.
const ATTEMPTS: usize = 3;
/// Rules that are kept of one ruleset, at most, and maps that are asked for.
const MOST_RULES: usize = 200_000;
const MOST_MAPS: usize = 1000;

/// NFPROTO_*: families of tables.
pub mod family {
    pub const INET: u8 = 1;
    pub const IPV4: u8 = 2;
    pub const NETDEV: u8 = 5;
    pub const BRIDGE: u8 = 7;
    pub const IPV6: u8 = 10;

    /// As `nft` has it.
    pub const fn name(family: u8) -> &'static str {
        match family {
            INET => "inet",
            IPV4 => "ip",
            3 => "arp",
            NETDEV => "netdev",
            BRIDGE => "bridge",
            IPV6 => "ip6",
            _ => "family?",
        }
    }
}

/// Everything that can drop a packet.
#[derive(Clone, Debug, Default)]
pub struct Ruleset {
    /// Counts changes. Starts anew with each network namespace.
    pub generation: u32,
    pub chains: Vec<Chain>,
    places: HashMap<ChainKey, usize>,
}

type ChainKey = (u8, Arc<str>, Arc<str>);

#[derive(Clone, Debug)]
pub struct Chain {
    pub family: u8,
    pub table: Arc<str>,
    pub name: Arc<str>,
    /// `None`: rules lead to it.
    pub base: Option<Base>,
    /// Those that drop or lead elsewhere, in their order.
    pub rules: Vec<Rule>,
    /// Whether one of all its rules may change what packets say of addresses and ports.
    pub changes: bool,
}

/// Where the kernel hands packets to a chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Base {
    /// NF_INET_*, or NF_NETDEV_* in family netdev.
    pub hook: u32,
    pub priority: i32,
    /// Of chains of devices; a name that ends in `*` stands for all that begin so.
    pub devices: Vec<Box<str>>,
    /// What no rule decides is dropped.
    pub drops: bool,
}

impl Ruleset {
    pub(crate) fn of(chains: Vec<Chain>) -> Self {
        let key = |chain: &Chain| (chain.family, Arc::clone(&chain.table), Arc::clone(&chain.name));
        let places = chains.iter().enumerate().map(|(at, chain)| (key(chain), at));
        Self {
            generation: 0,
            places: places.collect(),
            chains,
        }
    }

    /// The chain of a name, in the table of another.
    pub fn chain(&self, beside: &Chain, name: &Arc<str>) -> Option<usize> {
        let key = (beside.family, Arc::clone(&beside.table), Arc::clone(name));
        self.places.get(&key).copied()
    }

    /// Rules kept.
    pub fn rules(&self) -> usize {
        self.chains.iter().map(|chain| chain.rules.len()).sum()
    }
}

/// Which ruleset it is now: a number that each change makes another.
pub fn generation(transport: &dyn Transport, buffer: &mut [u8]) -> Result<u32, DumpError> {
    let mut generation = Generation(None);
    let question = Question {
        kind: GETGEN,
        payload: &ANY,
        answer: NEWGEN,
    };
    ask(transport, question, buffer, &mut generation)?;
    generation
        .0
        .ok_or(DumpError::Malformed("a generation without its number in 32 bits"))
}

/// The whole ruleset of one generation.
pub fn read(transport: &dyn Transport, buffer: &mut [u8]) -> Result<Ruleset, DumpError> {
    for _ in 0..ATTEMPTS {
        let before = generation(transport, buffer)?;
        match whole(transport, buffer) {
            Ok(ruleset) if generation(transport, buffer)? == before => {
                return Ok(Ruleset {
                    generation: before,
                    ..ruleset
                });
            }
            Ok(_) => {}
            // A map that went between two questions.
            Err(error) if error.is_absent() && generation(transport, buffer)? != before => {}
            Err(error) => return Err(error),
        }
    }
    Err(DumpError::Interrupted)
}

/// `struct nfgenmsg`: any family, version 0, no resource.
const ANY: [u8; 4] = [0; 4];
/// Its length.
const START: usize = ANY.len();

fn whole(transport: &dyn Transport, buffer: &mut [u8]) -> Result<Ruleset, DumpError> {
    let mut chains = Chains::default();
    let question = |kind, answer| Question {
        kind,
        payload: &ANY,
        answer,
    };
    dump(transport, question(GETCHAIN, NEWCHAIN), buffer, &mut chains)?;
    let mut rules = Rules::new(chains.0);
    dump(transport, question(GETRULE, NEWRULE), buffer, &mut rules)?;
    let Rules { mut ruleset, maps, .. } = rules;
    if maps.len() > MOST_MAPS {
        return Err(DumpError::Malformed("more than 1000 maps of verdicts"));
    }
    let mut verdicts = HashMap::new();
    for key in maps {
        let (table, set) = (c_string(&key.1), c_string(&key.2));
        let attributes: [(u16, &[u8]); 2] = [(1, &table), (2, &set)];
        let payload = with_attributes(&[key.0, 0, 0, 0], &attributes);
        let mut elements = Elements::default();
        let question = Question {
            kind: GETSETELEM,
            payload: &payload,
            answer: NEWSETELEM,
        };
        dump(transport, question, buffer, &mut elements)?;
        verdicts.insert(key, elements.0);
    }
    for chain in &mut ruleset.chains {
        for rule in &mut chain.rules {
            rule.look_up(|map| verdicts.get(&(chain.family, Arc::clone(&chain.table), Arc::clone(map))));
        }
    }
    Ok(ruleset)
}

fn c_string(text: &str) -> Vec<u8> {
    [text.as_bytes(), &[0]].concat()
}

/// A name, which the kernel ends with a NUL, or a comment. Whoever wrote it: it stays in its line.
fn text(value: &[u8]) -> String {
    let end = value.iter().position(|byte| *byte == 0).unwrap_or(value.len());
    String::from_utf8_lossy(&value[..end]).replace(char::is_control, " ")
}

fn be32(value: &[u8]) -> Option<u32> {
    value.try_into().ok().map(u32::from_be_bytes)
}

/// Family and attributes of a message.
fn parts(payload: &[u8]) -> Result<(u8, &[u8]), Malformed> {
    let start = payload.get(..START).ok_or(Malformed("a message without its family"))?;
    Ok((start[0], &payload[START..]))
}

struct Generation(Option<u32>);

impl Sink for Generation {
    fn begin(&mut self) {
        self.0 = None;
    }

    fn message(&mut self, payload: &[u8]) -> Result<(), Malformed> {
        each_attribute(parts(payload)?.1, |attribute, value| {
            if attribute == 1 {
                self.0 = be32(value);
            }
        })
    }
}

#[derive(Default)]
struct Chains(Vec<Chain>);

impl Sink for Chains {
    fn begin(&mut self) {
        self.0.clear();
    }

    fn message(&mut self, payload: &[u8]) -> Result<(), Malformed> {
        let (family, attributes) = parts(payload)?;
        let (mut table, mut name, mut hook, mut policy) = (None, None, None, None);
        each_attribute(attributes, |attribute, value| match attribute {
            1 => table = Some(text(value)),
            3 => name = Some(text(value)),
            4 => hook = Some(value),
            5 => policy = be32(value),
            _ => {}
        })?;
        let base = hook.map(|hook| base(hook, policy == Some(0))).transpose()?;
        self.0.push(Chain {
            family,
            table: table.ok_or(Malformed("a chain without its table"))?.into(),
            name: name.ok_or(Malformed("a chain without a name"))?.into(),
            base,
            rules: Vec::new(),
            changes: false,
        });
        Ok(())
    }
}

fn base(hook: &[u8], drops: bool) -> Result<Base, Malformed> {
    let (mut number, mut priority, mut devices) = (None, 0, Vec::new());
    let mut list = None;
    each_attribute(hook, |attribute, value| match attribute {
        1 => number = be32(value),
        2 => priority = be32(value).unwrap_or(0) as i32,
        3 => devices.push(text(value).into()),
        4 => list = Some(value),
        _ => {}
    })?;
    each_attribute(list.unwrap_or_default(), |attribute, value| match attribute {
        // A name, or since Linux 6.16 the beginning of names.
        1 => devices.push(text(value).into()),
        2 => devices.push(format!("{}*", text(value)).into()),
        _ => {}
    })?;
    // A chain with one device names it in both ways.
    devices.dedup();
    Ok(Base {
        hook: number.ok_or(Malformed("a base chain without its hook"))?,
        priority,
        devices,
        drops,
    })
}

struct Rules {
    ruleset: Ruleset,
    kept: usize,
    /// Maps of verdicts, by family, table and name.
    maps: BTreeSet<ChainKey>,
}

impl Rules {
    fn new(chains: Vec<Chain>) -> Self {
        Self {
            ruleset: Ruleset::of(chains),
            kept: 0,
            maps: BTreeSet::new(),
        }
    }
}

impl Sink for Rules {
    fn begin(&mut self) {
        self.kept = 0;
        self.maps.clear();
        for chain in &mut self.ruleset.chains {
            chain.rules.clear();
            chain.changes = false;
        }
    }

    fn message(&mut self, payload: &[u8]) -> Result<(), Malformed> {
        let (family, attributes) = parts(payload)?;
        let (mut table, mut chain, mut handle) = (None, None, None);
        let (mut expressions, mut userdata) = (None, None);
        each_attribute(attributes, |attribute, value| match attribute {
            1 => table = Some(text(value)),
            2 => chain = Some(text(value)),
            3 => handle = value.try_into().ok().map(u64::from_be_bytes),
            4 => expressions = Some(value),
            7 => userdata = Some(value),
            _ => {}
        })?;
        let key: ChainKey = (
            family,
            table.ok_or(Malformed("a rule without its table"))?.into(),
            chain.ok_or(Malformed("a rule without its chain"))?.into(),
        );
        // A chain made since the chains were listed: the generation will tell.
        let Some(at) = self.ruleset.places.get(&key) else {
            return Ok(());
        };
        let (mut rule, changes) = rule::parse(expressions.unwrap_or_default())?;
        rule.handle = handle.ok_or(Malformed("a rule without its handle in 64 bits"))?;
        if let Some(comment) = userdata.and_then(rule::comment) {
            rule.comment = Some(comment);
        }
        let chain = &mut self.ruleset.chains[*at];
        chain.changes |= changes;
        if rule.does.is_empty() {
            return Ok(());
        }
        for map in rule.maps() {
            self.maps.insert((family, Arc::clone(&key.1), Arc::clone(map)));
        }
        self.kept += 1;
        if self.kept > MOST_RULES {
            return Err(Malformed("more than 200000 rules that drop or jump"));
        }
        chain.rules.push(rule);
        Ok(())
    }
}

/// What the elements of a map of verdicts do, each once.
#[derive(Default)]
struct Elements(Vec<Does>);

impl Sink for Elements {
    fn begin(&mut self) {
        self.0.clear();
    }

    fn message(&mut self, payload: &[u8]) -> Result<(), Malformed> {
        let mut list = None;
        each_attribute(parts(payload)?.1, |attribute, value| {
            if attribute == 3 {
                list = Some(value);
            }
        })?;
        let mut elements = Vec::new();
        each_attribute(list.unwrap_or_default(), |_, value| elements.push(value))?;
        for element in elements {
            let mut data = None;
            each_attribute(element, |attribute, value| {
                if attribute == 2 {
                    data = Some(value);
                }
            })?;
            if let Some(does) = data.map(rule::verdict).transpose()?.flatten()
                && !self.0.contains(&does)
            {
                self.0.push(does);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
