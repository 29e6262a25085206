//! One rule: its expressions, as the kernel lists them (Linux include/uapi/linux/netfilter/nf_tables.h).

use std::sync::Arc;

use super::{Malformed, be32, each_attribute, text};

/// What is kept of a rule.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    /// Of its table; never given to another rule.
    pub handle: u64,
    /// As `nft` and `iptables` show it.
    pub comment: Option<Arc<str>>,
    /// All of them must hold; what is not understood of a rule is not among them.
    pub tests: Vec<Test>,
    /// One of them, where a map decides.
    pub does: Vec<Does>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Does {
    Drop,
    Reject,
    /// To a chain of the same table, with or without coming back.
    Go(Arc<str>),
    /// What the element of this map says.
    Map(Arc<str>),
}

/// A comparison of a field of the packet, byte by byte.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Test {
    pub field: Field,
    /// Bits that are looked at; empty: all.
    pub mask: Vec<u8>,
    pub comparison: Comparison,
    pub value: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    /// Bytes from the network header on.
    Network { offset: usize, len: usize },
    /// Bytes from the transport header on.
    Transport { offset: usize, len: usize },
    /// Number of the protocol above IP, one byte.
    Layer4,
    /// NFPROTO_IPV4 or NFPROTO_IPV6, one byte.
    Family,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Comparison {
    Equal,
    Unequal,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

impl Test {
    /// Whether it holds for what the packet has in the field.
    pub fn holds(&self, found: &[u8]) -> bool {
        let masked: Vec<u8> = match self.mask.len() == found.len() {
            true => found.iter().zip(&self.mask).map(|(byte, mask)| byte & mask).collect(),
            false => found.to_vec(),
        };
        let value = self.value.as_slice();
        match self.comparison {
            Comparison::Equal => masked == value,
            Comparison::Unequal => masked != value,
            Comparison::Less => masked.as_slice() < value,
            Comparison::LessOrEqual => masked.as_slice() <= value,
            Comparison::Greater => masked.as_slice() > value,
            Comparison::GreaterOrEqual => masked.as_slice() >= value,
        }
    }
}

impl Field {
    const fn len(self) -> usize {
        match self {
            Self::Network { len, .. } | Self::Transport { len, .. } => len,
            Self::Layer4 | Self::Family => 1,
        }
    }
}

impl Rule {
    /// Names of maps that decide what it does.
    pub(super) fn maps(&self) -> impl Iterator<Item = &Arc<str>> {
        self.does.iter().filter_map(|does| match does {
            Does::Map(map) => Some(map),
            _ => None,
        })
    }

    /// Puts what the elements of maps do in the maps' place.
    pub(super) fn look_up<'a>(&mut self, of: impl Fn(&Arc<str>) -> Option<&'a Vec<Does>>) {
        if self.maps().next().is_none() {
            return;
        }
        let all = std::mem::take(&mut self.does);
        self.does = all
            .into_iter()
            .flat_map(|does| match &does {
                Does::Map(map) => of(map).cloned().unwrap_or_default(),
                _ => vec![does],
            })
            .collect();
    }
}

/// A field in a register, and which bits of it.
struct Loaded {
    register: u32,
    field: Field,
    mask: Vec<u8>,
}

/// The rule without handle and comment of `nft`; and whether it may change addresses or ports of the packet.
pub(super) fn parse(expressions: &[u8]) -> Result<(Rule, bool), Malformed> {
    let mut list = Vec::new();
    each_attribute(expressions, |_, value| list.push(value))?;
    let mut rule = Rule::default();
    let mut changes = false;
    let mut loaded = None;
    for expression in list {
        let (mut name, mut data) = (None, None);
        each_attribute(expression, |attribute, value| match attribute {
            1 => name = Some(text(value)),
            2 => data = Some(value),
            _ => {}
        })?;
        let name = name.ok_or(Malformed("an expression without a name"))?;
        let data = data.unwrap_or_default();
        match name.as_str() {
            "meta" => loaded = meta(data)?,
            "payload" => match payload(data)? {
                Payload::Read(read) => loaded = read,
                Payload::Write => changes = true,
            },
            "bitwise" => loaded = bitwise(data, loaded)?,
            "cmp" => rule.tests.extend(compare(data, loaded.as_ref())?),
            "immediate" => match immediate(data)? {
                Some(does) => rule.does.push(does),
                // A value for a register, which one is all the same here.
                None => loaded = None,
            },
            "lookup" => match lookup(data)? {
                Some(map) => rule.does.push(Does::Map(map)),
                None => loaded = None,
            },
            "reject" => rule.does.push(Does::Reject),
            "match" => {
                if let Some(comment) = match_comment(data)? {
                    rule.comment = Some(comment);
                }
            }
            "target" => match target(data)?.as_str() {
                "REJECT" => rule.does.push(Does::Reject),
                "LOG" | "NFLOG" | "MARK" | "CONNMARK" | "CT" | "TRACE" => {}
                _ => changes = true,
            },
            "nat" | "masq" | "redir" | "tproxy" | "synproxy" => changes = true,
            // They touch no register.
            "counter" | "limit" | "log" | "quota" | "connlimit" | "last" => {}
            _ => loaded = None,
        }
    }
    Ok((rule, changes))
}

/// NFT_REG_1 to 4 hold 16 bytes each, NFT_REG32_00 to 15 are their quarters: counted in quarters, as the kernel does.
fn register(value: &[u8]) -> Option<u32> {
    match be32(value)? {
        whole @ 0..=4 => Some(whole * 4),
        quarter @ 8..=23 => Some(quarter - 4),
        _ => None,
    }
}

fn meta(data: &[u8]) -> Result<Option<Loaded>, Malformed> {
    const NFPROTO: u32 = 15;
    const L4PROTO: u32 = 16;
    let (mut to, mut key) = (None, None);
    each_attribute(data, |attribute, value| match attribute {
        1 => to = register(value),
        2 => key = be32(value),
        _ => {}
    })?;
    let field = match key {
        Some(NFPROTO) => Field::Family,
        Some(L4PROTO) => Field::Layer4,
        _ => return Ok(None),
    };
    Ok(to.map(|register| Loaded {
        register,
        field,
        mask: Vec::new(),
    }))
}

enum Payload {
    Read(Option<Loaded>),
    Write,
}

fn payload(data: &[u8]) -> Result<Payload, Malformed> {
    let (mut to, mut base, mut offset, mut len, mut writes) = (None, None, None, None, false);
    each_attribute(data, |attribute, value| match attribute {
        1 => to = register(value),
        2 => base = be32(value),
        3 => offset = be32(value),
        4 => len = be32(value),
        5 => writes = true,
        _ => {}
    })?;
    if writes {
        return Ok(Payload::Write);
    }
    let (Some(register), Some(offset), Some(len)) = (to, offset, len) else {
        return Ok(Payload::Read(None));
    };
    let (offset, len) = (offset as usize, len as usize);
    let field = match base {
        Some(1) => Field::Network { offset, len },
        Some(2) => Field::Transport { offset, len },
        _ => return Ok(Payload::Read(None)),
    };
    Ok(Payload::Read(Some(Loaded {
        register,
        field,
        mask: Vec::new(),
    })))
}

/// A mask over what was loaded; anything else it does leaves nothing that is known.
fn bitwise(data: &[u8], loaded: Option<Loaded>) -> Result<Option<Loaded>, Malformed> {
    let (mut from, mut to, mut mask, mut xor, mut operation) = (None, None, None, None, 0);
    each_attribute(data, |attribute, value| match attribute {
        1 => from = register(value),
        2 => to = register(value),
        4 => mask = Some(value),
        5 => xor = Some(value),
        6 => operation = be32(value).unwrap_or(u32::MAX),
        _ => {}
    })?;
    let (mask, xor) = (value_of(mask)?, value_of(xor)?);
    let Some(loaded) = loaded else { return Ok(None) };
    let plain = operation == 0 && xor.iter().all(|byte| *byte == 0) && loaded.mask.is_empty();
    if !plain || from != Some(loaded.register) || mask.len() != loaded.field.len() {
        return Ok(None);
    }
    Ok(to.map(|register| Loaded {
        register,
        mask: mask.to_vec(),
        ..loaded
    }))
}

/// NFTA_DATA_VALUE of nested data; empty: none.
fn value_of(data: Option<&[u8]>) -> Result<&[u8], Malformed> {
    let mut found: &[u8] = &[];
    each_attribute(data.unwrap_or_default(), |attribute, value| {
        if attribute == 1 {
            found = value;
        }
    })?;
    Ok(found)
}

fn compare(data: &[u8], loaded: Option<&Loaded>) -> Result<Option<Test>, Malformed> {
    let (mut from, mut operation, mut value) = (None, None, None);
    each_attribute(data, |attribute, found| match attribute {
        1 => from = register(found),
        2 => operation = be32(found),
        3 => value = Some(found),
        _ => {}
    })?;
    let value = value_of(value)?;
    let comparison = match operation {
        Some(0) => Comparison::Equal,
        Some(1) => Comparison::Unequal,
        Some(2) => Comparison::Less,
        Some(3) => Comparison::LessOrEqual,
        Some(4) => Comparison::Greater,
        Some(5) => Comparison::GreaterOrEqual,
        _ => return Ok(None),
    };
    let known = loaded.filter(|loaded| from == Some(loaded.register) && value.len() == loaded.field.len());
    Ok(known.map(|loaded| Test {
        field: loaded.field,
        mask: loaded.mask.clone(),
        comparison,
        value: value.to_vec(),
    }))
}

/// `Some`: a verdict that matters here. An accept or return is a verdict too, and leaves the registers alone.
fn immediate(data: &[u8]) -> Result<Option<Does>, Malformed> {
    let mut value = None;
    each_attribute(data, |attribute, found| {
        if attribute == 2 {
            value = Some(found);
        }
    })?;
    verdict(value.unwrap_or_default())
}

/// What nested data says to do, if it is a verdict that drops or leads elsewhere.
pub(super) fn verdict(data: &[u8]) -> Result<Option<Does>, Malformed> {
    const DROP: i32 = 0;
    const JUMP: i32 = -3;
    const GOTO: i32 = -4;
    let mut verdict = None;
    each_attribute(data, |attribute, value| {
        if attribute == 2 {
            verdict = Some(value);
        }
    })?;
    let Some(verdict) = verdict else { return Ok(None) };
    let (mut code, mut chain) = (None, None);
    each_attribute(verdict, |attribute, value| match attribute {
        1 => code = be32(value).map(|code| code as i32),
        2 => chain = Some(text(value)),
        _ => {}
    })?;
    match (code, chain) {
        (None, _) => Err(Malformed("a verdict without its code")),
        // The upper half may hold an errno.
        (Some(code), _) if code >= 0 && code & 0xff == DROP => Ok(Some(Does::Drop)),
        (Some(JUMP | GOTO), Some(chain)) => Ok(Some(Does::Go(chain.into()))),
        (Some(JUMP | GOTO), None) => Err(Malformed("a jump without its chain")),
        _ => Ok(None),
    }
}

/// The map, if it is one of verdicts.
fn lookup(data: &[u8]) -> Result<Option<Arc<str>>, Malformed> {
    let (mut set, mut to) = (None, None);
    each_attribute(data, |attribute, value| match attribute {
        1 => set = Some(text(value)),
        3 => to = be32(value),
        _ => {}
    })?;
    Ok((to == Some(0)).then_some(set).flatten().map(Into::into))
}

/// Of an extension of iptables that only holds a comment.
fn match_comment(data: &[u8]) -> Result<Option<Arc<str>>, Malformed> {
    let (mut name, mut info) = (None, None);
    each_attribute(data, |attribute, value| match attribute {
        1 => name = Some(text(value)),
        3 => info = Some(value),
        _ => {}
    })?;
    let comment = info.filter(|_| name.as_deref() == Some("comment")).map(text);
    Ok(comment.filter(|comment| !comment.is_empty()).map(Into::into))
}

/// The name of an extension of iptables.
fn target(data: &[u8]) -> Result<String, Malformed> {
    let mut name = String::new();
    each_attribute(data, |attribute, value| {
        if attribute == 1 {
            name = text(value);
        }
    })?;
    Ok(name)
}

/// NFTNL_UDATA_RULE_COMMENT among what user space keeps with a rule: type, length, value, each again.
pub(super) fn comment(userdata: &[u8]) -> Option<Arc<str>> {
    let mut rest = userdata;
    while let [kind, len, more @ ..] = rest {
        let value = more.get(..usize::from(*len))?;
        if *kind == 0 {
            return Some(text(value).into()).filter(|comment: &Arc<str>| !comment.is_empty());
        }
        rest = &more[usize::from(*len)..];
    }
    None
}
