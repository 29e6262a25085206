//! Both ends of a connection, as records carry them.

record! {
    /// Of a socket: its own end first. Of a packet: its sender first. 40 bytes.
    #[derive(Debug, PartialEq, Eq)]
    pub struct Connection {
        /// As `family` says: 4 bytes and 12 of nothing, or 16.
        pub saddr: [u8; 16],
        pub daddr: [u8; 16],
        /// Host byte order.
        pub sport: u16,
        pub dport: u16,
        /// [`AF_INET`] or [`AF_INET6`] (whose address may be a mapped IPv4 one); others: nothing is known.
        pub family: u16,
        /// The socket's state as the kernel numbers it (`TCP_ESTABLISHED` is 1), 0: there is no socket.
        pub state: u8,
        pub pad: u8,
    }
}

pub const AF_INET: u16 = 2;
pub const AF_INET6: u16 = 10;

/// States that programs tell apart.
pub mod state {
    pub const ESTABLISHED: u8 = 1;
    pub const SYN_SENT: u8 = 2;
    pub const SYN_RECV: u8 = 3;
    pub const FIN_WAIT1: u8 = 4;
    pub const FIN_WAIT2: u8 = 5;
    pub const TIME_WAIT: u8 = 6;
    pub const CLOSE: u8 = 7;
    pub const LISTEN: u8 = 10;
    pub const NEW_SYN_RECV: u8 = 12;
}

const _: () = assert!(size_of::<Connection>() == 40);
