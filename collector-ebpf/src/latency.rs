//! Times into histograms.

use core::ptr::addr_of_mut;

use aya_ebpf::bindings::BPF_NOEXIST;
use aya_ebpf::macros::map;
use aya_ebpf::maps::{PerCpuArray, PerCpuHashMap};
use sonde_ebpf_common::latency::{Latency, SLOTS, THRESHOLDS, slot};

use crate::access::{Access, add, add_own};
use crate::ring;

/// A histogram with nothing in it, too big for the stack.
#[map]
static LATENCY_NONE: PerCpuArray<Latency> = PerCpuArray::with_max_entries(1, 0);

/// Counts a time under a key. `lost` is where it is counted when the map is full.
#[inline(always)]
pub fn observe_in<K>(map: &PerCpuHashMap<K, Latency>, key: &K, ns: u64, lost: usize) {
    let mut times = map.get_ptr_mut(key);
    if times.is_none()
        && let Some(none) = LATENCY_NONE.get(0)
    {
        // It fails where another CPU was first, and where the map is full.
        let _ = map.insert(key, none, BPF_NOEXIST as u64);
        times = map.get_ptr_mut(key);
    }
    match times {
        Some(times) => observe(times, ns),
        None => ring::uncounted(lost),
    }
}

/// No time yet: for values that are too large for a program's stack.
pub const NONE: Latency = Latency {
    sum_ns: 0,
    slots: [0; SLOTS],
    over: [0; THRESHOLDS.len()],
};

/// Counts a time. `latency` is a value of a map.
#[inline(always)]
pub fn observe(latency: *mut Latency, ns: u64) {
    observe_by(add, latency, ns);
}

/// The same where no other program counts there: see [`add_own`].
#[inline(always)]
pub fn observe_own<A: Access>(latency: *mut Latency, ns: u64) {
    observe_by(add_own::<A>, latency, ns);
}

#[inline(always)]
fn observe_by(add: impl Fn(*mut u64, u64), latency: *mut Latency, ns: u64) {
    let mut at = slot(ns);
    unsafe {
        add(addr_of_mut!((*latency).sum_ns), ns);
        // The bound is lost on the verifier when it is checked on a copy of the register, so once more where it looks.
        core::arch::asm!(
            "if {at} < {slots} goto +1",
            "{at} = 0",
            at = inout(reg) at,
            slots = const SLOTS,
            options(pure, nomem, nostack),
        );
        add(addr_of_mut!((*latency).slots).cast::<u64>().add(at), 1);
        let over = addr_of_mut!((*latency).over).cast::<u64>();
        if ns > THRESHOLDS[0] {
            add(over, 1);
        }
        if ns > THRESHOLDS[1] {
            add(over.add(1), 1);
        }
        if ns > THRESHOLDS[2] {
            add(over.add(2), 1);
        }
    }
}
