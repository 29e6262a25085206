//! Probe `socketlatency`: how long data waits in a socket, to be read (`read`) and to be sent (`send`).

mod datagrams;
mod held;
mod read;
mod send;

use aya_ebpf::macros::map;
use aya_ebpf::maps::PerCpuHashMap;
use sonde_ebpf_common::connection::{AF_INET, AF_INET6};
use sonde_ebpf_common::latency::Latency;
use sonde_ebpf_common::lost;
use sonde_ebpf_common::socklat::Key;

use crate::access::{Access, Live, SOCK_FAMILY, SOCK_PROTOCOL};
use crate::latency;
use crate::place::Place;

#[map]
static SOCKETLATENCY_TIMES: PerCpuHashMap<Key, Latency> = PerCpuHashMap::with_max_entries(1, 0);

/// Whether there are events at all.
#[used]
#[unsafe(no_mangle)]
#[unsafe(link_section = ".data.SOCKETLATENCY_EVENTS")]
static SOCKETLATENCY_EVENTS: Live<u32> = Live::new(1);

/// What takes longer is an event.
#[used]
#[unsafe(no_mangle)]
#[unsafe(link_section = ".data.SOCKETLATENCY_THRESHOLD_NS")]
static SOCKETLATENCY_THRESHOLD_NS: Live<u64> = Live::new(100_000_000);

/// Whether events carry the stack.
#[used]
#[unsafe(no_mangle)]
#[unsafe(link_section = ".data.SOCKETLATENCY_STACKS")]
static SOCKETLATENCY_STACKS: Live<u32> = Live::new(0);

/// Of an IPv4 or IPv6 socket, else 0. Every kind of socket comes through these hooks.
#[inline(always)]
fn protocol<A: Access>(sk: *const u8) -> u16 {
    match SOCK_FAMILY.read::<A>(sk) {
        Some(AF_INET | AF_INET6) => SOCK_PROTOCOL.read::<A>(sk).unwrap_or(0),
        _ => 0,
    }
}

#[inline(always)]
fn count(cookie: u64, netns: u32, operation: u16, protocol: u16, ns: u64) {
    let key = Key {
        cookie,
        netns,
        operation,
        protocol,
    };
    latency::observe_in(&SOCKETLATENCY_TIMES, &key, ns, lost::SOCKETLATENCY);
}

#[inline(always)]
fn is_slow(ns: u64) -> bool {
    ns > SOCKETLATENCY_THRESHOLD_NS.get() && SOCKETLATENCY_EVENTS.get() != 0
}

/// A place that was kept.
#[inline(always)]
fn place(netns: u32, cookie: u64) -> Place {
    Place {
        netns,
        from: crate::place::from::RECEIVER,
        cookie,
        device: core::ptr::null(),
    }
}
