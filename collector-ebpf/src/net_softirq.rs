//! Probe `net_softirq`: tracepoints irq:softirq_raise, irq:softirq_entry and irq:softirq_exit.
//!
//! All three run on the CPU that the softirq is of, so what is going on is kept per CPU, without a key.

use aya_ebpf::EbpfContext;
use aya_ebpf::helpers::generated;
use aya_ebpf::macros::{btf_tracepoint, map, raw_tracepoint};
use aya_ebpf::maps::PerCpuArray;
use aya_ebpf::programs::{BtfTracePointContext, RawTracePointContext};
use core::ptr::addr_of_mut;
use sonde_ebpf_common::latency::Latency;
use sonde_ebpf_common::softirq::{Going, PLACES, Record, phase, place, vector};
use sonde_ebpf_common::{limit as types, record};

use crate::access::{Live, SOFTIRQ_ENTRY_VECTOR, SOFTIRQ_EXIT_VECTOR, SOFTIRQ_RAISE_VECTOR, Setting, argument};
use crate::{latency, limit, node, ring};

#[map]
static NET_SOFTIRQ_GOING: PerCpuArray<Going> = PerCpuArray::with_max_entries(1, 0);

/// By [`place`].
#[map]
static NET_SOFTIRQ_TIMES: PerCpuArray<Latency> = PerCpuArray::with_max_entries(PLACES, 0);

/// Whether there are events at all.
#[used]
#[unsafe(no_mangle)]
#[unsafe(link_section = ".data.NET_SOFTIRQ_EVENTS")]
static NET_SOFTIRQ_EVENTS: Live<u32> = Live::new(1);

/// What takes longer is an event.
#[used]
#[unsafe(no_mangle)]
#[unsafe(link_section = ".data.NET_SOFTIRQ_THRESHOLD_NS")]
static NET_SOFTIRQ_THRESHOLD_NS: Live<u64> = Live::new(10_000_000);

/// Whether events carry the stack.
#[used]
#[unsafe(no_mangle)]
#[unsafe(link_section = ".data.NET_SOFTIRQ_STACKS")]
static NET_SOFTIRQ_STACKS: Live<u32> = Live::new(0);

const LONG_NS: u64 = 100_000_000;

#[btf_tracepoint(function = "softirq_raise")]
pub fn softirq_raise_btf(ctx: BtfTracePointContext) -> i32 {
    raise(ctx.as_ptr().cast())
}

#[raw_tracepoint(tracepoint = "softirq_raise")]
pub fn softirq_raise_raw(ctx: RawTracePointContext) -> i32 {
    raise(ctx.as_ptr().cast())
}

#[btf_tracepoint(function = "softirq_entry")]
pub fn softirq_entry_btf(ctx: BtfTracePointContext) -> i32 {
    enter(ctx.as_ptr().cast())
}

#[raw_tracepoint(tracepoint = "softirq_entry")]
pub fn softirq_entry_raw(ctx: RawTracePointContext) -> i32 {
    enter(ctx.as_ptr().cast())
}

#[btf_tracepoint(function = "softirq_exit")]
pub fn softirq_exit_btf(ctx: BtfTracePointContext) -> i32 {
    exit(ctx.as_ptr().cast())
}

#[raw_tracepoint(tracepoint = "softirq_exit")]
pub fn softirq_exit_raw(ctx: RawTracePointContext) -> i32 {
    exit(ctx.as_ptr().cast())
}

/// The vector, if it is one of the network's.
#[inline(always)]
fn network(context: *const u64, number: &Setting<u32>) -> Option<u32> {
    let vector = argument(context, number)? as u32;
    if vector == vector::NET_RX || vector == vector::NET_TX {
        Some(vector)
    } else {
        None
    }
}

#[inline(always)]
fn now() -> u64 {
    unsafe { generated::bpf_ktime_get_ns() }
}

/// The slot of a vector. Two constant places, so that the verifier needs no bound.
#[inline(always)]
unsafe fn slot(of: *mut [u64; 2], vector: u32) -> *mut u64 {
    let first = of.cast::<u64>();
    if vector == vector::NET_RX {
        unsafe { first.add(1) }
    } else {
        first
    }
}

/// A softirq is raised again and again before it runs: the first one counts.
#[inline(always)]
fn raise(context: *const u64) -> i32 {
    if let Some(vector) = network(context, &SOFTIRQ_RAISE_VECTOR)
        && let Some(going) = NET_SOFTIRQ_GOING.get_ptr_mut(0)
    {
        let raised = unsafe { slot(addr_of_mut!((*going).raised), vector) };
        unsafe {
            if raised.read_volatile() == 0 {
                raised.write_volatile(now());
            }
        }
    }
    0
}

#[inline(always)]
fn enter(context: *const u64) -> i32 {
    let Some(vector) = network(context, &SOFTIRQ_ENTRY_VECTOR) else {
        return 0;
    };
    let Some(going) = NET_SOFTIRQ_GOING.get_ptr_mut(0) else {
        return 0;
    };
    let now = now();
    let began = unsafe {
        let raised = slot(addr_of_mut!((*going).raised), vector);
        let began = raised.read_volatile();
        raised.write_volatile(0);
        slot(addr_of_mut!((*going).entered), vector).write_volatile(now);
        began
    };
    took(context, vector, phase::SCHED, began, now)
}

#[inline(always)]
fn exit(context: *const u64) -> i32 {
    let Some(vector) = network(context, &SOFTIRQ_EXIT_VECTOR) else {
        return 0;
    };
    let Some(going) = NET_SOFTIRQ_GOING.get_ptr_mut(0) else {
        return 0;
    };
    let began = unsafe {
        let entered = slot(addr_of_mut!((*going).entered), vector);
        let began = entered.read_volatile();
        entered.write_volatile(0);
        began
    };
    took(context, vector, phase::EXECUTE, began, now())
}

/// `began` is 0 where the programs came in between.
#[inline(always)]
fn took(context: *const u64, vector: u32, phase: u32, began: u64, now: u64) -> i32 {
    if began == 0 {
        return 0;
    }
    let ns = now.saturating_sub(began);
    if let Some(times) = NET_SOFTIRQ_TIMES.get_ptr_mut(place(vector, phase)) {
        latency::observe(times, ns);
    }
    if ns <= NET_SOFTIRQ_THRESHOLD_NS.get() || NET_SOFTIRQ_EVENTS.get() == 0 {
        return 0;
    }
    macro_rules! tell {
        ($bucket:expr) => {
            tell(context, $bucket, vector, phase, ns, now)
        };
    }
    match (phase == phase::SCHED, ns > LONG_NS) {
        (true, false) => tell!(types::NETSOFTIRQ_SCHED_SLOW),
        (true, true) => tell!(types::NETSOFTIRQ_SCHED_100MS),
        (false, false) => tell!(types::NETSOFTIRQ_EXCUTE_SLOW),
        (false, true) => tell!(types::NETSOFTIRQ_EXCUTE_100MS),
    }
}

#[inline(always)]
fn tell(context: *const u64, bucket: usize, vector: u32, phase: u32, ns: u64, now: u64) -> i32 {
    let place = node::place();
    let Some(key) = limit::listed(&place) else {
        return 0;
    };
    if !limit::take_token(key, bucket, now) {
        return 0;
    }
    let event = ring::Event {
        ring: &ring::EVENTS,
        kind: record::kind::NET_SOFTIRQ,
        bucket,
        place: &place,
        now,
        stack: NET_SOFTIRQ_STACKS.get() != 0,
    };
    event.write::<Record>(context, |record| unsafe {
        addr_of_mut!((*record).latency_ns).write(ns);
        addr_of_mut!((*record).vector).write(vector);
        addr_of_mut!((*record).phase).write(phase);
    })
}
