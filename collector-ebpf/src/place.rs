//! Where a packet was dropped: the network namespace, as kernel-side facts tell it.
//!
//! Not the running task's (softirqs run in anybody's), and not "the socket's, else the device's": over veth the
//! sender's socket stays on the packet until the receiver's IP layer, so a packet that namespace A sent and B dropped
//! would be A's.

use crate::access::{
    Access, DEV_IFINDEX, DEV_NET, DST_DEV, DST_INPUT, KernelField, NET_COOKIE, NET_INODE, Probed, SKB_DEV, SKB_DST,
    SKB_SK, SOCK_NET,
};

/// What the namespace was taken from, for `Record::flags`.
pub mod from {
    pub const NOTHING: u16 = 0;
    pub const RECEIVER: u16 = 1;
    pub const DEVICE: u16 = 2;
    pub const SENDER: u16 = 3;
    pub const ROUTE: u16 = 4;
}

#[derive(Clone, Copy)]
pub struct Place {
    /// Inode, 0: not known.
    pub netns: u32,
    pub from: u16,
    pub cookie: u64,
    /// `skb->dev`: may be NULL, and may be no pointer at all (UDP keeps a number there while a datagram is queued).
    pub device: *const u8,
}

/// Inodes of namespaces are handed out from 0xf0000000 on; those of the initial ones lie a little below since 6.18.
/// Anything lower comes from a pointer that was none.
const LOWEST_INODE: u32 = 0xefff_ff00;

#[inline(always)]
pub fn of<A: Access>(skb: *const u8, receiver: Option<*const u8>) -> Place {
    let device = SKB_DEV.pointer::<A>(skb);
    let mut place = Place {
        netns: 0,
        from: from::NOTHING,
        cookie: 0,
        device,
    };
    if let Some(sk) = receiver {
        // May be a TIME_WAIT socket, which has nothing but the common part.
        place.take::<A>(&SOCK_NET, sk, from::RECEIVER);
        if place.netns != 0 {
            return place;
        }
    }
    if !device.is_null() {
        place.take::<A>(&DEV_NET, device, from::DEVICE);
        return place;
    }
    let sk = SKB_SK.pointer::<A>(skb);
    if !sk.is_null() {
        place.take::<A>(&SOCK_NET, sk, from::SENDER);
        return place;
    }
    place.take_route::<A>(skb);
    place
}

/// Of a socket, which may be a TIME_WAIT or request socket: that has nothing but the common part.
#[inline(always)]
pub fn of_socket<A: Access>(sk: *const u8) -> Place {
    let mut place = Place {
        netns: 0,
        from: from::NOTHING,
        cookie: 0,
        device: core::ptr::null(),
    };
    place.take::<A>(&SOCK_NET, sk, from::RECEIVER);
    place
}

/// Of a device that the packet is certainly on.
#[inline(always)]
pub fn of_device<A: Access>(device: *const u8) -> Place {
    let mut place = Place {
        netns: 0,
        from: from::NOTHING,
        cookie: 0,
        device,
    };
    place.take::<A>(&DEV_NET, device, from::DEVICE);
    place
}

impl Place {
    #[inline(always)]
    fn take<A: Access>(&mut self, net_of: &KernelField<u64>, owner: *const u8, from: u16) {
        let net = net_of.pointer::<A>(owner);
        if net.is_null() {
            return;
        }
        let inode = NET_INODE.read::<A>(net).unwrap_or(0);
        if inode < LOWEST_INODE {
            return;
        }
        self.netns = inode;
        self.cookie = NET_COOKIE.read::<A>(net).unwrap_or(0);
        self.from = from;
    }

    /// By the route's device, unless that is gone: then the kernel has put its "blackhole" device there, which is in
    /// the host's namespace and has no index.
    #[inline(always)]
    fn take_route<A: Access>(&mut self, skb: *const u8) {
        let Some(route) = route::<A>(skb) else { return };
        let device = DST_DEV.pointer::<Probed>(route);
        if device.is_null() || DEV_IFINDEX.read::<Probed>(device).unwrap_or(0) == 0 {
            return;
        }
        self.take::<Probed>(&DEV_NET, device, from::ROUTE);
    }
}

/// The low bits of the word are flags, so it is a number to the verifier and not a pointer: read it by helper only.
#[inline(always)]
fn route<A: Access>(skb: *const u8) -> Option<*const u8> {
    let route = SKB_DST.read::<A>(skb).unwrap_or(0) & !7;
    if route == 0 { None } else { Some(route as *const u8) }
}

/// The device that the packet's route leads to; NULL: it has no route.
#[inline(always)]
pub fn route_device<A: Access>(skb: *const u8) -> *const u8 {
    match route::<A>(skb) {
        Some(route) => DST_DEV.pointer::<Probed>(route),
        None => core::ptr::null(),
    }
}

/// What the packet's route does with it on its way in, 0: it has no route.
#[inline(always)]
pub fn route_input<A: Access>(skb: *const u8) -> u64 {
    match route::<A>(skb) {
        Some(route) => DST_INPUT.read::<Probed>(route).unwrap_or(0),
        None => 0,
    }
}
