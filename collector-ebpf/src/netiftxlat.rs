//! Probe `netiftxlat`: how long packets wait in the queueing disciplines of a device, and how long its driver works on
//! them: tracepoints net:net_dev_queue, net:net_dev_start_xmit and net:net_dev_xmit.
//!
//! A packet is known again in the driver by its address, its length and its time stamp. Entries are never
//! deleted, only overwritten: a packet that is dropped in between leaves nothing behind. A queue that cuts large packets
//! up (tbf) hands new ones to the driver; of TCP they carry the time stamp of the old, under which it was noted too.

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::BPF_NOEXIST;
use aya_ebpf::helpers::generated;
use aya_ebpf::macros::{btf_tracepoint, map, raw_tracepoint};
use aya_ebpf::maps::{Array, PerCpuArray, PerCpuHashMap};
use aya_ebpf::programs::{BtfTracePointContext, RawTracePointContext};
use core::ptr::{addr_of, addr_of_mut};
use sonde_ebpf_common::netiftxlat::{Drivers, InDriver, Key, NESTED, QUEUED, Queued, Record, Times, UNMATCHED};
use sonde_ebpf_common::packet::Packet;
use sonde_ebpf_common::record::kind;
use sonde_ebpf_common::{limit as types, lost};

use crate::access::{
    Access, DEV_IFINDEX, Live, NET_DEV_QUEUE_SKB, NET_DEV_XMIT_DEV, NET_DEV_XMIT_SKB, Probed, SKB_DATA_LEN, SKB_LEN,
    SKB_TSTAMP, START_XMIT_DEV, START_XMIT_SKB, Typed, add_own, argument,
};
use crate::place::{self, Place};
use crate::{latency, limit, packet, per_packet, ring};

#[map]
static NETIFTXLAT_QUEUED: Array<Queued> = Array::with_max_entries(1, 0);

#[map]
static NETIFTXLAT_DRIVERS: PerCpuArray<Drivers> = PerCpuArray::with_max_entries(1, 0);

#[map]
static NETIFTXLAT_TIMES: PerCpuHashMap<Key, Times> = PerCpuHashMap::with_max_entries(1, 0);

#[map]
static NETIFTXLAT_TURNS: PerCpuArray<u32> = PerCpuArray::with_max_entries(1, 0);

#[used]
#[unsafe(no_mangle)]
#[unsafe(link_section = ".data.NETIFTXLAT_EVENTS")]
static NETIFTXLAT_EVENTS: Live<u32> = Live::new(1);

#[used]
#[unsafe(no_mangle)]
#[unsafe(link_section = ".data.NETIFTXLAT_STACKS")]
static NETIFTXLAT_STACKS: Live<u32> = Live::new(1);

#[used]
#[unsafe(no_mangle)]
#[unsafe(link_section = ".data.NETIFTXLAT_THRESHOLD_NS")]
static NETIFTXLAT_THRESHOLD_NS: Live<u64> = Live::new(100_000_000);

#[used]
#[unsafe(no_mangle)]
#[unsafe(link_section = ".data.NETIFTXLAT_SAMPLE")]
static NETIFTXLAT_SAMPLE: Live<u32> = Live::new(1);

/// Too large for a program's stack.
static NOTHING: Times = Times {
    qdisc: latency::NONE,
    xmit: latency::NONE,
    unmatched: 0,
};

/// A vlan tag that is put into the packet on its way.
const TAG: u32 = 4;

#[btf_tracepoint(function = "net_dev_queue")]
pub fn netif_queue_btf(ctx: BtfTracePointContext) -> i32 {
    queue::<Typed>(ctx.as_ptr().cast())
}

#[raw_tracepoint(tracepoint = "net_dev_queue")]
pub fn netif_queue_raw(ctx: RawTracePointContext) -> i32 {
    queue::<Probed>(ctx.as_ptr().cast())
}

#[btf_tracepoint(function = "net_dev_start_xmit")]
pub fn netif_start_btf(ctx: BtfTracePointContext) -> i32 {
    start::<Typed>(ctx.as_ptr().cast())
}

#[raw_tracepoint(tracepoint = "net_dev_start_xmit")]
pub fn netif_start_raw(ctx: RawTracePointContext) -> i32 {
    start::<Probed>(ctx.as_ptr().cast())
}

#[btf_tracepoint(function = "net_dev_xmit")]
pub fn netif_xmit_btf(ctx: BtfTracePointContext) -> i32 {
    xmit::<Typed>(ctx.as_ptr().cast())
}

#[raw_tracepoint(tracepoint = "net_dev_xmit")]
pub fn netif_xmit_raw(ctx: RawTracePointContext) -> i32 {
    xmit::<Probed>(ctx.as_ptr().cast())
}

#[inline(always)]
fn slot(key: u64) -> Option<*mut Queued> {
    let at = key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (u64::BITS - QUEUED.trailing_zeros());
    NETIFTXLAT_QUEUED.get_ptr_mut(at as u32)
}

#[inline(always)]
fn queue<A: Access>(context: *const u64) -> i32 {
    let Some(skb) = argument(context, &NET_DEV_QUEUE_SKB) else {
        return 0;
    };
    let skb = skb as *const u8;
    if limit::some_are_unwanted() && !limit::wanted(&place::of::<A>(skb, None)) {
        return 0;
    }
    let number = A::number(skb);
    let Some(queued) = slot(number) else { return 0 };
    if !per_packet::is_its_turn(&NETIFTXLAT_TURNS, NETIFTXLAT_SAMPLE.get()) {
        // What an older packet at the same address left is not this one's.
        unsafe {
            if (*queued).key == number {
                (*queued).key = 0;
            }
        }
        return 0;
    }
    let tstamp = SKB_TSTAMP.read::<A>(skb).unwrap_or(0);
    let since_ns = unsafe { generated::bpf_ktime_get_ns() };
    let mut entry = Queued {
        key: number,
        tstamp,
        since_ns,
        len: SKB_LEN.read::<A>(skb).unwrap_or(0),
        pad: 0,
    };
    unsafe { queued.write(entry) };
    // Only what has pages is ever cut up.
    if tstamp != 0
        && SKB_DATA_LEN.read::<A>(skb) != Some(0)
        && let Some(queued) = slot(tstamp)
    {
        entry.key = tstamp;
        entry.len = 0;
        unsafe { queued.write(entry) };
    }
    0
}

/// When the packet was queued. `None`: not known.
#[inline(always)]
fn queued_since<A: Access>(skb: *const u8, number: u64, len: u32) -> Option<u64> {
    let tstamp = SKB_TSTAMP.read::<A>(skb).unwrap_or(0);
    unsafe {
        if let Some(queued) = slot(number)
            && (*queued).key == number
            && (*queued).tstamp == tstamp
            && ((*queued).len == len || (*queued).len + TAG == len)
        {
            return Some((*queued).since_ns);
        }
        if tstamp != 0
            && let Some(queued) = slot(tstamp)
            && (*queued).key == tstamp
            && (*queued).tstamp == tstamp
            && (*queued).len == 0
        {
            return Some((*queued).since_ns);
        }
    }
    None
}

#[inline(always)]
fn start<A: Access>(context: *const u64) -> i32 {
    let (Some(skb), Some(device)) = (argument(context, &START_XMIT_SKB), argument(context, &START_XMIT_DEV)) else {
        return 0;
    };
    let (skb, device) = (skb as *const u8, device as *const u8);
    let number = A::number(skb);
    let Some(drivers) = NETIFTXLAT_DRIVERS.get_ptr_mut(0) else {
        return 0;
    };
    // Deeper than the kernel goes: their ends were not seen.
    let mut depth = unsafe { (*drivers).depth };
    if depth >= NESTED as u32 {
        depth = 0;
    }
    let mine = driver(drivers, depth);
    unsafe {
        (*drivers).depth = depth + 1;
        addr_of_mut!((*mine).skb).write(number);
        addr_of_mut!((*mine).on).write(A::number(device));
        addr_of_mut!((*mine).since_ns).write(0);
    }
    let place = place::of_device::<A>(device);
    if !limit::is_listed(&place) {
        return 0;
    }
    let len = SKB_LEN.read::<A>(skb).unwrap_or(0);
    let since = queued_since::<A>(skb, number, len);
    if since.is_none() && NETIFTXLAT_SAMPLE.get() > 1 {
        return 0;
    }
    unsafe {
        addr_of_mut!((*mine).key).write(Key {
            cookie: place.cookie,
            netns: place.netns,
            pad: 0,
            device: per_packet::name::<A>(device),
        });
    }
    if NETIFTXLAT_EVENTS.get() != 0 {
        // Now, as the driver may free the packet before it is done.
        unsafe {
            addr_of_mut!((*mine).ifindex).write(DEV_IFINDEX.read::<A>(device).unwrap_or(0));
            addr_of_mut!((*mine).len).write(len);
            let layer3 = per_packet::sent::<A>(skb, packet::head::<A>(skb));
            per_packet::capture::<A>(layer3, addr_of_mut!((*mine).packet));
        }
    }
    // Late, so that this program's own work is not the driver's.
    let mut begin = unsafe { generated::bpf_ktime_get_ns() };
    let queued = match since {
        Some(since) if since <= begin => begin - since,
        // Another packet took the place at this very moment, or this one came by it without being queued.
        _ => UNMATCHED,
    };
    if queued != UNMATCHED && is_long(queued) {
        event::<{ types::NETIFTXLAT_QDISC }>(context, kind::NETIFTXLAT_QDISC, mine, &place, begin, queued);
        begin = unsafe { generated::bpf_ktime_get_ns() };
    }
    unsafe {
        addr_of_mut!((*mine).queued_ns).write(queued);
        addr_of_mut!((*mine).since_ns).write(begin);
    }
    0
}

/// Without a look at the packet, which may be gone.
#[inline(always)]
fn xmit<A: Access>(context: *const u64) -> i32 {
    let now = unsafe { generated::bpf_ktime_get_ns() };
    let (Some(skb), Some(device)) = (
        argument(context, &NET_DEV_XMIT_SKB),
        argument(context, &NET_DEV_XMIT_DEV),
    ) else {
        return 0;
    };
    let Some(drivers) = NETIFTXLAT_DRIVERS.get_ptr_mut(0) else {
        return 0;
    };
    let Some(mine) = ended(drivers, A::number(skb as *const u8), A::number(device as *const u8)) else {
        return 0;
    };
    unsafe {
        let (since, queued) = ((*mine).since_ns, (*mine).queued_ns);
        if since == 0 {
            return 0;
        }
        let Some(times) = times(&*addr_of!((*mine).key)) else {
            return 0;
        };
        if queued == UNMATCHED {
            add_own::<A>(addr_of_mut!((*times).unmatched), 1);
        } else {
            latency::observe_own::<A>(addr_of_mut!((*times).qdisc), queued);
        }
        if since > now {
            return 0;
        }
        let ns = now - since;
        latency::observe_own::<A>(addr_of_mut!((*times).xmit), ns);
        if is_long(ns) {
            let place = Place {
                netns: (*mine).key.netns,
                from: place::from::DEVICE,
                cookie: (*mine).key.cookie,
                device: core::ptr::null(),
            };
            event::<{ types::NETIFTXLAT_XMIT }>(context, kind::NETIFTXLAT_XMIT, mine, &place, now, ns);
        }
    }
    0
}

/// Takes out the packet that a driver is done with: most often the last. What lies above it has ended unseen; of one whose
/// begin was not seen there is nothing.
#[inline(always)]
fn ended(drivers: *mut Drivers, skb: u64, device: u64) -> Option<*mut InDriver> {
    let mut depth = unsafe { (*drivers).depth };
    for _ in 0..NESTED {
        if depth == 0 {
            return None;
        }
        depth -= 1;
        let mine = driver(drivers, depth);
        unsafe {
            if (*mine).skb == skb && (*mine).on == device {
                (*drivers).depth = depth;
                return Some(mine);
            }
        }
    }
    None
}

#[inline(always)]
fn driver(drivers: *mut Drivers, depth: u32) -> *mut InDriver {
    let mut at = depth as u64;
    unsafe {
        // The bound is lost on the verifier when it is checked on a copy of the register, so once more where it looks.
        core::arch::asm!("{at} &= {mask}", at = inout(reg) at, mask = const NESTED - 1, options(pure, nomem, nostack));
        addr_of_mut!((*drivers).at).cast::<InDriver>().add(at as usize)
    }
}

#[inline(always)]
fn times(key: &Key) -> Option<*mut Times> {
    if let Some(times) = NETIFTXLAT_TIMES.get_ptr_mut(key) {
        return Some(times);
    }
    // Fails when it is full, or another CPU was first.
    let _ = NETIFTXLAT_TIMES.insert(key, &NOTHING, BPF_NOEXIST as u64);
    let times = NETIFTXLAT_TIMES.get_ptr_mut(key);
    if times.is_none() {
        ring::uncounted(lost::NETIFTXLAT);
    }
    times
}

#[inline(always)]
fn is_long(ns: u64) -> bool {
    NETIFTXLAT_EVENTS.get() != 0 && ns > NETIFTXLAT_THRESHOLD_NS.get()
}

#[inline(always)]
fn event<const TYPE: usize>(context: *const u64, kind: u32, of: *const InDriver, place: &Place, now: u64, ns: u64) {
    if !limit::of_netns(place.netns).is_some_and(|of| limit::take_token(of, TYPE, now)) {
        return;
    }
    let event = ring::Event {
        ring: &ring::EVENTS,
        kind,
        bucket: TYPE,
        place,
        now,
        stack: NETIFTXLAT_STACKS.get() != 0,
    };
    event.write::<Record>(context, |record| unsafe {
        addr_of_mut!((*record).latency_ns).write(ns);
        addr_of_mut!((*record).device)
            .cast::<[u64; 2]>()
            .write_unaligned((*of).key.device);
        addr_of_mut!((*record).ifindex).write((*of).ifindex);
        addr_of_mut!((*record).len).write((*of).len);
        let packet = addr_of_mut!((*record).packet);
        generated::bpf_probe_read_kernel(packet.cast(), size_of::<Packet>() as u32, addr_of!((*of).packet).cast());
    });
}
