//! Looks into the packet. Bytes behind `skb->head` are not typed by BTF: by helper, but for [`by_load`].

use core::mem::MaybeUninit;

use aya_ebpf::helpers::generated;
use sonde_ebpf_common::drop::detail;

use crate::access::{
    Access, Probed, SHARED_GSO_SEGS, SKB_DATA_LEN, SKB_END, SKB_HEAD, SKB_LEN, SKB_NETWORK_HEADER, SKB_PKT_TYPE,
    SKB_PROTOCOL, SKB_TAIL, Setting,
};

pub const ETH_P_IP: u16 = 0x0800u16.to_be();
pub const ETH_P_IPV6: u16 = 0x86ddu16.to_be();
/// With header, without checksum.
const ETHERNET_FRAME: u32 = 1514;
const UNSET: u16 = 0xffff;

/// 1: the verifier lets typed programs read behind `skb->head` (Linux 6.18).
#[used]
#[unsafe(no_mangle)]
static BYTES_BY_LOAD: Setting<u32> = Setting::new(0);

/// Whether this program loads the bytes of packets itself, which for few costs a fraction of a call of the helper.
#[inline(always)]
pub fn by_load<A: Access>() -> bool {
    A::IS_TYPED && BYTES_BY_LOAD.get() != 0
}

/// Copies so many words of a packet. `false`: they cannot be read, and are zeroes.
///
/// # Safety
/// `to` lies on a word, and so many may be written there.
#[inline(always)]
pub unsafe fn copy<A: Access, const WORDS: usize>(to: *mut u64, from: *const u8) -> bool {
    if !by_load::<A>() {
        return unsafe { generated::bpf_probe_read_kernel(to.cast(), WORDS as u32 * 8, from.cast()) == 0 };
    }
    let mut at = 0;
    while at < WORDS {
        unsafe { to.add(at).write_volatile(A::load(from.wrapping_add(at * 8))) };
        at += 1;
    }
    true
}

/// How many packets on the wire this one stands for.
///
/// Those of several segments are made from pages, so a small one without any is one packet: saves a helper call for most.
#[inline(always)]
pub fn segments<A: Access>(skb: *const u8, head: *const u8) -> u64 {
    if SKB_DATA_LEN.read::<A>(skb) == Some(0) && SKB_LEN.read::<A>(skb).unwrap_or(u32::MAX) <= ETHERNET_FRAME {
        return 1;
    }
    let Some(end) = SKB_END.read::<A>(skb) else {
        return 1;
    };
    match SHARED_GSO_SEGS.read::<Probed>(head.wrapping_add(end as usize)) {
        Some(segments) if segments > 1 => segments as u64,
        _ => 1,
    }
}

#[inline(always)]
pub fn head<A: Access>(skb: *const u8) -> *const u8 {
    SKB_HEAD.read::<A>(skb).unwrap_or(0) as *const u8
}

/// See `sonde_ebpf_common::drop::detail`.
#[inline(always)]
pub fn detail<A: Access>(skb: *const u8, head: *const u8) -> u32 {
    let pkt_type = SKB_PKT_TYPE.bits::<A>(skb).unwrap_or(0) as u32 & detail::PKT_TYPE;
    pkt_type << detail::PKT_TYPE_SHIFT | transport::<A>(skb, head)
}

#[inline(always)]
fn transport<A: Access>(skb: *const u8, head: *const u8) -> u32 {
    let ethertype = SKB_PROTOCOL.read::<A>(skb).unwrap_or(0);
    let network = SKB_NETWORK_HEADER.read::<A>(skb).unwrap_or(UNSET);
    if network == UNSET || network == 0 {
        return detail::OTHER;
    }
    // What lies behind is of packets that had the buffer before.
    let available = SKB_TAIL.read::<A>(skb).unwrap_or(0).saturating_sub(network as u32);
    let network = head.wrapping_add(network as usize);
    // The first 20 bytes hold all that is needed of either header.
    let ip = read::<20>(network).filter(|_| available >= 20);
    let Some(ip) = ip else {
        return detail::OTHER;
    };
    let (protocol, length) = if ethertype == ETH_P_IP && ip[0] >> 4 == 4 {
        if (ip[6] & 0x1f) | ip[7] != 0 {
            return detail::OTHER; // not the first fragment
        }
        (ip[9], ((ip[0] & 0xf) as u32) * 4)
    } else if ethertype == ETH_P_IPV6 && ip[0] >> 4 == 6 {
        // MLD messages have a hop-by-hop option before them, always 8 bytes.
        if ip[6] == 0 {
            match read::<2>(network.wrapping_add(40)) {
                Some([next, 0]) => (next, 48),
                _ => return detail::OTHER,
            }
        } else {
            (ip[6], 40)
        }
    } else {
        return detail::OTHER;
    };
    let transport = network.wrapping_add(length as usize);
    let needed = match protocol {
        detail::TCP => 14,
        detail::ICMP | detail::ICMPV6 => 1,
        _ => 0,
    };
    if length + needed > available {
        return detail::OTHER;
    }
    let value = match protocol {
        detail::TCP => {
            let Some([flags]) = read::<1>(transport.wrapping_add(13)) else {
                return detail::OTHER;
            };
            (flags & detail::TCP_FLAGS) as u32
        }
        detail::ICMP | detail::ICMPV6 => {
            let Some([kind]) = read::<1>(transport) else {
                return detail::OTHER;
            };
            icmp_class(protocol, kind)
        }
        detail::UDP | detail::IGMP => 0,
        _ => return detail::OTHER,
    };
    (protocol as u32) << detail::PROTOCOL_SHIFT | value
}

/// Few values, so that nobody fills the maps by sending all 256 types.
#[inline(always)]
fn icmp_class(protocol: u8, kind: u8) -> u32 {
    let known = if protocol == detail::ICMP {
        matches!(kind, 0 | 3 | 5 | 8 | 11)
    } else {
        matches!(kind, 1..=4 | 128..=137 | 143)
    };
    if known { kind as u32 } else { detail::ICMP_REST }
}

#[inline(always)]
pub fn read<const N: usize>(from: *const u8) -> Option<[u8; N]> {
    let mut bytes = MaybeUninit::<[u8; N]>::uninit();
    unsafe {
        // The helper fills the bytes in any case, with zeroes when it fails.
        let result = generated::bpf_probe_read_kernel(bytes.as_mut_ptr().cast(), N as u32, from.cast());
        if result == 0 { Some(bytes.assume_init()) } else { None }
    }
}
