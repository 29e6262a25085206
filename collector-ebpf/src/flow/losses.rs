//! What was lost of flows: packets dropped, at tracepoint skb:kfree_skb, and segments that TCP sent again, at
//! tcp:tcp_retransmit_skb and tcp:tcp_retransmit_synack. Every one, whatever the sample of packets is.
//!
//! Whether a drop is a loss is decided as probe `packetloss` decides it. Where that needs to know the function that dropped the
//! packet, and user space has not named it yet, the drop waits under its site for user space to decide.

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::BPF_NOEXIST;
use aya_ebpf::macros::{btf_tracepoint, map, raw_tracepoint};
use aya_ebpf::maps::{HashMap, PerCpuHashMap};
use aya_ebpf::programs::{BtfTracePointContext, RawTracePointContext};
use core::ptr::addr_of_mut;
use sonde_ebpf_common::connection::AF_INET6;
use sonde_ebpf_common::drop::{NO_REASON, Site, verdict};
use sonde_ebpf_common::flow::{Count, DeviceKey, DropKey, Dropped, Key, direction, family};
use sonde_ebpf_common::lost;

use super::{FLOW_DEVICES, add_to, key, make};
use crate::access::{
    Access, DEV_IFINDEX, DST_DEV, Probed, SKB_IIF, SOCK_ADDRESS, SOCK_ADDRESS6, SOCK_DST, SOCK_FAMILY,
    SOCK_PEER_ADDRESS, SOCK_PEER_ADDRESS6, SOCK_PEER_PORT, SOCK_PORT, Setting, Typed, add,
};
use crate::packetloss::Drop;
use crate::per_packet::{Ends, TCP};
use crate::place::{self, Place};
use crate::tcpretrans::Retransmit;
use crate::{connection, limit, packet, per_packet, ring};

/// Drops of which it is not known yet whether they are a loss.
#[map]
static FLOW_UNDECIDED: PerCpuHashMap<DropKey, Dropped> = PerCpuHashMap::with_max_entries(1, 0);

/// Classes of sites, written by user space when it first sees one.
#[map]
static FLOW_SITES: HashMap<Site, u32> = HashMap::with_max_entries(1, 0);

/// The reason of packets for which a CPU's queue of received ones has no room: they were not received yet and so tell no
/// device that they came by.
#[used]
#[unsafe(no_mangle)]
static FLOW_BACKLOG_REASON: Setting<u32> = Setting::new(NO_REASON);

#[btf_tracepoint(function = "kfree_skb")]
pub fn flow_dropped_btf(ctx: BtfTracePointContext) -> i32 {
    dropped::<Typed>(ctx.as_ptr().cast())
}

#[raw_tracepoint(tracepoint = "kfree_skb")]
pub fn flow_dropped_raw(ctx: RawTracePointContext) -> i32 {
    dropped::<Probed>(ctx.as_ptr().cast())
}

#[btf_tracepoint(function = "tcp_retransmit_skb")]
pub fn flow_again_btf(ctx: BtfTracePointContext) -> i32 {
    again(Retransmit::segment::<Typed>(ctx.as_ptr().cast()))
}

#[raw_tracepoint(tracepoint = "tcp_retransmit_skb")]
pub fn flow_again_raw(ctx: RawTracePointContext) -> i32 {
    again(Retransmit::segment::<Probed>(ctx.as_ptr().cast()))
}

#[btf_tracepoint(function = "tcp_retransmit_synack")]
pub fn flow_synack_btf(ctx: BtfTracePointContext) -> i32 {
    again(Retransmit::synack::<Typed>(ctx.as_ptr().cast()))
}

#[raw_tracepoint(tracepoint = "tcp_retransmit_synack")]
pub fn flow_synack_raw(ctx: RawTracePointContext) -> i32 {
    again(Retransmit::synack::<Probed>(ctx.as_ptr().cast()))
}

#[inline(always)]
fn dropped<A: Access>(context: *const u64) -> i32 {
    let Some(drop) = Drop::read::<A>(context) else {
        return 0;
    };
    let class = drop.class(&FLOW_SITES);
    if class == verdict::PROTOCOL || class == verdict::BENIGN {
        return 0;
    }
    let place = drop.place::<A>(context);
    if !limit::is_listed(&place) {
        return 0;
    }
    let mut layer3 = per_packet::sent::<A>(drop.skb, drop.head);
    if layer3.start.is_null() {
        layer3 = per_packet::received::<A>(drop.skb, drop.head);
    }
    let ends = per_packet::ends::<A>(layer3);
    let (device, direction) = way::<A>(&drop, &place);
    let mut key = key(&place, device, direction, &ends);
    let packets = packet::segments::<A>(drop.skb, drop.head);
    if class == verdict::BY_SITE {
        // The flow first: an undecided drop is of one that is there.
        if found(&mut key, &NOTHING)
            && add_undecided(
                &DropKey {
                    flow: key,
                    site: drop.site,
                },
                packets,
            )
        {
            return 0;
        }
    } else if found(
        &mut key,
        &Count {
            drops: packets,
            ..NOTHING
        },
    ) {
        return 0;
    }
    ring::uncounted(lost::FLOW);
    0
}

const NOTHING: Count = Count {
    packets: 0,
    bytes: 0,
    drops: 0,
    retransmits: 0,
};

/// Counts it with its flow, a new one if need be.
#[inline(always)]
fn found(key: &mut Key, one: &Count) -> bool {
    add_to(key, one) || make(key, one)
}

#[inline(always)]
fn add_undecided(key: &DropKey, packets: u64) -> bool {
    if FLOW_UNDECIDED.get_ptr_mut(key).is_none() {
        // Full, or another CPU was first.
        let _ = FLOW_UNDECIDED.insert(key, &Dropped { packets: 0 }, BPF_NOEXIST as u64);
    }
    match FLOW_UNDECIDED.get_ptr_mut(key) {
        Some(counter) => {
            add(unsafe { addr_of_mut!((*counter).packets) }, packets);
            true
        }
        None => false,
    }
}

/// The device that a dropped packet came by or was to leave by, and which of it.
#[inline(always)]
fn way<A: Access>(drop: &Drop, place: &Place) -> ([u64; 2], u8) {
    let iif = SKB_IIF.read::<A>(drop.skb).unwrap_or(0);
    // The pointer is only believed where it leads to the namespace: UDP keeps a number there while a datagram waits.
    if !place.device.is_null() {
        let on = match place.from {
            place::from::DEVICE => *place,
            _ => place::of_device::<A>(place.device),
        };
        if on.netns == place.netns && on.cookie == place.cookie {
            let ifindex = DEV_IFINDEX.read::<A>(place.device).unwrap_or(0);
            let received =
                iif == ifindex || drop.site.reason == FLOW_BACKLOG_REASON.get() && drop.site.reason != NO_REASON;
            let name = per_packet::name::<A>(place.device);
            return (
                name,
                if received {
                    direction::INGRESS
                } else {
                    direction::EGRESS
                },
            );
        }
    }
    if iif != 0 {
        return (name_of(place, iif), direction::INGRESS);
    }
    (routed(place, place::route_device::<A>(drop.skb)), direction::EGRESS)
}

/// The name of a device that has been seen in that namespace, else nothing.
#[inline(always)]
fn name_of(place: &Place, ifindex: u32) -> [u64; 2] {
    let known = DeviceKey {
        cookie: place.cookie,
        netns: place.netns,
        ifindex,
    };
    unsafe { FLOW_DEVICES.get(&known) }.copied().unwrap_or([0; 2])
}

/// The name of the device that a route leads to, if that is in the same namespace.
#[inline(always)]
fn routed(place: &Place, device: *const u8) -> [u64; 2] {
    if device.is_null() {
        return [0; 2];
    }
    let on = place::of_device::<Probed>(device);
    if on.netns == place.netns && on.cookie == place.cookie && DEV_IFINDEX.read::<Probed>(device) != Some(0) {
        per_packet::name::<Probed>(device)
    } else {
        [0; 2]
    }
}

#[inline(always)]
fn again(seen: Option<Retransmit>) -> i32 {
    let Some(seen) = seen else { return 0 };
    if !limit::is_listed(&seen.place) {
        return 0;
    }
    let ends = ends(seen.sk);
    // A request for a connection has no route of its own.
    let device = if seen.is_whole_socket() {
        let route = SOCK_DST.pointer::<Probed>(seen.sk);
        if route.is_null() {
            route
        } else {
            DST_DEV.pointer::<Probed>(route)
        }
    } else {
        core::ptr::null()
    };
    let mut key = key(&seen.place, routed(&seen.place, device), direction::EGRESS, &ends);
    let one = Count {
        retransmits: seen.segments as u64,
        ..NOTHING
    };
    if !found(&mut key, &one) {
        ring::uncounted(lost::FLOW);
    }
    0
}

/// Of a socket or of the request for one, as its packets have them.
#[inline(always)]
fn ends(sk: *const u8) -> Ends {
    let mut ends = Ends {
        family: family::IPV4,
        protocol: TCP,
        saddr: [0; 4],
        daddr: [0; 4],
        sport: SOCK_PORT.read::<Probed>(sk).unwrap_or(0),
        dport: u16::from_be(SOCK_PEER_PORT.read::<Probed>(sk).unwrap_or(0)),
        transport: 0,
    };
    if SOCK_FAMILY.read::<Probed>(sk) == Some(AF_INET6) && !connection::is_mapped(sk) {
        ends.family = family::IPV6;
        if let (Some(own), Some(peer)) = (SOCK_ADDRESS6.address(sk), SOCK_PEER_ADDRESS6.address(sk)) {
            (ends.saddr, ends.daddr) = unsafe { (Probed::load(own), Probed::load(peer)) };
        }
    } else {
        ends.saddr[0] = SOCK_ADDRESS.read::<Probed>(sk).unwrap_or(0);
        ends.daddr[0] = SOCK_PEER_ADDRESS.read::<Probed>(sk).unwrap_or(0);
    }
    ends
}
