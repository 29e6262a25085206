//! What the programs that run for every packet have in common: taking turns, and finding the network header of a packet
//! that is not in the hands of the IP layer.

use core::ptr::addr_of_mut;

use aya_ebpf::helpers::generated;
use aya_ebpf::maps::PerCpuArray;
use sonde_ebpf_common::packet::{PACKET_BYTES, Packet};

use crate::access::{Access, DEV_NAME, SKB_DATA, SKB_MAC_HEADER, SKB_NETWORK_HEADER, SKB_PROTOCOL, SKB_TAIL};
use crate::packet;

const VLAN: [u16; 2] = [0x8100u16.to_be(), 0x88a8u16.to_be()];
const ETHERNET_HEADER: u32 = 14;
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
        Some(name) => unsafe { [A::load(name), A::load(name.wrapping_add(8))] },
        None => [0; 2],
    }
}

/// Where the IP header begins.
#[derive(Clone, Copy)]
pub struct Layer3 {
    pub start: *const u8,
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
