//! Probe `connect`: tracepoint sock:inet_sock_set_state, from SYN_SENT to what came of it.

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::BPF_ANY;
use aya_ebpf::helpers::generated;
use aya_ebpf::macros::{btf_tracepoint, map, raw_tracepoint};
use aya_ebpf::maps::{HashMap, PerCpuHashMap};
use aya_ebpf::programs::{BtfTracePointContext, RawTracePointContext};
use sonde_ebpf_common::connect::{Key, result};
use sonde_ebpf_common::connection::{AF_INET, AF_INET6, state};
use sonde_ebpf_common::latency::Latency;
use sonde_ebpf_common::lost;
use sonde_ebpf_common::socklat::TCP;

use crate::access::{
    Access, Probed, SET_STATE_NEW, SET_STATE_OLD, SET_STATE_SK, SOCK_ERROR, SOCK_FAMILY, SOCK_PROTOCOL,
    SOCK_SOFT_ERROR, Typed, argument,
};
use crate::{connection, latency, limit, place, ring};

#[map]
static CONNECT_TIMES: PerCpuHashMap<Key, Latency> = PerCpuHashMap::with_max_entries(1, 0);

/// When sockets in SYN_SENT came to be there (CLOCK_MONOTONIC), by their address. No socket leaves that state, or
/// ends, without passing here.
#[map]
static CONNECT_STARTS: HashMap<u64, u64> = HashMap::with_max_entries(1, 0);

#[btf_tracepoint(function = "inet_sock_set_state")]
pub fn connect_btf(ctx: BtfTracePointContext) -> i32 {
    changed::<Typed>(ctx.as_ptr().cast())
}

#[raw_tracepoint(tracepoint = "inet_sock_set_state")]
pub fn connect_raw(ctx: RawTracePointContext) -> i32 {
    changed::<Probed>(ctx.as_ptr().cast())
}

#[inline(always)]
fn changed<A: Access>(context: *const u64) -> i32 {
    let (Some(sk), Some(old), Some(new)) = (
        argument(context, &SET_STATE_SK),
        argument(context, &SET_STATE_OLD),
        argument(context, &SET_STATE_NEW),
    ) else {
        return 0;
    };
    let (old, new) = (old as u8, new as u8);
    if new == state::SYN_SENT {
        return begin::<A>(sk as *const u8);
    }
    // From SYN_RECV too: both ends may have sent their SYN at once.
    if old == state::SYN_SENT && new != state::SYN_RECV || old == state::SYN_RECV {
        return end::<A>(sk as *const u8, new);
    }
    0
}

#[inline(always)]
fn begin<A: Access>(sk: *const u8) -> i32 {
    // SCTP and MPTCP come here too; the latter with a TCP socket for each of its flows, which counts.
    if SOCK_PROTOCOL.read::<A>(sk) != Some(TCP) || !limit::wanted(&place::of_socket::<A>(sk)) {
        return 0;
    }
    let now = unsafe { generated::bpf_ktime_get_ns() };
    if CONNECT_STARTS.insert(sk as u64, now, BPF_ANY as u64).is_err() {
        ring::uncounted(lost::CONNECT);
    }
    0
}

#[inline(always)]
fn end<A: Access>(sk: *const u8, new: u8) -> i32 {
    let key = sk as u64;
    // SAFETY: the value is a word, and is copied at once.
    let Some(began) = (unsafe { CONNECT_STARTS.get(key).copied() }) else {
        return 0;
    };
    let _ = CONNECT_STARTS.remove(key);
    let now = unsafe { generated::bpf_ktime_get_ns() };
    let place = place::of_socket::<A>(sk);
    let result = if new == state::CLOSE {
        // Who gives up after ICMP said something has no error yet, only the message.
        let error = match SOCK_ERROR.read::<A>(sk) {
            Some(0) => SOCK_SOFT_ERROR.read::<A>(sk),
            error => error,
        };
        result::of_error(error.unwrap_or(0))
    } else {
        result::ESTABLISHED
    };
    let key = Key {
        cookie: place.cookie,
        netns: place.netns,
        family: family::<A>(sk),
        result,
    };
    latency::observe_in(&CONNECT_TIMES, &key, now.saturating_sub(began), lost::CONNECT);
    0
}

/// As it is on the wire: a dual-stack socket may speak IPv4.
#[inline(always)]
fn family<A: Access>(sk: *const u8) -> u16 {
    let family = SOCK_FAMILY.read::<A>(sk).unwrap_or(0);
    if family == AF_INET6 && connection::is_mapped(sk) {
        AF_INET
    } else {
        family
    }
}
