use std::io::{Read as _, Write as _};

use super::*;

fn value(round: &Round, column: &str, pod: &str) -> i64 {
    round.value("tcpsockets", column, pod, &[])
}

#[test]
fn bytes_that_nobody_read_or_acknowledged_are_told_exactly() {
    let Some((_lab, client, server)) = pair("tcpqueues") else {
        return;
    };
    for family in FAMILIES {
        let listener = sockets::tcp_listen(&server, family, 80, 10).unwrap();
        let mut near = connect(&client, &server, family, 80);
        let (mut far, _) = listener.accept().unwrap();
        let mut collector = Collector::of(&[&client, &server]);
        near.write_all(&[b'x'; 12_345]).unwrap();
        let round = until(&mut collector, "all to arrive", |r| {
            value(r, "receive_queue_bytes", "server") == 12_345
        });
        assert_eq!(value(&round, "send_queue_bytes", "server"), 0);
        let round = until(&mut collector, "all to be acknowledged", |r| {
            value(r, "send_queue_bytes", "client") == 0
        });
        assert_eq!(value(&round, "retransmits_in_flight", "client"), 0);
        // skmem of ss: r = memory of the receive queue, w = of the write queue, f = reserved, t = handed down.
        let lines = ss(&server, "-am");
        let skmem = |key: &str| -> i64 {
            let of = |line: &String| -> Option<i64> {
                let inner = line.split("skmem:(").nth(1)?.split(')').next()?;
                inner.split(',').find_map(|word| {
                    let digits = word.strip_prefix(key)?;
                    digits.parse().ok()
                })
            };
            lines.iter().filter_map(of).sum()
        };
        assert!(skmem("r") > 12_345, "{lines:?}");
        for (column, key) in [
            ("receive_memory_bytes", "r"),
            ("send_memory_bytes", "t"),
            ("write_queue_memory_bytes", "w"),
            ("forward_memory_bytes", "f"),
            ("backlog_memory_bytes", "bl"),
            ("dropped_packets", "d"),
        ] {
            assert_eq!(value(&round, column, "server"), skmem(key), "{column}: {lines:?}");
        }
        let mut all = vec![0; 12_345];
        far.read_exact(&mut all).unwrap();
        assert_eq!(value(&collector.read(), "receive_queue_bytes", "server"), 0);

        // The way there is cut: one segment that is sent again and again.
        rule(&server, "input", 0, "meta l4proto tcp drop");
        near.write_all(&[b'y'; 1_000]).unwrap();
        let round = until(&mut collector, "a time-out", |r| value(r, "backing_off", "client") == 1);
        assert_eq!(value(&round, "send_queue_bytes", "client"), 1_000);
        assert_eq!(value(&round, "unacknowledged_segments", "client"), 1);
        assert_eq!(value(&round, "retransmits_in_flight", "client"), 1);
        assert_eq!(value(&round, "receive_queue_bytes", "server"), 0);
        server.nft("delete table inet t").unwrap();
        let round = until(&mut collector, "it to arrive", |r| {
            value(r, "receive_queue_bytes", "server") == 1_000
        });
        assert_eq!(value(&round, "backing_off", "server"), 0);
    }
}

#[test]
fn the_backlog_of_listeners_is_told_with_its_limit() {
    let Some((_lab, client, server)) = pair("tcpbacklog") else {
        return;
    };
    let listeners = FAMILIES.map(|f| sockets::tcp_listen(&server, f, 80, 5).unwrap());
    let _idle = sockets::tcp_listen(&server, Family::V4, 81, 3).unwrap();
    let mut collector = Collector::of(&[&client, &server]);
    let round = collector.read();
    assert_eq!(
        (
            value(&round, "accept_queue", "server"),
            value(&round, "accept_queue_limit", "server")
        ),
        (0, 13)
    );
    // One more than the limit fits; the other family's has two.
    let mut near: Vec<_> = (0..6).map(|_| connect(&client, &server, Family::V4, 80)).collect();
    near.extend((0..2).map(|_| connect(&client, &server, Family::V6, 80)));
    let round = until(&mut collector, "8 to wait", |r| value(r, "accept_queue", "server") == 8);
    assert_eq!(value(&round, "accept_queue_limit", "server"), 13);
    assert_eq!(value(&round, "accept_queue_fullest", "server"), 6);
    assert_eq!(value(&round, "accept_queue_fullest_limit", "server"), 5);
    assert_eq!(value(&round, "accept_queues_full", "server"), 1);
    assert_eq!(
        value(&round, "receive_queue_bytes", "server"),
        0,
        "connections are no bytes"
    );
    // Recv-Q and Send-Q of listeners in ss.
    let column = |line: &String, at: usize| -> i64 { line.split_ascii_whitespace().nth(at).unwrap().parse().unwrap() };
    let lines = ss(&server, "-l");
    assert_eq!(lines.iter().map(|l| column(l, 1)).sum::<i64>(), 8, "{lines:?}");
    assert_eq!(lines.iter().map(|l| column(l, 2)).sum::<i64>(), 13, "{lines:?}");
    let _accepted = listeners[0].accept().unwrap();
    let round = collector.read();
    assert_eq!(
        (
            value(&round, "accept_queue", "server"),
            value(&round, "accept_queues_full", "server")
        ),
        (7, 0)
    );
    drop(near);
}

#[test]
fn a_closed_window_is_seen_from_both_sides() {
    let Some((_lab, client, server)) = pair("tcpwindow") else {
        return;
    };
    for family in FAMILIES {
        let listener = sockets::tcp_listen(&server, family, 80, 5).unwrap();
        socket2::SockRef::from(&listener).set_recv_buffer_size(4096).unwrap();
        let mut near = connect(&client, &server, family, 80);
        let (mut far, _) = listener.accept().unwrap();
        let mut collector = Collector::of(&[&client, &server]);
        let before = collector.read();
        assert_eq!(value(&before, "zero_send_window", "client"), 0);
        near.set_nonblocking(true).unwrap();
        let written = {
            let mut all = 0;
            wait::until_true("the send buffer to be full", PATIENCE, || {
                match near.write(&[b'x'; 4096]) {
                    Ok(n) => all += n,
                    Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => return Ok(true),
                    Err(e) => panic!("{e}"),
                }
                Ok(false)
            })
            .unwrap();
            all
        };
        let round = until(&mut collector, "the window to close", |r| {
            value(r, "zero_send_window", "client") == 1 && value(r, "zero_receive_window", "server") == 1
        });
        assert_eq!(
            (
                value(&round, "zero_send_window", "server"),
                value(&round, "zero_receive_window", "client")
            ),
            (0, 0)
        );
        let began = moved(&before, &round, "tcpext", "zero_window_begun", "server", &[]);
        assert!(began >= 1);
        assert_eq!(
            round.value("tcpext", "zero_window_begun", "server", &[]),
            nstat(&server, "TcpExtTCPToZeroWindowAdv")
        );
        // The window opens when somebody reads.
        let mut all = vec![0; written];
        far.read_exact(&mut all).unwrap();
        let round = until(&mut collector, "the window to open", |r| {
            value(r, "zero_send_window", "client") == 0
        });
        assert!(moved(&before, &round, "tcpext", "zero_window_ended", "server", &[]) >= 1);
        assert_eq!(
            round.value("tcpext", "zero_window_ended", "server", &[]),
            nstat(&server, "TcpExtTCPFromZeroWindowAdv")
        );
    }
}

#[test]
fn round_trip_times_are_those_of_ss() {
    let Some((_lab, client, server)) = pair("tcprtt") else {
        return;
    };
    let listeners = FAMILIES.map(|f| sockets::tcp_listen(&server, f, 80, 20).unwrap());
    let mut near = Vec::new();
    for family in FAMILIES {
        near.extend((0..5).map(|_| connect(&client, &server, family, 80)));
    }
    let mut collector = Collector::of(&[&client, &server]);
    until(&mut collector, "10 to be established", |r| {
        value(r, "accept_queue", "server") == 10
    });
    let round = collector.read();
    let mut theirs: Vec<i64> = ss(&client, "-i state established")
        .iter()
        .flat_map(|line| line.split_ascii_whitespace())
        .filter_map(|word| word.strip_prefix("rtt:")?.split('/').next()?.parse::<f64>().ok())
        .map(|ms| (ms * 1000.0).round() as i64)
        .collect();
    theirs.sort_unstable();
    assert_eq!(theirs.len(), 10);
    assert_eq!(value(&round, "rtt_connections", "client"), 10);
    for (column, rank) in [
        ("rtt_p50_seconds", 5),
        ("rtt_p90_seconds", 9),
        ("rtt_p99_seconds", 10),
        ("rtt_max_seconds", 10),
    ] {
        assert_eq!(
            value(&round, column, "client"),
            theirs[rank - 1],
            "{column}: {theirs:?}"
        );
    }
    drop((near, listeners));
    let quiet = until(&mut collector, "none", |r| value(r, "rtt_connections", "client") == 0);
    assert_eq!(
        quiet.get("tcpsockets", "rtt_max_seconds", "client", &[]),
        None,
        "no connection, no time"
    );
}
