//! Sending of UDP. A datagram is given to its device before the send call comes back, unless it is not known yet where its
//! next hop is: then it waits in the queue of that neighbour, until there is an answer. So each call is counted as it comes
//! back, at no time, but for those that left a packet there: that is counted when it goes to the device. One that is
//! dropped instead was never handed over. Of several fragments the last one counts.
//!
//! Not in here: what waits for a verdict of user space (NFQUEUE) or for keys of IPsec.

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::{BPF_ANY, BPF_NOEXIST};
use aya_ebpf::helpers::generated;
use aya_ebpf::macros::{btf_tracepoint, map, raw_tracepoint};
use aya_ebpf::maps::{Array, HashMap};
use aya_ebpf::programs::{BtfTracePointContext, RawTracePointContext};
use core::ptr::addr_of_mut;
use sonde_ebpf_common::socklat::{Held, Holding, Record, UDP, limited, operation};
use sonde_ebpf_common::{limit as types, lost, record};

use super::send::thread;
use super::{SOCKETLATENCY_STACKS, count, is_slow, place, protocol};
use crate::access::{
    Access, KFREE_SKB_SKB, NEIGHBOUR_LAST, NEIGHBOUR_QUEUED, NEIGHBOUR_SEND_ERR, NEIGHBOUR_SEND_NEIGH,
    NET_DEV_QUEUE_SKB, Probed, SKB_SK, SOCK_PEER_PORT, UDP_PENDING, add, plain_argument,
};
use crate::{connection, limit, ring};

#[map]
static SOCKETLATENCY_HELD: HashMap<u64, Held> = HashMap::with_max_entries(1, 0);

#[map]
static SOCKETLATENCY_HOLDING: HashMap<u32, Holding> = HashMap::with_max_entries(1, 0);

/// How many there are in both: while there are none, a packet costs no look-up.
#[map]
static SOCKETLATENCY_HOLDS: Array<u64> = Array::with_max_entries(2, 0);

const PACKETS: u32 = 0;
const CALLS: u32 = 1;

/// No neighbour keeps a packet for so long: the end of it was not seen.
const NEVER_SO_LONG_NS: u64 = 60_000_000_000;

// Rare, and of pointers that may be gone: helpers read everything, on every rung.

#[btf_tracepoint(function = "neigh_event_send_done")]
pub fn socklat_held_btf(ctx: BtfTracePointContext) -> i32 {
    hold(ctx.as_ptr().cast())
}

#[raw_tracepoint(tracepoint = "neigh_event_send_done")]
pub fn socklat_held_raw(ctx: RawTracePointContext) -> i32 {
    hold(ctx.as_ptr().cast())
}

#[btf_tracepoint(function = "kfree_skb")]
pub fn socklat_lost_btf(ctx: BtfTracePointContext) -> i32 {
    lose(ctx.as_ptr().cast())
}

#[raw_tracepoint(tracepoint = "kfree_skb")]
pub fn socklat_lost_raw(ctx: RawTracePointContext) -> i32 {
    lose(ctx.as_ptr().cast())
}

#[inline(always)]
fn number(of: u32) -> u64 {
    match SOCKETLATENCY_HOLDS.get(of) {
        Some(number) => *number,
        None => 0,
    }
}

#[inline(always)]
fn change(of: u32, by: u64) {
    if let Some(number) = SOCKETLATENCY_HOLDS.get_ptr_mut(of) {
        add(number, by);
    }
}

/// Whether it was there.
#[inline(always)]
fn forget(skb: u64) -> bool {
    let was = SOCKETLATENCY_HELD.remove(skb).is_ok();
    if was {
        change(PACKETS, u64::MAX);
    }
    was
}

/// A packet was given to a neighbour whose address is not known. It is the last one of its queue, unless somebody else was
/// quick, which the socket tells as the call comes back.
#[inline(always)]
fn hold(context: *const u64) -> i32 {
    if plain_argument(context, &NEIGHBOUR_SEND_ERR) as i32 == 0 {
        return 0;
    }
    let neighbour = plain_argument(context, &NEIGHBOUR_SEND_NEIGH) as *const u8;
    // None: it was answered meanwhile.
    if neighbour.is_null() || NEIGHBOUR_QUEUED.read::<Probed>(neighbour).unwrap_or(0) == 0 {
        return 0;
    }
    let skb = NEIGHBOUR_LAST.pointer::<Probed>(neighbour);
    let sk = SKB_SK.pointer::<Probed>(skb);
    if sk.is_null() || protocol::<Probed>(sk) != UDP {
        return 0;
    }
    let place = crate::place::of_socket::<Probed>(sk);
    if !limit::wanted(&place) {
        return 0;
    }
    let now = unsafe { generated::bpf_ktime_get_ns() };
    let number = skb as u64;
    // SAFETY: only a word is read, at once.
    if let Some(before) = unsafe { SOCKETLATENCY_HELD.get(number) } {
        if now.wrapping_sub(before.ktime_ns) < NEVER_SO_LONG_NS {
            return 0;
        }
        forget(number);
    }
    let mut held = Held {
        cookie: place.cookie,
        sk: sk as u64,
        ktime_ns: now,
        netns: place.netns,
        tgid: (unsafe { generated::bpf_get_current_pid_tgid() } >> 32) as u32,
        comm: [0; 16],
        pad: 0,
    };
    unsafe { generated::bpf_get_current_comm(held.comm.as_mut_ptr().cast(), 16) };
    // Counted first: a packet that goes out at this moment must find it worth a look.
    change(PACKETS, 1);
    if SOCKETLATENCY_HELD.insert(number, held, BPF_NOEXIST as u64).is_err() {
        change(PACKETS, u64::MAX);
        ring::uncounted(lost::SOCKETLATENCY);
        return 0;
    }
    let thread = thread();
    let mine = Holding {
        sk: sk as u64,
        skb: number,
    };
    // SAFETY: it is copied at once.
    if let Some(before) = unsafe { SOCKETLATENCY_HOLDING.get(thread).copied() } {
        if SOCKETLATENCY_HOLDING.remove(thread).is_ok() {
            change(CALLS, u64::MAX);
        }
        // A fragment before this one.
        if before.sk == mine.sk {
            forget(before.skb);
        }
    }
    change(CALLS, 1);
    if SOCKETLATENCY_HOLDING.insert(thread, mine, BPF_ANY as u64).is_err() {
        change(CALLS, u64::MAX);
        // The call will take it for sent.
        forget(number);
    }
    0
}

/// A send call came back.
#[inline(always)]
pub(super) fn sent<A: Access>(sk: *const u8, sent: bool) -> i32 {
    if number(CALLS) != 0 {
        let thread = thread();
        // SAFETY: it is copied at once.
        if let Some(holding) = unsafe { SOCKETLATENCY_HOLDING.get(thread).copied() } {
            if SOCKETLATENCY_HOLDING.remove(thread).is_ok() {
                change(CALLS, u64::MAX);
            }
            if holding.sk == sk as u64 {
                return 0;
            }
            // Whose it is is not known.
            forget(holding.skb);
        }
    }
    // More is to come into that datagram.
    if !sent || UDP_PENDING.read::<Probed>(sk).unwrap_or(0) != 0 {
        return 0;
    }
    let place = crate::place::of_socket::<A>(sk);
    if limit::wanted(&place) {
        count(place.cookie, place.netns, operation::SEND, UDP, 0);
    }
    0
}

/// A packet goes to a device.
#[inline(always)]
pub(super) fn out(context: *const u64) {
    if number(PACKETS) == 0 {
        return;
    }
    let skb = plain_argument(context, &NET_DEV_QUEUE_SKB);
    // SAFETY: it is copied at once.
    let Some(held) = (unsafe { SOCKETLATENCY_HELD.get(skb).copied() }) else {
        return;
    };
    let skb = skb as *const u8;
    // Another packet at the same address, whose end was not seen, or another CPU was first.
    if !forget(skb as u64) || SKB_SK.pointer::<Probed>(skb) as u64 != held.sk {
        return;
    }
    let now = unsafe { generated::bpf_ktime_get_ns() };
    let ns = now.saturating_sub(held.ktime_ns);
    count(held.cookie, held.netns, operation::SEND, UDP, ns);
    if is_slow(ns) {
        tell(context, skb, &held, ns, now);
    }
}

/// A packet was dropped.
#[inline(always)]
fn lose(context: *const u64) -> i32 {
    if number(PACKETS) != 0 {
        forget(plain_argument(context, &KFREE_SKB_SKB));
    }
    0
}

#[inline(always)]
fn tell(context: *const u64, skb: *const u8, held: &Held, ns: u64, now: u64) {
    let place = place(held.netns, held.cookie);
    let Some(key) = limit::listed(&place) else { return };
    if !limit::take_token(key, types::SOCKETLAT_SENDSLOW, now) {
        return;
    }
    let event = ring::Event {
        ring: &ring::EVENTS,
        kind: record::kind::SOCKET_LATENCY,
        bucket: types::SOCKETLAT_SENDSLOW,
        place: &place,
        now,
        stack: SOCKETLATENCY_STACKS.get() != 0,
    };
    event.write::<Record>(context, |record| unsafe {
        let connection = addr_of_mut!((*record).connection);
        let sk = held.sk as *const u8;
        // One that is not connected does not know its peer.
        if SOCK_PEER_PORT.read::<Probed>(sk).unwrap_or(0) == 0 {
            connection::of_packet(skb, connection);
        } else {
            connection::of_socket(sk, 0, connection);
        }
        addr_of_mut!((*record).latency_ns).write(ns);
        addr_of_mut!((*record).tgid).write(held.tgid);
        addr_of_mut!((*record).waiting).write(0);
        addr_of_mut!((*record).operation).write(operation::SEND);
        addr_of_mut!((*record).protocol).write(UDP);
        addr_of_mut!((*record).limited).write(limited::NEIGHBOUR);
        addr_of_mut!((*record).comm).write(held.comm);
    });
}
