//! Which namespaces this collector looks at, and how many events each may make.

use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap, PerCpuArray, PerCpuHashMap};
use core::ptr::addr_of_mut;
use sonde_ebpf_common::limit::{Held, Learned, Namespace, RECENT, UNKNOWN};

use crate::access::{Live, Setting, add};
use crate::place::Place;

/// By inode, filled by user space; [`UNKNOWN`] is always there.
#[map]
static NAMESPACES: HashMap<u32, Namespace> = HashMap::with_max_entries(2048, 0);

/// By inode, filled by user space together with `NAMESPACES`.
#[map]
static HELD: PerCpuHashMap<u32, Held> = PerCpuHashMap::with_max_entries(2048, 0);

/// How often `NAMESPACES` has changed, written by user space after each change.
#[map]
static LISTINGS: Array<u32> = Array::with_max_entries(1, 0);

/// What this CPU last looked up in `NAMESPACES`, by the end of the inode: a look here costs a fifth.
#[map]
static RECENTLY: PerCpuArray<Learned> = PerCpuArray::with_max_entries(RECENT, 0);

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

/// Whose events are held back together: a namespace, or all that nobody listed.
#[derive(Clone, Copy)]
pub struct Listed {
    key: u32,
    namespace: *mut Namespace,
}

/// Under what the place is known; `None`: not ours. A packet that does not tell its namespace may be anybody's, so
/// everybody keeps it.
#[inline(always)]
pub fn listed(place: &Place) -> Option<Listed> {
    if place.netns != 0 {
        if let Some(listed) = of_netns(place.netns) {
            let cookie = unsafe { (*listed.namespace).cookie };
            if cookie == place.cookie || cookie == 0 {
                return Some(listed);
            }
        }
        if ONLY_LISTED.get() != 0 {
            return None;
        }
    }
    of_netns(UNKNOWN)
}

#[inline(always)]
pub fn of_netns(key: u32) -> Option<Listed> {
    let namespace = NAMESPACES.get_ptr_mut(key)?;
    Some(Listed { key, namespace })
}

/// Whether [`wanted`] can be false.
#[inline(always)]
pub fn some_are_unwanted() -> bool {
    ONLY_LISTED.get() != 0
}

/// For counting, which needs no key: no look-up where everything is counted.
#[inline(always)]
pub fn wanted(place: &Place) -> bool {
    ONLY_LISTED.get() == 0 || place.netns == 0 || is_in_list(place)
}

/// For probes of every packet, which look at nobody's but the listed ones'.
#[inline(always)]
pub fn is_listed(place: &Place) -> bool {
    let netns = place.netns;
    if netns == 0 {
        return false;
    }
    // Before the look-up: what is learned while the list changes holds for the list before.
    let (Some(listing), Some(recent)) = (LISTINGS.get_ptr(0), RECENTLY.get_ptr_mut(netns & (RECENT - 1))) else {
        return is_in_list(place);
    };
    let question = (netns as u64) << 32 | unsafe { listing.read_volatile() << 1 } as u64;
    let (answer, cookie) = unsafe {
        (
            addr_of_mut!((*recent).answer).read_volatile(),
            addr_of_mut!((*recent).cookie).read_volatile(),
        )
    };
    if answer & !1 == question && cookie == place.cookie {
        return answer & 1 != 0;
    }
    let listed = is_in_list(place);
    // In this order, an interrupt in between leaves no answer under another's cookie.
    unsafe {
        addr_of_mut!((*recent).answer).write_volatile(0);
        addr_of_mut!((*recent).cookie).write_volatile(place.cookie);
        addr_of_mut!((*recent).answer).write_volatile(question | listed as u64);
    }
    listed
}

#[inline(always)]
fn is_in_list(place: &Place) -> bool {
    unsafe { NAMESPACES.get(place.netns) }.is_some_and(|known| known.cookie == place.cookie || known.cookie == 0)
}

/// Takes a token (GCRA). Without compare-and-swap, which kernels before 5.12 do not load: two CPUs at the same instant may
/// both pass where one token was left, but each then pays, so the rate holds.
#[inline(always)]
pub fn take_token(of: Listed, kind: usize, now: u64) -> bool {
    let tat = unsafe { addr_of_mut!((*of.namespace).tat[kind]) };
    let full_at = unsafe { tat.read_volatile() };
    if full_at > now + EVENT_BURST_NS.get() {
        hold(of.key, kind);
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
        add(unsafe { addr_of_mut!((*held).events[kind]) }, 1);
    }
}
