//! Which namespaces this collector looks at, and how many events each may make.

use aya_ebpf::macros::map;
use aya_ebpf::maps::{HashMap, PerCpuHashMap};
use sonde_ebpf_common::limit::{Held, Namespace, UNKNOWN};

use crate::access::{Live, Setting, add};
use crate::place::Place;

/// By inode, filled by user space; [`UNKNOWN`] is always there.
#[map]
static NAMESPACES: HashMap<u32, Namespace> = HashMap::with_max_entries(2048, 0);

/// By inode, filled by user space together with `NAMESPACES`.
#[map]
static HELD: PerCpuHashMap<u32, Held> = PerCpuHashMap::with_max_entries(2048, 0);

/// 1: packets of other namespaces than the listed ones are none of this collector's business.
#[used]
#[unsafe(no_mangle)]
static ONLY_LISTED: Setting<u32> = Setting::new(0);

/// Time between two events of one namespace and type.
#[used]
#[unsafe(no_mangle)]
#[unsafe(link_section = ".data.EVENT_INTERVAL_NS")]
static EVENT_INTERVAL_NS: Live<u64> = Live::new(10_000_000);

/// How far ahead of now a bucket may be: (burst - 1) intervals.
#[used]
#[unsafe(no_mangle)]
#[unsafe(link_section = ".data.EVENT_BURST_NS")]
static EVENT_BURST_NS: Live<u64> = Live::new(1_990_000_000);

/// The key under which the place is known; `None`: not ours. A packet that does not tell its namespace may be
/// anybody's, so everybody keeps it.
#[inline(always)]
pub fn listed(place: &Place) -> Option<u32> {
    if place.netns != 0
        && let Some(known) = unsafe { NAMESPACES.get(place.netns) }
        && (known.cookie == place.cookie || known.cookie == 0)
    {
        return Some(place.netns);
    }
    if place.netns != 0 && ONLY_LISTED.get() != 0 {
        return None;
    }
    Some(UNKNOWN)
}

/// Whether [`wanted`] can be false.
#[inline(always)]
pub fn some_are_unwanted() -> bool {
    ONLY_LISTED.get() != 0
}

/// For counting, which needs no key: no look-up where everything is counted.
#[inline(always)]
pub fn wanted(place: &Place) -> bool {
    ONLY_LISTED.get() == 0 || listed(place).is_some()
}

/// For probes of every packet, which look at nobody's but the listed ones'.
#[inline(always)]
pub fn is_listed(place: &Place) -> bool {
    place.netns != 0
        && unsafe { NAMESPACES.get(place.netns) }.is_some_and(|known| known.cookie == place.cookie || known.cookie == 0)
}

/// Takes a token (GCRA). Without compare-and-swap, which kernels before 5.12 do not load: two CPUs at the same instant may
/// both pass where one token was left, but each then pays, so the rate holds.
#[inline(always)]
pub fn take_token(key: u32, kind: usize, now: u64) -> bool {
    let Some(namespace) = NAMESPACES.get_ptr_mut(key) else {
        return false;
    };
    let tat = unsafe { core::ptr::addr_of_mut!((*namespace).tat[kind]) };
    let full_at = unsafe { tat.read_volatile() };
    if full_at > now + EVENT_BURST_NS.get() {
        hold(key, kind);
        return false;
    }
    if full_at < now {
        unsafe { tat.write_volatile(now) };
    }
    add(tat, EVENT_INTERVAL_NS.get());
    true
}

#[inline(always)]
fn hold(key: u32, kind: usize) {
    if let Some(held) = HELD.get_ptr_mut(key) {
        add(unsafe { core::ptr::addr_of_mut!((*held).events[kind]) }, 1);
    }
}
