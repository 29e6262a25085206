//! Reading: a mark of (sequence number, time) when data became readable, looked at when a reader takes it.
//!
//! Marks are touched under the socket's lock only, by whoever holds it. A listener's and a FIN's wake-up bring no data,
//! and a look at data (MSG_PEEK) takes none. Time in which no data was there is nobody's.

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::BPF_NOEXIST;
use aya_ebpf::helpers::generated;
use aya_ebpf::macros::{btf_tracepoint, map, raw_tracepoint};
use aya_ebpf::maps::{HashMap, PerCpuArray};
use aya_ebpf::programs::{BtfTracePointContext, RawTracePointContext};
use core::ptr::addr_of_mut;
use sonde_ebpf_common::connection::state;
use sonde_ebpf_common::socklat::{MARKS, Mark, Reads, Record, TCP, UDP, operation};
use sonde_ebpf_common::{limit as types, lost, record};

use super::{SOCKETLATENCY_STACKS, SOCKETLATENCY_THRESHOLD_NS, count, datagrams, is_slow, place, protocol};
use crate::access::{
    Access, DATA_READY_SK, DESTROY_SOCK_SK, Probed, RECV_LENGTH_SK, SKB_CB, SKB_DATA, SKB_LEN, SOCK_FLAGS, SOCK_OWNED,
    SOCK_STATE, SPACE_ADJUST_SK, TCP_CB_SEQ, TCP_COPIED, TCP_PROBE_SK, TCP_PROBE_SKB, TCP_RCV_NXT, Typed, argument,
};
use crate::{connection, limit, ring};

#[map]
static SOCKETLATENCY_READS: HashMap<u64, Reads> = HashMap::with_max_entries(1, 0);

/// Where a new entry is put together: too big for the stack.
#[map]
static SOCKETLATENCY_NEW: PerCpuArray<Reads> = PerCpuArray::with_max_entries(1, 0);

#[btf_tracepoint(function = "sk_data_ready")]
pub fn socklat_ready_btf(ctx: BtfTracePointContext) -> i32 {
    ready::<Typed>(ctx.as_ptr().cast())
}

#[raw_tracepoint(tracepoint = "sk_data_ready")]
pub fn socklat_ready_raw(ctx: RawTracePointContext) -> i32 {
    ready::<Probed>(ctx.as_ptr().cast())
}

#[btf_tracepoint(function = "tcp_probe")]
pub fn socklat_segment_btf(ctx: BtfTracePointContext) -> i32 {
    segment::<Typed>(ctx.as_ptr().cast())
}

#[raw_tracepoint(tracepoint = "tcp_probe")]
pub fn socklat_segment_raw(ctx: RawTracePointContext) -> i32 {
    segment::<Probed>(ctx.as_ptr().cast())
}

#[btf_tracepoint(function = "tcp_rcv_space_adjust")]
pub fn socklat_taken_btf(ctx: BtfTracePointContext) -> i32 {
    taken::<Typed>(ctx.as_ptr().cast())
}

#[raw_tracepoint(tracepoint = "tcp_rcv_space_adjust")]
pub fn socklat_taken_raw(ctx: RawTracePointContext) -> i32 {
    taken::<Probed>(ctx.as_ptr().cast())
}

#[btf_tracepoint(function = "sock_recv_length")]
pub fn socklat_received_btf(ctx: BtfTracePointContext) -> i32 {
    received::<Typed>(ctx.as_ptr().cast())
}

#[raw_tracepoint(tracepoint = "sock_recv_length")]
pub fn socklat_received_raw(ctx: RawTracePointContext) -> i32 {
    received::<Probed>(ctx.as_ptr().cast())
}

#[btf_tracepoint(function = "tcp_destroy_sock")]
pub fn socklat_forget_btf(ctx: BtfTracePointContext) -> i32 {
    forget(ctx.as_ptr().cast())
}

#[raw_tracepoint(tracepoint = "tcp_destroy_sock")]
pub fn socklat_forget_raw(ctx: RawTracePointContext) -> i32 {
    forget(ctx.as_ptr().cast())
}

#[inline(always)]
fn received<A: Access>(context: *const u64) -> i32 {
    match argument(context, &RECV_LENGTH_SK) {
        Some(sk) if protocol::<A>(sk as *const u8) == UDP => datagrams::taken::<A>(context, sk as *const u8),
        _ => 0,
    }
}

#[inline(always)]
fn forget(context: *const u64) -> i32 {
    if let Some(sk) = argument(context, &DESTROY_SOCK_SK) {
        // Most have none.
        let _ = SOCKETLATENCY_READS.remove(sk);
    }
    0
}

/// Something became readable.
#[inline(always)]
fn ready<A: Access>(context: *const u64) -> i32 {
    let Some(sk) = argument(context, &DATA_READY_SK) else {
        return 0;
    };
    let sk = sk as *const u8;
    match protocol::<A>(sk) {
        TCP => {}
        UDP => return datagrams::came::<A>(sk),
        _ => return 0,
    }
    if SOCK_STATE.read::<A>(sk) == Some(state::LISTEN) {
        return 0;
    }
    let tcp = A::tcp_sock(sk);
    if tcp.is_null() {
        return 0;
    }
    let (Some(next), Some(copied)) = (TCP_RCV_NXT.read::<A>(tcp), TCP_COPIED.read::<A>(tcp)) else {
        return 0;
    };
    mark::<A>(sk, next.wrapping_sub(fin::<A>(sk)), copied)
}

/// 1 when a FIN was received, which has a sequence number and no byte.
#[inline(always)]
fn fin<A: Access>(sk: *const u8) -> u32 {
    /// `enum sock_flags`.
    const SOCK_DONE: u64 = 1;
    (SOCK_FLAGS.read::<A>(sk).unwrap_or(0) >> SOCK_DONE & 1) as u32
}

/// Below 6.3: a segment came to an established connection, and is about to be taken up.
#[inline(always)]
fn segment<A: Access>(context: *const u64) -> i32 {
    let (Some(sk), Some(skb)) = (argument(context, &TCP_PROBE_SK), argument(context, &TCP_PROBE_SKB)) else {
        return 0;
    };
    let (sk, skb) = (sk as *const u8, skb as *const u8);
    let tcp = A::tcp_sock(sk);
    if tcp.is_null() {
        return 0;
    }
    let Some(block) = SKB_CB.address(skb) else { return 0 };
    let (Some(next), Some(copied)) = (TCP_RCV_NXT.read::<A>(tcp), TCP_COPIED.read::<A>(tcp)) else {
        return 0;
    };
    // The control block is bytes to the verifier. Its `end_seq` counts a FIN too, so the end is reckoned by hand: the
    // data begins with the TCP header.
    let (Some(seq), Some(length)) = (TCP_CB_SEQ.read::<Probed>(block), SKB_LEN.read::<A>(skb)) else {
        return 0;
    };
    let header = SKB_DATA.read::<A>(skb).unwrap_or(0) as *const u8;
    let offset: u8 = unsafe { Probed::load(header.wrapping_add(12)) };
    let end = seq.wrapping_add(length).wrapping_sub((offset >> 4) as u32 * 4);
    // What closes no gap is not readable yet.
    let in_order = !is_before(next, seq) && is_before(next, end);
    if in_order { mark::<A>(sk, end, copied) } else { 0 }
}

/// Of sequence numbers, which go round.
#[inline(always)]
pub(super) fn is_before(a: u32, b: u32) -> bool {
    (a.wrapping_sub(b) as i32) < 0
}

/// Bytes up to `end` are readable now, those before `copied` were read.
#[inline(always)]
fn mark<A: Access>(sk: *const u8, end: u32, copied: u32) -> i32 {
    if !is_before(copied, end) {
        return 0;
    }
    let now = unsafe { generated::bpf_ktime_get_ns() };
    let key = sk as u64;
    let Some(reads) = SOCKETLATENCY_READS.get_ptr_mut(key) else {
        return begin::<A>(sk, end, copied, now);
    };
    unsafe {
        let count = addr_of_mut!((*reads).count);
        let marks = addr_of_mut!((*reads).marks).cast::<Mark>();
        let new = Mark {
            ktime_ns: now,
            seq: end,
            pad: 0,
        };
        let used = count.read_volatile();
        if used == 0 {
            addr_of_mut!((*reads).copied).write(copied);
            marks.write(new);
            count.write_volatile(1);
            return 0;
        }
        if !is_before((*at(marks, used - 1)).seq, end) {
            return 0;
        }
        if used < MARKS as u32 {
            at(marks, used).write(new);
            count.write_volatile(used + 1);
        } else {
            thin_out(marks);
            at(marks, MARKS as u32 - 1).write(new);
        }
    }
    0
}

/// A mark by its place, which the verifier believes to be within bounds only when it sees that on the register itself.
#[inline(always)]
unsafe fn at(marks: *mut Mark, place: u32) -> *mut Mark {
    let mut place = place as u64;
    unsafe {
        core::arch::asm!("{place} &= {mask}", place = inout(reg) place, mask = const MARKS - 1, options(pure, nomem, nostack));
        marks.add(place as usize)
    }
}

/// Makes room for the newest one: the two that came closest after each other become one, of the later time. So a byte
/// is never told older than it is, and the ages of a long queue stay right by about a quarter.
#[inline(always)]
unsafe fn thin_out(marks: *mut Mark) {
    let mut closest = 0;
    let mut distance = u64::MAX;
    unsafe {
        for place in 0..MARKS - 1 {
            let gap = (*marks.add(place + 1))
                .ktime_ns
                .wrapping_sub((*marks.add(place)).ktime_ns);
            if gap < distance {
                (closest, distance) = (place, gap);
            }
        }
        for place in 0..MARKS - 1 {
            if place >= closest {
                let next = marks.add(place + 1).read();
                marks.add(place).write(next);
            }
        }
    }
}

/// The first data of a socket since these programs run.
#[inline(always)]
fn begin<A: Access>(sk: *const u8, end: u32, copied: u32, now: u64) -> i32 {
    let place = crate::place::of_socket::<A>(sk);
    if !limit::wanted(&place) {
        return 0;
    }
    let Some(new) = SOCKETLATENCY_NEW.get_ptr_mut(0) else {
        return 0;
    };
    unsafe {
        addr_of_mut!((*new).cookie).write(place.cookie);
        addr_of_mut!((*new).netns).write(place.netns);
        addr_of_mut!((*new).count).write(1);
        addr_of_mut!((*new).told_ns).write(0);
        addr_of_mut!((*new).copied).write(copied);
        addr_of_mut!((*new).pad).write(0);
        let in_state = SOCK_STATE.read::<A>(sk).unwrap_or(0);
        connection::of_socket(sk, in_state, addr_of_mut!((*new).connection));
        // The others are not looked at.
        addr_of_mut!((*new).marks).cast::<Mark>().write(Mark {
            ktime_ns: now,
            seq: end,
            pad: 0,
        });
        if SOCKETLATENCY_READS
            .insert(sk as u64, &*new, BPF_NOEXIST as u64)
            .is_err()
        {
            ring::uncounted(lost::SOCKETLATENCY);
        }
    }
    0
}

/// A reader may have taken something.
#[inline(always)]
fn taken<A: Access>(context: *const u64) -> i32 {
    let Some(sk) = argument(context, &SPACE_ADJUST_SK) else {
        return 0;
    };
    let Some(reads) = SOCKETLATENCY_READS.get_ptr_mut(sk) else {
        return 0;
    };
    let sk = sk as *const u8;
    let tcp = A::tcp_sock(sk);
    if tcp.is_null() {
        return 0;
    }
    let Some(copied) = TCP_COPIED.read::<A>(tcp) else {
        return 0;
    };
    let now = unsafe { generated::bpf_ktime_get_ns() };
    unsafe {
        let used = addr_of_mut!((*reads).count).read_volatile();
        let before = addr_of_mut!((*reads).copied);
        if used == 0 || !is_before(before.read(), copied) {
            return 0;
        }
        before.write(copied);
        let marks = addr_of_mut!((*reads).marks).cast::<Mark>();
        let came = (*marks).ktime_ns;
        let last = (*at(marks, used - 1)).seq;
        addr_of_mut!((*reads).count).write_volatile(if is_before(copied, last) {
            drop_read(marks, used, copied)
        } else {
            0
        });
        let ns = now.saturating_sub(came);
        count((*reads).cookie, (*reads).netns, operation::READ, TCP, ns);
        if !is_slow(ns) {
            return 0;
        }
        // One pause of the reader is one event, however many pieces it takes up then.
        let told = addr_of_mut!((*reads).told_ns);
        if came < told.read() && now.saturating_sub(told.read()) < SOCKETLATENCY_THRESHOLD_NS.get() {
            return 0;
        }
        told.write(now);
        let waiting = TCP_RCV_NXT
            .read::<A>(tcp)
            .unwrap_or(copied)
            .wrapping_sub(copied)
            .wrapping_sub(fin::<A>(sk));
        // In a softirq the running task is a stranger; the socket is then nobody's.
        let owned = SOCK_OWNED.read::<A>(sk).unwrap_or(0) != 0;
        tell::<A>(
            context,
            sk,
            (*reads).netns,
            (*reads).cookie,
            TCP,
            ns,
            now,
            waiting,
            owned,
        )
    }
}

/// Forgets what was read up to `copied`, and says how many are left: at least the last one.
#[inline(always)]
unsafe fn drop_read(marks: *mut Mark, used: u32, copied: u32) -> u32 {
    let mut read = 0;
    unsafe {
        for place in 0..MARKS as u32 - 1 {
            if place < used && !is_before(copied, (*marks.add(place as usize)).seq) {
                read = place + 1;
            }
        }
        if read == 0 {
            return used;
        }
        for place in 0..MARKS as u32 - 1 {
            if place + read < used {
                let left = at(marks, place + read).read();
                marks.add(place as usize).write(left);
            }
        }
    }
    used.wrapping_sub(read)
}

#[inline(always)]
#[allow(
    clippy::too_many_arguments,
    reason = "it is inlined; a struct would have to be read from the stack"
)]
pub(super) fn tell<A: Access>(
    context: *const u64,
    sk: *const u8,
    netns: u32,
    cookie: u64,
    protocol: u16,
    ns: u64,
    now: u64,
    waiting: u32,
    owned: bool,
) -> i32 {
    let place = place(netns, cookie);
    let Some(key) = limit::listed(&place) else {
        return 0;
    };
    if !limit::take_token(key, types::SOCKETLAT_READSLOW, now) {
        return 0;
    }
    let event = ring::Event {
        ring: &ring::EVENTS,
        kind: record::kind::SOCKET_LATENCY,
        bucket: types::SOCKETLAT_READSLOW,
        place: &place,
        now,
        stack: SOCKETLATENCY_STACKS.get() != 0,
    };
    event.write::<Record>(context, |record| unsafe {
        let in_state = SOCK_STATE.read::<A>(sk).unwrap_or(0);
        connection::of_socket(sk, in_state, addr_of_mut!((*record).connection));
        addr_of_mut!((*record).latency_ns).write(ns);
        addr_of_mut!((*record).waiting).write(waiting);
        addr_of_mut!((*record).operation).write(operation::READ);
        addr_of_mut!((*record).protocol).write(protocol);
        addr_of_mut!((*record).limited).write(0);
        let comm = addr_of_mut!((*record).comm);
        let mut tgid = 0;
        if owned && generated::bpf_get_current_comm(comm.cast(), 16) == 0 {
            tgid = (generated::bpf_get_current_pid_tgid() >> 32) as u32;
        } else {
            const { assert!(core::mem::offset_of!(Record, comm).is_multiple_of(8)) };
            crate::access::clear::<2>(comm.cast());
        }
        addr_of_mut!((*record).tgid).write(tgid);
    })
}
