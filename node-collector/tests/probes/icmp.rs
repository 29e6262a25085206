use super::*;

fn ping(from: &Pod, to: &Pod, family: Family, count: u32) {
    let (count, to) = (count.to_string(), to.address(family).to_string());
    from.command("ping", &["-q", "-c", &count, "-i", "0.01", &to]).unwrap();
}

#[test]
fn echoes_are_counted_on_both_sides() {
    let Some((_lab, client, server)) = pair("icmp") else {
        return;
    };
    let mut collector = Collector::of(&[&client, &server]);
    for family in FAMILIES {
        let before = collector.read();
        ping(&client, &server, family, 6);
        let after = collector.read();
        let moved = |column: &str, pod: &str| moved(&before, &after, "icmp", column, pod, &[label(family)]);
        for (column, pod, count) in [
            ("sent_echo_requests", "client", 6),
            ("received_echo_requests", "server", 6),
            ("sent_echo_replies", "server", 6),
            ("received_echo_replies", "client", 6),
            ("received_messages", "server", 6),
            ("sent_echo_requests", "server", 0),
            ("received_errors", "server", 0),
        ] {
            assert_eq!(moved(column, pod), count, "{column} of {pod}, {family}");
        }
        let theirs = match family {
            Family::V4 => "IcmpInEchos",
            Family::V6 => "Icmp6InEchos",
        };
        assert_eq!(
            after.value("icmp", "received_echo_requests", "server", &[label(family)]),
            nstat(&server, theirs)
        );
    }
}

#[test]
fn a_closed_port_an_expired_packet_and_one_too_big_are_told_by_their_kinds() {
    let Some(lab) = Lab::for_test("icmp-errors") else {
        return;
    };
    let client = lab.pod("icmp", "client").unwrap();
    let server = lab.pod("icmp", "server").unwrap();
    let router = lab.router("icmp", "router").unwrap();
    let near = lab.link(&client, &router).unwrap();
    let far = lab.link(&router, &server).unwrap();
    for family in FAMILIES {
        let flag = if family == Family::V4 { "-4" } else { "-6" };
        client
            .ip(&format!("{flag} route add default via {}", near.b.address(family)))
            .unwrap();
        server
            .ip(&format!("{flag} route add default via {}", far.a.address(family)))
            .unwrap();
        // Every message counts: no limit of their rate.
        for pod in [&client, &router, &server] {
            match family {
                Family::V4 => pod.sysctl("net.ipv4.icmp_ratelimit", "0").unwrap(),
                Family::V6 => pod.sysctl("net.ipv6.icmp.ratelimit", "0").unwrap(),
            }
        }
    }
    router.ip(&format!("link set {} mtu 1300", far.a.name)).unwrap();
    let mut collector = Collector::of(&[&client, &router, &server]);
    for family in FAMILIES {
        let labels = [label(family)];
        let sender = sockets::udp(&client, family, 0).unwrap();

        let before = collector.read();
        sockets::send(&sender, server.socket(family, 4_999), 4, 10);
        let after = until(&mut collector, "closed port", |r| {
            moved(&before, r, "icmp", "received_unreachable", "client", &labels) >= 4
        });
        assert_eq!(
            moved(&before, &after, "icmp", "received_unreachable", "client", &labels),
            4
        );
        assert_eq!(moved(&before, &after, "icmp", "sent_unreachable", "server", &labels), 4);
        assert_eq!(moved(&before, &after, "udp", "no_ports", "server", &labels), 4);

        sockets::set_hops(&sender, family, 1).unwrap();
        let before = collector.read();
        sockets::send(&sender, server.socket(family, 4_999), 3, 10);
        let after = until(&mut collector, "expired", |r| {
            moved(&before, r, "icmp", "received_time_exceeded", "client", &labels) >= 3
        });
        assert_eq!(
            moved(&before, &after, "icmp", "received_time_exceeded", "client", &labels),
            3
        );
        assert_eq!(
            moved(&before, &after, "icmp", "sent_time_exceeded", "router", &labels),
            3
        );
        assert_eq!(moved(&before, &after, "ip", "header_errors", "router", &labels), 3);

        // 1,400 bytes and not to be fragmented do not fit the second wire.
        sockets::set_hops(&sender, family, 64).unwrap();
        let before = collector.read();
        never_fragment(&sender, family);
        sockets::send(&sender, server.socket(family, 4_999), 2, 1_400);
        match family {
            Family::V4 => {
                let after = until(&mut collector, "too big", |r| {
                    moved(&before, r, "icmp", "received_unreachable", "client", &labels) >= 2
                });
                assert_eq!(moved(&before, &after, "icmp", "sent_unreachable", "router", &labels), 2);
                assert_eq!(
                    moved(&before, &after, "ip", "fragmentation_failures", "router", &labels),
                    2
                );
                assert_eq!(
                    nstat(&router, "IpFragFails"),
                    after.value("ip", "fragmentation_failures", "router", &labels)
                );
            }
            Family::V6 => {
                let after = until(&mut collector, "too big", |r| {
                    moved(&before, r, "icmp", "received_too_big", "client", &labels) >= 2
                });
                assert_eq!(moved(&before, &after, "icmp", "received_too_big", "client", &labels), 2);
                assert_eq!(moved(&before, &after, "icmp", "sent_too_big", "router", &labels), 2);
                assert_eq!(moved(&before, &after, "ip", "too_big_errors", "router", &labels), 2);
                assert_eq!(
                    nstat(&router, "Ip6InTooBigErrors"),
                    after.value("ip", "too_big_errors", "router", &labels)
                );
            }
        }
    }
}

/// Sends with the don't fragment bit and whatever the path's MTU was found to be.
fn never_fragment(socket: &std::net::UdpSocket, family: Family) {
    use std::os::fd::AsRawFd as _;
    let (level, name, value): (_, _, libc::c_int) = match family {
        Family::V4 => (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_PROBE),
        Family::V6 => (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_PROBE),
    };
    // SAFETY: the value lives through the call and its length is its own.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            (&raw const value).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}
