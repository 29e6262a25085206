//! Probe `kernellatency`: how long TCP segments are on their way from the device to the socket (tracepoints net:netif_rx,
//! net:netif_receive_skb and tcp:tcp_probe) and from TCP to the device's queue (net:net_dev_queue).
//!
//! On the way up a packet is known again by its address. Entries are never deleted, only overwritten: a packet that dies on
//! the way leaves nothing behind, and as every packet is noted anew when it arrives, none finds what another left. On the
//! way down TCP itself has written the time into the packet.

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::BPF_NOEXIST;
use aya_ebpf::helpers::generated;
use aya_ebpf::macros::{btf_tracepoint, map, raw_tracepoint};
use aya_ebpf::maps::{Array, PerCpuArray, PerCpuHashMap};
use aya_ebpf::programs::{BtfTracePointContext, RawTracePointContext};
use core::ptr::addr_of_mut;
use sonde_ebpf_common::kernellatency::{ARRIVALS, Arrival, Key, Record, Times, stage};
use sonde_ebpf_common::record::kind;
use sonde_ebpf_common::{limit as types, lost};

use crate::access::{
    Access, DEV_IFINDEX, DEV_NET, Live, NET_DEV_QUEUE_SKB, NETIF_RX_SKB, Probed, RECEIVE_SKB, SKB_DEV, SKB_LEN, SKB_SK,
    SKB_TRUESIZE, SKB_TSTAMP, SKB_TSTAMP_TYPE, SOCK_NET, SOCK_PROTOCOL, SOCK_STATE, Setting, TCP_PROBE_SK,
    TCP_PROBE_SKB, Typed, add, argument,
};
use crate::place::{self, Place};
use crate::{latency, limit, packet, per_packet, ring};

#[map]
static KERNELLATENCY_ARRIVALS: Array<Arrival> = Array::with_max_entries(1, 0);

#[map]
static KERNELLATENCY_TIMES: PerCpuHashMap<Key, Times> = PerCpuHashMap::with_max_entries(1, 0);

#[map]
static KERNELLATENCY_RX_TURNS: PerCpuArray<u32> = PerCpuArray::with_max_entries(1, 0);

#[map]
static KERNELLATENCY_TX_TURNS: PerCpuArray<u32> = PerCpuArray::with_max_entries(1, 0);

#[used]
#[unsafe(no_mangle)]
#[unsafe(link_section = ".data.KERNELLATENCY_EVENTS")]
static KERNELLATENCY_EVENTS: Live<u32> = Live::new(1);

#[used]
#[unsafe(no_mangle)]
#[unsafe(link_section = ".data.KERNELLATENCY_STACKS")]
static KERNELLATENCY_STACKS: Live<u32> = Live::new(1);

#[used]
#[unsafe(no_mangle)]
#[unsafe(link_section = ".data.KERNELLATENCY_THRESHOLD_NS")]
static KERNELLATENCY_THRESHOLD_NS: Live<u64> = Live::new(10_000_000);

#[used]
#[unsafe(no_mangle)]
#[unsafe(link_section = ".data.KERNELLATENCY_SAMPLE")]
static KERNELLATENCY_SAMPLE: Live<u32> = Live::new(1);

/// Too large for a program's stack.
static NOTHING: Times = Times {
    receive: latency::NONE,
    send: latency::NONE,
    unmatched: 0,
};

#[btf_tracepoint(function = "netif_rx")]
pub fn rx_wait_btf(ctx: BtfTracePointContext) -> i32 {
    arrive::<Typed>(ctx.as_ptr().cast(), &NETIF_RX_SKB, stage::WAITS)
}

#[raw_tracepoint(tracepoint = "netif_rx")]
pub fn rx_wait_raw(ctx: RawTracePointContext) -> i32 {
    arrive::<Probed>(ctx.as_ptr().cast(), &NETIF_RX_SKB, stage::WAITS)
}

#[btf_tracepoint(function = "netif_receive_skb")]
pub fn rx_begin_btf(ctx: BtfTracePointContext) -> i32 {
    arrive::<Typed>(ctx.as_ptr().cast(), &RECEIVE_SKB, stage::RECEIVED)
}

#[raw_tracepoint(tracepoint = "netif_receive_skb")]
pub fn rx_begin_raw(ctx: RawTracePointContext) -> i32 {
    arrive::<Probed>(ctx.as_ptr().cast(), &RECEIVE_SKB, stage::RECEIVED)
}

#[btf_tracepoint(function = "tcp_probe")]
pub fn rx_end_btf(ctx: BtfTracePointContext) -> i32 {
    reach::<Typed>(ctx.as_ptr().cast())
}

#[raw_tracepoint(tracepoint = "tcp_probe")]
pub fn rx_end_raw(ctx: RawTracePointContext) -> i32 {
    reach::<Probed>(ctx.as_ptr().cast())
}

#[btf_tracepoint(function = "net_dev_queue")]
pub fn tx_end_btf(ctx: BtfTracePointContext) -> i32 {
    leave::<Typed>(ctx.as_ptr().cast())
}

#[raw_tracepoint(tracepoint = "net_dev_queue")]
pub fn tx_end_raw(ctx: RawTracePointContext) -> i32 {
    leave::<Probed>(ctx.as_ptr().cast())
}

#[inline(always)]
fn arrival(number: u64) -> Option<*mut Arrival> {
    let at = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (u64::BITS - ARRIVALS.trailing_zeros());
    KERNELLATENCY_ARRIVALS.get_ptr_mut(at as u32)
}

#[inline(always)]
fn arrive<A: Access>(context: *const u64, of: &Setting<u32>, stage: u32) -> i32 {
    let Some(skb) = argument(context, of) else { return 0 };
    let skb = skb as *const u8;
    let device = SKB_DEV.pointer::<A>(skb);
    if limit::some_are_unwanted() && !limit::wanted(&place::of_device::<A>(device)) {
        return 0;
    }
    let number = A::number(skb);
    let device_number = A::number(device);
    let Some(arrival) = arrival(number) else { return 0 };
    unsafe {
        // It has come through the queue of this CPU: it arrived when it was put there.
        if stage == stage::RECEIVED
            && (*arrival).skb == number
            && (*arrival).stage == stage::WAITS
            && (*arrival).device == device_number
        {
            (*arrival).stage = stage::RECEIVED;
            return 0;
        }
        if !per_packet::is_its_turn(&KERNELLATENCY_RX_TURNS, KERNELLATENCY_SAMPLE.get()) {
            // What an older packet at the same address left is not this one's.
            if (*arrival).skb == number {
                (*arrival).skb = 0;
            }
            return 0;
        }
        arrival.write(Arrival {
            skb: number,
            since_ns: generated::bpf_ktime_get_ns(),
            device: device_number,
            stage,
            ifindex: DEV_IFINDEX.read::<A>(device).unwrap_or(0),
        });
    }
    0
}

#[inline(always)]
fn reach<A: Access>(context: *const u64) -> i32 {
    let (Some(sk), Some(skb)) = (argument(context, &TCP_PROBE_SK), argument(context, &TCP_PROBE_SKB)) else {
        return 0;
    };
    let (sk, skb) = (sk as *const u8, skb as *const u8);
    let number = A::number(skb);
    let found = match arrival(number) {
        Some(arrival) if unsafe { (*arrival).skb == number && (*arrival).stage == stage::RECEIVED } => Some(arrival),
        _ => None,
    };
    if found.is_none() && KERNELLATENCY_SAMPLE.get() > 1 {
        return 0;
    }
    let place = place::of_socket::<A>(sk);
    if !limit::is_listed(&place) {
        return 0;
    }
    let Some(times) = times(&place) else { return 0 };
    let Some(arrival) = found else {
        add(unsafe { addr_of_mut!((*times).unmatched) }, 1);
        return 0;
    };
    let (since, ifindex) = unsafe { ((*arrival).since_ns, (*arrival).ifindex) };
    let now = unsafe { generated::bpf_ktime_get_ns() };
    if since > now {
        return 0;
    }
    let ns = now - since;
    latency::observe(unsafe { addr_of_mut!((*times).receive) }, ns);
    if is_long(ns) {
        event::<A, { types::RXKERNEL_SLOW }>(context, kind::RXKERNEL, skb, ifindex, &place, now, ns);
    }
    0
}

/// A packet of TCP's is given to a device.
#[inline(always)]
fn leave<A: Access>(context: *const u64) -> i32 {
    let Some(skb) = argument(context, &NET_DEV_QUEUE_SKB) else {
        return 0;
    };
    let skb = skb as *const u8;
    let sk = SKB_SK.pointer::<A>(skb);
    if sk.is_null() {
        return 0;
    }
    let tstamp = SKB_TSTAMP.read::<A>(skb).unwrap_or(0);
    // In the clock of the sender's time, which TCP takes; below 5.18 nothing else writes one here on the way out.
    const MONOTONIC: u8 = 1;
    if tstamp == 0 || SKB_TSTAMP_TYPE.bits::<A>(skb).unwrap_or(MONOTONIC) != MONOTONIC {
        return 0;
    }
    // Acknowledgements alone, which TCP marks so, may carry the time of what they acknowledge.
    const PURE_ACK: u32 = 2;
    if SKB_TRUESIZE.read::<A>(skb) == Some(PURE_ACK) || !is_tcp::<A>(sk) {
        return 0;
    }
    if !per_packet::is_its_turn(&KERNELLATENCY_TX_TURNS, KERNELLATENCY_SAMPLE.get()) {
        return 0;
    }
    let device = SKB_DEV.pointer::<A>(skb);
    // A packet keeps socket and time when it goes to another namespace over veth.
    if A::number(DEV_NET.pointer::<A>(device)) != A::number(SOCK_NET.pointer::<A>(sk)) {
        return 0;
    }
    let place = place::of_device::<A>(device);
    if !limit::is_listed(&place) {
        return 0;
    }
    let now = unsafe { generated::bpf_ktime_get_ns() };
    if tstamp > now {
        return 0; // paced: it is to leave later
    }
    let ns = now - tstamp;
    let Some(times) = times(&place) else { return 0 };
    latency::observe(unsafe { addr_of_mut!((*times).send) }, ns);
    if is_long(ns) {
        let ifindex = DEV_IFINDEX.read::<A>(device).unwrap_or(0);
        event::<A, { types::TXKERNEL_SLOW }>(context, kind::TXKERNEL, skb, ifindex, &place, now, ns);
    }
    0
}

/// The socket may be a request or one in TIME_WAIT, which have only the common part, and only TCP has them here.
#[inline(always)]
fn is_tcp<A: Access>(sk: *const u8) -> bool {
    const TIME_WAIT: u8 = 6;
    const NEW_SYN_RECV: u8 = 12;
    const TCP: u16 = 6;
    match SOCK_STATE.read::<A>(sk) {
        Some(TIME_WAIT | NEW_SYN_RECV) => true,
        _ => SOCK_PROTOCOL.read::<A>(sk) == Some(TCP),
    }
}

#[inline(always)]
fn times(place: &Place) -> Option<*mut Times> {
    let key = Key {
        cookie: place.cookie,
        netns: place.netns,
        pad: 0,
    };
    if let Some(times) = KERNELLATENCY_TIMES.get_ptr_mut(&key) {
        return Some(times);
    }
    // Fails when it is full, or another CPU was first.
    let _ = KERNELLATENCY_TIMES.insert(&key, &NOTHING, BPF_NOEXIST as u64);
    let times = KERNELLATENCY_TIMES.get_ptr_mut(&key);
    if times.is_none() {
        ring::uncounted(lost::KERNELLATENCY);
    }
    times
}

#[inline(always)]
fn is_long(ns: u64) -> bool {
    KERNELLATENCY_EVENTS.get() != 0 && ns > KERNELLATENCY_THRESHOLD_NS.get()
}

#[inline(always)]
fn event<A: Access, const TYPE: usize>(
    context: *const u64,
    kind: u32,
    skb: *const u8,
    ifindex: u32,
    place: &Place,
    now: u64,
    ns: u64,
) {
    if !limit::take_token(place.netns, TYPE, now) {
        return;
    }
    let event = ring::Event {
        ring: &ring::EVENTS,
        kind,
        bucket: TYPE,
        place,
        now,
        stack: KERNELLATENCY_STACKS.get() != 0,
    };
    event.write::<Record>(context, |record| unsafe {
        addr_of_mut!((*record).latency_ns).write(ns);
        addr_of_mut!((*record).ifindex).write(ifindex);
        addr_of_mut!((*record).len).write(SKB_LEN.read::<A>(skb).unwrap_or(0));
        let layer3 = per_packet::sent::<A>(skb, packet::head::<A>(skb));
        per_packet::capture(layer3, addr_of_mut!((*record).packet));
    });
}
