//! Datagrams as they should be.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use super::{Habit, LIMIT};
use crate::error::{At, Result};
use crate::flow::Family;
use crate::pod::Pod;
use crate::sockets;
use crate::wait;

const PORT: u16 = 7_101;

pub(super) const ECHO: Habit = Habit {
    name: "udp-echo",
    run: |client, server, family| {
        let there = sockets::udp(server, family, PORT)?;
        let here = sockets::udp(client, family, 0)?;
        let mut buffer = [0; 64];
        (|| {
            there.set_read_timeout(Some(LIMIT))?;
            here.set_read_timeout(Some(LIMIT))?;
            for _ in 0..20 {
                here.send_to(b"ping", server.socket(family, PORT))?;
                let (length, from) = there.recv_from(&mut buffer)?;
                there.send_to(&buffer[..length], from)?;
                here.recv_from(&mut buffer)?;
            }
            Ok::<_, std::io::Error>(())
        })()
        .at(|| format!("udp echo from {client} to {server} over {family}"))
    },
};

/// A program ends before it read all: the kernel frees what is left.
pub(super) const CLOSED_UNREAD: Habit = Habit {
    name: "udp-closed-unread",
    run: |client, server, family| {
        let counter = match family {
            Family::V4 => "IpExt.InOctets",
            Family::V6 => "Ip6.InOctets",
        };
        let there = sockets::udp(server, family, PORT + 1)?;
        let here = sockets::udp(client, family, 0)?;
        let before = server.counters()?;
        let sent = sockets::send(&here, server.socket(family, PORT + 1), 10, 100);
        assert_eq!(sent.accepted, 10, "{client}: {sent:?}");
        wait::until_true("ten datagrams to arrive", LIMIT, || {
            Ok(server.counters()?.since(&before, counter)? >= 10 * 100)
        })?;
        drop(there);
        Ok(())
    },
};

/// Datagrams to groups that the other end is in, and to one that it is not.
pub(super) const MULTICAST: Habit = Habit {
    name: "multicast",
    run: |client, server, family| multicast(client, server, family),
};

fn multicast(client: &Pod, server: &Pod, family: Family) -> Result<()> {
    let here = sockets::udp(client, family, 0)?;
    let there = sockets::udp(server, family, PORT + 2)?;
    let index = |pod: &Pod| pod.run(|| nix::net::if_::if_nametoindex("eth0").at(|| format!("{pod}: eth0")))?;
    let (here_index, there_index) = (index(client)?, index(server)?);
    let (joined, strange): (SocketAddr, SocketAddr) = match family {
        Family::V4 => (
            (Ipv4Addr::new(239, 1, 1, 1), PORT + 2).into(),
            (Ipv4Addr::new(239, 1, 1, 2), PORT + 2).into(),
        ),
        Family::V6 => (
            (Ipv6Addr::new(0xff05, 0, 0, 0, 0, 0, 1, 1), PORT + 2).into(),
            (Ipv6Addr::new(0xff05, 0, 0, 0, 0, 0, 1, 2), PORT + 2).into(),
        ),
    };
    (|| {
        there.set_read_timeout(Some(LIMIT))?;
        let sender = socket2::SockRef::from(&here);
        match joined {
            SocketAddr::V4(group) => {
                let receiver = socket2::SockRef::from(&there);
                let by_index = socket2::InterfaceIndexOrAddress::Index(there_index);
                receiver.join_multicast_v4_n(group.ip(), &by_index)?;
                sender.set_multicast_if_v4(&match client.address(family) {
                    std::net::IpAddr::V4(address) => address,
                    std::net::IpAddr::V6(_) => Ipv4Addr::UNSPECIFIED,
                })?;
            }
            SocketAddr::V6(group) => {
                there.join_multicast_v6(group.ip(), there_index)?;
                sender.set_multicast_if_v6(here_index)?;
            }
        }
        for _ in 0..5 {
            here.send_to(b"to all", strange)?;
            here.send_to(b"to all", joined)?;
            there.recv_from(&mut [0; 16])?;
        }
        Ok::<_, std::io::Error>(())
    })()
    .at(|| format!("multicast from {client} to {server} over {family}"))
}
