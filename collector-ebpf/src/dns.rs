//! Probe `dns`: queries over UDP that the listed namespaces send, and their answers, at tracepoints
//! net:net_dev_start_xmit and net:netif_receive_skb.

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::BPF_NOEXIST;
use aya_ebpf::helpers::generated;
use aya_ebpf::macros::{btf_tracepoint, map, raw_tracepoint};
use aya_ebpf::maps::{HashMap, PerCpuHashMap};
use aya_ebpf::programs::{BtfTracePointContext, RawTracePointContext};
use core::ptr::addr_of_mut;
use sonde_ebpf_common::dns::{Count, Key, Query, QueryKey, answer};
use sonde_ebpf_common::lost;

use crate::access::{
    Access, DEV_IFINDEX, DEV_NET, Probed, RECEIVE_SKB, SKB_DEV, SKB_LEN, SKB_SK, SOCK_NET, START_XMIT_DEV,
    START_XMIT_SKB, Typed, add, argument,
};
use crate::per_packet::{Ends, Layer3, UDP};
use crate::place::Place;
use crate::{latency, limit, packet, per_packet, place, ring};

#[map]
static DNS_WAITING: HashMap<QueryKey, Query> = HashMap::with_max_entries(1, 0);

#[map]
static DNS_COUNTS: PerCpuHashMap<Key, Count> = PerCpuHashMap::with_max_entries(1, 0);

/// Too large for a program's stack.
static NOTHING: Count = Count {
    latency: latency::NONE,
    queries: 0,
    retries: 0,
    answers: [0; answer::KINDS],
    truncated: 0,
};

const PORT: u16 = 53;
/// Messages may be longer than a frame, but packets of this size are somebody else's.
const LONGEST: u32 = 9216;
const UDP_HEADER: u32 = 8;
const MESSAGE_HEADER: u32 = 12;

#[btf_tracepoint(function = "net_dev_start_xmit")]
pub fn dns_query_btf(ctx: BtfTracePointContext) -> i32 {
    query::<Typed>(ctx.as_ptr().cast())
}

#[raw_tracepoint(tracepoint = "net_dev_start_xmit")]
pub fn dns_query_raw(ctx: RawTracePointContext) -> i32 {
    query::<Probed>(ctx.as_ptr().cast())
}

#[btf_tracepoint(function = "netif_receive_skb")]
pub fn dns_answer_btf(ctx: BtfTracePointContext) -> i32 {
    answer::<Typed>(ctx.as_ptr().cast())
}

#[raw_tracepoint(tracepoint = "netif_receive_skb")]
pub fn dns_answer_raw(ctx: RawTracePointContext) -> i32 {
    answer::<Probed>(ctx.as_ptr().cast())
}

/// The first four bytes of a message.
struct Message {
    id: u16,
    is_answer: bool,
    opcode: u8,
    truncated: bool,
    rcode: u8,
}

/// What may be one.
#[inline(always)]
fn message(layer3: &Layer3, ends: &Ends) -> Option<Message> {
    let begin = ends.transport + UDP_HEADER;
    if begin + MESSAGE_HEADER > layer3.available {
        return None;
    }
    let [a, b, flags, more] = packet::read::<4>(layer3.start.wrapping_add(begin as usize))?;
    Some(Message {
        id: u16::from_ne_bytes([a, b]),
        is_answer: flags & 0x80 != 0,
        opcode: flags >> 3 & 0xf,
        truncated: flags & 2 != 0,
        rcode: more & 0xf,
    })
}

#[inline(always)]
fn query<A: Access>(context: *const u64) -> i32 {
    let (Some(skb), Some(device)) = (argument(context, &START_XMIT_SKB), argument(context, &START_XMIT_DEV)) else {
        return 0;
    };
    let (skb, device) = (skb as *const u8, device as *const u8);
    if SKB_LEN.read::<A>(skb).unwrap_or(0) > LONGEST {
        return 0;
    }
    // Made here, and not forwarded for somebody else: such a packet has no socket, or one of another namespace.
    let sk = SKB_SK.pointer::<A>(skb);
    if sk.is_null() {
        return 0;
    }
    let layer3 = per_packet::sent::<A>(skb, packet::head::<A>(skb));
    let ends = per_packet::ends::<A>(layer3);
    if ends.protocol != UDP || ends.dport != PORT {
        return 0;
    }
    if A::number(DEV_NET.pointer::<A>(device)) != A::number(SOCK_NET.pointer::<A>(sk)) {
        return 0;
    }
    let place = place::of_device::<A>(device);
    let Some(message) = message(&layer3, &ends) else {
        return 0;
    };
    if message.is_answer || message.opcode != 0 || !limit::is_listed(&place) {
        return 0;
    }
    let Some(count) = count(&place) else { return 0 };
    let key = QueryKey {
        cookie: place.cookie,
        netns: place.netns,
        id: message.id,
        port: ends.sport,
        client: ends.saddr,
        server: ends.daddr,
    };
    let ifindex = DEV_IFINDEX.read::<A>(device).unwrap_or(0);
    if let Some(waiting) = DNS_WAITING.get_ptr_mut(&key) {
        // On another device it is the same packet, on its way through a device upon a device.
        if unsafe { (*waiting).ifindex } == ifindex {
            add(unsafe { addr_of_mut!((*count).retries) }, 1);
        }
        return 0;
    }
    let query = Query {
        since_ns: unsafe { generated::bpf_ktime_get_ns() },
        ifindex,
        pad: 0,
    };
    add(unsafe { addr_of_mut!((*count).queries) }, 1);
    if DNS_WAITING.insert(&key, &query, BPF_NOEXIST as u64).is_err() {
        ring::uncounted(lost::DNS);
    }
    0
}

#[inline(always)]
fn answer<A: Access>(context: *const u64) -> i32 {
    let Some(skb) = argument(context, &RECEIVE_SKB) else {
        return 0;
    };
    let skb = skb as *const u8;
    if SKB_LEN.read::<A>(skb).unwrap_or(0) > LONGEST {
        return 0;
    }
    let layer3 = per_packet::received::<A>(skb, packet::head::<A>(skb));
    let ends = per_packet::ends::<A>(layer3);
    if ends.protocol != UDP || ends.sport != PORT {
        return 0;
    }
    let place = place::of_device::<A>(SKB_DEV.pointer::<A>(skb));
    let Some(message) = message(&layer3, &ends) else {
        return 0;
    };
    if !message.is_answer || !limit::is_listed(&place) {
        return 0;
    }
    let key = QueryKey {
        cookie: place.cookie,
        netns: place.netns,
        id: message.id,
        port: ends.dport,
        client: ends.daddr,
        server: ends.saddr,
    };
    let Some(waiting) = DNS_WAITING.get_ptr_mut(&key) else {
        return 0;
    };
    let since = unsafe { (*waiting).since_ns };
    // Who takes it away counts it: an answer here, a time-out in user space.
    if DNS_WAITING.remove(&key).is_err() {
        return 0;
    }
    let Some(count) = count(&place) else { return 0 };
    let kind = match message.rcode {
        0 => answer::NOERROR,
        2 => answer::SERVFAIL,
        3 => answer::NXDOMAIN,
        5 => answer::REFUSED,
        _ => answer::OTHER,
    };
    let now = unsafe { generated::bpf_ktime_get_ns() };
    unsafe {
        latency::observe(addr_of_mut!((*count).latency), now.saturating_sub(since));
        let mut at = kind as u64;
        // The bound is lost on the verifier when it is checked on a copy of the register, so once more where it looks.
        core::arch::asm!(
            "if {at} < {kinds} goto +1",
            "{at} = 0",
            at = inout(reg) at,
            kinds = const answer::KINDS,
            options(pure, nomem, nostack),
        );
        add(addr_of_mut!((*count).answers).cast::<u64>().add(at as usize), 1);
        if message.truncated {
            add(addr_of_mut!((*count).truncated), 1);
        }
    }
    0
}

#[inline(always)]
fn count(place: &Place) -> Option<*mut Count> {
    let key = Key {
        cookie: place.cookie,
        netns: place.netns,
        pad: 0,
    };
    if let Some(count) = DNS_COUNTS.get_ptr_mut(&key) {
        return Some(count);
    }
    // Fails when it is full, or another CPU was first.
    let _ = DNS_COUNTS.insert(&key, &NOTHING, BPF_NOEXIST as u64);
    let count = DNS_COUNTS.get_ptr_mut(&key);
    if count.is_none() {
        ring::uncounted(lost::DNS);
    }
    count
}
