use std::io;

use socket2::{Domain, Protocol, Socket, Type};

use super::*;

/// The table itself, a line for each connection.
fn lines(pod: &Pod) -> i64 {
    pod.run(|| {
        std::fs::read_to_string("/proc/thread-self/net/nf_conntrack")
            .unwrap()
            .lines()
            .count() as i64
    })
    .unwrap()
}

/// Resets of connections that nobody has, as raw segments.
fn stray_resets(from: &Pod, to: &Pod, family: Family, count: u16) -> io::Result<()> {
    let (domain, target, source) = match family {
        Family::V4 => (Domain::IPV4, to.socket(family, 0), from.address(family)),
        Family::V6 => (Domain::IPV6, to.socket(family, 0), from.address(family)),
    };
    let socket = from
        .run(|| Socket::new(domain, Type::RAW, Some(Protocol::TCP)))
        .unwrap()?;
    for i in 0..count {
        let mut segment = [0u8; 20];
        segment[..2].copy_from_slice(&(40_000 + i).to_be_bytes());
        segment[2..4].copy_from_slice(&80u16.to_be_bytes());
        segment[12] = 5 << 4;
        segment[13] = 0x04; // RST
        let checksum = checksum(source, target.ip(), &segment);
        segment[16..18].copy_from_slice(&checksum.to_be_bytes());
        socket.send_to(&segment, &target.into())?;
    }
    Ok(())
}

fn checksum(from: std::net::IpAddr, to: std::net::IpAddr, segment: &[u8]) -> u16 {
    let bytes = |ip: std::net::IpAddr| match ip {
        std::net::IpAddr::V4(ip) => ip.octets().to_vec(),
        std::net::IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let pseudo = [
        bytes(from),
        bytes(to),
        vec![0, 6],
        (segment.len() as u16).to_be_bytes().to_vec(),
    ]
    .concat();
    let words = pseudo.chunks(2).chain(segment.chunks(2));
    let mut sum: u32 = words.map(|w| u32::from(u16::from_be_bytes([w[0], w[1]]))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[test]
fn entries_and_refusals_belong_to_their_namespace() {
    let Some((_lab, client, server)) = pair("conntrack") else {
        return;
    };
    rule(&server, "input", 0, "ct state invalid counter name told drop");
    let mut collector = Collector::of(&[&client, &server]);
    let value = |round: &Round, column: &str, pod: &str| round.value("conntrack", column, pod, &[]);
    let limit: i64 = std::fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_max")
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    let mut expected = 0;
    for family in FAMILIES {
        let before = collector.read();
        let invalid_before = server.nft_counter("told").unwrap().packets;
        assert_eq!(value(&before, "entries", "server"), expected);
        for port in 0..9 {
            let sender = sockets::udp(&client, family, 5_000 + port).unwrap();
            // Twice: the second datagram is of the connection that is tracked.
            assert_eq!(sockets::send(&sender, server.socket(family, 4_000), 2, 10).accepted, 2);
        }
        expected += 9;
        let round = until(&mut collector, "9 connections", |r| {
            value(r, "entries", "server") == expected
        });
        assert_eq!(lines(&server), expected, "the table itself");
        assert_eq!(value(&round, "entries_limit", "server"), limit);
        for column in ["invalid", "inserts", "insert_failures", "drops", "early_drops"] {
            assert_eq!(
                moved(&before, &round, "conntrack", column, "server", &[]),
                0,
                "{column}"
            );
        }
        stray_resets(&client, &server, family, 7).unwrap();
        let round = until(&mut collector, "7 invalid packets", |r| {
            value(r, "invalid", "server") - value(&before, "invalid", "server") == 7
        });
        assert_eq!(server.nft_counter("told").unwrap().packets - invalid_before, 7);
        // Where no rule needs it nothing is tracked, on the same wire and the same kernel.
        assert_eq!(
            (value(&round, "entries", "client"), value(&round, "invalid", "client")),
            (0, 0)
        );
    }
}
