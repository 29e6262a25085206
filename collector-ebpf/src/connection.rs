//! Both ends of a connection, from a socket or from a packet.

use core::ptr::addr_of_mut;

use aya_ebpf::helpers::generated;
use sonde_ebpf_common::connection::{AF_INET, AF_INET6, Connection, state};

use crate::access::{
    Access, INET_PORT, KernelField, Probed, SKB_NETWORK_HEADER, SKB_PROTOCOL, SKB_TRANSPORT_HEADER, SOCK_ADDRESS,
    SOCK_ADDRESS6, SOCK_FAMILY, SOCK_PEER_ADDRESS, SOCK_PEER_ADDRESS6, SOCK_PEER_PORT, SOCK_PORT, SOCK_STATE,
};
use crate::packet::{self, ETH_P_IP, ETH_P_IPV6};

const UNSET: u16 = 0xffff;

/// Of any kind of socket, a request or TIME_WAIT socket too.
#[inline(always)]
pub fn state(sk: *const u8) -> u8 {
    SOCK_STATE.read::<Probed>(sk).unwrap_or(0)
}

/// The socket's own end first.
///
/// # Safety
/// `to` may be written.
#[inline(always)]
pub unsafe fn of_socket(sk: *const u8, in_state: u8, to: *mut Connection) {
    let family = SOCK_FAMILY.read::<Probed>(sk).unwrap_or(0);
    unsafe {
        clear(to);
        let (own, peer) = (addr_of_mut!((*to).saddr).cast(), addr_of_mut!((*to).daddr).cast());
        if family == AF_INET6 {
            copy::<16>(&SOCK_ADDRESS6, sk, own);
            copy::<16>(&SOCK_PEER_ADDRESS6, sk, peer);
        } else {
            own.cast::<u32>().write(SOCK_ADDRESS.read::<Probed>(sk).unwrap_or(0));
            peer.cast::<u32>()
                .write(SOCK_PEER_ADDRESS.read::<Probed>(sk).unwrap_or(0));
        }
        addr_of_mut!((*to).sport).write(port(sk));
        let peer_port = SOCK_PEER_PORT.read::<Probed>(sk).unwrap_or(0);
        addr_of_mut!((*to).dport).write(u16::from_be(peer_port));
        addr_of_mut!((*to).family).write(family);
        addr_of_mut!((*to).state).write(in_state);
    }
}

/// A closed socket has given its port back, and remembers it elsewhere.
#[inline(always)]
fn port(sk: *const u8) -> u16 {
    let port = SOCK_PORT.read::<Probed>(sk).unwrap_or(0);
    let whole = !matches!(state(sk), state::TIME_WAIT | state::NEW_SYN_RECV);
    if port == 0 && whole {
        u16::from_be(INET_PORT.read::<Probed>(sk).unwrap_or(0))
    } else {
        port
    }
}

/// The ends of what answers that TCP packet: its receiver first. `in_state` is that of the socket at work, if any.
///
/// # Safety
/// `to` may be written.
#[inline(always)]
pub unsafe fn of_answer(skb: *const u8, in_state: u8, to: *mut Connection) {
    unsafe { of_ends(skb, in_state, to, true) }
}

/// The ends of a packet of TCP or UDP: its sender first.
///
/// # Safety
/// `to` may be written.
#[inline(always)]
pub unsafe fn of_packet(skb: *const u8, to: *mut Connection) {
    unsafe { of_ends(skb, 0, to, false) }
}

#[inline(always)]
unsafe fn of_ends(skb: *const u8, in_state: u8, to: *mut Connection, receiver_first: bool) {
    let head = packet::head::<Probed>(skb);
    let network = SKB_NETWORK_HEADER.read::<Probed>(skb).unwrap_or(UNSET);
    let transport = SKB_TRANSPORT_HEADER.read::<Probed>(skb).unwrap_or(UNSET);
    let ethertype = SKB_PROTOCOL.read::<Probed>(skb).unwrap_or(0);
    unsafe {
        clear(to);
        addr_of_mut!((*to).state).write(in_state);
        if network == UNSET || transport == UNSET {
            return;
        }
        let ip = head.wrapping_add(network as usize);
        let (first, second) = (addr_of_mut!((*to).saddr).cast(), addr_of_mut!((*to).daddr).cast());
        let (sender, receiver) = if receiver_first {
            (second, first)
        } else {
            (first, second)
        };
        let family = if ethertype == ETH_P_IP {
            read::<4>(ip.wrapping_add(12), sender);
            read::<4>(ip.wrapping_add(16), receiver);
            AF_INET
        } else if ethertype == ETH_P_IPV6 {
            read::<16>(ip.wrapping_add(8), sender);
            read::<16>(ip.wrapping_add(24), receiver);
            AF_INET6
        } else {
            return;
        };
        addr_of_mut!((*to).family).write(family);
        let ports: [u16; 2] = Probed::load(head.wrapping_add(transport as usize));
        let [sender, receiver] = ports.map(u16::from_be);
        addr_of_mut!((*to).sport).write(if receiver_first { receiver } else { sender });
        addr_of_mut!((*to).dport).write(if receiver_first { sender } else { receiver });
    }
}

/// Whether a TCP packet is a reset itself.
#[inline(always)]
pub fn is_reset(skb: *const u8) -> bool {
    const RST: u8 = 4;
    let transport = SKB_TRANSPORT_HEADER.read::<Probed>(skb).unwrap_or(UNSET);
    let flags = packet::head::<Probed>(skb).wrapping_add(transport as usize + 13);
    transport != UNSET && unsafe { Probed::load::<u8>(flags) } & RST != 0
}

#[inline(always)]
unsafe fn clear(to: *mut Connection) {
    const { assert!(size_of::<Connection>() == 40 && align_of::<Connection>() <= 8) };
    unsafe { crate::access::clear::<5>(to.cast()) };
}

#[inline(always)]
unsafe fn copy<const N: usize>(field: &KernelField<[u8; N]>, base: *const u8, to: *mut u8) {
    if let Some(from) = field.address(base) {
        unsafe { read::<N>(from, to) };
    }
}

#[inline(always)]
unsafe fn read<const N: usize>(from: *const u8, to: *mut u8) {
    unsafe { generated::bpf_probe_read_kernel(to.cast(), N as u32, from.cast()) };
}

/// Whether the peer of that IPv6 socket is an IPv4 one.
#[inline(always)]
pub fn is_mapped(sk: *const u8) -> bool {
    let Some(address) = SOCK_PEER_ADDRESS6.address(sk) else {
        return false;
    };
    let words: [u32; 3] = unsafe { Probed::load(address) };
    words[0] == 0 && words[1] == 0 && words[2] == 0xffff_u32.to_be()
}
