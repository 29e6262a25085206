//! Probe `packetloss`: tracepoint skb:kfree_skb, counted by one program and reported by another.
//!
//! Two programs as the kernel skips a program that is already running on the CPU (a drop in a softirq that interrupts
//! a drop): the shorter the counting, the fewer drops it misses.

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::BPF_NOEXIST;
use aya_ebpf::helpers::generated;
use aya_ebpf::macros::{btf_tracepoint, map, raw_tracepoint};
use aya_ebpf::maps::{HashMap, PerCpuHashMap};
use aya_ebpf::programs::{BtfTracePointContext, RawTracePointContext};
use core::ptr::addr_of_mut;
use sonde_ebpf_common::drop::{Count, CountKey, NO_REASON, PACKET_BYTES, Record, Site, flag, verdict};
use sonde_ebpf_common::limit::{PACKETLOSS, PACKETLOSS_NEW_SITE};
use sonde_ebpf_common::lost;
use sonde_ebpf_common::record::kind;

use crate::access::{
    Access, DEV_IFINDEX, KFREE_SKB_LOCATION, KFREE_SKB_REASON, KFREE_SKB_RX_SK, KFREE_SKB_SKB, Live, Probed, SKB_DATA,
    SKB_IIF, SKB_LEN, SKB_MAC_HEADER, SKB_NETWORK_HEADER, SKB_PKT_TYPE, SKB_PROTOCOL, SKB_TAIL, SKB_TRANSPORT_HEADER,
    Typed, add_own, argument, nullable_argument,
};
use crate::per_packet::{ETHERNET_HEADER, VLAN};
use crate::place::{self, Place};
use crate::{limit, packet, per_packet, ring};

#[map]
static PACKETLOSS_COUNTS: PerCpuHashMap<CountKey, Count> = PerCpuHashMap::with_max_entries(8192, 0);

/// Classes of sites, written by user space when it first sees one.
#[map]
static PACKETLOSS_SITES: HashMap<Site, u32> = HashMap::with_max_entries(8192, 0);

/// What to do with each reason of the running kernel: see [`verdict`].
#[used]
#[unsafe(no_mangle)]
static PACKETLOSS_REASONS: [u8; verdict::REASONS] = [verdict::BY_SITE; verdict::REASONS];

/// Whether events carry the stack.
#[used]
#[unsafe(no_mangle)]
#[unsafe(link_section = ".data.PACKETLOSS_STACKS")]
static PACKETLOSS_STACKS: Live<u32> = Live::new(1);

#[btf_tracepoint(function = "kfree_skb")]
pub fn drop_count_btf(ctx: BtfTracePointContext) -> i32 {
    count::<Typed>(ctx.as_ptr().cast())
}

#[raw_tracepoint(tracepoint = "kfree_skb")]
pub fn drop_count_raw(ctx: RawTracePointContext) -> i32 {
    count::<Probed>(ctx.as_ptr().cast())
}

#[btf_tracepoint(function = "kfree_skb")]
pub fn drop_event_btf(ctx: BtfTracePointContext) -> i32 {
    event::<Typed>(ctx.as_ptr().cast())
}

#[raw_tracepoint(tracepoint = "kfree_skb")]
pub fn drop_event_raw(ctx: RawTracePointContext) -> i32 {
    event::<Probed>(ctx.as_ptr().cast())
}

/// A dropped packet as the tracepoint gives it.
pub struct Drop {
    pub skb: *const u8,
    pub head: *const u8,
    pub site: Site,
    verdict: u8,
}

impl Drop {
    #[inline(always)]
    pub fn read<A: Access>(context: *const u64) -> Option<Self> {
        let skb = argument(context, &KFREE_SKB_SKB)? as *const u8;
        let location = argument(context, &KFREE_SKB_LOCATION)?;
        let reason = argument(context, &KFREE_SKB_REASON).map_or(NO_REASON, |reason| reason as u32);
        let verdict = of_reason(reason);
        let head = packet::head::<A>(skb);
        let detail = if verdict & verdict::DETAIL != 0 {
            packet::detail::<A>(skb, head)
        } else {
            0
        };
        Some(Self {
            skb,
            head,
            site: Site {
                location,
                reason,
                detail,
            },
            verdict,
        })
    }

    /// What it is by its reason, else by what user space said of its site; `verdict::BY_SITE`: nothing yet.
    #[inline(always)]
    pub fn class(&self, sites: &HashMap<Site, u32>) -> u8 {
        match self.verdict & verdict::CLASS {
            verdict::BY_SITE => unsafe { sites.get(&self.site) }.map_or(verdict::BY_SITE, |class| *class as u8),
            class => class,
        }
    }

    #[inline(always)]
    pub fn place<A: Access>(&self, context: *const u64) -> Place {
        place::of::<A>(self.skb, nullable_argument(context, &KFREE_SKB_RX_SK))
    }
}

#[inline(always)]
fn of_reason(reason: u32) -> u8 {
    if reason as usize >= verdict::REASONS {
        return verdict::BY_SITE;
    }
    // The check above is lost on the verifier when it is made on a copy of the register, so once more where it looks.
    let mut at = reason as usize;
    unsafe {
        core::arch::asm!("{at} &= {mask}", at = inout(reg) at, mask = const verdict::REASONS - 1, options(pure, nomem, nostack));
        PACKETLOSS_REASONS.as_ptr().add(at).read_volatile()
    }
}

#[inline(always)]
fn count<A: Access>(context: *const u64) -> i32 {
    let Some(drop) = Drop::read::<A>(context) else {
        return 0;
    };
    let place = drop.place::<A>(context);
    if !limit::wanted(&place) {
        return 0;
    }
    let one = Count {
        skbs: 1,
        more_segments: packet::segments::<A>(drop.skb, drop.head) - 1,
    };
    let key = CountKey {
        cookie: place.cookie,
        site: drop.site,
        netns: place.netns,
        pad: 0,
    };
    if let Some(counter) = PACKETLOSS_COUNTS.get_ptr_mut(&key) {
        add_count::<A>(counter, &one);
    } else if PACKETLOSS_COUNTS.insert(&key, &one, BPF_NOEXIST as u64).is_err() {
        // Full, or another CPU was first.
        if let Some(counter) = PACKETLOSS_COUNTS.get_ptr_mut(&key) {
            add_count::<A>(counter, &one);
        } else {
            ring::uncounted(lost::PACKETLOSS);
        }
    }
    0
}

#[inline(always)]
fn add_count<A: Access>(counter: *mut Count, by: &Count) {
    unsafe {
        add_own::<A>(addr_of_mut!((*counter).skbs), by.skbs);
        if by.more_segments != 0 {
            add_own::<A>(addr_of_mut!((*counter).more_segments), by.more_segments);
        }
    }
}

#[inline(always)]
fn event<A: Access>(context: *const u64) -> i32 {
    let Some(drop) = Drop::read::<A>(context) else {
        return 0;
    };
    // Most frees are told apart here, before anything is paid for them.
    let class = drop.class(&PACKETLOSS_SITES);
    if class == verdict::PROTOCOL || class == verdict::BENIGN {
        return 0;
    }
    let place = drop.place::<A>(context);
    let Some(key) = limit::listed(&place) else {
        return 0;
    };
    let now = unsafe { generated::bpf_ktime_get_ns() };
    let bucket = if class == verdict::BY_SITE {
        PACKETLOSS_NEW_SITE
    } else {
        PACKETLOSS
    };
    if !limit::take_token(key, bucket, now) {
        return 0;
    }
    let flags = if class == verdict::BY_SITE { flag::NEW_SITE } else { 0 };
    let event = ring::Event {
        ring: &ring::EVENTS,
        kind: kind::DROP,
        bucket,
        place: &place,
        now,
        stack: PACKETLOSS_STACKS.get() != 0,
    };
    event.write::<Record>(context, |record| unsafe { fill::<A>(record, &drop, &event, flags) })
}

/// Everything but the head.
#[inline(always)]
unsafe fn fill<A: Access>(record: *mut Record, drop: &Drop, event: &ring::Event<'_>, flags: u16) {
    let (skb, place) = (drop.skb, event.place);
    let offset = |field: &crate::access::KernelField<u16>| field.read::<A>(skb).unwrap_or(u16::MAX);
    let (mac, network) = (offset(&SKB_MAC_HEADER), offset(&SKB_NETWORK_HEADER));
    let protocol = SKB_PROTOCOL.read::<A>(skb).unwrap_or(0);
    let iif = SKB_IIF.read::<A>(skb).unwrap_or(0);
    let mut flags = flags | place.from << flag::FROM_SHIFT;
    let mut ifindex = 0;
    unsafe {
        if place.device.is_null() {
            flags |= flag::NO_DEVICE;
        }
        // The pointer is only believed where it led to a namespace.
        let mut name = [0; 2];
        if place.from == place::from::DEVICE || place.from == place::from::RECEIVER && !place.device.is_null() {
            ifindex = DEV_IFINDEX.read::<A>(place.device).unwrap_or(0);
            name = per_packet::name::<A>(place.device);
        }
        const { assert!(core::mem::offset_of!(Record, device).is_multiple_of(8)) };
        let device = addr_of_mut!((*record).device).cast::<u64>();
        device.write_volatile(name[0]);
        device.add(1).write_volatile(name[1]);
        addr_of_mut!((*record).site).write(drop.site);
        // What is forwarded is still on the device that it came by.
        let is_there = iif != 0 && iif == ifindex;
        addr_of_mut!((*record).route_input).write(if is_there { place::route_input::<A>(skb) } else { 0 });
        addr_of_mut!((*record).ifindex).write(ifindex);
        addr_of_mut!((*record).iif).write(iif);
        addr_of_mut!((*record).len).write(SKB_LEN.read::<A>(skb).unwrap_or(0));
        addr_of_mut!((*record).segments).write(packet::segments::<A>(skb, drop.head) as u32);
        addr_of_mut!((*record).protocol).write(protocol);
        addr_of_mut!((*record).mac_header).write(mac);
        addr_of_mut!((*record).network_header).write(network);
        addr_of_mut!((*record).transport_header).write(offset(&SKB_TRANSPORT_HEADER));
        addr_of_mut!((*record).flags).write(flags);
        addr_of_mut!((*record).pkt_type).write(SKB_PKT_TYPE.bits::<A>(skb).unwrap_or(0));
        addr_of_mut!((*record).pad).write(0);
        let comm = addr_of_mut!((*record).comm);
        // Whose it is shows by the stack alone, and only of what was made here.
        if !event.stack || iif != 0 || generated::bpf_get_current_comm(comm.cast(), 16) != 0 {
            const { assert!(core::mem::offset_of!(Record, comm).is_multiple_of(8)) };
            crate::access::clear::<2>(comm.cast());
        }
        // With tags in the packet from the first of them on, as some paths let the network header point behind them.
        let from = match mac {
            _ if !VLAN.contains(&protocol) => network,
            UNSET => UNSET,
            mac => mac.wrapping_add(ETHERNET_HEADER as u16),
        };
        copy_packet::<A>(record, drop, from);
    }
}

/// Offset of a header that is not set.
const UNSET: u16 = u16::MAX;

/// Copies from there on, or from where the data begins if there is no such header. Of fixed lengths, which every verifier
/// can follow: behind the packet's own bytes lies `skb_shared_info`, so it stays within the buffer; `captured` says how much
/// of it is the packet's.
#[inline(always)]
unsafe fn copy_packet<A: Access>(record: *mut Record, drop: &Drop, network: u16) {
    let data = SKB_DATA.read::<A>(drop.skb).unwrap_or(0).wrapping_sub(drop.head as u64) as u32;
    let tail = SKB_TAIL.read::<A>(drop.skb).unwrap_or(0);
    let start = if network != 0 && network != UNSET && (network as u32) < tail {
        network as u32
    } else {
        data
    };
    let mut captured = tail.wrapping_sub(start);
    if start >= tail || start > u16::MAX as u32 {
        captured = 0;
    } else if captured > PACKET_BYTES as u32 {
        captured = PACKET_BYTES as u32;
    }
    unsafe {
        const HALF: usize = PACKET_BYTES / 2;
        const { assert!(core::mem::offset_of!(Record, packet).is_multiple_of(8)) };
        let packet = addr_of_mut!((*record).packet).cast::<u64>();
        let from = drop.head.wrapping_add(start as usize);
        if !packet::copy::<A, { HALF / 8 }>(packet, from)
            || captured > HALF as u32 && !packet::copy::<A, { HALF / 8 }>(packet.add(HALF / 8), from.wrapping_add(HALF))
        {
            captured = 0;
        }
        addr_of_mut!((*record).start).write(start as u16);
        addr_of_mut!((*record).captured).write(captured as u16);
    }
}
