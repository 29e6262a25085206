//! Probe `kernellatency`: how long packets are on their way from the device to the socket (tracepoints net:netif_rx,
//! net:netif_receive_skb and tcp:tcp_probe) and from TCP to the device's queue (net:net_dev_queue). What only functions of
//! the IP layer tell is in [`stages`].
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
use sonde_ebpf_common::kernellatency::{ARRIVALS, Arrival, Key, Record, TCP, Times, UDP, UNKNOWN, stage};
use sonde_ebpf_common::record::kind;
use sonde_ebpf_common::{limit as types, lost};

use crate::access::{
    Access, DEV_IFINDEX, DEV_NET, Live, NET_DEV_QUEUE_SKB, NETIF_RX_SKB, Probed, RECEIVE_SKB, SKB_DEV, SKB_LEN, SKB_SK,
    SKB_TRUESIZE, SKB_TSTAMP, SKB_TSTAMP_TYPE, SOCK_NET, SOCK_PROTOCOL, SOCK_STATE, Setting, TCP_PROBE_SK,
    TCP_PROBE_SKB, Typed, add, argument, plain_argument,
};
use crate::place::{self, Place};
use crate::{latency, limit, packet, per_packet, ring};

mod stages;

#[map]
static KERNELLATENCY_ARRIVALS: Array<Arrival> = Array::with_max_entries(1, 0);

/// What is to be taken off an address to have the number that the other programs know it by.
#[map]
static KERNELLATENCY_ANCHOR: Array<u64> = Array::with_max_entries(1, 0);

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
    receive_hooks: latency::NONE,
    send_hooks: latency::NONE,
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

/// For programs that know addresses: how far the numbers of these are from them. They agree in all programs here, as they
/// do in `per_packet`; where arguments have types that is a distance that only a program can find out.
#[inline(always)]
fn tell_anchor<A: Access>(context: *const u64, of: &Setting<u32>, number: u64) {
    if !A::IS_TYPED {
        return;
    }
    let Some(anchor) = KERNELLATENCY_ANCHOR.get_ptr_mut(0) else {
        return;
    };
    unsafe {
        if *anchor == 0 {
            *anchor = plain_argument(context, of).wrapping_sub(number);
        }
    }
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
    tell_anchor::<A>(context, of, number);
    let device_number = A::number(device);
    let Some(arrival) = arrival(number) else { return 0 };
    unsafe {
        // It has come through the queue of this CPU: it arrived when it was put there.
        if stage == stage::RECEIVED
            && (*arrival).skb == number
            && (*arrival).stage == stage::WAITS
            && (*arrival).owner == device_number
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
        let since_ns = generated::bpf_ktime_get_ns();
        let ifindex = DEV_IFINDEX.read::<A>(device).unwrap_or(0);
        arrival.write(Arrival::new(number, since_ns, device_number, stage, ifindex));
    }
    0
}

#[inline(always)]
fn reach<A: Access>(context: *const u64) -> i32 {
    let (Some(sk), Some(skb)) = (argument(context, &TCP_PROBE_SK), argument(context, &TCP_PROBE_SKB)) else {
        return 0;
    };
    let (sk, skb) = (sk as *const u8, skb as *const u8);
    received::<A>(context, TCP, sk, skb, A::number(skb))
}

/// A socket takes a packet.
#[inline(always)]
fn received<A: Access>(context: *const u64, protocol: u32, sk: *const u8, skb: *const u8, number: u64) -> i32 {
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
    let Some(times) = times(&place, protocol) else { return 0 };
    let Some(arrival) = found else {
        add(unsafe { addr_of_mut!((*times).unmatched) }, 1);
        return 0;
    };
    let since = unsafe { (*arrival).since_ns };
    let now = unsafe { generated::bpf_ktime_get_ns() };
    if since > now {
        return 0;
    }
    let ns = now - since;
    latency::observe(unsafe { addr_of_mut!((*times).receive) }, ns);
    let hooks = hooks(arrival);
    if hooks != UNKNOWN {
        latency::observe(unsafe { addr_of_mut!((*times).receive_hooks) }, hooks);
    }
    if is_long(ns) {
        let (ip_ns, delivered_ns, ifindex) = unsafe { ((*arrival).ip_ns, (*arrival).delivered_ns, (*arrival).ifindex) };
        let parts = Parts {
            device: if ip_ns == 0 { UNKNOWN } else { ip_ns.wrapping_sub(since) },
            ip: if ip_ns == 0 || delivered_ns == 0 {
                UNKNOWN
            } else {
                delivered_ns
                    .wrapping_sub(ip_ns)
                    .wrapping_sub(if hooks == UNKNOWN { 0 } else { hooks })
            },
            hooks,
            transport: if delivered_ns == 0 {
                UNKNOWN
            } else {
                now.wrapping_sub(delivered_ns)
            },
        };
        let long = Long {
            kind: kind::RXKERNEL,
            now,
            ns,
            parts,
            ifindex,
        };
        long.tell::<A, { types::RXKERNEL_SLOW }>(context, skb, &place);
    }
    0
}

/// How long netfilter's hooks had it; [`UNKNOWN`] where none was seen.
#[inline(always)]
fn hooks(arrival: *mut Arrival) -> u64 {
    unsafe {
        if (*arrival).hook_runs == 0 {
            UNKNOWN
        } else {
            (*arrival).hooks_ns
        }
    }
}

/// A packet is given to a device.
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
    let number = A::number(skb);
    tell_anchor::<A>(context, &NET_DEV_QUEUE_SKB, number);
    let below = match arrival(number) {
        Some(arrival)
            if unsafe {
                (*arrival).skb == number && (*arrival).stage == stage::SENT && (*arrival).owner == A::number(sk)
            } =>
        {
            Some(arrival)
        }
        _ => None,
    };
    let (protocol, since) = if is_tcp::<A>(sk) {
        let tstamp = SKB_TSTAMP.read::<A>(skb).unwrap_or(0);
        // In the clock of the sender's time, which TCP takes; below 5.18 nothing else writes one here on the way out.
        const MONOTONIC: u8 = 1;
        if tstamp == 0 || SKB_TSTAMP_TYPE.bits::<A>(skb).unwrap_or(MONOTONIC) != MONOTONIC {
            return 0;
        }
        // Acknowledgements alone, which TCP marks so, may carry the time of what they acknowledge.
        const PURE_ACK: u32 = 2;
        if SKB_TRUESIZE.read::<A>(skb) == Some(PURE_ACK) {
            return 0;
        }
        (TCP, tstamp)
    } else {
        let Some(below) = below else { return 0 };
        if SOCK_PROTOCOL.read::<A>(sk) != Some(UDP as u16) {
            return 0;
        }
        (UDP, unsafe { (*below).since_ns })
    };
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
    if since > now {
        return 0; // paced: it is to leave later
    }
    let ns = now - since;
    let Some(times) = times(&place, protocol) else { return 0 };
    latency::observe(unsafe { addr_of_mut!((*times).send) }, ns);
    let mut parts = Parts::UNKNOWN;
    if let Some(below) = below {
        parts.hooks = hooks(below);
        let hooks = if parts.hooks == UNKNOWN { 0 } else { parts.hooks };
        let begun = unsafe { (*below).since_ns };
        parts.ip = now.wrapping_sub(begun).wrapping_sub(hooks);
        if protocol == TCP {
            parts.transport = begun.wrapping_sub(since);
        }
    }
    if parts.hooks != UNKNOWN {
        latency::observe(unsafe { addr_of_mut!((*times).send_hooks) }, parts.hooks);
    }
    if is_long(ns) {
        let long = Long {
            kind: kind::TXKERNEL,
            now,
            ns,
            parts,
            ifindex: DEV_IFINDEX.read::<A>(device).unwrap_or(0),
        };
        long.tell::<A, { types::TXKERNEL_SLOW }>(context, skb, &place);
    }
    0
}

/// The socket may be a request or one in TIME_WAIT, which have only the common part, and only TCP has them here.
#[inline(always)]
fn is_tcp<A: Access>(sk: *const u8) -> bool {
    const TIME_WAIT: u8 = 6;
    const NEW_SYN_RECV: u8 = 12;
    match SOCK_STATE.read::<A>(sk) {
        Some(TIME_WAIT | NEW_SYN_RECV) => true,
        _ => SOCK_PROTOCOL.read::<A>(sk) == Some(TCP as u16),
    }
}

#[inline(always)]
fn times(place: &Place, protocol: u32) -> Option<*mut Times> {
    let key = Key {
        cookie: place.cookie,
        netns: place.netns,
        protocol,
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

/// What a time is made of, see [`Record`].
struct Parts {
    device: u64,
    ip: u64,
    hooks: u64,
    transport: u64,
}

impl Parts {
    const UNKNOWN: Self = Self {
        device: UNKNOWN,
        ip: UNKNOWN,
        hooks: UNKNOWN,
        transport: UNKNOWN,
    };
}

/// A packet that took long.
struct Long {
    kind: u32,
    now: u64,
    ns: u64,
    parts: Parts,
    ifindex: u32,
}

impl Long {
    #[inline(always)]
    fn tell<A: Access, const TYPE: usize>(&self, context: *const u64, skb: *const u8, place: &Place) {
        if !limit::of_netns(place.netns).is_some_and(|of| limit::take_token(of, TYPE, self.now)) {
            return;
        }
        let event = ring::Event {
            ring: &ring::EVENTS,
            kind: self.kind,
            bucket: TYPE,
            place,
            now: self.now,
            stack: KERNELLATENCY_STACKS.get() != 0,
        };
        event.write::<Record>(context, |record| unsafe {
            addr_of_mut!((*record).latency_ns).write(self.ns);
            addr_of_mut!((*record).device_ns).write(self.parts.device);
            addr_of_mut!((*record).ip_ns).write(self.parts.ip);
            addr_of_mut!((*record).hooks_ns).write(self.parts.hooks);
            addr_of_mut!((*record).transport_ns).write(self.parts.transport);
            addr_of_mut!((*record).ifindex).write(self.ifindex);
            addr_of_mut!((*record).len).write(SKB_LEN.read::<A>(skb).unwrap_or(0));
            let layer3 = per_packet::sent::<A>(skb, packet::head::<A>(skb));
            per_packet::capture::<A>(layer3, addr_of_mut!((*record).packet));
        });
    }
}
