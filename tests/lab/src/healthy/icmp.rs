//! Echoes and neighbour discovery.

use std::io::{self, Read};

use socket2::{Domain, Protocol, Socket, Type};

use super::{Habit, LIMIT};
use crate::error::{At, Result};
use crate::flow::Family;
use crate::pod::Pod;

/// As root's `ping` does: every reply also goes through the kernel's own handler, which has no use for it.
pub(super) const PING_RAW: Habit = Habit {
    name: "ping-raw-socket",
    run: |client, server, family| ping(client, server, family, Type::RAW),
};

/// As an unprivileged `ping` does.
pub(super) const PING_SOCKET: Habit = Habit {
    name: "ping-socket",
    run: |client, server, family| {
        client.sysctl("net.ipv4.ping_group_range", "0 2147483647")?;
        ping(client, server, family, Type::DGRAM)
    },
};

/// Forgets all neighbours and finds them again: ARP, neighbour solicitation to a multicast address.
pub(super) const NEIGHBOURS_ANEW: Habit = Habit {
    name: "neighbours-anew",
    run: |client, server, family| {
        for pod in [client, server] {
            pod.ip("neigh flush dev eth0")?;
        }
        ping(client, server, family, Type::RAW)
    },
};

fn ping(client: &Pod, server: &Pod, family: Family, kind: Type) -> Result<()> {
    let to = server.socket(family, 0);
    let (domain, protocol, request, reply) = match family {
        Family::V4 => (Domain::IPV4, Protocol::ICMPV4, 8, 0),
        Family::V6 => (Domain::IPV6, Protocol::ICMPV6, 128, 129),
    };
    let exchange = || -> io::Result<()> {
        let socket = Socket::new(domain, kind, Some(protocol))?;
        socket.set_read_timeout(Some(LIMIT))?;
        for sequence in 1..=5 {
            socket.send_to(&echo(request, sequence), &to.into())?;
            loop {
                let mut buffer = [0; 256];
                let length = (&socket).read(&mut buffer)?;
                let bytes = &buffer[..length];
                // A raw IPv4 socket gets the IP header too, and everything that is ICMP.
                let skip = if family == Family::V4 && kind == Type::RAW {
                    20
                } else {
                    0
                };
                if bytes.get(skip) == Some(&reply) && bytes.get(skip + 6..skip + 8) == Some(&sequence.to_be_bytes()) {
                    break;
                }
            }
        }
        Ok(())
    };
    client
        .run(exchange)?
        .at(|| format!("ping from {client} to {server} over {family}"))
}

/// An echo request. The kernel writes the checksum of ICMPv6 and of ping sockets anew; a raw IPv4 socket needs this one.
fn echo(kind: u8, sequence: u16) -> Vec<u8> {
    let mut packet = vec![kind, 0, 0, 0, 0x53, 0x6f];
    packet.extend(sequence.to_be_bytes());
    packet.extend([0x61; 32]);
    let checksum = checksum(&packet);
    packet[2..4].copy_from_slice(&checksum.to_be_bytes());
    packet
}

/// RFC 1071.
fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = bytes
        .chunks(2)
        .map(|p| u32::from(p[0]) << 8 | p.get(1).copied().map_or(0, u32::from))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packet_with_its_checksum_sums_to_nothing() {
        assert_eq!(checksum(&echo(8, 3)), 0);
        assert_eq!(checksum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]), !0xddf2);
    }
}
