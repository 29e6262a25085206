//! The rings that events go through, and the count of what was lost.

use core::ptr::addr_of_mut;

use aya_ebpf::bindings::BPF_RB_NO_WAKEUP;
use aya_ebpf::helpers::generated;
use aya_ebpf::macros::map;
use aya_ebpf::maps::{PerCpuArray, RingBuf};
use sonde_ebpf_common::lost::Lost;
use sonde_ebpf_common::record::{Head, STACK_FRAMES, WAKE_EVERY_NS};

use crate::access::add;
use crate::place::Place;

/// For everything that can come in a storm.
#[map]
pub static EVENTS: RingBuf = RingBuf::with_byte_size(1 << 20, 0);

/// For types of events that are few (resets, overflows of listeners): a storm of others does not cost one of them.
#[map]
pub static RARE: RingBuf = RingBuf::with_byte_size(1 << 18, 0);

#[map]
static LOST: PerCpuArray<Lost> = PerCpuArray::with_max_entries(1, 0);

/// When this CPU last woke the reader.
#[map]
static WOKEN: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

/// An event of that type did not fit into its ring.
#[inline(always)]
pub fn lose(bucket: usize) -> i32 {
    if let Some(lost) = LOST.get_ptr_mut(0) {
        add(unsafe { addr_of_mut!((*lost).ring_full[bucket]) }, 1);
    }
    0
}

/// Something was counted under no key as the map was full.
#[inline(always)]
pub fn uncounted(counter: usize) {
    if let Some(lost) = LOST.get_ptr_mut(0) {
        add(unsafe { addr_of_mut!((*lost).uncounted[counter]) }, 1);
    }
}

/// What to submit a record with that is made at `now`. To wake a thread costs ten times what the record does. So a CPU asks for
/// it seldom; who was woken goes on looking for longer than that by itself.
#[inline(always)]
pub fn wakeup(now: u64) -> u64 {
    let Some(last) = WOKEN.get_ptr_mut(0) else {
        return 0;
    };
    unsafe {
        if now.wrapping_sub(last.read_volatile()) < WAKE_EVERY_NS {
            return BPF_RB_NO_WAKEUP as u64;
        }
        last.write_volatile(now);
    }
    0
}

/// A record and its stack, innermost frame first.
#[repr(C)]
struct Stacked<T> {
    record: T,
    stack: [u64; STACK_FRAMES],
}

/// An event to be written.
pub struct Event<'a> {
    pub ring: &'a RingBuf,
    /// See `sonde_ebpf_common::record::kind`.
    pub kind: u32,
    /// Its type, as in `sonde_ebpf_common::limit`.
    pub bucket: usize,
    pub place: &'a Place,
    /// CLOCK_MONOTONIC.
    pub now: u64,
    /// Whether it carries the stack.
    pub stack: bool,
}

impl Event<'_> {
    /// Writes it to its ring. `T` begins with [`Head`], which is written here; `fill` writes everything else, as the
    /// memory holds whatever was in the ring before.
    #[inline(always)]
    pub fn write<T: 'static>(&self, context: *const u64, fill: impl FnOnce(*mut T)) -> i32 {
        let wakeup = wakeup(self.now);
        if self.stack {
            let Some(mut entry) = self.ring.reserve::<Stacked<T>>(0) else {
                return lose(self.bucket);
            };
            let whole = entry.as_mut_ptr();
            unsafe {
                let stack = addr_of_mut!((*whole).stack);
                let bytes =
                    generated::bpf_get_stack(context.cast_mut().cast(), stack.cast(), (STACK_FRAMES * 8) as u32, 0);
                self.head(whole.cast(), size_of::<Stacked<T>>() as u32, bytes as i32);
                fill(addr_of_mut!((*whole).record));
            }
            entry.submit(wakeup);
        } else {
            let Some(mut entry) = self.ring.reserve::<T>(0) else {
                return lose(self.bucket);
            };
            let record = entry.as_mut_ptr();
            unsafe { self.head(record.cast(), size_of::<T>() as u32, 0) };
            fill(record);
            entry.submit(wakeup);
        }
        0
    }

    #[inline(always)]
    unsafe fn head(&self, head: *mut Head, size: u32, stack_bytes: i32) {
        unsafe {
            head.write(Head {
                kind: self.kind,
                size,
                ktime_ns: self.now,
                cookie: self.place.cookie,
                netns: self.place.netns,
                cpu: generated::bpf_get_smp_processor_id(),
                tgid: (generated::bpf_get_current_pid_tgid() >> 32) as u32,
                stack_bytes,
            });
        }
    }
}
