//! The beginning of a packet, for events that name its ends.

/// Enough for IP options, extension headers and the ports behind them.
pub const PACKET_BYTES: usize = 128;

record! {
    /// From the network header on, VLAN tags left out. 136 bytes.
    #[derive(Debug)]
    pub struct Packet {
        /// EtherType of what `bytes` begin with, network byte order. 0: not known.
        pub ethertype: u16,
        /// Bytes that are the packet's (linear data only).
        pub captured: u16,
        pub pad: u32,
        pub bytes: [u8; PACKET_BYTES],
    }
}

const _: () = assert!(size_of::<Packet>() == 136);
