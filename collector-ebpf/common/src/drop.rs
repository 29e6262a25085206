//! Probe `packetloss`: map keys, counts and the event record.

use crate::record::Head;

record! {
    /// What drops are counted by. 32 bytes.
    #[derive(Debug, PartialEq, Eq, Hash)]
    pub struct CountKey {
        /// Inodes of network namespaces are reused at once; cookies never.
        pub cookie: u64,
        pub site: Site,
        /// Inode; 0: the packet does not tell.
        pub netns: u32,
        pub pad: u32,
    }
}

record! {
    /// What the class of a drop follows from.
    #[derive(Debug, PartialEq, Eq, Hash)]
    pub struct Site {
        /// Kernel address that freed the packet.
        pub location: u64,
        /// `enum skb_drop_reason` of the running kernel, [`NO_REASON`] where the kernel gives none.
        pub reason: u32,
        /// See [`detail`]; 0 where the class does not need it.
        pub detail: u32,
    }
}

/// 0 is SKB_NOT_DROPPED_YET on every kernel that has reasons, and never traced there.
pub const NO_REASON: u32 = 0;

/// A look into the packet, as coarse as the classification needs it.
pub mod detail {
    /// Looked, and found no IPv4 or IPv6 packet with TCP, UDP, ICMP or IGMP right behind the first header.
    pub const OTHER: u32 = 1;
    /// In bits 16 to 18: `skb->pkt_type`, whom the frame was for.
    pub const PKT_TYPE_SHIFT: u32 = 16;
    pub const PKT_TYPE: u32 = 7;
    pub const BROADCAST: u32 = 1;
    pub const MULTICAST: u32 = 2;
    pub const OTHERHOST: u32 = 3;
    /// In bits 8 to 15: the IP protocol number; in bits 0 to 7: TCP's flags below, or the ICMP type if it is one of
    /// those worth telling apart, else [`ICMP_REST`].
    pub const PROTOCOL_SHIFT: u32 = 8;
    /// FIN, SYN, RST and ACK as in the TCP header.
    pub const TCP_FLAGS: u8 = 0x17;
    pub const ICMP_REST: u32 = 255;

    pub const ICMP: u8 = 1;
    pub const IGMP: u8 = 2;
    pub const TCP: u8 = 6;
    pub const UDP: u8 = 17;
    pub const ICMPV6: u8 = 58;
}

record! {
    /// One CPU's count of a key. Only ever grows.
    #[derive(Debug, Default, PartialEq, Eq)]
    pub struct Count {
        pub skbs: u64,
        /// Packets on the wire beyond one for each skb: a GSO packet is one skb and several segments.
        pub more_segments: u64,
    }
}

impl Count {
    pub const fn add(&mut self, other: &Self) {
        self.skbs += other.skbs;
        self.more_segments += other.more_segments;
    }

    pub const fn segments(&self) -> u64 {
        self.skbs + self.more_segments
    }
}

/// How the kernel side treats a reason, one byte each in `REASONS`.
pub mod verdict {
    /// The class follows from the whole site: ask the map `SITES`.
    pub const BY_SITE: u8 = 0;
    pub const SUSPECT: u8 = 1;
    pub const PROTOCOL: u8 = 2;
    pub const BENIGN: u8 = 3;
    pub const CLASS: u8 = 3;
    /// The class needs a look into the packet.
    pub const DETAIL: u8 = 4;
    /// Reasons of the core have small numbers; those of subsystems (number in the upper half) are always by site.
    pub const REASONS: usize = 512;
}

/// Bytes of the packet that an event carries, from the network header on.
pub const PACKET_BYTES: usize = 128;

/// `Record::flags`.
pub mod flag {
    /// The site's class was not known yet when the packet was dropped.
    pub const NEW_SITE: u16 = 1;
    /// `skb->dev` was NULL.
    pub const NO_DEVICE: u16 = 2;
    /// The namespace comes from the receiving socket, `skb->dev`, `skb->sk` or the route, in bits 2 to 4.
    pub const FROM_SHIFT: u16 = 2;
}

record! {
    /// One dropped packet.
    pub struct Record {
        /// The running task is often the sender on a veth pair, while the receiver drops.
        pub head: Head,
        pub site: Site,
        /// Function that the route hands an incoming packet to (`ip_forward`, `ip_local_deliver`), 0: no route yet, or the
        /// packet has left the device that it came by.
        pub route_input: u64,
        /// Of `skb->dev`, 0 without one.
        pub ifindex: u32,
        /// Interface that the packet came in by, 0: made here.
        pub iif: u32,
        /// All of the packet from the header that the layer at work looks at.
        pub len: u32,
        pub segments: u32,
        /// EtherType, network byte order.
        pub protocol: u16,
        /// Offsets from the start of the buffer; 0xffff: not set.
        pub mac_header: u16,
        pub network_header: u16,
        pub transport_header: u16,
        /// Offset of `packet[0]`.
        pub start: u16,
        /// Bytes of `packet` that are the packet's (linear data only).
        pub captured: u16,
        pub flags: u16,
        pub pkt_type: u8,
        pub pad: u8,
        /// Of the running task. Zeroes for a packet that came in, and where there is no stack to show whose it is.
        pub comm: [u8; 16],
        pub device: [u8; 16],
        pub packet: [u8; PACKET_BYTES],
    }
}

const _: () = assert!(size_of::<CountKey>() == 32);
const _: () = assert!(size_of::<Record>() == 256);
