//! Reading of UDP. The queue is touched without the socket's lock, so there are no marks: only since when it has not been
//! empty. Times are lower bounds: of several datagrams that wait, the second is taken to have come when the first was read.

use aya_ebpf::bindings::BPF_ANY;
use aya_ebpf::helpers::generated;
use aya_ebpf::macros::map;
use aya_ebpf::maps::HashMap;
use core::ptr::addr_of_mut;
use sonde_ebpf_common::lost;
use sonde_ebpf_common::socklat::{Datagrams, UDP, operation};

use super::{count, is_slow, read};
use crate::access::{Access, Probed, RECV_LENGTH_FLAGS, RECV_LENGTH_RET, SOCK_QUEUED, UDP_QUEUED, argument};
use crate::{limit, ring};

/// User space deletes what has not been seen for long: the end of a UDP socket shows nowhere.
#[map]
static SOCKETLATENCY_UDP: HashMap<u64, Datagrams> = HashMap::with_max_entries(1, 0);

/// Datagrams in the queue, and in the part of it that the reader has taken aside.
#[inline(always)]
fn queued<A: Access>(sk: *const u8) -> u32 {
    let aside = UDP_QUEUED.read::<Probed>(sk).unwrap_or(0);
    SOCK_QUEUED.read::<A>(sk).unwrap_or(0).wrapping_add(aside)
}

#[inline(always)]
pub(super) fn came<A: Access>(sk: *const u8) -> i32 {
    let now = unsafe { generated::bpf_ktime_get_ns() };
    let Some(datagrams) = SOCKETLATENCY_UDP.get_ptr_mut(sk as u64) else {
        if !limit::wanted(&crate::place::of_socket::<A>(sk)) {
            return 0;
        }
        let new = Datagrams {
            since_ns: now,
            seen_ns: now,
        };
        if SOCKETLATENCY_UDP.insert(sk as u64, new, BPF_ANY as u64).is_err() {
            ring::uncounted(lost::SOCKETLATENCY);
        }
        return 0;
    };
    unsafe {
        addr_of_mut!((*datagrams).seen_ns).write_volatile(now);
        let since = addr_of_mut!((*datagrams).since_ns);
        // Alone in the queue, whatever was thought to be there: it may have been taken by other ways than a receive
        // call, and the socket may be another one at the same address.
        if since.read_volatile() == 0 || queued::<A>(sk) <= 1 {
            since.write_volatile(now);
        }
    }
    0
}

/// A receive call came back.
#[inline(always)]
pub(super) fn taken<A: Access>(context: *const u64, sk: *const u8) -> i32 {
    const MSG_PEEK: u64 = 2;
    const MSG_ERRQUEUE: u64 = 0x2000;
    let failed = argument(context, &RECV_LENGTH_RET).unwrap_or(0) as i32 <= -1;
    if failed || argument(context, &RECV_LENGTH_FLAGS).unwrap_or(0) & (MSG_PEEK | MSG_ERRQUEUE) != 0 {
        return 0;
    }
    let Some(datagrams) = SOCKETLATENCY_UDP.get_ptr_mut(sk as u64) else {
        return 0;
    };
    let now = unsafe { generated::bpf_ktime_get_ns() };
    let left = queued::<A>(sk);
    let since = unsafe {
        let since = addr_of_mut!((*datagrams).since_ns);
        let before = since.read_volatile();
        since.write_volatile(if left == 0 { 0 } else { now });
        addr_of_mut!((*datagrams).seen_ns).write_volatile(now);
        before
    };
    if since == 0 {
        return 0;
    }
    let ns = now.saturating_sub(since);
    let place = crate::place::of_socket::<A>(sk);
    count(place.cookie, place.netns, operation::READ, UDP, ns);
    if !is_slow(ns) {
        return 0;
    }
    read::tell::<A>(context, sk, place.netns, place.cookie, UDP, ns, now, left, true)
}
