//! The kernel's own word on which rule decided: a table that marks the packets of one connection to be traced, and what
//! is then told of them (NFT_MSG_TRACE; Linux net/netfilter/nf_tables_trace.c).
//!
//! The table belongs to its socket (NFT_TABLE_F_OWNER, Linux 5.12): it goes with it, however the process ends. Older
//! kernels refuse such a table, and nothing is left behind.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;

use super::{SUBSYSTEM, be32, c_string, family, text};
use crate::netlink::dump::{NLM_F_REQUEST, NLMSG_ERROR, code, next_sequence};
use crate::netlink::message::{aligned, attributes_of, messages_of, request, with_attributes};
use crate::netlink::socket::{AskSocket, Transport};

/// Name of the table, told by `nft list tables` while a trace is under way.
pub const TABLE: &str = "sonde_trace";
/// Before everything else that has a hook, connection tracking and reassembly too.
const PRIORITY: i32 = -450;
/// Packets a second that are traced, and how many may come at once.
const RATE: u64 = 10;
const BURST: u32 = 5;
/// NFNLGRP_NFTRACE as a bit.
const GROUP: u32 = 1 << (9 - 1);
/// Packets that are followed at one time; each is traced by each chain that it comes through.
const FOLLOWED: usize = 256;

const NEWTABLE: u16 = SUBSYSTEM;
const NEWCHAIN: u16 = SUBSYSTEM + 3;
const NEWRULE: u16 = SUBSYSTEM + 6;
const TRACE: u16 = SUBSYSTEM + 17;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const NLM_F_ACK: u16 = 4;
const NLM_F_CREATE: u16 = 0x400;
const NLM_F_EXCL: u16 = 0x200;
const NLM_F_APPEND: u16 = 0x800;

/// A connection, or the packets of one that go one way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tuple {
    /// TCP or UDP.
    pub protocol: u8,
    pub source: (IpAddr, u16),
    pub destination: (IpAddr, u16),
}

/// What dropped a packet.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Culprit {
    pub family: u8,
    pub table: String,
    pub chain: String,
    /// `None`: the chain's policy.
    pub handle: Option<u64>,
}

/// A trace under way. Dropping it removes the table.
#[derive(Debug)]
pub struct Trace {
    socket: AskSocket,
    tuple: Tuple,
    packets: Packets,
}

impl Trace {
    /// In the network namespace of the calling thread.
    pub fn start(tuple: Tuple) -> io::Result<Self> {
        let socket = AskSocket::netfilter(GROUP)?;
        let (message, last) = table_of(tuple);
        socket.send(&message)?;
        await_table(&socket, last)?;
        Ok(Self {
            socket,
            tuple,
            packets: Packets::default(),
        })
    }

    /// What dropped a packet of the connection, if that was told since. Does not wait.
    pub fn poll(&mut self, buffer: &mut [u8]) -> Option<Culprit> {
        loop {
            let len = match self.socket.receive(buffer) {
                Ok(len) => len.min(buffer.len()),
                // Told too fast: others will be told.
                Err(e) if e.raw_os_error() == Some(libc::ENOBUFS) => continue,
                Err(_) => return None,
            };
            for (header, payload) in messages_of(&buffer[..len]).map_while(Result::ok) {
                if header.kind == TRACE
                    && let Some(culprit) = self.packets.hear(&self.tuple, payload)
                {
                    return Some(culprit);
                }
            }
        }
    }
}

/// Whether a packet of that number is one of ours: others may trace in the same namespace.
#[derive(Debug, Default)]
pub(super) struct Packets(HashMap<u32, bool>);

impl Packets {
    /// What dropped a packet of the connection, if the message tells that.
    pub(super) fn hear(&mut self, tuple: &Tuple, payload: &[u8]) -> Option<Culprit> {
        let told = Told::parse(payload)?;
        // Only the first message of each chain brings the packet's headers.
        if told.network.is_some() {
            if self.0.len() >= FOLLOWED {
                self.0.clear();
            }
            self.0.insert(told.packet, told.is_of(tuple));
        }
        if self.0.get(&told.packet) != Some(&true) {
            return None;
        }
        told.culprit()
    }
}

/// The messages of one transaction, and the number of the last that is answered.
fn table_of(tuple: Tuple) -> (Vec<u8>, u32) {
    let v4 = tuple.source.0.is_ipv4();
    let family = if v4 { family::IPV4 } else { family::IPV6 };
    let start = [family, 0, 0, 0];
    let mut all = Vec::new();
    let mut sequence = 0;
    let mut add = |kind: u16, flags: u16, payload: &[u8], attributes: &[(u16, &[u8])]| {
        sequence = next_sequence();
        all.extend(request(kind, NLM_F_REQUEST | flags, sequence, payload, attributes));
        all.resize(aligned(all.len()), 0);
        sequence
    };
    // NFNL_SUBSYS_NFTABLES as the resource.
    let batch = [0, 0, 0, 10];
    add(BATCH_BEGIN, 0, &batch, &[]);
    let table = c_string(TABLE);
    // NFT_TABLE_F_OWNER
    add(
        NEWTABLE,
        NLM_F_CREATE | NLM_F_EXCL,
        &start,
        &[(1, &table), (2, &2u32.to_be_bytes())],
    );
    let rule = rule_of(tuple);
    let mut last = 0;
    // NF_INET_PRE_ROUTING and NF_INET_LOCAL_OUT
    for (name, hook) in [("prerouting", 0u32), ("output", 3)] {
        let name = c_string(name);
        let hook = nest(&[(1, &hook.to_be_bytes()), (2, &PRIORITY.to_be_bytes())]);
        add(
            NEWCHAIN,
            NLM_F_CREATE | NLM_F_EXCL,
            &start,
            &[(1, &table), (3, &name), (NESTED | 4, &hook), (7, b"filter\0")],
        );
        last = add(
            NEWRULE,
            NLM_F_CREATE | NLM_F_APPEND | NLM_F_ACK,
            &start,
            &[(1, &table), (2, &name), (NESTED | 4, &rule)],
        );
    }
    add(BATCH_END, 0, &batch, &[]);
    (all, last)
}

const NESTED: u16 = 0x8000;

fn nest(attributes: &[(u16, &[u8])]) -> Vec<u8> {
    let mut nest = with_attributes(&[], attributes);
    nest.resize(aligned(nest.len()), 0);
    nest
}

/// Expressions: `meta l4proto P ip saddr A ip daddr B th sport X th dport Y limit rate 10/second meta nftrace set 1`.
fn rule_of(tuple: Tuple) -> Vec<u8> {
    const REGISTER: [u8; 4] = 1u32.to_be_bytes();
    let (source, destination) = (octets(tuple.source.0), octets(tuple.destination.0));
    // Where addresses are in the header.
    let (first, second) = if source.len() == 4 { (12, 16) } else { (8, 24) };
    let meta = |key: u32| nest(&[(1, &REGISTER), (2, &key.to_be_bytes())]);
    let compare = |value: &[u8]| {
        let data = nest(&[(1, value)]);
        nest(&[(1, &REGISTER), (2, &[0; 4]), (NESTED | 3, &data)])
    };
    let load = |base: u32, offset: u32, len: usize| {
        let len = len as u32;
        nest(&[
            (1, &REGISTER),
            (2, &base.to_be_bytes()),
            (3, &offset.to_be_bytes()),
            (4, &len.to_be_bytes()),
        ])
    };
    let one = nest(&[(1, &[1])]);
    let expressions: Vec<(&str, Vec<u8>)> = vec![
        // NFT_META_L4PROTO
        ("meta", meta(16)),
        ("cmp", compare(&[tuple.protocol])),
        ("payload", load(1, first, source.len())),
        ("cmp", compare(&source)),
        ("payload", load(1, second, destination.len())),
        ("cmp", compare(&destination)),
        ("payload", load(2, 0, 2)),
        ("cmp", compare(&tuple.source.1.to_be_bytes())),
        ("payload", load(2, 2, 2)),
        ("cmp", compare(&tuple.destination.1.to_be_bytes())),
        (
            "limit",
            nest(&[
                (1, &RATE.to_be_bytes()),
                (2, &1u64.to_be_bytes()),
                (3, &BURST.to_be_bytes()),
            ]),
        ),
        ("immediate", nest(&[(1, &REGISTER), (NESTED | 2, &one)])),
        // NFT_META_NFTRACE, from the register
        ("meta", nest(&[(2, &12u32.to_be_bytes()), (3, &REGISTER)])),
    ];
    let elements: Vec<Vec<u8>> = expressions
        .into_iter()
        .map(|(name, data)| nest(&[(1, &c_string(name)), (NESTED | 2, &data)]))
        .collect();
    let list: Vec<(u16, &[u8])> = elements
        .iter()
        .map(|element| (NESTED | 1, element.as_slice()))
        .collect();
    nest(&list)
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

/// Reads the answers: the transaction is done as a whole, within send(), or an error says why not.
fn await_table(socket: &AskSocket, last: u32) -> io::Result<()> {
    let mut buffer = vec![0; 16 * 1024];
    let mut done = false;
    loop {
        let len = match socket.receive(&mut buffer) {
            Ok(len) => len.min(buffer.len()),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock && done => return Ok(()),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                return Err(io::Error::other("the kernel did not answer"));
            }
            Err(e) => return Err(e),
        };
        for (header, payload) in messages_of(&buffer[..len]).map_while(Result::ok) {
            if header.kind != NLMSG_ERROR {
                continue;
            }
            match code(payload) {
                0 => done |= header.sequence == last,
                code => return Err(io::Error::from_raw_os_error(-code)),
            }
        }
    }
}

/// One message of a trace.
struct Told<'a> {
    packet: u32,
    family: u8,
    table: String,
    chain: String,
    kind: u32,
    handle: Option<u64>,
    verdict: Option<i32>,
    policy: Option<u32>,
    network: Option<&'a [u8]>,
    transport: Option<&'a [u8]>,
}

impl<'a> Told<'a> {
    /// `None`: a message that lacks something.
    fn parse(payload: &'a [u8]) -> Option<Self> {
        let family = *payload.first()?;
        let (mut packet, mut kind) = (None, None);
        let mut told = Self {
            packet: 0,
            family,
            table: String::new(),
            chain: String::new(),
            kind: 0,
            handle: None,
            verdict: None,
            policy: None,
            network: None,
            transport: None,
        };
        for attribute in attributes_of(payload.get(4..)?) {
            let (attribute, value) = attribute.ok()?;
            match attribute {
                1 => told.table = text(value),
                2 => told.chain = text(value),
                3 => told.handle = value.try_into().ok().map(u64::from_be_bytes),
                4 => kind = be32(value),
                5 => {
                    let code = attributes_of(value).map_while(Result::ok).find(|(kind, _)| *kind == 1);
                    told.verdict = code.and_then(|(_, code)| be32(code)).map(|code| code as i32);
                }
                6 => packet = be32(value),
                8 => told.network = Some(value),
                9 => told.transport = Some(value),
                16 => told.policy = be32(value),
                _ => {}
            }
        }
        (told.packet, told.kind) = (packet?, kind?);
        Some(told)
    }

    /// Whether it is of that connection, by its headers.
    fn is_of(&self, tuple: &Tuple) -> bool {
        let (Some(network), Some(transport)) = (self.network, self.transport) else {
            return false;
        };
        let (source, destination) = (octets(tuple.source.0), octets(tuple.destination.0));
        let (version, at) = if source.len() == 4 { (4, 12) } else { (6, 8) };
        let ends = [source, destination].concat();
        let ports = [tuple.source.1.to_be_bytes(), tuple.destination.1.to_be_bytes()].concat();
        network.first().is_some_and(|first| first >> 4 == version)
            && network.get(at..at + ends.len()) == Some(&ends)
            && transport.get(..4) == Some(&ports)
    }

    fn culprit(self) -> Option<Culprit> {
        const BY_POLICY: u32 = 1;
        const BY_RULE: u32 = 3;
        let drops = match self.kind {
            BY_RULE => self.verdict == Some(0),
            BY_POLICY => self.policy == Some(0),
            _ => false,
        };
        drops.then_some(Culprit {
            family: self.family,
            table: self.table,
            chain: self.chain,
            handle: self.handle.filter(|_| self.kind == BY_RULE),
        })
    }
}
