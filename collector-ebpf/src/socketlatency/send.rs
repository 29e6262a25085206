//! Sending: when a send call comes back and its bytes did not all go out, a mark of (sequence number, time), until a
//! packet that reaches so far is given to a device. One mark a socket, the oldest; when it is reached and more is in the
//! socket, that is marked anew, as if it had come then: a lower bound.
//!
//! Datagrams are given to a device before the call comes back, but for those in [`held`].
//!
//! What a call waits for before it can put its bytes into the socket is not in here: that time is the caller's own to
//! see.

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::{BPF_ANY, BPF_NOEXIST};
use aya_ebpf::helpers::generated;
use aya_ebpf::macros::{btf_tracepoint, fexit, kprobe, kretprobe, map, raw_tracepoint};
use aya_ebpf::maps::{Array, HashMap};
use aya_ebpf::programs::{BtfTracePointContext, FExitContext, ProbeContext, RawTracePointContext, RetProbeContext};
use core::ptr::addr_of_mut;
use sonde_ebpf_common::socklat::{Record, Sends, TCP, UDP, limited, operation};
use sonde_ebpf_common::{limit as types, lost, record};

use super::read::is_before;
use super::{SOCKETLATENCY_STACKS, count, held, is_slow, place, protocol};
use crate::access::{
    Access, DESTROY_SOCK_SK, NET_DEV_QUEUE_SKB, Probed, SEND_LENGTH_RET, SEND_LENGTH_SK, SENDMSG_SK, SKB_DATA, SKB_LEN,
    SKB_SK, SKB_TRANSPORT_HEADER, SOCK_PEER_PORT, SOCK_PORT, SOCK_STATE, TCP_CHRONO, TCP_CHRONO_START,
    TCP_CHRONO_STATS, TCP_SND_NXT, TCP_WRITE_SEQ, Typed, add, argument, plain_argument,
};
use crate::{connection, limit, packet, ring};

#[map]
static SOCKETLATENCY_SENDS: HashMap<u64, Sends> = HashMap::with_max_entries(1, 0);

/// How many are in `SOCKETLATENCY_SENDS`: while there are none, a packet costs no look-up.
#[map]
static SOCKETLATENCY_UNSENT: Array<u64> = Array::with_max_entries(1, 0);

#[btf_tracepoint(function = "sock_send_length")]
pub fn socklat_sent_btf(ctx: BtfTracePointContext) -> i32 {
    sent::<Typed>(ctx.as_ptr().cast())
}

#[raw_tracepoint(tracepoint = "sock_send_length")]
pub fn socklat_sent_raw(ctx: RawTracePointContext) -> i32 {
    sent::<Probed>(ctx.as_ptr().cast())
}

/// Below 6.3. What the call returned is not looked at: where it put nothing into the socket, everything is sent.
#[fexit(function = "tcp_sendmsg_locked")]
pub fn socklat_sent_fexit(ctx: FExitContext) -> i32 {
    // Only kernels before 6.3 need it, where no typed load may fail: see `crashes` in the collector's plan.
    match plain_argument(ctx.as_ptr().cast(), &SENDMSG_SK) {
        0 => 0,
        sk => queued::<Probed>(sk as *const u8),
    }
}

/// Threads that are in tcp_sendmsg_locked, and the socket: what it comes back from does not say.
#[map]
static SOCKETLATENCY_CALLS: HashMap<u32, u64> = HashMap::with_max_entries(1, 0);

#[inline(always)]
pub(super) fn thread() -> u32 {
    unsafe { generated::bpf_get_current_pid_tgid() as u32 }
}

/// Below 6.3, where there is no fexit.
#[kprobe]
pub fn socklat_call_kprobe(ctx: ProbeContext) -> i32 {
    if let Some(sk) = ctx.arg::<u64>(0)
        && SOCKETLATENCY_CALLS.insert(thread(), sk, BPF_ANY as u64).is_err()
    {
        ring::uncounted(lost::SOCKETLATENCY);
    }
    0
}

#[kretprobe]
pub fn socklat_sent_kprobe(_ctx: RetProbeContext) -> i32 {
    let thread = thread();
    // SAFETY: the value is a word, and is copied at once.
    let Some(sk) = (unsafe { SOCKETLATENCY_CALLS.get(thread).copied() }) else {
        return 0;
    };
    let _ = SOCKETLATENCY_CALLS.remove(thread);
    queued::<Probed>(sk as *const u8)
}

#[btf_tracepoint(function = "net_dev_queue")]
pub fn socklat_out_btf(ctx: BtfTracePointContext) -> i32 {
    out::<Typed>(ctx.as_ptr().cast())
}

#[raw_tracepoint(tracepoint = "net_dev_queue")]
pub fn socklat_out_raw(ctx: RawTracePointContext) -> i32 {
    out::<Probed>(ctx.as_ptr().cast())
}

#[btf_tracepoint(function = "tcp_destroy_sock")]
pub fn socklat_unsent_btf(ctx: BtfTracePointContext) -> i32 {
    forget(ctx.as_ptr().cast())
}

#[raw_tracepoint(tracepoint = "tcp_destroy_sock")]
pub fn socklat_unsent_raw(ctx: RawTracePointContext) -> i32 {
    forget(ctx.as_ptr().cast())
}

#[inline(always)]
fn unsent() -> u64 {
    match SOCKETLATENCY_UNSENT.get(0) {
        Some(number) => *number,
        None => 0,
    }
}

/// Whether it was there.
#[inline(always)]
fn remove(sk: u64) -> bool {
    let was = SOCKETLATENCY_SENDS.remove(sk).is_ok();
    if was && let Some(number) = SOCKETLATENCY_UNSENT.get_ptr_mut(0) {
        add(number, u64::MAX);
    }
    was
}

#[inline(always)]
fn forget(context: *const u64) -> i32 {
    if let Some(sk) = argument(context, &DESTROY_SOCK_SK)
        && unsent() != 0
    {
        remove(sk);
    }
    0
}

#[inline(always)]
fn sent<A: Access>(context: *const u64) -> i32 {
    let (Some(sk), Some(length)) = (argument(context, &SEND_LENGTH_SK), argument(context, &SEND_LENGTH_RET)) else {
        return 0;
    };
    let sk = sk as *const u8;
    let sent = length as i32 > 0;
    match protocol::<A>(sk) {
        TCP if sent => queued::<A>(sk),
        UDP => held::sent::<A>(sk, sent),
        _ => 0,
    }
}

/// A send call put something into the socket.
#[inline(always)]
fn queued<A: Access>(sk: *const u8) -> i32 {
    let tcp = A::tcp_sock(sk);
    if tcp.is_null() {
        return 0;
    }
    // In this order: what goes out in between is then taken for sent.
    let (Some(written), Some(next)) = (TCP_WRITE_SEQ.read::<A>(tcp), TCP_SND_NXT.read::<A>(tcp)) else {
        return 0;
    };
    let place = crate::place::of_socket::<A>(sk);
    if !limit::wanted(&place) {
        return 0;
    }
    if !is_before(next, written) {
        count(place.cookie, place.netns, operation::SEND, TCP, 0);
        return 0;
    }
    let key = sk as u64;
    // SAFETY: only a word is read, at once.
    if let Some(mark) = unsafe { SOCKETLATENCY_SENDS.get(key) } {
        if is_before(next, mark.seq) {
            return 0;
        }
        // It went out unseen, nobody knows when.
        if remove(key) {
            ring::uncounted(lost::SOCKETLATENCY);
        }
    }
    let jiffies = jiffies();
    let mut new = Sends {
        cookie: place.cookie,
        ktime_ns: unsafe { generated::bpf_ktime_get_ns() },
        netns: place.netns,
        seq: written,
        tgid: (unsafe { generated::bpf_get_current_pid_tgid() } >> 32) as u32,
        jiffies,
        held: held(sk, jiffies),
        ports: [
            SOCK_PORT.read::<A>(sk).unwrap_or(0).to_be(),
            SOCK_PEER_PORT.read::<A>(sk).unwrap_or(0),
        ],
        pad: 0,
        comm: [0; 16],
    };
    unsafe { generated::bpf_get_current_comm(new.comm.as_mut_ptr().cast(), 16) };
    // Counted first: a packet that goes out at this moment must find it worth a look.
    let Some(number) = SOCKETLATENCY_UNSENT.get_ptr_mut(0) else {
        return 0;
    };
    add(number, 1);
    if SOCKETLATENCY_SENDS.insert(key, new, BPF_NOEXIST as u64).is_err() {
        add(number, u64::MAX);
        ring::uncounted(lost::SOCKETLATENCY);
    }
    0
}

/// A packet goes to a device.
#[inline(always)]
fn out<A: Access>(context: *const u64) -> i32 {
    held::out(context);
    if unsent() == 0 {
        return 0;
    }
    let Some(skb) = argument(context, &NET_DEV_QUEUE_SKB) else {
        return 0;
    };
    let skb = skb as *const u8;
    let sk = SKB_SK.pointer::<A>(skb);
    if sk.is_null() {
        return 0;
    }
    let key = sk as u64;
    let Some(mark) = SOCKETLATENCY_SENDS.get_ptr_mut(key) else {
        return 0;
    };
    // It is the socket that was kept, so a whole one and alive: its packet holds it.
    let next = TCP_SND_NXT.read::<Probed>(sk).unwrap_or(0);
    let ports = unsafe { (*mark).ports };
    let reaches = match last_byte::<A>(skb, ports) {
        Some(end) if is_before(next, end) => end,
        _ => next,
    };
    let seq = unsafe { (*mark).seq };
    if is_before(reaches, seq) {
        return 0;
    }
    let now = unsafe { generated::bpf_ktime_get_ns() };
    let kept = unsafe { mark.read() };
    let written = TCP_WRITE_SEQ.read::<Probed>(sk).unwrap_or(reaches);
    let jiffies = jiffies();
    let held = held(sk, jiffies);
    if is_before(reaches, written) {
        unsafe {
            addr_of_mut!((*mark).ktime_ns).write(now);
            addr_of_mut!((*mark).jiffies).write(jiffies);
            addr_of_mut!((*mark).held).write(held);
            addr_of_mut!((*mark).seq).write(written);
        }
    } else if !remove(key) {
        return 0;
    }
    let ns = now.saturating_sub(kept.ktime_ns);
    count(kept.cookie, kept.netns, operation::SEND, TCP, ns);
    if !is_slow(ns) {
        return 0;
    }
    let waited = jiffies.wrapping_sub(kept.jiffies);
    let by = if held[0].wrapping_sub(kept.held[0]) >= waited / 2 {
        limited::RWND
    } else if held[1].wrapping_sub(kept.held[1]) >= waited / 2 {
        limited::SNDBUF
    } else {
        limited::BUSY
    };
    tell(context, sk, &kept, ns, now, written.wrapping_sub(reaches), by)
}

#[inline(always)]
fn jiffies() -> u32 {
    unsafe { generated::bpf_jiffies64() as u32 }
}

/// Jiffies for which the peer's window, and the socket's own buffer, have held back sending. The kernel adds them up
/// when that ends, so what is going on is added here.
#[inline(always)]
fn held(sk: *const u8, jiffies: u32) -> [u32; 2] {
    let [_, mut rwnd, mut sndbuf] = TCP_CHRONO_STATS.read::<Probed>(sk).unwrap_or([0; 3]);
    let going_on = jiffies.wrapping_sub(TCP_CHRONO_START.read::<Probed>(sk).unwrap_or(jiffies));
    match TCP_CHRONO.bits::<Probed>(sk).unwrap_or(0) as u32 {
        limited::RWND => rwnd = rwnd.wrapping_add(going_on),
        limited::SNDBUF => sndbuf = sndbuf.wrapping_add(going_on),
        _ => {}
    }
    [rwnd, sndbuf]
}

/// Sequence number behind the packet's last byte. `None`: it is no packet of that connection, or wrapped in others.
#[inline(always)]
fn last_byte<A: Access>(skb: *const u8, ports: [u16; 2]) -> Option<u32> {
    let head = packet::head::<A>(skb);
    let transport = SKB_TRANSPORT_HEADER.read::<A>(skb)?;
    if transport == u16::MAX {
        return None;
    }
    // Ports, sequence number, acknowledged number, and the header's length in words.
    let header: [u32; 4] = unsafe { Probed::load(head.wrapping_add(transport as usize)) };
    let ports = (ports[0] as u32).to_le() | (ports[1] as u32).to_le() << 16;
    if header[0] != ports {
        return None;
    }
    let header_bytes = (u32::from_be(header[3]) >> 28) * 4;
    let data = SKB_DATA.read::<A>(skb)?.wrapping_sub(head as u64) as u32;
    let length = SKB_LEN.read::<A>(skb)?;
    let before = (transport as u32).wrapping_sub(data).wrapping_add(header_bytes);
    if length <= before {
        return None;
    }
    Some(u32::from_be(header[1]).wrapping_add(length - before))
}

#[inline(always)]
fn tell(context: *const u64, sk: *const u8, kept: &Sends, ns: u64, now: u64, waiting: u32, by: u32) -> i32 {
    let place = place(kept.netns, kept.cookie);
    let Some(key) = limit::listed(&place) else {
        return 0;
    };
    if !limit::take_token(key, types::SOCKETLAT_SENDSLOW, now) {
        return 0;
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
        let in_state = SOCK_STATE.read::<Probed>(sk).unwrap_or(0);
        connection::of_socket(sk, in_state, addr_of_mut!((*record).connection));
        addr_of_mut!((*record).latency_ns).write(ns);
        addr_of_mut!((*record).tgid).write(kept.tgid);
        addr_of_mut!((*record).waiting).write(waiting);
        addr_of_mut!((*record).operation).write(operation::SEND);
        addr_of_mut!((*record).protocol).write(TCP);
        addr_of_mut!((*record).limited).write(by);
        addr_of_mut!((*record).comm).write(kept.comm);
    })
}
