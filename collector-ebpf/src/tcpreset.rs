//! Probe `tcpreset`: tracepoints tcp:tcp_send_reset and tcp:tcp_receive_reset, each counted by one program and reported by
//! another, and sock:inet_sock_set_state for the state that a socket had before it was closed.
//!
//! Before 6.10 the first of them speaks of whole sockets only: there, answers to segments are taken from the functions that
//! make them.
//!
//! Everything is read by helper: what the tracepoints give may be NULL, or a TIME_WAIT socket.

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::BPF_NOEXIST;
use aya_ebpf::helpers::generated;
use aya_ebpf::macros::{btf_tracepoint, fentry, kprobe, map, raw_tracepoint};
use aya_ebpf::maps::{Array, PerCpuHashMap};
use aya_ebpf::programs::{BtfTracePointContext, FEntryContext, ProbeContext, RawTracePointContext};
use core::ptr::addr_of_mut;
use sonde_ebpf_common::connection::state;
use sonde_ebpf_common::fields::NO_ARGUMENT;
use sonde_ebpf_common::reset::{
    Closed, HELD, HOLD_NS, Held, Key, NO_REASON, Record, Resets, STATES, Told, flag, kind, slot,
};
use sonde_ebpf_common::{limit as types, lost, record};

use crate::access::{
    Live, Probed, RECEIVE_RESET_SK, SEND_RESET_REASON, SEND_RESET_SK, SEND_RESET_SKB, SET_STATE_NEW, SET_STATE_OLD,
    SET_STATE_SK, SOCK_SHUTDOWN, Setting, V4_SEND_RESET_SK, V4_SEND_RESET_SKB, V6_SEND_RESET_SK, V6_SEND_RESET_SKB,
    add, plain_argument, register_argument,
};
use crate::place::{self, Place};
use crate::{connection, limit, ring};

#[map]
static TCPRESET_COUNTS: PerCpuHashMap<Key, Resets> = PerCpuHashMap::with_max_entries(1, 0);

/// By `slot` of the socket; of the counting programs.
#[map]
static TCPRESET_HELD: Array<Held> = Array::with_max_entries(HELD, 0);

/// By `slot` of the socket; of the reporting programs.
#[map]
static TCPRESET_TOLD: Array<Told> = Array::with_max_entries(HELD, 0);

/// By `slot` of the socket.
#[map]
static TCPRESET_STATES: Array<Closed> = Array::with_max_entries(STATES, 0);

/// Whether events carry the stack.
#[used]
#[unsafe(no_mangle)]
#[unsafe(link_section = ".data.TCPRESET_STACKS")]
static TCPRESET_STACKS: Live<u32> = Live::new(1);

#[btf_tracepoint(function = "tcp_send_reset")]
pub fn reset_send_count_btf(ctx: BtfTracePointContext) -> i32 {
    count_sent(&Sent::traced(ctx.as_ptr().cast()))
}

#[raw_tracepoint(tracepoint = "tcp_send_reset")]
pub fn reset_send_count_raw(ctx: RawTracePointContext) -> i32 {
    count_sent(&Sent::traced(ctx.as_ptr().cast()))
}

#[btf_tracepoint(function = "tcp_send_reset")]
pub fn reset_active_count_btf(ctx: BtfTracePointContext) -> i32 {
    if_active(&Sent::traced(ctx.as_ptr().cast()), count_sent)
}

#[raw_tracepoint(tracepoint = "tcp_send_reset")]
pub fn reset_active_count_raw(ctx: RawTracePointContext) -> i32 {
    if_active(&Sent::traced(ctx.as_ptr().cast()), count_sent)
}

#[fentry(function = "tcp_v4_send_reset")]
pub fn reset_v4_count_fentry(ctx: FEntryContext) -> i32 {
    if_answered(&Sent::v4(ctx.as_ptr().cast(), plain_argument), count_sent)
}

#[fentry(function = "tcp_v6_send_reset")]
pub fn reset_v6_count_fentry(ctx: FEntryContext) -> i32 {
    if_answered(&Sent::v6(ctx.as_ptr().cast(), plain_argument), count_sent)
}

#[kprobe]
pub fn reset_v4_count_kprobe(ctx: ProbeContext) -> u32 {
    if_answered(&Sent::v4(ctx.as_ptr().cast(), register_argument), count_sent) as u32
}

#[kprobe]
pub fn reset_v6_count_kprobe(ctx: ProbeContext) -> u32 {
    if_answered(&Sent::v6(ctx.as_ptr().cast(), register_argument), count_sent) as u32
}

#[btf_tracepoint(function = "tcp_receive_reset")]
pub fn reset_receive_count_btf(ctx: BtfTracePointContext) -> i32 {
    count_received(ctx.as_ptr().cast())
}

#[raw_tracepoint(tracepoint = "tcp_receive_reset")]
pub fn reset_receive_count_raw(ctx: RawTracePointContext) -> i32 {
    count_received(ctx.as_ptr().cast())
}

#[btf_tracepoint(function = "tcp_send_reset")]
pub fn reset_send_event_btf(ctx: BtfTracePointContext) -> i32 {
    let context = ctx.as_ptr().cast();
    tell_sent(context, &Sent::traced(context))
}

#[raw_tracepoint(tracepoint = "tcp_send_reset")]
pub fn reset_send_event_raw(ctx: RawTracePointContext) -> i32 {
    let context = ctx.as_ptr().cast();
    tell_sent(context, &Sent::traced(context))
}

#[btf_tracepoint(function = "tcp_send_reset")]
pub fn reset_active_event_btf(ctx: BtfTracePointContext) -> i32 {
    let context = ctx.as_ptr().cast();
    if_active(&Sent::traced(context), |sent| tell_sent(context, sent))
}

#[raw_tracepoint(tracepoint = "tcp_send_reset")]
pub fn reset_active_event_raw(ctx: RawTracePointContext) -> i32 {
    let context = ctx.as_ptr().cast();
    if_active(&Sent::traced(context), |sent| tell_sent(context, sent))
}

#[fentry(function = "tcp_v4_send_reset")]
pub fn reset_v4_event_fentry(ctx: FEntryContext) -> i32 {
    let context = ctx.as_ptr().cast();
    if_answered(&Sent::v4(context, plain_argument), |sent| tell_sent(context, sent))
}

#[fentry(function = "tcp_v6_send_reset")]
pub fn reset_v6_event_fentry(ctx: FEntryContext) -> i32 {
    let context = ctx.as_ptr().cast();
    if_answered(&Sent::v6(context, plain_argument), |sent| tell_sent(context, sent))
}

#[kprobe]
pub fn reset_v4_event_kprobe(ctx: ProbeContext) -> u32 {
    let context = ctx.as_ptr().cast();
    if_answered(&Sent::v4(context, register_argument), |sent| tell_sent(context, sent)) as u32
}

#[kprobe]
pub fn reset_v6_event_kprobe(ctx: ProbeContext) -> u32 {
    let context = ctx.as_ptr().cast();
    if_answered(&Sent::v6(context, register_argument), |sent| tell_sent(context, sent)) as u32
}

#[btf_tracepoint(function = "tcp_receive_reset")]
pub fn reset_receive_event_btf(ctx: BtfTracePointContext) -> i32 {
    tell_received(ctx.as_ptr().cast())
}

#[raw_tracepoint(tracepoint = "tcp_receive_reset")]
pub fn reset_receive_event_raw(ctx: RawTracePointContext) -> i32 {
    tell_received(ctx.as_ptr().cast())
}

#[btf_tracepoint(function = "inet_sock_set_state")]
pub fn reset_state_btf(ctx: BtfTracePointContext) -> i32 {
    note_state(ctx.as_ptr().cast())
}

#[raw_tracepoint(tracepoint = "inet_sock_set_state")]
pub fn reset_state_raw(ctx: RawTracePointContext) -> i32 {
    note_state(ctx.as_ptr().cast())
}

/// A reset about to be sent. Addresses as numbers, 0: none.
struct Sent {
    socket: u64,
    skb: u64,
    kind: u32,
    /// See `Record::reason`.
    reason: u32,
    place: Place,
}

/// How a function's arguments are read.
type ReadArgument = fn(*const u64, &Setting<u32>) -> u64;

impl Sent {
    #[inline(always)]
    fn traced(context: *const u64) -> Self {
        let reason = if SEND_RESET_REASON.get() == NO_ARGUMENT {
            NO_REASON
        } else {
            plain_argument(context, &SEND_RESET_REASON) as u32
        };
        let socket = plain_argument(context, &SEND_RESET_SK);
        Self::new(socket, plain_argument(context, &SEND_RESET_SKB), reason)
    }

    #[inline(always)]
    fn v4(context: *const u64, read: ReadArgument) -> Self {
        let socket = read(context, &V4_SEND_RESET_SK);
        Self::new(socket, read(context, &V4_SEND_RESET_SKB), NO_REASON)
    }

    #[inline(always)]
    fn v6(context: *const u64, read: ReadArgument) -> Self {
        let socket = read(context, &V6_SEND_RESET_SK);
        Self::new(socket, read(context, &V6_SEND_RESET_SKB), NO_REASON)
    }

    #[inline(always)]
    fn new(socket: u64, skb: u64, reason: u32) -> Self {
        let (kind, place) = if socket == 0 {
            (kind::NOSOCK, place::of::<Probed>(skb as *const u8, None))
        } else if skb == 0 {
            (kind::ACTIVE, place::of_socket::<Probed>(socket as *const u8))
        } else {
            (kind::PROCESS, place::of_socket::<Probed>(socket as *const u8))
        };
        Self {
            socket,
            skb,
            kind,
            reason,
            place,
        }
    }
}

#[inline(always)]
fn if_active(sent: &Sent, then: impl FnOnce(&Sent) -> i32) -> i32 {
    if sent.kind == kind::ACTIVE { then(sent) } else { 0 }
}

/// The functions are called for resets too, and do not answer these.
#[inline(always)]
fn if_answered(sent: &Sent, then: impl FnOnce(&Sent) -> i32) -> i32 {
    if sent.skb == 0 || connection::is_reset(sent.skb as *const u8) {
        return 0;
    }
    then(sent)
}

#[inline(always)]
fn now() -> u64 {
    unsafe { generated::bpf_ktime_get_ns() }
}

/// Whether what the kernel takes for a received reset may be data that came after both directions were shut down.
#[inline(always)]
fn is_in_doubt(sk: *const u8) -> bool {
    const RCV_SHUTDOWN: u8 = 1;
    matches!(connection::state(sk), state::FIN_WAIT1 | state::FIN_WAIT2)
        && SOCK_SHUTDOWN.bits::<Probed>(sk).unwrap_or(0) & RCV_SHUTDOWN != 0
}

#[inline(always)]
fn count_sent(sent: &Sent) -> i32 {
    if sent.kind == kind::PROCESS
        && let Some(held) = TCPRESET_HELD.get_ptr_mut(slot(sent.socket, HELD))
        && unsafe { (*held).socket } == sent.socket
        && now() - unsafe { (*held).ktime_ns } < HOLD_NS
    {
        unsafe { (*held).socket = 0 };
    }
    if limit::wanted(&sent.place) {
        count(sent.place.cookie, sent.place.netns, sent.kind);
    }
    0
}

#[inline(always)]
fn count_received(context: *const u64) -> i32 {
    let socket = plain_argument(context, &RECEIVE_RESET_SK);
    let place = place::of_socket::<Probed>(socket as *const u8);
    if !limit::wanted(&place) {
        return 0;
    }
    if is_in_doubt(socket as *const u8)
        && let Some(held) = TCPRESET_HELD.get_ptr_mut(slot(socket, HELD))
    {
        // Nothing was sent for the one before it.
        let before = unsafe { *held };
        unsafe {
            *held = Held {
                socket,
                ktime_ns: now(),
                cookie: place.cookie,
                netns: place.netns,
                pad: 0,
            };
        }
        if before.socket != 0 {
            count(before.cookie, before.netns, kind::RECEIVE);
        }
        return 0;
    }
    count(place.cookie, place.netns, kind::RECEIVE);
    0
}

#[inline(always)]
fn count(cookie: u64, netns: u32, kind: u32) {
    let key = Key { cookie, netns, kind };
    if let Some(counter) = TCPRESET_COUNTS.get_ptr_mut(&key) {
        add(unsafe { addr_of_mut!((*counter).resets) }, 1);
    } else if TCPRESET_COUNTS
        .insert(&key, &Resets { resets: 1 }, BPF_NOEXIST as u64)
        .is_err()
    {
        // Full, or another CPU was first.
        if let Some(counter) = TCPRESET_COUNTS.get_ptr_mut(&key) {
            add(unsafe { addr_of_mut!((*counter).resets) }, 1);
        } else {
            ring::uncounted(lost::TCPRESET);
        }
    }
}

#[inline(always)]
fn note_state(context: *const u64) -> i32 {
    if plain_argument(context, &SET_STATE_NEW) as u32 != state::CLOSE as u32 {
        return 0;
    }
    let socket = plain_argument(context, &SET_STATE_SK);
    if let Some(closed) = TCPRESET_STATES.get_ptr_mut(slot(socket, STATES)) {
        let state = plain_argument(context, &SET_STATE_OLD) as u32 as u64;
        unsafe { *closed = Closed { socket, state } };
    }
    0
}

/// The socket's state, before it was closed in the course of what resets it.
#[inline(always)]
fn state_of(socket: u64) -> u8 {
    let now = connection::state(socket as *const u8);
    if now == state::CLOSE
        && let Some(closed) = TCPRESET_STATES.get(slot(socket, STATES))
        && closed.socket == socket
    {
        return closed.state as u8;
    }
    now
}

#[inline(always)]
fn tell_sent(context: *const u64, sent: &Sent) -> i32 {
    if sent.kind == kind::PROCESS
        && let Some(told) = TCPRESET_TOLD.get_ptr_mut(slot(sent.socket, HELD))
        && unsafe { (*told).socket } == sent.socket
        && now() - unsafe { (*told).ktime_ns } < HOLD_NS
    {
        unsafe { (*told).mistaken = 1 };
    }
    // A type is a constant each, as it is a place in arrays.
    match sent.kind {
        kind::NOSOCK => emit_sent::<{ types::TCPRESET_NOSOCK }>(context, sent),
        kind::ACTIVE => emit_sent::<{ types::TCPRESET_ACTIVE }>(context, sent),
        _ => emit_sent::<{ types::TCPRESET_PROCESS }>(context, sent),
    }
}

#[inline(always)]
fn emit_sent<const TYPE: usize>(context: *const u64, sent: &Sent) -> i32 {
    let state = if sent.socket == 0 { 0 } else { state_of(sent.socket) };
    emit::<TYPE>(context, &sent.place, now(), |record| unsafe {
        let connection = addr_of_mut!((*record).connection);
        // A listening socket does not know who it answers.
        if sent.skb == 0 {
            connection::of_socket(sent.socket as *const u8, state, connection);
        } else {
            connection::of_answer(sent.skb as *const u8, state, connection);
        }
        rest(record, sent.socket, sent.kind, sent.reason, 0);
    })
}

#[inline(always)]
fn tell_received(context: *const u64) -> i32 {
    let socket = plain_argument(context, &RECEIVE_RESET_SK);
    let place = place::of_socket::<Probed>(socket as *const u8);
    let in_doubt = is_in_doubt(socket as *const u8);
    let now = now();
    if in_doubt && let Some(told) = TCPRESET_TOLD.get_ptr_mut(slot(socket, HELD)) {
        unsafe {
            *told = Told {
                socket,
                ktime_ns: now,
                mistaken: 0,
            };
        }
    }
    emit::<{ types::TCPRESET_RECEIVE }>(context, &place, now, |record| unsafe {
        let state = state_of(socket);
        connection::of_socket(socket as *const u8, state, addr_of_mut!((*record).connection));
        let flags = if in_doubt { flag::HELD } else { 0 };
        rest(record, socket, kind::RECEIVE, NO_REASON, flags);
    })
}

#[inline(always)]
fn emit<const TYPE: usize>(context: *const u64, place: &Place, now: u64, fill: impl FnOnce(*mut Record)) -> i32 {
    let Some(key) = limit::listed(place) else { return 0 };
    if !limit::take_token(key, TYPE, now) {
        return 0;
    }
    let event = ring::Event {
        ring: &ring::RARE,
        kind: record::kind::RESET,
        bucket: TYPE,
        place,
        now,
        stack: TCPRESET_STACKS.get() != 0,
    };
    event.write::<Record>(context, fill)
}

#[inline(always)]
unsafe fn rest(record: *mut Record, socket: u64, kind: u32, reason: u32, flags: u32) {
    unsafe {
        addr_of_mut!((*record).socket).write(socket);
        addr_of_mut!((*record).kind).write(kind);
        addr_of_mut!((*record).reason).write(reason);
        addr_of_mut!((*record).flags).write(flags);
        addr_of_mut!((*record).pad).write(0);
    }
}
