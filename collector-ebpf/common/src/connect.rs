//! Probe `connect`: map keys and values.

/// How an attempt to connect ended.
pub mod result {
    pub const ESTABLISHED: u16 = 0;
    pub const REFUSED: u16 = 1;
    pub const TIMEOUT: u16 = 2;
    pub const RESET: u16 = 3;
    pub const UNREACHABLE: u16 = 4;
    /// The socket was closed, or the connecting given up, while it had no answer.
    pub const ABORTED: u16 = 5;
    pub const OTHER: u16 = 6;

    /// By `sk_err` of the socket that goes from SYN_SENT to CLOSE. Numbers of include/uapi/asm-generic/errno.h.
    #[inline(always)]
    pub const fn of_error(error: u32) -> u16 {
        const EACCES: u32 = 13;
        const ENONET: u32 = 64;
        const ENETUNREACH: u32 = 101;
        const ECONNRESET: u32 = 104;
        const ETIMEDOUT: u32 = 110;
        const ECONNREFUSED: u32 = 111;
        const EHOSTDOWN: u32 = 112;
        const EHOSTUNREACH: u32 = 113;
        match error {
            0 => ABORTED,
            ECONNREFUSED => REFUSED,
            ETIMEDOUT => TIMEOUT,
            ECONNRESET => RESET,
            // What ICMP's "unreachable" becomes; a forbidding one of ICMPv6 is EACCES.
            EACCES | ENONET | ENETUNREACH | EHOSTDOWN | EHOSTUNREACH => UNREACHABLE,
            _ => OTHER,
        }
    }
}

record! {
    /// What attempts are counted by. 16 bytes.
    #[derive(Debug, PartialEq, Eq, Hash)]
    pub struct Key {
        pub cookie: u64,
        pub netns: u32,
        /// AF_INET or AF_INET6, as it is on the wire.
        pub family: u16,
        /// See [`result`].
        pub result: u16,
    }
}

const _: () = assert!(size_of::<Key>() == 16);

#[cfg(test)]
mod tests {
    use super::result::*;

    #[test]
    fn errors_are_told_apart_by_the_kernels_numbers() {
        let all = [0, 111, 110, 104, 113, 101, 13, 98].map(of_error);
        assert_eq!(
            all,
            [
                ABORTED,
                REFUSED,
                TIMEOUT,
                RESET,
                UNREACHABLE,
                UNREACHABLE,
                UNREACHABLE,
                OTHER
            ]
        );
    }
}
