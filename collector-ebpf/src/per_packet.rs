//! What the programs that run for every packet have in common: taking turns, and finding the network header of a packet
//! that is not in the hands of the IP layer.

use core::mem::MaybeUninit;
use core::ptr::addr_of_mut;

use aya_ebpf::helpers::generated;
use aya_ebpf::maps::PerCpuArray;
use sonde_ebpf_common::flow::family;
use sonde_ebpf_common::packet::{PACKET_BYTES, Packet};

use crate::access::{Access, DEV_NAME, SKB_DATA, SKB_MAC_HEADER, SKB_NETWORK_HEADER, SKB_PROTOCOL, SKB_TAIL};
use crate::packet;

pub const VLAN: [u16; 2] = [0x8100u16.to_be(), 0x88a8u16.to_be()];
pub const ETHERNET_HEADER: u32 = 14;
const UNSET: u16 = 0xffff;

/// Whether this packet is looked at: one in `sample` of each CPU.
#[inline(always)]
pub fn is_its_turn(left: &PerCpuArray<u32>, sample: u32) -> bool {
    if sample <= 1 {
        return true;
    }
    let Some(left) = left.get_ptr_mut(0) else {
        return false;
    };
    // An interrupt in between makes a turn come one packet early or late, no more.
    unsafe {
        if *left > 1 {
            *left -= 1;
            return false;
        }
        *left = sample;
    }
    true
}

/// The name of a device as two words.
#[inline(always)]
pub fn name<A: Access>(device: *const u8) -> [u64; 2] {
    match DEV_NAME.address(device) {
        // A typed load is of one word at most.
        Some(name) if A::IS_TYPED => unsafe { [A::load(name), A::load(name.wrapping_add(8))] },
        Some(name) => unsafe { A::load(name) },
        None => [0; 2],
    }
}

/// Where the IP header begins.
#[derive(Clone, Copy)]
pub struct Layer3 {
    pub start: *const u8,
    /// From the beginning of the buffer.
    pub offset: u32,
    /// Bytes from there on that are the packet's. 0: there is no such place.
    pub available: u32,
    /// What begins there, network byte order.
    pub ethertype: u16,
}

/// Of a packet that is being sent, or that the IP layer has in its hands.
#[inline(always)]
pub fn sent<A: Access>(skb: *const u8, head: *const u8) -> Layer3 {
    let ethertype = SKB_PROTOCOL.read::<A>(skb).unwrap_or(0);
    // Where tags are in the packet, some paths let the network header point at the first one and others behind it.
    let (field, beyond) = if VLAN.contains(&ethertype) {
        (&SKB_MAC_HEADER, ETHERNET_HEADER)
    } else {
        (&SKB_NETWORK_HEADER, 0)
    };
    let offset = match field.read::<A>(skb) {
        None | Some(0 | UNSET) => return NOWHERE,
        Some(offset) => offset as u32 + beyond,
    };
    layer3::<A>(skb, head, offset, ethertype)
}

/// Of a packet that a device has just received: its network header is not marked yet.
#[inline(always)]
pub fn received<A: Access>(skb: *const u8, head: *const u8) -> Layer3 {
    let ethertype = SKB_PROTOCOL.read::<A>(skb).unwrap_or(0);
    let data = SKB_DATA.read::<A>(skb).unwrap_or(0);
    layer3::<A>(skb, head, data.wrapping_sub(head as u64) as u32, ethertype)
}

const NOWHERE: Layer3 = Layer3 {
    start: core::ptr::null(),
    offset: 0,
    available: 0,
    ethertype: 0,
};

#[inline(always)]
fn layer3<A: Access>(skb: *const u8, head: *const u8, mut offset: u32, mut ethertype: u16) -> Layer3 {
    let tail = SKB_TAIL.read::<A>(skb).unwrap_or(0);
    for _ in 0..2 {
        if !VLAN.contains(&ethertype) {
            break;
        }
        let Some(tag) = packet::read::<4>(head.wrapping_add(offset as usize)) else {
            return NOWHERE;
        };
        offset += 4;
        ethertype = u16::from_ne_bytes([tag[2], tag[3]]);
    }
    if offset >= tail {
        return NOWHERE;
    }
    Layer3 {
        start: head.wrapping_add(offset as usize),
        offset,
        available: tail - offset,
        ethertype,
    }
}

/// Copies the beginning of a packet. A fixed length, which every verifier can follow: behind the packet's own bytes lies
/// `skb_shared_info`, so it stays within the buffer.
#[inline(always)]
pub unsafe fn capture(layer3: Layer3, to: *mut Packet) {
    let mut captured = layer3.available;
    if captured > PACKET_BYTES as u32 {
        captured = PACKET_BYTES as u32;
    }
    unsafe {
        let bytes = addr_of_mut!((*to).bytes);
        // Also fills the bytes, with zeroes, where it fails.
        if generated::bpf_probe_read_kernel(bytes.cast(), PACKET_BYTES as u32, layer3.start.cast()) != 0 {
            captured = 0;
        }
        addr_of_mut!((*to).ethertype).write(layer3.ethertype);
        addr_of_mut!((*to).captured).write(captured as u16);
        addr_of_mut!((*to).pad).write(0);
    }
}

/// What the IP header says, and the ports behind it.
#[derive(Clone, Copy)]
pub struct Ends {
    /// See `sonde_ebpf_common::flow::family`.
    pub family: u8,
    /// Behind extension headers.
    pub protocol: u8,
    pub saddr: [u32; 4],
    pub daddr: [u32; 4],
    /// Host byte order; 0 where there are none.
    pub sport: u16,
    pub dport: u16,
    /// Bytes from the IP header to the transport header. 0: there is none in this packet.
    pub transport: u32,
}

/// Both headers without options and the ports, in one go.
const HEADERS: usize = 48;
const IPV4_HEADER: u32 = 20;
const IPV6_HEADER: u32 = 40;

pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
const SCTP: u8 = 132;
const UDPLITE: u8 = 136;

/// Not made of zeroes first: each such array costs a loop over its bytes.
#[inline(always)]
fn headers(start: *const u8) -> Option<[u32; HEADERS / 4]> {
    let mut words = MaybeUninit::<[u32; HEADERS / 4]>::uninit();
    unsafe {
        // The helper fills the words in any case, with zeroes when it fails.
        let result = generated::bpf_probe_read_kernel(words.as_mut_ptr().cast(), HEADERS as u32, start.cast());
        if result == 0 { Some(words.assume_init()) } else { None }
    }
}

#[inline(always)]
pub fn ends(layer3: Layer3) -> Ends {
    let mut ends = Ends {
        family: family::OTHER,
        protocol: 0,
        saddr: [0; 4],
        daddr: [0; 4],
        sport: 0,
        dport: 0,
        transport: 0,
    };
    let is_ipv4 = layer3.ethertype == packet::ETH_P_IP;
    let needed = if is_ipv4 { IPV4_HEADER } else { IPV6_HEADER };
    if (!is_ipv4 && layer3.ethertype != packet::ETH_P_IPV6) || layer3.available < needed {
        return ends;
    }
    let Some(words) = headers(layer3.start) else {
        return ends;
    };
    let version = words[0].to_ne_bytes()[0] >> 4;
    if version != if is_ipv4 { 4 } else { 6 } {
        return ends;
    }
    let ports;
    if is_ipv4 {
        ends.family = family::IPV4;
        ends.saddr[0] = words[3];
        ends.daddr[0] = words[4];
        ends.protocol = words[2].to_ne_bytes()[1];
        let length = (words[0].to_ne_bytes()[0] & 0xf) as u32 * 4;
        let [_, _, flags, offset] = words[1].to_ne_bytes();
        let is_later_fragment = (flags & 0x1f) | offset != 0;
        if is_later_fragment || length < IPV4_HEADER {
            return ends;
        }
        ends.transport = length;
        ports = words[5];
    } else {
        ends.family = family::IPV6;
        ends.saddr = [words[2], words[3], words[4], words[5]];
        ends.daddr = [words[6], words[7], words[8], words[9]];
        let (protocol, transport) = behind_extensions(&layer3, words[1].to_ne_bytes()[2]);
        ends.protocol = protocol;
        ends.transport = transport;
        ports = words[10];
    }
    if matches!(ends.protocol, TCP | UDP | SCTP | UDPLITE)
        && ends.transport != 0
        && ends.transport + 4 <= layer3.available
    {
        let ports = if ends.transport == needed {
            ports.to_ne_bytes()
        } else {
            packet::read::<4>(layer3.start.wrapping_add(ends.transport as usize)).unwrap_or([0; 4])
        };
        ends.sport = u16::from_be_bytes([ports[0], ports[1]]);
        ends.dport = u16::from_be_bytes([ports[2], ports[3]]);
    }
    ends
}

/// The protocol behind IPv6's extension headers and where it begins, 0: in another fragment, or behind more of them than
/// anybody sends.
#[inline(always)]
fn behind_extensions(layer3: &Layer3, first: u8) -> (u8, u32) {
    const FRAGMENT: u8 = 44;
    const AUTHENTICATION: u8 = 51;
    let (mut next, mut at) = (first, IPV6_HEADER);
    for _ in 0..4 {
        if !matches!(next, 0 | 43 | 60 | FRAGMENT | AUTHENTICATION) {
            return (next, at);
        }
        let Some(header) = packet::read::<4>(layer3.start.wrapping_add(at as usize)) else {
            return (next, 0);
        };
        if at + 8 > layer3.available {
            return (next, 0);
        }
        let is = next;
        next = header[0];
        at += match is {
            FRAGMENT => 8,
            AUTHENTICATION => (header[1] as u32 + 2) * 4,
            _ => (header[1] as u32 + 1) * 8,
        };
        if is == FRAGMENT && (header[2] != 0 || header[3] & 0xf8 != 0) {
            return (next, 0);
        }
    }
    (next, 0)
}
