//! Data that waits in sockets. What is asserted of times follows from the order of what was done, not from how fast.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};

use sonde_lab::{Pod, sockets};

use super::plan::Step;
use super::*;

const PORT: u16 = 7_341;
const LIMIT: Duration = Duration::from_secs(20);
const PAUSE: Duration = Duration::from_millis(150);

struct Scene {
    client: Pod,
    server: Pod,
    live: Live,
}

/// Ways to the signals: the rung, and whether it is the one of kernels before 6.3.
const WAYS: [(Rung, bool); 4] = [
    (Rung::TpBtf, false),
    (Rung::RawTracepoint, false),
    (Rung::TpBtf, true),
    (Rung::RawTracepoint, true),
];

fn is_old(step: &Step) -> bool {
    step.hooks.iter().any(|hook| hook.0.starts_with("socklat_segment"))
}

fn scene(lab: &Lab, name: &str, (rung, old): (Rung, bool), change: impl Fn(&mut Config)) -> Option<Scene> {
    let name = format!("{name}-{}{}", rung.name().replace('_', ""), u8::from(old));
    let [client, server] = ["client", "server"].map(|role| lab.pod(&name, role).unwrap());
    lab.link(&client, &server).unwrap();
    let mut config = config_with_marks("socketlatency");
    change(&mut config);
    let of_reads = |step: &Step| step.hooks.iter().any(|hook| hook.0.starts_with("socklat_taken"));
    let allowed = |step: &Step| step.rung == rung && (!of_reads(step) || is_old(step) == old);
    let live = start_on(&config, index_of([&client, &server]), allowed, 4096)?;
    Some(Scene { client, server, live })
}

impl Scene {
    fn pair(&self, family: Family) -> (TcpStream, TcpStream) {
        let listener = sockets::tcp_listen(&self.server, family, PORT, 8).unwrap();
        let to = self.server.socket(family, PORT);
        let client = sockets::tcp_connect(&self.client, 0, to, LIMIT).unwrap().unwrap();
        let (server, _) = listener.accept().unwrap();
        self.warm_up(client, server)
    }

    /// A dual-stack listener, as most servers have, and a client of IPv4.
    fn dual_pair(&self) -> (TcpStream, TcpStream) {
        let listener = self.server.run(|| TcpListener::bind(("::", PORT))).unwrap().unwrap();
        let to = self.server.socket(Family::V4, PORT);
        let client = sockets::tcp_connect(&self.client, 0, to, LIMIT).unwrap().unwrap();
        let (server, _) = listener.accept().unwrap();
        self.warm_up(client, server)
    }

    /// The first segments come while the connection is still being made up.
    fn warm_up(&self, mut client: TcpStream, mut server: TcpStream) -> (TcpStream, TcpStream) {
        for stream in [&client, &server] {
            stream.set_nodelay(true).unwrap();
            stream.set_read_timeout(Some(LIMIT)).unwrap();
        }
        client.write_all(b"hello").unwrap();
        server.read_exact(&mut [0; 5]).unwrap();
        server.write_all(b"hello").unwrap();
        client.read_exact(&mut [0; 5]).unwrap();
        (client, server)
    }

    fn slow(&mut self, kind: &str) -> Vec<Event> {
        let mut events = self.live.settle(&self.client.clone());
        events.retain(|event| event.observation.kind == kind);
        events
    }
}

/// Ends as an event names them: the socket's own first. Mapped addresses are IPv4 ones.
fn ends(stream: &TcpStream) -> (SocketAddr, SocketAddr) {
    let plain = |address: SocketAddr| SocketAddr::new(address.ip().to_canonical(), address.port());
    (plain(stream.local_addr().unwrap()), plain(stream.peer_addr().unwrap()))
}

fn ends_of(event: &Event) -> (SocketAddr, SocketAddr) {
    let seen = &event.observation;
    let end = |address: Option<std::net::IpAddr>, port: Option<u16>| SocketAddr::new(address.unwrap(), port.unwrap());
    (end(seen.saddr, seen.sport), end(seen.daddr, seen.dport))
}

fn attribute_of<'a>(event: &'a Event, name: &str) -> Option<&'a str> {
    let attributes = &event.observation.attributes;
    attributes
        .iter()
        .find(|(other, _)| *other == name)
        .map(|(_, value)| &**value)
}

/// Waits until there is something to read, and then a while longer.
fn dawdle(stream: &TcpStream) {
    assert_ne!(stream.peek(&mut [0; 1]).unwrap(), 0);
    std::thread::sleep(PAUSE);
}

fn check_slow_read(scene: &mut Scene, (mut client, mut server): (TcpStream, TcpStream), what: &str) {
    let began = Instant::now();
    client.write_all(b"12345").unwrap();
    dawdle(&server);
    server.read_exact(&mut [0; 3]).unwrap();
    let took = began.elapsed();
    let events = scene.slow("SOCKETLAT_READSLOW");
    assert_eq!(
        events.len(),
        1,
        "{what}: {:#?}",
        events.iter().map(line).collect::<Vec<_>>()
    );
    let event = &events[0];
    assert_eq!(ends_of(event), ends(&server), "{what}");
    assert_eq!(name(&event.subject), "server", "{what}");
    let seen = &event.observation;
    let latency = Duration::from_nanos(seen.latency_ns.unwrap());
    assert!(latency >= PAUSE && latency <= took, "{what}: {latency:?} of {took:?}");
    assert_eq!(seen.direction, Direction::Ingress);
    assert_eq!(
        (seen.pid, seen.protocol.as_deref()),
        (Some(std::process::id()), Some("TCP")),
        "{what}"
    );
    assert_eq!(seen.state.as_deref(), Some("TCP_ESTABLISHED"), "{what}");
    assert_eq!(attribute_of(event, "waiting_bytes"), Some("2"), "{what}");
}

#[test]
fn a_reader_that_comes_late_is_told_once_with_how_late() {
    let Some(lab) = lab_alone("kernel-late") else {
        return;
    };
    for way in WAYS {
        let Some(mut scene) = scene(&lab, "late", way, |_| ()) else {
            return;
        };
        for family in Family::BOTH {
            let pair = scene.pair(family);
            check_slow_read(&mut scene, pair, &format!("{family} {way:?}"));
        }
        let pair = scene.dual_pair();
        check_slow_read(&mut scene, pair, &format!("dual stack {way:?}"));
        let rows = scene.live.rows("socketlatency");
        assert_eq!(rows["server read tcp"]["over_100ms"], [3], "{way:?}: {rows:?}");
    }
}

#[test]
fn time_in_which_there_is_nothing_to_read_is_nobodys() {
    let Some(lab) = lab_alone("kernel-think") else {
        return;
    };
    for way in WAYS {
        // Shorter than the pauses, longer than a busy machine lets a thread wait.
        let threshold = |config: &mut Config| {
            let probe = config.probes.get_mut("socketlatency").unwrap();
            probe.threshold = Some("180ms".parse().unwrap());
        };
        let Some(mut scene) = scene(&lab, "think", way, threshold) else {
            return;
        };
        let (mut client, mut server) = scene.pair(Family::V4);
        let requests = 10;
        let echo = std::thread::spawn(move || {
            let mut buffer = [0; 64];
            while let Ok(length) = server.read(&mut buffer)
                && length != 0
            {
                server.write_all(&buffer[..length]).unwrap();
            }
        });
        for _ in 0..requests {
            std::thread::sleep(Duration::from_millis(200));
            client.write_all(b"request").unwrap();
            client.read_exact(&mut [0; 7]).unwrap();
        }
        client.shutdown(Shutdown::Write).unwrap();
        echo.join().unwrap();
        let events = scene.slow("SOCKETLAT_READSLOW");
        assert!(events.is_empty(), "{way:?}: {}", line(&events[0]));
        let rows = scene.live.rows("socketlatency");
        for pod in ["client", "server"] {
            let times = &rows[&format!("{pod} read tcp")]["latency_seconds"];
            let (sum_ns, slots) = times.split_last().unwrap();
            // The greeting too, except where it comes before the connection is one.
            let reads = slots.iter().sum::<i64>();
            assert!((requests..=requests + 1).contains(&reads), "{way:?} {pod}: {reads}");
            assert!(*sum_ns < 180_000_000 * reads, "{way:?} {pod}: {sum_ns}");
        }
    }
}

#[test]
fn the_end_of_a_stream_and_a_mere_look_are_no_read() {
    let Some(lab) = lab_alone("kernel-fin") else {
        return;
    };
    for way in WAYS {
        let Some(mut scene) = scene(&lab, "fin", way, |_| ()) else {
            return;
        };
        for family in Family::BOTH {
            // An end alone, found late.
            let (client, mut server) = scene.pair(family);
            client.shutdown(Shutdown::Write).unwrap();
            std::thread::sleep(Duration::from_millis(1050));
            let _ = scene.live.rows("socketlatency");
            assert_eq!(scene.slow("SOCKETLAT_READSLOW").len(), 0, "{way:?}: nothing is unread");
            assert_eq!(server.read(&mut [0; 8]).unwrap(), 0);
            assert_eq!(scene.slow("SOCKETLAT_READSLOW").len(), 0, "{way:?}");

            // Looked at late and often, read last; the end came with the data.
            let (mut client, mut server) = scene.pair(family);
            client.write_all(b"12345").unwrap();
            client.shutdown(Shutdown::Write).unwrap();
            dawdle(&server);
            for _ in 0..5 {
                assert_eq!(server.peek(&mut [0; 8]).unwrap(), 5);
            }
            assert_eq!(scene.slow("SOCKETLAT_READSLOW").len(), 0, "{way:?}");
            assert_eq!(server.read(&mut [0; 8]).unwrap(), 5);
            std::thread::sleep(PAUSE);
            assert_eq!(server.read(&mut [0; 8]).unwrap(), 0);
            let events = scene.slow("SOCKETLAT_READSLOW");
            assert_eq!(events.len(), 1, "{way:?}");
            assert_eq!(
                attribute_of(&events[0], "waiting_bytes"),
                Some("0"),
                "the end is no byte"
            );
            assert_eq!(events[0].observation.state.as_deref(), Some("TCP_CLOSE_WAIT"));
        }
    }
}

#[test]
fn one_pause_is_one_event_however_many_pieces_wait() {
    let Some(lab) = lab_alone("kernel-pieces") else {
        return;
    };
    let Some(mut scene) = scene(&lab, "pieces", WAYS[0], |_| ()) else {
        return;
    };
    let (mut client, mut server) = scene.pair(Family::V4);
    // More arrivals than are remembered, each a segment of its own.
    let began = Instant::now();
    for piece in 1..=20 {
        client.write_all(&[7; 100]).unwrap();
        until("the piece to arrive", || {
            server.peek(&mut [0; 4000]).unwrap() == piece * 100
        });
    }
    std::thread::sleep(PAUSE);
    for _ in 0..10 {
        server.read_exact(&mut [0; 200]).unwrap();
    }
    let took = began.elapsed();
    let events = scene.slow("SOCKETLAT_READSLOW");
    let reread = scene.live.rows("socketlatency")["server read tcp"]["over_100ms"][0];
    assert_eq!(events.len(), 1, "{:#?}", events.iter().map(line).collect::<Vec<_>>());
    assert!(reread >= 10, "each read is counted: {reread}");
    let latency = Duration::from_nanos(events[0].observation.latency_ns.unwrap());
    assert!(latency >= PAUSE && latency <= took);
    // After that nothing is left over.
    client.write_all(b"x").unwrap();
    server.read_exact(&mut [0; 1]).unwrap();
    client.write_all(b"12345").unwrap();
    dawdle(&server);
    server.read_exact(&mut [0; 5]).unwrap();
    assert_eq!(scene.slow("SOCKETLAT_READSLOW").len(), 1);
}

#[test]
fn an_application_that_never_reads_is_found_by_the_age_of_what_waits() {
    let Some(lab) = lab_alone("kernel-unread") else {
        return;
    };
    let Some(mut scene) = scene(&lab, "unread", WAYS[0], |_| ()) else {
        return;
    };
    for family in Family::BOTH {
        let (mut client, mut server) = scene.pair(family);
        client.write_all(b"12345").unwrap();
        assert_ne!(server.peek(&mut [0; 1]).unwrap(), 0);
        let _ = scene.live.rows("socketlatency");
        assert!(scene.slow("SOCKETLAT_READSLOW").is_empty(), "it may still come");
        std::thread::sleep(Duration::from_millis(1050));
        let _ = scene.live.rows("socketlatency");
        let events = scene.slow("SOCKETLAT_READSLOW");
        assert_eq!(events.len(), 1, "{family}");
        assert_eq!(attribute_of(&events[0], "unread"), Some("5"));
        assert_eq!(ends_of(&events[0]), ends(&server));
        assert_eq!(name(&events[0].subject), "server");
        assert!(events[0].observation.latency_ns > Some(1_000_000_000) && events[0].observation.pid.is_none());
        let _ = scene.live.rows("socketlatency");
        assert!(scene.slow("SOCKETLAT_READSLOW").is_empty(), "told once");
        server.read_exact(&mut [0; 5]).unwrap();
        let events = scene.slow("SOCKETLAT_READSLOW");
        assert_eq!(events.len(), 1, "read at last");
        assert_eq!(attribute_of(&events[0], "unread"), None);

        // A socket that ends with unread data is no more looked at.
        client.write_all(b"12345").unwrap();
        assert_ne!(server.peek(&mut [0; 1]).unwrap(), 0);
        drop((client, server));
        std::thread::sleep(Duration::from_millis(1050));
        let _ = scene.live.rows("socketlatency");
        assert!(scene.slow("SOCKETLAT_READSLOW").is_empty(), "{family}");
    }
}

#[test]
fn a_datagram_that_waits_is_told_and_one_that_was_never_read_is_forgotten() {
    let Some(lab) = lab_alone("kernel-datagram") else {
        return;
    };
    for way in &WAYS[..2] {
        let Some(mut scene) = scene(&lab, "datagram", *way, |_| ()) else {
            return;
        };
        for family in Family::BOTH {
            let server = sockets::udp(&scene.server, family, PORT).unwrap();
            let client = sockets::udp(&scene.client, family, PORT + 1).unwrap();
            let to = scene.server.socket(family, PORT);
            let began = Instant::now();
            client.send_to(b"1", to).unwrap();
            server.peek_from(&mut [0; 8]).unwrap();
            std::thread::sleep(PAUSE);
            server.recv_from(&mut [0; 8]).unwrap();
            let took = began.elapsed();
            let events = scene.slow("SOCKETLAT_READSLOW");
            assert_eq!(events.len(), 1, "{way:?} {family}");
            let seen = &events[0].observation;
            let latency = Duration::from_nanos(seen.latency_ns.unwrap());
            assert!(latency >= PAUSE && latency <= took, "{latency:?} of {took:?}");
            assert_eq!(seen.protocol.as_deref(), Some("UDP"));
            assert_eq!((seen.sport, seen.dport, seen.daddr), (Some(PORT), None, None));
            assert_eq!(seen.pid, Some(std::process::id()));
            assert_eq!(attribute_of(&events[0], "waiting_datagrams"), Some("0"));

            // A pause in which nothing waits; a socket that is closed with unread datagrams.
            std::thread::sleep(PAUSE);
            client.send_to(b"2", to).unwrap();
            server.recv_from(&mut [0; 8]).unwrap();
            client.send_to(b"3", to).unwrap();
            server.peek_from(&mut [0; 8]).unwrap();
            drop(server);
            assert!(scene.slow("SOCKETLAT_READSLOW").is_empty(), "{way:?} {family}");
        }
        let rows = scene.live.rows("socketlatency");
        assert_eq!(rows["server read udp"]["over_100ms"], [2]);
        let times = &rows["server read udp"]["latency_seconds"];
        assert_eq!(times.split_last().unwrap().1.iter().sum::<i64>(), 4);
        assert!(!rows.contains_key("client read udp"));
    }
}

/// Fills the socket until it takes no more.
fn fill(stream: &mut TcpStream) -> u64 {
    stream.set_nonblocking(true).unwrap();
    let mut sent = 0;
    let mut quiet = 0;
    // The peer's window opens a little for a while yet.
    while quiet < 20 {
        match stream.write(&[7; 8192]) {
            Ok(length) => (sent, quiet) = (sent + length as u64, 0),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                quiet += 1;
                std::thread::sleep(Duration::from_millis(5));
            }
            Err(error) => panic!("{error}"),
        }
    }
    stream.set_nonblocking(false).unwrap();
    sent
}

#[test]
fn a_sender_that_the_peers_window_holds_back_is_told_with_what_held_it() {
    let Some(lab) = lab_alone("kernel-window") else {
        return;
    };
    for way in &WAYS[..2] {
        let Some(mut scene) = scene(&lab, "window", *way, |_| ()) else {
            return;
        };
        let pairs = [Family::V4, Family::V6].map(|family| scene.pair(family));
        let dual = scene.dual_pair();
        for (mut client, mut server) in pairs.into_iter().chain([dual]) {
            let expected = ends(&client);
            let sent = fill(&mut client);
            std::thread::sleep(PAUSE);
            let mut buffer = vec![0; 1 << 16];
            let mut received = 0;
            while received < sent {
                received += server.read(&mut buffer).unwrap() as u64;
            }
            let events = scene.slow("SOCKETLAT_SENDSLOW");
            assert!(!events.is_empty(), "{way:?}");
            for event in &events {
                let seen = &event.observation;
                assert_eq!(ends_of(event), expected, "{way:?}");
                assert_eq!(name(&event.subject), "client");
                assert!(seen.latency_ns > Some(100_000_000) && seen.direction == Direction::Egress);
                assert_eq!(seen.pid, Some(std::process::id()));
            }
            let longest = events.iter().max_by_key(|event| event.observation.latency_ns).unwrap();
            assert!(
                longest.observation.latency_ns >= Some(PAUSE.as_nanos() as u64),
                "{}",
                line(longest)
            );
            assert_eq!(attribute_of(longest, "limited_by"), Some("rwnd"), "{}", line(longest));
        }
        let rows = scene.live.rows("socketlatency");
        assert!(rows["client send tcp"]["over_100ms"][0] >= 3, "{rows:?}");
    }
}

#[test]
fn a_send_that_goes_out_at_once_took_no_time() {
    let Some(lab) = lab_alone("kernel-sends") else {
        return;
    };
    let Some(mut scene) = scene(&lab, "sends", WAYS[0], |_| ()) else {
        return;
    };
    let (mut client, mut server) = scene.pair(Family::V6);
    let before = scene.live.rows("socketlatency")["client send tcp"]["latency_seconds"].clone();
    for _ in 0..50 {
        client.write_all(b"12345").unwrap();
        server.read_exact(&mut [0; 5]).unwrap();
    }
    let after = scene.live.rows("socketlatency")["client send tcp"]["latency_seconds"].clone();
    let slots = |times: &[i64]| times.split_last().unwrap().1.iter().sum::<i64>();
    assert_eq!(slots(&after) - slots(&before), 50, "each send is counted");
    assert!(after[0] - before[0] >= 40, "{after:?}");
    assert!(scene.slow("SOCKETLAT_SENDSLOW").is_empty());
}

/// Datagrams of the client that were handed over, and those of them that had waited long.
fn handed_over(scene: &mut Scene) -> (i64, i64) {
    let rows = scene.live.rows("socketlatency");
    let Some(row) = rows.get("client send udp") else {
        return (0, 0);
    };
    let (_, slots) = row["latency_seconds"].split_last().unwrap();
    (slots.iter().sum(), row["over_100ms"][0])
}

#[test]
fn a_datagram_that_waits_for_its_neighbour_is_told_when_it_goes_and_others_take_no_time() {
    let Some(lab) = lab_alone("kernel-neighbour") else {
        return;
    };
    for way in &WAYS[..2] {
        let Some(mut scene) = scene(&lab, "neighbour", *way, |_| ()) else {
            return;
        };
        let pod = scene.client.clone();
        let ip = |what: &str, address: std::net::IpAddr, rest: &str| {
            let family = if address.is_ipv4() { "-4" } else { "-6" };
            pod.ip(&format!("{family} {what} {address}{rest} dev eth0"))
        };
        let neighbour = |what, address, rest: &str| drop(ip(what, address, rest).unwrap());
        for (family, nobody, bits) in [
            (Family::V4, ["192.0.2.7", "192.0.2.8"], "/32"),
            (Family::V6, ["2001:db8:7::7", "2001:db8:7::8"], "/128"),
        ] {
            let nobody = nobody.map(|address| address.parse::<std::net::IpAddr>().unwrap());
            let at = if family == Family::V4 { "ipv4" } else { "ipv6" };
            // Asked for as long as the test may take.
            let patient = format!("net.{at}.neigh.eth0.mcast_solicit");
            scene.client.sysctl(&patient, "60").unwrap();
            for address in nobody {
                neighbour("route add", address, bits);
            }
            let server = sockets::udp(&scene.server, family, PORT).unwrap();
            let client = sockets::udp(&scene.client, family, PORT + 1).unwrap();
            // The first one may wait for its neighbour too.
            client.send_to(b"0", scene.server.socket(family, PORT)).unwrap();
            server.recv_from(&mut [0; 8]).unwrap();
            let (before, slow) = handed_over(&mut scene);
            for _ in 0..20 {
                client.send_to(b"1", scene.server.socket(family, PORT)).unwrap();
            }
            assert_eq!(handed_over(&mut scene), (before + 20, slow), "{way:?} {family}");

            for connected in [false, true] {
                let what = format!("{way:?} {family} {connected}");
                let to = SocketAddr::new(nobody[0], PORT);
                // There is none the first time.
                let _ = ip("neigh del", nobody[0], "");
                let (before, slow) = handed_over(&mut scene);
                let began = Instant::now();
                if connected {
                    client.connect(to).unwrap();
                    client.send(b"2").unwrap();
                } else {
                    client.send_to(b"2", to).unwrap();
                }
                assert_eq!(handed_over(&mut scene), (before, slow), "{what}: not yet");
                std::thread::sleep(PAUSE);
                neighbour("neigh replace", nobody[0], " lladdr 02:00:00:00:00:07 nud permanent");
                let took = began.elapsed();
                assert_eq!(handed_over(&mut scene), (before + 1, slow + 1), "{what}");
                let events = scene.slow("SOCKETLAT_SENDSLOW");
                assert_eq!(events.len(), 1, "{what}");
                let seen = &events[0].observation;
                let latency = Duration::from_nanos(seen.latency_ns.unwrap());
                assert!(latency >= PAUSE && latency <= took, "{what}: {latency:?} of {took:?}");
                assert_eq!(
                    ends_of(&events[0]),
                    (scene.client.socket(family, PORT + 1), to),
                    "{what}"
                );
                assert_eq!(name(&events[0].subject), "client", "{what}");
                assert_eq!(
                    (seen.pid, seen.protocol.as_deref(), seen.direction),
                    (Some(std::process::id()), Some("UDP"), Direction::Egress)
                );
                assert_eq!(attribute_of(&events[0], "limited_by"), Some("neighbour"), "{what}");
            }
            // Dropped while it waits: it was never handed over, and the next one is.
            let before = handed_over(&mut scene);
            client.connect(SocketAddr::new(nobody[1], PORT)).unwrap();
            client.send(b"3").unwrap();
            neighbour("neigh del", nobody[1], "");
            assert_eq!(handed_over(&mut scene), before, "{way:?} {family}");
            client.connect(SocketAddr::new(nobody[0], PORT)).unwrap();
            client.send(b"4").unwrap();
            assert_eq!(handed_over(&mut scene), (before.0 + 1, before.1), "{way:?} {family}");
            assert!(scene.slow("SOCKETLAT_SENDSLOW").is_empty(), "{way:?} {family}");
        }
    }
}

#[test]
fn without_events_slow_reads_are_counted_all_the_same() {
    let Some(lab) = lab_alone("kernel-waits-silent") else {
        return;
    };
    let silent = |config: &mut Config| config.probes.get_mut("socketlatency").unwrap().events = false;
    let Some(mut scene) = scene(&lab, "silent", WAYS[0], silent) else {
        return;
    };
    let (mut client, mut server) = scene.pair(Family::V4);
    client.write_all(b"12345").unwrap();
    dawdle(&server);
    std::thread::sleep(Duration::from_millis(1000));
    let rows = scene.live.rows("socketlatency");
    assert_eq!(rows["server read tcp"]["over_100ms"], [0], "not read yet");
    server.read_exact(&mut [0; 5]).unwrap();
    assert_eq!(scene.live.rows("socketlatency")["server read tcp"]["over_100ms"], [1]);
    assert!(scene.slow("SOCKETLAT_READSLOW").is_empty());
}

#[test]
fn healthy_traffic_waits_for_nobody() {
    let Some(lab) = lab_alone("kernel-waits-healthy") else {
        return;
    };
    // Longer than a busy machine lets a thread wait.
    let threshold = |config: &mut Config| {
        config.probes.get_mut("socketlatency").unwrap().threshold = Some("2s".parse().unwrap());
    };
    let Some(mut scene) = scene(&lab, "healthy", WAYS[0], threshold) else {
        return;
    };
    healthy::healthy(&scene.client, &scene.server).unwrap();
    let _ = scene.live.rows("socketlatency");
    let events = scene.live.settle(&scene.client.clone());
    let mine: Vec<_> = events
        .iter()
        .filter(|event| event.observation.probe == "socketlatency")
        .map(line)
        .collect();
    assert!(mine.is_empty(), "{mine:#?}");
    let rows = scene.live.rows("socketlatency");
    assert!(rows.len() >= 5, "{:?}", rows.keys());
}
