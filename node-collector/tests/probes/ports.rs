use super::*;

#[test]
fn ephemeral_ports_are_told_until_none_is_left() {
    let Some((_lab, client, server)) = pair("ports") else {
        return;
    };
    client.sysctl("net.ipv4.ip_local_port_range", "50000 50009").unwrap();
    client
        .sysctl("net.ipv4.ip_local_reserved_ports", "50003,50006-50007,60000")
        .unwrap();
    let mut collector = Collector::of(&[&client, &server]);
    let value = |round: &Round, column: &str| round.value("ports", column, "client", &[]);
    for family in FAMILIES {
        client.sysctl("net.ipv4.tcp_max_tw_buckets", "1000").unwrap();
        let _listeners = [80, 81].map(|port| sockets::tcp_listen(&server, family, port, 100).unwrap());
        let round = collector.read();
        assert_eq!(
            (
                value(&round, "range_first"),
                value(&round, "range_last"),
                value(&round, "available")
            ),
            (50_000, 50_009, 7)
        );
        assert_eq!(
            (
                value(&round, "tcp_in_use"),
                value(&round, "tcp_most_to_one_destination")
            ),
            (0, 0)
        );
        assert_eq!(
            round.value("ports", "available", "server", &[]),
            28_232,
            "each namespace has its own range"
        );

        // Unbound sockets: the kernel chooses the port when they connect.
        let try_connect = |port: u16| {
            client
                .run(|| std::net::TcpStream::connect_timeout(&server.socket(family, port), PATIENCE))
                .unwrap()
        };
        let mut near: Vec<_> = (0..4).map(|_| try_connect(80).unwrap()).collect();
        near.push(try_connect(81).unwrap());
        let round = collector.read();
        assert_eq!(value(&round, "tcp_most_to_one_destination"), 4);
        let mut ports: Vec<u16> = near.iter().map(|s| s.local_addr().unwrap().port()).collect();
        ports.sort_unstable();
        ports.dedup();
        assert_eq!(value(&round, "tcp_in_use"), ports.len() as i64);

        near.extend((0..3).map(|_| try_connect(80).unwrap()));
        let round = collector.read();
        assert_eq!(
            (
                value(&round, "tcp_most_to_one_destination"),
                value(&round, "tcp_in_use")
            ),
            (7, 7)
        );
        let error = try_connect(80).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EADDRNOTAVAIL), "{error}");
        // Elsewhere there is room yet.
        near.push(try_connect(81).unwrap());

        // A port is held after its connection is closed.
        drop(near);
        let round = until(&mut collector, "TIME_WAIT", |r| {
            r.value("tcpsummary", "sockets", "client", &["time_wait"])
                + r.value("tcpsummary", "sockets", "client", &["fin_wait2"])
                == 9
        });
        assert_eq!(
            (
                value(&round, "tcp_most_to_one_destination"),
                value(&round, "tcp_in_use")
            ),
            (7, 7)
        );
        // The server ends its side, so that only TIME_WAIT is left; then it is made to go for the other family.
        drop(_listeners);
        client.sysctl("net.ipv4.tcp_max_tw_buckets", "0").unwrap();
        client.command("ss", &["-K", "-t", "-a"]).unwrap();
        until(&mut collector, "nothing left", |r| value(r, "tcp_in_use") == 0);
    }
}
