//! Probe `virtcmdlatency`: entry and exit of virtnet_send_command (virtnet_send_command_reply since 6.12, which that
//! one then calls), in which the driver of virtio-net waits for the host to answer a control command.

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::BPF_ANY;
use aya_ebpf::helpers::generated;
use aya_ebpf::macros::{fentry, fexit, kprobe, kretprobe, map};
use aya_ebpf::maps::{HashMap, PerCpuArray};
use aya_ebpf::programs::{FEntryContext, FExitContext, ProbeContext, RetProbeContext};
use core::ptr::addr_of_mut;
use sonde_ebpf_common::latency::Latency;
use sonde_ebpf_common::virtcmd::Record;
use sonde_ebpf_common::{limit as types, lost, record};

use crate::access::Live;
use crate::{latency, limit, node, ring};

#[map]
static VIRTCMDLATENCY_TIMES: PerCpuArray<Latency> = PerCpuArray::with_max_entries(1, 0);

/// When each thread that is in there came in (CLOCK_MONOTONIC). By thread and not by CPU: it may sleep, and go on
/// elsewhere.
#[map]
static VIRTCMDLATENCY_STARTS: HashMap<u32, u64> = HashMap::with_max_entries(1, 0);

/// Whether there are events at all.
#[used]
#[unsafe(no_mangle)]
#[unsafe(link_section = ".data.VIRTCMDLATENCY_EVENTS")]
static VIRTCMDLATENCY_EVENTS: Live<u32> = Live::new(1);

/// What takes longer is an event.
#[used]
#[unsafe(no_mangle)]
#[unsafe(link_section = ".data.VIRTCMDLATENCY_THRESHOLD_NS")]
static VIRTCMDLATENCY_THRESHOLD_NS: Live<u64> = Live::new(10_000_000);

/// Whether events carry the stack.
#[used]
#[unsafe(no_mangle)]
#[unsafe(link_section = ".data.VIRTCMDLATENCY_STACKS")]
static VIRTCMDLATENCY_STACKS: Live<u32> = Live::new(0);

const LONG_NS: u64 = 100_000_000;

#[fentry(function = "virtnet_send_command")]
pub fn virtcmd_enter(_ctx: FEntryContext) -> i32 {
    enter()
}

#[fexit(function = "virtnet_send_command")]
pub fn virtcmd_exit(ctx: FExitContext) -> i32 {
    exit(ctx.as_ptr().cast())
}

#[kprobe]
pub fn virtcmd_enter_kprobe(_ctx: ProbeContext) -> i32 {
    enter()
}

#[kretprobe]
pub fn virtcmd_exit_kprobe(ctx: RetProbeContext) -> i32 {
    exit(ctx.as_ptr().cast())
}

#[inline(always)]
fn thread() -> u32 {
    unsafe { generated::bpf_get_current_pid_tgid() as u32 }
}

#[inline(always)]
fn now() -> u64 {
    unsafe { generated::bpf_ktime_get_ns() }
}

#[inline(always)]
fn enter() -> i32 {
    if VIRTCMDLATENCY_STARTS.insert(thread(), now(), BPF_ANY as u64).is_err() {
        ring::uncounted(lost::VIRTCMDLATENCY);
    }
    0
}

#[inline(always)]
fn exit(context: *const u64) -> i32 {
    let now = now();
    let thread = thread();
    // SAFETY: the value is a word, and is copied at once.
    let Some(began) = (unsafe { VIRTCMDLATENCY_STARTS.get(thread).copied() }) else {
        return 0;
    };
    let _ = VIRTCMDLATENCY_STARTS.remove(thread);
    let ns = now.saturating_sub(began);
    if let Some(times) = VIRTCMDLATENCY_TIMES.get_ptr_mut(0) {
        latency::observe(times, ns);
    }
    if ns <= VIRTCMDLATENCY_THRESHOLD_NS.get() || VIRTCMDLATENCY_EVENTS.get() == 0 {
        return 0;
    }
    if ns > LONG_NS {
        tell(context, types::VIRTCMDEXCUTE_100MS, ns, now)
    } else {
        tell(context, types::VIRTCMDEXCUTE, ns, now)
    }
}

#[inline(always)]
fn tell(context: *const u64, bucket: usize, ns: u64, now: u64) -> i32 {
    let place = node::place();
    let Some(key) = limit::listed(&place) else {
        return 0;
    };
    if !limit::take_token(key, bucket, now) {
        return 0;
    }
    let event = ring::Event {
        ring: &ring::RARE,
        kind: record::kind::VIRTCMD,
        bucket,
        place: &place,
        now,
        stack: VIRTCMDLATENCY_STACKS.get() != 0,
    };
    event.write::<Record>(context, |record| unsafe {
        addr_of_mut!((*record).latency_ns).write(ns);
        let comm = addr_of_mut!((*record).comm);
        if generated::bpf_get_current_comm(comm.cast(), 16) != 0 {
            const { assert!(core::mem::offset_of!(Record, comm).is_multiple_of(8)) };
            crate::access::clear::<2>(comm.cast());
        }
    })
}
