use super::*;

#[test]
fn datagrams_that_find_no_room_or_no_listener_are_told_apart() {
    let Some((_lab, client, server)) = pair("udp") else {
        return;
    };
    let mut collector = Collector::of(&[&client, &server]);
    for family in FAMILIES {
        let labels = [label(family)];
        let small = sockets::udp_small(&server, family, 4_000).unwrap();
        let sender = sockets::udp(&client, family, 4_001).unwrap();
        let before = collector.read();
        assert_eq!(
            sockets::send(&sender, server.socket(family, 4_000), 40, 512).accepted,
            40
        );
        assert_eq!(sockets::send(&sender, server.socket(family, 4_999), 6, 10).accepted, 6);
        let round = until(&mut collector, "6 without a listener", |r| {
            moved(&before, r, "udp", "no_ports", "server", &labels) == 6
        });
        let dropped = moved(&before, &round, "udp", "receive_buffer_errors", "server", &labels);
        assert!((1..40).contains(&dropped), "{dropped}");
        // All the others can be read, and count as received when they are.
        assert_eq!(sockets::drain(&small).unwrap() as i64, 40 - dropped);
        let after = collector.read();
        for (column, pod, expected) in [
            ("sent_datagrams", "client", 46),
            ("received_datagrams", "server", 40 - dropped),
            ("received_errors", "server", dropped),
            ("receive_buffer_errors", "server", dropped),
            ("checksum_errors", "server", 0),
        ] {
            assert_eq!(
                moved(&before, &after, "udp", column, pod, &labels),
                expected,
                "{column} of {pod}, {family}"
            );
        }
        let group = if family == Family::V4 { "Udp" } else { "Udp6" };
        for (ours, theirs) in [
            ("receive_buffer_errors", "RcvbufErrors"),
            ("received_errors", "InErrors"),
            ("no_ports", "NoPorts"),
        ] {
            let value = after.value("udp", ours, "server", &labels);
            assert_eq!(value, nstat(&server, &format!("{group}{theirs}")), "{theirs}");
        }
    }
}

#[test]
fn a_multicast_datagram_that_no_socket_wants_is_counted() {
    let Some((_lab, client, server)) = pair("udpmulti") else {
        return;
    };
    let mut collector = Collector::of(&[&client, &server]);
    for family in FAMILIES {
        let labels = [label(family)];
        let sender = sockets::udp(&client, family, 4_001).unwrap();
        // All hosts of the wire: every stack is in that group.
        let group: std::net::SocketAddr = match family {
            Family::V4 => "224.0.0.1:4000".parse().unwrap(),
            Family::V6 => "[ff02::1]:4000".parse().unwrap(),
        };
        let socket = socket2::SockRef::from(&sender);
        let index = client.run(|| nix::net::if_::if_nametoindex("eth0").unwrap()).unwrap();
        match family {
            Family::V4 => {
                let std::net::IpAddr::V4(own) = client.address(family) else {
                    unreachable!("asked for IPv4")
                };
                socket.set_multicast_if_v4(&own).unwrap();
            }
            Family::V6 => socket.set_multicast_if_v6(index).unwrap(),
        }
        let before = collector.read();
        assert_eq!(sockets::send(&sender, group, 7, 10).accepted, 7);
        let after = until(&mut collector, "7 to be ignored", |r| {
            moved(&before, r, "udp", "ignored_multicast", "server", &labels) >= 7
        });
        assert_eq!(moved(&before, &after, "udp", "ignored_multicast", "server", &labels), 7);
        let theirs = if family == Family::V4 {
            "UdpIgnoredMulti"
        } else {
            "Udp6IgnoredMulti"
        };
        assert_eq!(
            after.value("udp", "ignored_multicast", "server", &labels),
            nstat(&server, theirs)
        );
    }
}
