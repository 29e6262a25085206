//! Probe `tcpretrans`: tracepoints tcp:tcp_retransmit_skb and tcp:tcp_retransmit_synack, each counted by one program and
//! reported by another.

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::BPF_NOEXIST;
use aya_ebpf::helpers::generated;
use aya_ebpf::macros::{btf_tracepoint, map, raw_tracepoint};
use aya_ebpf::maps::PerCpuHashMap;
use aya_ebpf::programs::{BtfTracePointContext, RawTracePointContext};
use core::ptr::addr_of_mut;
use sonde_ebpf_common::connection::state;
use sonde_ebpf_common::retransmit::{Key, Record, Segments, kind};
use sonde_ebpf_common::{limit as types, lost, record};

use crate::access::{
    Access, ICSK_CA_STATE, ICSK_PENDING, Live, Probed, RETRANSMIT_SKB_ERR, RETRANSMIT_SKB_SK, RETRANSMIT_SKB_SKB,
    RETRANSMIT_SYNACK_REQ, SKB_CB, SOCK_STATE, TCP_CB_SEGMENTS, Typed, add, argument,
};
use crate::place::{self, Place};
use crate::{connection, limit, ring};

#[map]
static TCPRETRANS_COUNTS: PerCpuHashMap<Key, Segments> = PerCpuHashMap::with_max_entries(1, 0);

/// Whether events carry the stack.
#[used]
#[unsafe(no_mangle)]
#[unsafe(link_section = ".data.TCPRETRANS_STACKS")]
static TCPRETRANS_STACKS: Live<u32> = Live::new(1);

#[btf_tracepoint(function = "tcp_retransmit_skb")]
pub fn retrans_count_btf(ctx: BtfTracePointContext) -> i32 {
    count(Retransmit::segment::<Typed>(ctx.as_ptr().cast()))
}

#[raw_tracepoint(tracepoint = "tcp_retransmit_skb")]
pub fn retrans_count_raw(ctx: RawTracePointContext) -> i32 {
    count(Retransmit::segment::<Probed>(ctx.as_ptr().cast()))
}

#[btf_tracepoint(function = "tcp_retransmit_synack")]
pub fn synack_count_btf(ctx: BtfTracePointContext) -> i32 {
    count(Retransmit::synack::<Typed>(ctx.as_ptr().cast()))
}

#[raw_tracepoint(tracepoint = "tcp_retransmit_synack")]
pub fn synack_count_raw(ctx: RawTracePointContext) -> i32 {
    count(Retransmit::synack::<Probed>(ctx.as_ptr().cast()))
}

#[btf_tracepoint(function = "tcp_retransmit_skb")]
pub fn retrans_event_btf(ctx: BtfTracePointContext) -> i32 {
    let context = ctx.as_ptr().cast();
    event(context, Retransmit::segment::<Typed>(context))
}

#[raw_tracepoint(tracepoint = "tcp_retransmit_skb")]
pub fn retrans_event_raw(ctx: RawTracePointContext) -> i32 {
    let context = ctx.as_ptr().cast();
    event(context, Retransmit::segment::<Probed>(context))
}

#[btf_tracepoint(function = "tcp_retransmit_synack")]
pub fn synack_event_btf(ctx: BtfTracePointContext) -> i32 {
    let context = ctx.as_ptr().cast();
    event(context, Retransmit::synack::<Typed>(context))
}

#[raw_tracepoint(tracepoint = "tcp_retransmit_synack")]
pub fn synack_event_raw(ctx: RawTracePointContext) -> i32 {
    let context = ctx.as_ptr().cast();
    event(context, Retransmit::synack::<Probed>(context))
}

/// Something sent again, as a tracepoint gives it.
pub struct Retransmit {
    /// The socket, for a SYN-ACK the request.
    pub sk: *const u8,
    state: u8,
    kind: u32,
    pub segments: u32,
    pub place: Place,
}

impl Retransmit {
    /// Not a request for one.
    #[inline(always)]
    pub fn is_whole_socket(&self) -> bool {
        self.kind != kind::SYN_ACK
    }

    #[inline(always)]
    pub fn segment<A: Access>(context: *const u64) -> Option<Self> {
        let sk = argument(context, &RETRANSMIT_SKB_SK)? as *const u8;
        let skb = argument(context, &RETRANSMIT_SKB_SKB)? as *const u8;
        // Since 6.17 also what could not be sent again comes here.
        if argument(context, &RETRANSMIT_SKB_ERR).is_some_and(|error| error as i32 != 0) {
            return None;
        }
        let state = SOCK_STATE.read::<A>(sk).unwrap_or(0);
        Some(Self {
            sk,
            state,
            kind: of_socket(sk, state),
            segments: segments(skb),
            place: place::of_socket::<A>(sk),
        })
    }

    #[inline(always)]
    pub fn synack<A: Access>(context: *const u64) -> Option<Self> {
        // Its first member is what it has in common with a socket.
        let request = argument(context, &RETRANSMIT_SYNACK_REQ)? as *const u8;
        Some(Self {
            sk: request,
            state: SOCK_STATE.read::<A>(request).unwrap_or(0),
            kind: kind::SYN_ACK,
            segments: 1,
            place: place::of_socket::<A>(request),
        })
    }
}

/// Why the socket sends again. In this order: a socket that connects is in Loss too, and one in Recovery may have its
/// loss probe still pending.
#[inline(always)]
fn of_socket(sk: *const u8, in_state: u8) -> u32 {
    /// `enum tcp_ca_state`, `ICSK_TIME_*`.
    const RECOVERY: u8 = 3;
    const LOSS: u8 = 4;
    const TIME_RETRANS: u8 = 1;
    const TIME_LOSS_PROBE: u8 = 5;
    if in_state == state::SYN_SENT {
        return kind::SYN;
    }
    // Beyond the struct that the verifier knows of.
    let control = ICSK_CA_STATE.bits::<Probed>(sk).unwrap_or(u8::MAX);
    let pending = ICSK_PENDING.read::<Probed>(sk).unwrap_or(u8::MAX);
    match (control, pending) {
        (RECOVERY, _) => kind::FAST,
        (LOSS, 0) => kind::RTO,
        (LOSS, TIME_RETRANS) => kind::LOSS_RECOVERY,
        (_, TIME_LOSS_PROBE) => kind::TLP,
        _ => kind::OTHER,
    }
}

/// As the kernel itself counts them for `RetransSegs`.
#[inline(always)]
fn segments(skb: *const u8) -> u32 {
    let Some(block) = SKB_CB.address(skb) else { return 1 };
    match TCP_CB_SEGMENTS.read::<Probed>(block) {
        Some(segments) if segments > 1 => segments as u32,
        _ => 1,
    }
}

#[inline(always)]
fn count(seen: Option<Retransmit>) -> i32 {
    let Some(seen) = seen else { return 0 };
    if !limit::wanted(&seen.place) {
        return 0;
    }
    let key = Key {
        cookie: seen.place.cookie,
        netns: seen.place.netns,
        kind: seen.kind,
    };
    let segments = seen.segments as u64;
    if let Some(counter) = TCPRETRANS_COUNTS.get_ptr_mut(&key) {
        add(unsafe { addr_of_mut!((*counter).segments) }, segments);
    } else if TCPRETRANS_COUNTS
        .insert(&key, &Segments { segments }, BPF_NOEXIST as u64)
        .is_err()
    {
        // Full, or another CPU was first.
        if let Some(counter) = TCPRETRANS_COUNTS.get_ptr_mut(&key) {
            add(unsafe { addr_of_mut!((*counter).segments) }, segments);
        } else {
            ring::uncounted(lost::TCPRETRANS);
        }
    }
    0
}

#[inline(always)]
fn event(context: *const u64, seen: Option<Retransmit>) -> i32 {
    let Some(seen) = seen else { return 0 };
    let Some(key) = limit::listed(&seen.place) else {
        return 0;
    };
    let now = unsafe { generated::bpf_ktime_get_ns() };
    if !limit::take_token(key, types::TCPRETRANS, now) {
        return 0;
    }
    let event = ring::Event {
        ring: &ring::EVENTS,
        kind: record::kind::RETRANSMIT,
        bucket: types::TCPRETRANS,
        place: &seen.place,
        now,
        stack: TCPRETRANS_STACKS.get() != 0,
    };
    event.write::<Record>(context, |record| unsafe {
        connection::of_socket(seen.sk, seen.state, addr_of_mut!((*record).connection));
        addr_of_mut!((*record).segments).write(seen.segments);
        addr_of_mut!((*record).kind).write(seen.kind);
    })
}
