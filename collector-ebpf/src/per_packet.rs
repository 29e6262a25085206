//! What the programs that run for every packet have in common: taking turns, and finding the network header of a packet
//! that is not in the hands of the IP layer.

use core::marker::PhantomData;
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
pub unsafe fn capture<A: Access>(layer3: Layer3, to: *mut Packet) {
    const HALF: usize = PACKET_BYTES / 2;
    let mut captured = layer3.available;
    if captured > PACKET_BYTES as u32 {
        captured = PACKET_BYTES as u32;
    }
    unsafe {
        const { assert!(core::mem::offset_of!(Packet, bytes).is_multiple_of(8)) };
        let bytes = addr_of_mut!((*to).bytes).cast::<u64>();
        // Where there is no such place there is no pointer either.
        if captured == 0
            || !packet::copy::<A, { HALF / 8 }>(bytes, layer3.start)
            || captured > HALF as u32
                && !packet::copy::<A, { HALF / 8 }>(bytes.add(HALF / 8), layer3.start.wrapping_add(HALF))
        {
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

const IPV4_HEADER: u32 = 20;
const IPV6_HEADER: u32 = 40;

pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
const SCTP: u8 = 132;
const UDPLITE: u8 = 136;

/// Where an IP header and the ports behind it are read from, two words at once.
trait Words {
    fn pair(&self, at: usize) -> [u32; 2];
}

/// Where programs load a packet's bytes: no more than are asked for.
struct Loaded<A>(*const u8, PhantomData<A>);

impl<A: Access> Words for Loaded<A> {
    #[inline(always)]
    fn pair(&self, at: usize) -> [u32; 2] {
        let both: u64 = unsafe { A::load(self.0.wrapping_add(at * 4)) };
        let [a, b, c, d, e, f, g, h] = both.to_ne_bytes();
        [u32::from_ne_bytes([a, b, c, d]), u32::from_ne_bytes([e, f, g, h])]
    }
}

/// Both headers without options and the ports, in one go.
struct Copied([u32; 12]);

impl Copied {
    /// Not made of zeroes first: each such array costs a loop over its bytes. The helper fills the words in any case, with
    /// zeroes, which are no header, when it fails.
    #[inline(always)]
    fn of(start: *const u8) -> Self {
        let mut words = MaybeUninit::<[u32; 12]>::uninit();
        unsafe {
            generated::bpf_probe_read_kernel(words.as_mut_ptr().cast(), size_of::<Self>() as u32, start.cast());
            Self(words.assume_init())
        }
    }
}

impl Words for Copied {
    #[inline(always)]
    fn pair(&self, at: usize) -> [u32; 2] {
        [self.0[at], self.0[at + 1]]
    }
}

#[inline(always)]
pub fn ends<A: Access>(layer3: Layer3) -> Ends {
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
    let ports = if packet::by_load::<A>() {
        ends.of_header(&layer3, is_ipv4, &Loaded::<A>(layer3.start, PhantomData))
    } else {
        ends.of_header(&layer3, is_ipv4, &Copied::of(layer3.start))
    };
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

impl Ends {
    /// What the header says. With the word behind it, had it no options: the ports.
    #[inline(always)]
    fn of_header(&mut self, layer3: &Layer3, is_ipv4: bool, words: &impl Words) -> u32 {
        let [first, second] = words.pair(0).map(u32::to_ne_bytes);
        if first[0] >> 4 != if is_ipv4 { 4 } else { 6 } {
            return 0;
        }
        if is_ipv4 {
            self.family = family::IPV4;
            let ([third, saddr], [daddr, ports]) = (words.pair(2), words.pair(4));
            self.saddr[0] = saddr;
            self.daddr[0] = daddr;
            self.protocol = third.to_ne_bytes()[1];
            let length = (first[0] & 0xf) as u32 * 4;
            let [_, _, flags, offset] = second;
            let is_later_fragment = (flags & 0x1f) | offset != 0;
            if is_later_fragment || length < IPV4_HEADER {
                return 0;
            }
            self.transport = length;
            ports
        } else {
            self.family = family::IPV6;
            let [[a, b], [c, d]] = [words.pair(2), words.pair(4)];
            self.saddr = [a, b, c, d];
            let [[a, b], [c, d]] = [words.pair(6), words.pair(8)];
            self.daddr = [a, b, c, d];
            (self.protocol, self.transport) = behind_extensions(layer3, second[2]);
            words.pair(10)[0]
        }
    }
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
