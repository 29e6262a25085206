//! Both ends of a connection, from a record to an observation.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use sonde_ebpf_common::connection::{AF_INET, AF_INET6, Connection};

use crate::event::Observation;

/// Fills in addresses, ports and state of a TCP connection.
pub(super) fn fill(seen: &mut Observation, connection: &Connection) {
    seen.protocol = Some("TCP".into());
    seen.saddr = address(connection.family, connection.saddr);
    seen.daddr = address(connection.family, connection.daddr);
    // An unbound or unconnected socket has port 0.
    seen.sport = Some(connection.sport).filter(|port| *port != 0);
    seen.dport = Some(connection.dport).filter(|port| *port != 0);
    seen.state = state(connection.state);
}

/// An IPv4 address that an IPv6 socket has mapped is an IPv4 address.
fn address(family: u16, bytes: [u8; 16]) -> Option<IpAddr> {
    match family {
        AF_INET => {
            let [a, b, c, d, ..] = bytes;
            Some(Ipv4Addr::new(a, b, c, d).into())
        }
        AF_INET6 => Some(IpAddr::from(Ipv6Addr::from(bytes)).to_canonical()),
        _ => None,
    }
}

/// By the kernel's name; the numbers are part of its interface (`include/net/tcp_states.h`).
fn state(number: u8) -> Option<Arc<str>> {
    const NAMES: [&str; 14] = [
        "",
        "TCP_ESTABLISHED",
        "TCP_SYN_SENT",
        "TCP_SYN_RECV",
        "TCP_FIN_WAIT1",
        "TCP_FIN_WAIT2",
        "TCP_TIME_WAIT",
        "TCP_CLOSE",
        "TCP_CLOSE_WAIT",
        "TCP_LAST_ACK",
        "TCP_LISTEN",
        "TCP_CLOSING",
        "TCP_NEW_SYN_RECV",
        "TCP_BOUND_INACTIVE",
    ];
    match NAMES.get(usize::from(number)) {
        Some(&"") => None,
        Some(name) => Some((*name).into()),
        None => Some(format!("STATE_{number}").into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connection() -> Connection {
        let mut connection = Connection {
            saddr: [0; 16],
            daddr: [0; 16],
            sport: 4660,
            dport: 443,
            family: AF_INET,
            state: 1,
            pad: 0,
        };
        connection.saddr[..4].copy_from_slice(&[10, 0, 0, 1]);
        connection.daddr[..4].copy_from_slice(&[10, 0, 0, 2]);
        connection
    }

    fn filled(connection: &Connection) -> Observation {
        let mut seen = Observation::default();
        fill(&mut seen, connection);
        seen
    }

    #[test]
    fn both_families_and_mapped_addresses_are_told_as_what_they_are() {
        let seen = filled(&connection());
        assert_eq!(seen.saddr, Some("10.0.0.1".parse().unwrap()));
        assert_eq!((seen.sport, seen.dport), (Some(4660), Some(443)));
        assert_eq!(seen.state.as_deref(), Some("TCP_ESTABLISHED"));

        let six = |address: &str| address.parse::<Ipv6Addr>().unwrap().octets();
        let seen = filled(&Connection {
            family: AF_INET6,
            saddr: six("fd00::1"),
            daddr: six("::ffff:10.0.0.2"),
            ..connection()
        });
        assert_eq!(seen.saddr, Some("fd00::1".parse().unwrap()));
        assert_eq!(seen.daddr, Some("10.0.0.2".parse().unwrap()));
    }

    #[test]
    fn what_is_not_known_is_absent() {
        let seen = filled(&Connection {
            family: 1,
            sport: 0,
            state: 0,
            ..connection()
        });
        assert_eq!((seen.saddr, seen.sport, seen.state), (None, None, None));
        let later = filled(&Connection {
            state: 99,
            ..connection()
        });
        assert_eq!(later.state.as_deref(), Some("STATE_99"));
    }
}
