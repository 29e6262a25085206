//! What functions of the IP layer tell of packets on their way: when it had them, how long netfilter's hooks had them,
//! when it handed them on, and where datagrams begin and end.
//!
//! Arguments are read as numbers, by type or by register alike, as all that is wanted of them is to find the packet again.

use aya_ebpf::EbpfContext;
use aya_ebpf::helpers::generated;
use aya_ebpf::macros::{fentry, fexit, kprobe, kretprobe, map};
use aya_ebpf::maps::PerCpuArray;
use aya_ebpf::programs::{FEntryContext, FExitContext, ProbeContext, RetProbeContext};
use sonde_ebpf_common::kernellatency::{Arrival, HOOKED, Hooked, UDP, stage};

use super::{KERNELLATENCY_ANCHOR, arrival, received};
use crate::access::{
    HOOK_SLOW_SKB, IP_DELIVER_SKB, IP_LOCAL_OUT_SKB, IP_RCV_CORE_SKB, IP6_DELIVER_SKB, IP6_LOCAL_OUT_SKB,
    IP6_RCV_CORE_SKB, IP6_XMIT_SKB, Probed, SKB_SK, UDP_ENQUEUE_SK, UDP_ENQUEUE_SKB, plain_argument, register_argument,
};

#[map]
static KERNELLATENCY_HOOKED: PerCpuArray<Hooked> = PerCpuArray::with_max_entries(1, 0);

/// A program at the entry of a function, by type and by breakpoint.
macro_rules! entries {
    ($($fentry:ident, $kprobe:ident: $function:literal => $act:ident($($argument:ident),+);)*) => {
        $(#[fentry(function = $function)]
        pub fn $fentry(ctx: FEntryContext) -> i32 {
            let context: *const u64 = ctx.as_ptr().cast();
            $act(context, $(plain_argument(context, &$argument)),+)
        }

        #[kprobe]
        pub fn $kprobe(ctx: ProbeContext) -> u32 {
            let context: *const u64 = ctx.as_ptr().cast();
            $act(context, $(register_argument(context, &$argument)),+) as u32
        })*
    };
}

entries! {
    stage_ip4_in_fentry, stage_ip4_in_kprobe: "ip_rcv_core" => reach_ip(IP_RCV_CORE_SKB);
    stage_ip6_in_fentry, stage_ip6_in_kprobe: "ip6_rcv_core" => reach_ip(IP6_RCV_CORE_SKB);
    stage_ip4_up_fentry, stage_ip4_up_kprobe: "ip_local_deliver_finish" => leave_ip(IP_DELIVER_SKB);
    stage_ip6_up_fentry, stage_ip6_up_kprobe: "ip6_protocol_deliver_rcu" => leave_ip(IP6_DELIVER_SKB);
    stage_ip4_out_fentry, stage_ip4_out_kprobe: "__ip_local_out" => send(IP_LOCAL_OUT_SKB);
    stage_ip6_out_fentry, stage_ip6_out_kprobe: "__ip6_local_out" => send(IP6_LOCAL_OUT_SKB);
    stage_tcp6_out_fentry, stage_tcp6_out_kprobe: "ip6_xmit" => send(IP6_XMIT_SKB);
    stage_udp_fentry, stage_udp_kprobe: "__udp_enqueue_schedule_skb" => enqueue(UDP_ENQUEUE_SK, UDP_ENQUEUE_SKB);
}

#[fentry(function = "nf_hook_slow")]
pub fn stage_hook_fentry(ctx: FEntryContext) -> i32 {
    enter_hook(plain_argument(ctx.as_ptr().cast(), &HOOK_SLOW_SKB))
}

#[fexit(function = "nf_hook_slow")]
pub fn stage_hooked_fexit(ctx: FExitContext) -> i32 {
    leave_hook(plain_argument(ctx.as_ptr().cast(), &HOOK_SLOW_SKB))
}

#[kprobe]
pub fn stage_hook_kprobe(ctx: ProbeContext) -> u32 {
    let skb = register_argument(ctx.as_ptr().cast(), &HOOK_SLOW_SKB);
    if let Some(hooked) = KERNELLATENCY_HOOKED.get_ptr_mut(0) {
        unsafe {
            // So deep it is not: exits were missed.
            if (*hooked).depth >= HOOKED as u64 {
                (*hooked).depth = 0;
            }
            let depth = (*hooked).depth;
            (*hooked).skbs[depth as usize & (HOOKED - 1)] = skb;
            (*hooked).depth = depth + 1;
        }
    }
    enter_hook(skb) as u32
}

/// With what a function was entered is not told at its exit.
#[kretprobe]
pub fn stage_hooked_kretprobe(_ctx: RetProbeContext) -> u32 {
    let Some(hooked) = KERNELLATENCY_HOOKED.get_ptr_mut(0) else {
        return 0;
    };
    unsafe {
        let depth = (*hooked).depth;
        if depth == 0 {
            return 0;
        }
        (*hooked).depth = depth - 1;
        leave_hook((*hooked).skbs[(depth as usize - 1) & (HOOKED - 1)]) as u32
    }
}

/// The number that a packet, or what owns it, is known by.
#[inline(always)]
fn number(address: u64) -> u64 {
    match KERNELLATENCY_ANCHOR.get(0) {
        Some(anchor) => address.wrapping_sub(*anchor),
        None => address,
    }
}

/// The packet, if it is known and at that stage.
#[inline(always)]
fn known(skb: u64, is: impl Fn(u32) -> bool) -> Option<*mut Arrival> {
    let number = number(skb);
    let arrival = arrival(number)?;
    unsafe { ((*arrival).skb == number && is((*arrival).stage)).then_some(arrival) }
}

#[inline(always)]
fn now() -> u64 {
    unsafe { generated::bpf_ktime_get_ns() }
}

#[inline(always)]
fn reach_ip(_context: *const u64, skb: u64) -> i32 {
    if let Some(arrival) = known(skb, |stage| stage == stage::RECEIVED) {
        unsafe { (*arrival).ip_ns = now() };
    }
    0
}

#[inline(always)]
fn leave_ip(_context: *const u64, skb: u64) -> i32 {
    if let Some(arrival) = known(skb, |stage| stage == stage::RECEIVED) {
        unsafe { (*arrival).delivered_ns = now() };
    }
    0
}

/// A packet of this node's begins its way down; in a tunnel, anew.
#[inline(always)]
fn send(_context: *const u64, skb: u64) -> i32 {
    let sk = SKB_SK.pointer::<Probed>(skb as *const u8);
    if sk.is_null() {
        return 0;
    }
    let number = number(skb);
    let Some(arrival) = arrival(number) else { return 0 };
    let owner = self::number(sk as u64);
    unsafe { arrival.write(Arrival::new(number, now(), owner, stage::SENT, 0)) };
    0
}

/// A datagram is put into its socket's queue.
#[inline(always)]
fn enqueue(context: *const u64, sk: u64, skb: u64) -> i32 {
    received::<Probed>(context, UDP, sk as *const u8, skb as *const u8, number(skb))
}

#[inline(always)]
fn enter_hook(skb: u64) -> i32 {
    if let Some(arrival) = known(skb, |stage| stage != stage::WAITS) {
        unsafe {
            if (*arrival).hook_depth == 0 {
                (*arrival).hooked_ns = now();
            }
            (*arrival).hook_depth += 1;
        }
    }
    0
}

#[inline(always)]
fn leave_hook(skb: u64) -> i32 {
    let Some(arrival) = known(skb, |stage| stage != stage::WAITS) else {
        return 0;
    };
    unsafe {
        // 0: what was here when it was entered has gone, and another packet has its address.
        if (*arrival).hook_depth == 0 {
            return 0;
        }
        (*arrival).hook_depth -= 1;
        if (*arrival).hook_depth == 0 {
            (*arrival).hooks_ns += now().wrapping_sub((*arrival).hooked_ns);
            (*arrival).hook_runs += 1;
        }
    }
    0
}
