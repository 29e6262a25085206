use std::io::{Read as _, Write as _};

use super::*;

fn value(round: &Round, column: &str, pod: &str) -> i64 {
    round.value("tcpext", column, pod, &[])
}

#[test]
fn a_syn_that_is_lost_is_sent_again_and_counted() {
    let Some((_lab, client, server)) = pair("synretrans") else {
        return;
    };
    rule(&server, "input", 0, "tcp flags syn drop");
    let mut collector = Collector::of(&[&client, &server]);
    for family in FAMILIES {
        let before = collector.read();
        let attempts: Vec<_> = (0..3)
            .map(|_| sockets::tcp_start_connect(&client, 0, server.socket(family, 80)).unwrap())
            .collect();
        let round = until(&mut collector, "3 SYN again", |r| {
            value(r, "syn_retransmits", "client") - value(&before, "syn_retransmits", "client") >= 3
        });
        drop(attempts);
        let after = collector.read();
        assert!(value(&round, "syn_retransmits", "client") - value(&before, "syn_retransmits", "client") <= 6);
        assert_eq!(
            value(&after, "syn_retransmits", "client"),
            nstat(&client, "TcpExtTCPSynRetrans")
        );
        assert_eq!(moved(&before, &after, "tcpext", "syn_retransmits", "server", &[]), 0);
    }
}

#[test]
fn segments_out_of_order_are_counted_exactly() {
    let Some((_lab, client, server)) = pair("outoforder") else {
        return;
    };
    // One that does not pace: what waits for its time would be put together into one segment.
    client.sysctl("net.ipv4.tcp_congestion_control", "reno").unwrap();
    for family in FAMILIES {
        let listener = sockets::tcp_listen(&server, family, 80, 5).unwrap();
        let mut ends: Vec<_> = (0..4)
            .map(|_| {
                let near = connect(&client, &server, family, 80);
                near.set_nodelay(true).unwrap();
                (near, listener.accept().unwrap().0)
            })
            .collect();
        let mut collector = Collector::of(&[&client, &server]);
        let before = collector.read();
        // Of all segments only those with 701 bytes of data are lost, also when they are sent again.
        let headers = if family == Family::V4 { 52 } else { 72 };
        let lost = format!("meta length {} counter name told drop", headers + 701);
        rule(&server, "prerouting", 0, &lost);
        for (near, _) in &mut ends {
            near.write_all(&[b'x'; 701]).unwrap();
            near.write_all(&[b'x'; 11]).unwrap();
        }
        // The one behind it waits out of order, in each connection.
        let round = until(&mut collector, "4 out of order", |r| {
            moved(&before, r, "tcpext", "out_of_order_queued", "server", &[]) >= 4
        });
        assert!(server.nft_counter("told").unwrap().packets >= 4);
        assert_eq!(
            moved(&before, &round, "tcpext", "out_of_order_queued", "server", &[]),
            4
        );
        assert_eq!(
            value(&round, "out_of_order_queued", "server"),
            nstat(&server, "TcpExtTCPOFOQueue")
        );
        assert_eq!(moved(&before, &round, "tcpext", "out_of_order_drops", "server", &[]), 0);
        server.nft("delete table inet t").unwrap();
        for (_, far) in &mut ends {
            far.read_exact(&mut [0; 712]).unwrap();
        }
    }
}

#[test]
fn handshakes_that_fail_are_told_apart() {
    let Some((_lab, client, server)) = pair("handshakes") else {
        return;
    };
    let mut collector = Collector::of(&[&client, &server]);
    for family in FAMILIES {
        // A queue of two: what comes then is dropped.
        let listener = sockets::tcp_listen(&server, family, 80, 1).unwrap();
        let near: Vec<_> = (0..2).map(|_| connect(&client, &server, family, 80)).collect();
        until(&mut collector, "2 to wait", |r| {
            r.value("tcpsockets", "accept_queue", "server", &[]) == 2
        });
        let before = collector.read();
        for count in 1..=3 {
            let attempt = sockets::tcp_start_connect(&client, 0, server.socket(family, 80)).unwrap();
            until(&mut collector, "an overflow", |r| {
                moved(&before, r, "tcpext", "listen_overflows", "server", &[]) >= count
            });
            drop(attempt);
        }
        let after = collector.read();
        assert_eq!(moved(&before, &after, "tcpext", "listen_overflows", "server", &[]), 3);
        assert_eq!(moved(&before, &after, "tcpext", "listen_drops", "server", &[]), 3);
        assert_eq!(
            value(&after, "listen_overflows", "server"),
            nstat(&server, "TcpExtListenOverflows")
        );
        drop((near, listener));

        // Half-open connections that the client's kernel resets: its socket is gone when the answer comes.
        let _listener = sockets::tcp_listen(&server, family, 81, 10).unwrap();
        rule(&client, "input", 0, "tcp sport 81 drop");
        let before = collector.read();
        let begun: Vec<_> = (0..4)
            .map(|_| sockets::tcp_start_connect(&client, 0, server.socket(family, 81)).unwrap())
            .collect();
        until(&mut collector, "4 half open", |r| {
            r.value("tcpsummary", "sockets", "server", &["new_syn_recv"]) == 4
        });
        drop(begun);
        client.nft("delete table inet t").unwrap();
        // The server repeats its SYN-ACK after a second.
        let after = until(&mut collector, "4 resets", |r| {
            moved(&before, r, "tcpext", "embryonic_resets", "server", &[]) >= 4
        });
        assert_eq!(moved(&before, &after, "tcpext", "embryonic_resets", "server", &[]), 4);
        assert_eq!(
            value(&after, "embryonic_resets", "server"),
            nstat(&server, "TcpExtEmbryonicRsts")
        );
        assert_eq!(after.value("tcpsummary", "sockets", "server", &["new_syn_recv"]), 0);
    }
}

#[test]
fn syn_cookies_are_counted_when_the_queue_of_half_open_connections_is_full() {
    let Some((_lab, client, server)) = pair("cookies") else {
        return;
    };
    // 2: always.
    server.sysctl("net.ipv4.tcp_syncookies", "2").unwrap();
    let mut collector = Collector::of(&[&client, &server]);
    for family in FAMILIES {
        let _listener = sockets::tcp_listen(&server, family, 80, 20).unwrap();
        let before = collector.read();
        let _near: Vec<_> = (0..5).map(|_| connect(&client, &server, family, 80)).collect();
        let after = until(&mut collector, "5 cookies back", |r| {
            moved(&before, r, "tcpext", "syncookies_received", "server", &[]) >= 5
        });
        for (column, count, theirs) in [
            ("syncookies_sent", 5, "TcpExtSyncookiesSent"),
            ("syncookies_received", 5, "TcpExtSyncookiesRecv"),
            ("syncookies_failed", 0, "TcpExtSyncookiesFailed"),
        ] {
            assert_eq!(
                moved(&before, &after, "tcpext", column, "server", &[]),
                count,
                "{column}"
            );
            assert_eq!(value(&after, column, "server"), nstat(&server, theirs), "{column}");
        }
    }
}

#[test]
fn connections_that_find_no_room_in_time_wait_are_counted() {
    let Some((_lab, client, server)) = pair("timewait") else {
        return;
    };
    client.sysctl("net.ipv4.tcp_max_tw_buckets", "0").unwrap();
    let mut collector = Collector::of(&[&client, &server]);
    for family in FAMILIES {
        let listener = sockets::tcp_listen(&server, family, 80, 20).unwrap();
        let before = collector.read();
        for _ in 0..5 {
            let near = connect(&client, &server, family, 80);
            let (mut far, _) = listener.accept().unwrap();
            near.shutdown(std::net::Shutdown::Write).unwrap();
            assert_eq!(far.read(&mut [0]).unwrap(), 0);
            // The one who closed first would wait.
            drop(far);
            drop(near);
        }
        let after = until(&mut collector, "5 without room", |r| {
            moved(&before, r, "tcpext", "time_wait_overflows", "client", &[]) >= 5
        });
        assert_eq!(
            moved(&before, &after, "tcpext", "time_wait_overflows", "client", &[]),
            5
        );
        assert_eq!(
            value(&after, "time_wait_overflows", "client"),
            nstat(&client, "TcpExtTCPTimeWaitOverflow")
        );
        assert_eq!(after.value("tcpsummary", "sockets", "client", &["time_wait"]), 0);
    }
}
