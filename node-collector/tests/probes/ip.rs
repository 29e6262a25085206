use super::*;

#[test]
fn fragments_are_counted_where_they_are_made_and_where_they_are_put_together() {
    let Some((_lab, client, server)) = pair("fragments") else {
        return;
    };
    let mut collector = Collector::of(&[&client, &server]);
    for family in FAMILIES {
        let labels = [label(family)];
        let sink = sockets::udp(&server, family, 4_000).unwrap();
        let sender = sockets::udp(&client, family, 0).unwrap();
        let before = collector.read();
        // 4,000 bytes over wires of 1,500: three fragments each.
        sockets::send(&sender, server.socket(family, 4_000), 5, 4_000);
        wait::until_true("datagrams to arrive", PATIENCE, || Ok(sockets::drain(&sink)? > 0)).unwrap();
        let after = until(&mut collector, "all put together", |r| {
            moved(&before, r, "ip", "reassembly_successes", "server", &labels) == 5
        });
        for (column, pod, count) in [
            ("fragmented_packets", "client", 5),
            ("created_fragments", "client", 15),
            ("reassembly_requests", "server", 15),
            ("reassembly_failures", "server", 0),
            ("fragmented_packets", "server", 0),
        ] {
            assert_eq!(
                moved(&before, &after, "ip", column, pod, &labels),
                count,
                "{column} of {pod}, {family}"
            );
        }
        let theirs = match family {
            Family::V4 => "IpReasmReqds",
            Family::V6 => "Ip6ReasmReqds",
        };
        assert_eq!(
            after.value("ip", "reassembly_requests", "server", &labels),
            nstat(&server, theirs)
        );

        // The second fragment alone is lost: the rest waits in vain.
        let middle = match family {
            Family::V4 => "ip frag-off & 0x1fff != 0 ip frag-off & 0x2000 != 0 drop",
            Family::V6 => "frag frag-off != 0 frag more-fragments 1 drop",
        };
        rule(&server, "prerouting", -450, middle);
        let key = match family {
            Family::V4 => "net.ipv4.ipfrag_time",
            Family::V6 => "net.ipv6.ip6frag_time",
        };
        server.sysctl(key, "1").unwrap();
        let before = collector.read();
        sockets::send(&sender, server.socket(family, 4_000), 2, 4_000);
        let after = until(&mut collector, "time to run out", |r| {
            moved(&before, r, "ip", "reassembly_timeouts", "server", &labels) >= 2
        });
        assert_eq!(
            moved(&before, &after, "ip", "reassembly_timeouts", "server", &labels),
            2
        );
        assert_eq!(
            moved(&before, &after, "ip", "reassembly_requests", "server", &labels),
            4
        );
        assert_eq!(
            moved(&before, &after, "ip", "reassembly_successes", "server", &labels),
            0
        );
        assert!(moved(&before, &after, "ip", "reassembly_failures", "server", &labels) >= 2);
        server.nft("delete table inet t").unwrap();
    }
}
