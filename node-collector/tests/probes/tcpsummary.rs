use std::io::{Read as _, Write as _};
use std::net::Shutdown;

use super::*;

fn states(round: &Round, pod: &str) -> Vec<(String, i64)> {
    let all = [
        "established",
        "syn_sent",
        "syn_recv",
        "fin_wait1",
        "fin_wait2",
        "time_wait",
        "close",
        "close_wait",
        "last_ack",
        "listen",
        "closing",
        "new_syn_recv",
    ];
    all.iter()
        .map(|state| ((*state).to_owned(), round.value("tcpsummary", "sockets", pod, &[state])))
        .filter(|(_, count)| *count != 0)
        .collect()
}

fn of(expected: &[(&str, i64)]) -> Vec<(String, i64)> {
    expected
        .iter()
        .map(|(state, count)| ((*state).to_owned(), *count))
        .collect()
}

/// What is kept from round to round to save listings is what a new collector finds.
fn assert_fresh(collector: &mut Collector, pods: &[&Pod]) {
    for probe in ["tcpsummary", "tcpsockets", "ports"] {
        let known = collector.read().of_pods(probe);
        assert_eq!(known, Collector::of(pods).read().of_pods(probe));
        assert!(!known.is_empty());
    }
}

/// The same states as `ss` counts them; it shows half-open connections as SYN_RECV.
fn assert_ss_agrees(round: &Round, pod: &Pod) {
    for (ours, theirs) in [
        (&["established"][..], "established"),
        (&["syn_sent"], "syn-sent"),
        (&["syn_recv", "new_syn_recv"], "syn-recv"),
        (&["fin_wait1"], "fin-wait-1"),
        (&["fin_wait2"], "fin-wait-2"),
        (&["time_wait"], "time-wait"),
        (&["close_wait"], "close-wait"),
        (&["last_ack"], "last-ack"),
        (&["listen"], "listening"),
        (&["closing"], "closing"),
    ] {
        let count: i64 = ours
            .iter()
            .map(|s| round.value("tcpsummary", "sockets", pod.name(), &[s]))
            .sum();
        let lines = ss(pod, &format!("-a state {theirs}"));
        assert_eq!(count, lines.len() as i64, "{theirs} of {pod}: {lines:?}");
    }
}

#[test]
fn sockets_are_counted_in_every_state_that_they_pass() {
    let Some((_lab, client, server)) = pair("tcpsummary") else {
        return;
    };
    let mut collector = Collector::of(&[&client, &server]);
    let round = collector.read();
    assert_eq!((states(&round, "client"), states(&round, "server")), (of(&[]), of(&[])));
    assert_eq!(round.rows("tcpsummary", "server"), 12, "zeros are told");

    let listeners: Vec<_> = FAMILIES
        .map(|f| sockets::tcp_listen(&server, f, 80, 100).unwrap())
        .into();
    // Twice: the second round may ask for the listeners alone.
    for _ in 0..3 {
        assert_eq!(states(&collector.read(), "server"), of(&[("listen", 2)]));
    }

    // Three connections of IPv4 and two of IPv6.
    let mut near: Vec<TcpStream> = (0..3).map(|_| connect(&client, &server, Family::V4, 80)).collect();
    near.extend((0..2).map(|_| connect(&client, &server, Family::V6, 80)));
    let round = until(&mut collector, "5 established", |r| {
        states(r, "server") == of(&[("established", 5), ("listen", 2)])
            && states(r, "client") == of(&[("established", 5)])
    });
    assert_ss_agrees(&round, &server);
    assert_fresh(&mut collector, &[&client, &server]);
    // accept() sends nothing: only the listener tells.
    let mut far: Vec<TcpStream> = (0..3).map(|_| listeners[0].accept().unwrap().0).collect();
    assert_fresh(&mut collector, &[&client, &server]);
    far.extend((0..2).map(|_| listeners[1].accept().unwrap().0));
    // A listener in the place of another one, without a segment.
    let other = sockets::tcp_listen(&server, Family::V4, 90, 1).unwrap();
    assert_fresh(&mut collector, &[&client, &server]);
    drop(other);
    let other = sockets::tcp_listen(&server, Family::V6, 91, 2).unwrap();
    assert_fresh(&mut collector, &[&client, &server]);
    drop(other);
    // Bytes that come and are read.
    near[1].write_all(b"abc").unwrap();
    assert_fresh(&mut collector, &[&client, &server]);
    far[1].read_exact(&mut [0; 3]).unwrap();
    assert_fresh(&mut collector, &[&client, &server]);

    // One of each family half closed by the client: FIN_WAIT2 there, CLOSE_WAIT here.
    near[0].shutdown(Shutdown::Write).unwrap();
    near[3].shutdown(Shutdown::Write).unwrap();
    let round = until(&mut collector, "half closed", |r| {
        states(r, "server") == of(&[("established", 3), ("close_wait", 2), ("listen", 2)])
            && states(r, "client") == of(&[("established", 3), ("fin_wait2", 2)])
    });
    assert_ss_agrees(&round, &client);

    // Then by the server: TIME_WAIT at the client, who closed first, and nothing here.
    for i in [3, 0] {
        drop(far.remove(i));
        drop(near.remove(i));
    }
    let round = until(&mut collector, "closed", |r| {
        states(r, "client") == of(&[("established", 3), ("time_wait", 2)])
            && states(r, "server") == of(&[("established", 3), ("listen", 2)])
    });
    assert_ss_agrees(&round, &client);

    // What the client sends is lost from here on: its FIN waits for an answer, and so does the server's.
    rule(&client, "output", 0, "meta l4proto tcp drop");
    let _ = near[0].write(b"x");
    near[0].shutdown(Shutdown::Write).unwrap();
    drop(far.remove(1));
    let round = until(&mut collector, "unanswered", |r| {
        states(r, "client")
            == of(&[
                ("established", 1),
                ("fin_wait1", 1),
                ("time_wait", 2),
                ("close_wait", 1),
            ])
    });
    assert_eq!(
        states(&round, "server"),
        of(&[("established", 2), ("fin_wait1", 1), ("listen", 2)])
    );
    assert_ss_agrees(&round, &client);
    // The client closes too: its FIN is the last one and is lost.
    drop(near.remove(1));
    let round = until(&mut collector, "last", |r| {
        states(r, "client") == of(&[("established", 1), ("fin_wait1", 1), ("time_wait", 2), ("last_ack", 1)])
    });
    assert_ss_agrees(&round, &client);
}

#[test]
fn connections_that_do_not_come_about_are_half_open_here_and_begun_there() {
    let Some((_lab, client, server)) = pair("tcpsyn") else {
        return;
    };
    let _listeners = FAMILIES.map(|f| sockets::tcp_listen(&server, f, 80, 100).unwrap());
    let mut collector = Collector::of(&[&client, &server]);
    assert_eq!(states(&collector.read(), "server"), of(&[("listen", 2)]));
    assert_eq!(states(&collector.read(), "server"), of(&[("listen", 2)]));
    // The answer to a SYN does not reach the client.
    rule(&client, "input", 0, "tcp sport 80 drop");
    let started: Vec<_> = FAMILIES
        .into_iter()
        .flat_map(|f| [f; 4])
        .map(|f| sockets::tcp_start_connect(&client, 0, server.socket(f, 80)).unwrap())
        .collect();
    let round = until(&mut collector, "8 half open", |r| {
        states(r, "server") == of(&[("listen", 2), ("new_syn_recv", 8)])
            && states(r, "client") == of(&[("syn_sent", 8)])
    });
    assert_ss_agrees(&round, &server);
    assert_ss_agrees(&round, &client);
    drop(started);
    let round = until(&mut collector, "none begun", |r| states(r, "client") == of(&[]));
    assert_ss_agrees(&round, &client);
}

#[test]
fn without_handles_to_spare_the_sockets_are_the_same() {
    let Some((_lab, client, server)) = pair("tcpfew") else {
        return;
    };
    let _listener = sockets::tcp_listen(&server, Family::V6, 80, 100).unwrap();
    let _near: Vec<_> = (0..3).map(|_| connect(&client, &server, Family::V6, 80)).collect();
    let mut collector = Collector::with(&[&client, &server], false);
    assert!(
        collector.targets[1..]
            .iter()
            .all(|t| t.handles.kept() == 0 && t.handles.needs_entering())
    );
    until(&mut collector, "3 established", |r| {
        states(r, "server") == of(&[("established", 3), ("listen", 1)])
            && states(r, "client") == of(&[("established", 3)])
    });
}
