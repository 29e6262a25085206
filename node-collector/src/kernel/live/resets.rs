//! Resets of every type, for both families, with the right ends, state and reason.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener};
use std::os::fd::AsRawFd as _;

use sonde_lab::sockets::{self, Connected};
use sonde_proto::gap;

use super::*;

const PORT: u16 = 7_401;
const LIMIT: Duration = Duration::from_secs(10);

struct Scene {
    client: sonde_lab::Pod,
    server: sonde_lab::Pod,
    live: Live,
    seen: Vec<Event>,
}

/// Pod, type, sender, receiver, state, reason.
type Told = (String, &'static str, SocketAddr, SocketAddr, &'static str, &'static str);

impl Scene {
    fn connect(&self, family: Family, from: u16) -> Connected {
        sockets::tcp_pair(&self.client, from, &self.server, family, PORT).unwrap()
    }

    /// By (pod, type).
    fn counts(&mut self) -> HashMap<(String, String), i64> {
        let (tables, mut gaps) = self.live.kernel.read(now_ns(), &self.live.index);
        // The programs see the resets of the whole machine: what was skipped may be somebody else's. Of ours, the counts show it.
        gaps.retain(|gap| gap.cause != gap::PROGRAM_SKIPPED);
        assert!(gaps.is_empty(), "{gaps:?}");
        tables
            .iter()
            .flat_map(|table| {
                let rows = table.subjects.iter().zip(&table.labels).zip(&table.columns[0]);
                rows.map(|((subject, kind), count)| ((name(subject), kind.to_string()), *count))
            })
            .collect()
    }

    /// Runs `act`, and compares what it made with `expected`: events exactly, counts exactly, and those with the kernel's.
    fn check(&mut self, what: &str, act: impl FnOnce(&Self), expected: &[Told]) {
        let before = self.counts();
        let [client, server] = [&self.client, &self.server].map(|pod| pod.counters().unwrap());
        act(self);
        let mut grown = HashMap::new();
        for (pod, kind, ..) in expected {
            let label = kind.trim_start_matches("TCPRESET_").to_lowercase();
            *grown.entry((pod.clone(), label)).or_insert(0i64) += 1;
        }
        let mut now = HashMap::new();
        until(&format!("{what}: counts"), || {
            now = self.counts();
            grown
                .iter()
                .all(|(key, count)| now.get(key).unwrap_or(&0) - before.get(key).unwrap_or(&0) >= *count)
        });
        // What was held is in no doubt any more, and nothing else was made meanwhile.
        std::thread::sleep(Duration::from_nanos(sonde_ebpf_common::reset::HOLD_NS) + Duration::from_millis(5));
        now = self.counts();
        for (key, count) in &now {
            let want = before.get(key).unwrap_or(&0) + grown.get(key).unwrap_or(&0);
            assert_eq!(*count, want, "{what}: {key:?} of {now:?}");
        }
        for (pod, counters) in [(self.client.clone(), client), (self.server.clone(), server)] {
            let sent = pod.counters().unwrap().since(&counters, "Tcp.OutRsts").unwrap();
            let ours = expected
                .iter()
                .filter(|(name, kind, ..)| name == pod.name() && *kind != "TCPRESET_RECEIVE");
            assert_eq!(sent as usize, ours.count(), "{what}: Tcp.OutRsts of {pod}");
        }
        let events = self.settle();
        let mut told: Vec<_> = events.iter().map(tell).collect();
        let mut wanted: Vec<_> = expected
            .iter()
            .map(|(pod, kind, from, to, state, reason)| {
                let text = |s: &str| (!s.is_empty()).then(|| s.to_owned());
                (pod.clone(), *kind, Some(*from), Some(*to), text(state), text(reason))
            })
            .collect();
        told.sort();
        wanted.sort();
        assert_eq!(told, wanted, "{what}");
        for event in events {
            let direction = match event.observation.kind {
                "TCPRESET_RECEIVE" => Direction::Ingress,
                _ => Direction::Egress,
            };
            assert_eq!(event.observation.direction, direction, "{what}");
            assert!(!event.observation.stack.is_empty(), "{what}");
        }
    }

    /// Everything told so far: a refused connection of the client with itself is told last. Its counts are the
    /// caller's to expect.
    fn settle(&mut self) -> Vec<Event> {
        let closed = self
            .client
            .run(|| {
                let closed = TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap();
                std::net::TcpStream::connect(closed).unwrap_err();
                closed
            })
            .unwrap();
        let is_mark = |event: &Event| [event.observation.sport, event.observation.dport].contains(&Some(closed.port()));
        let mut all = std::mem::take(&mut self.seen);
        all.extend(self.live.wait_for(2, is_mark));
        all.retain(|event| !is_mark(event));
        all
    }
}

type Line = (
    String,
    &'static str,
    Option<SocketAddr>,
    Option<SocketAddr>,
    Option<String>,
    Option<String>,
);

fn tell(event: &Event) -> Line {
    let seen = &event.observation;
    let end = |ip: Option<std::net::IpAddr>, port: Option<u16>| Some(SocketAddr::new(ip?, port?));
    (
        name(&event.subject),
        seen.kind,
        end(seen.saddr, seen.sport),
        end(seen.daddr, seen.dport),
        seen.state.as_ref().map(ToString::to_string),
        seen.reason.as_ref().map(ToString::to_string),
    )
}

fn each(test: &str, run: impl Fn(&mut Scene, Family, SocketAddr, SocketAddr)) {
    let Some(lab) = lab_alone(&format!("kernel-{test}")) else {
        return;
    };
    for rung in BOTH {
        let at = rung.name().replace('_', "");
        let (client, server) = (lab.pod(&at, "client").unwrap(), lab.pod(&at, "server").unwrap());
        lab.link(&client, &server).unwrap();
        let config = config_of("tcpreset");
        let Some(live) = start(&config, index_of([&client, &server]), Some(rung)) else {
            return;
        };
        let mut scene = Scene {
            client,
            server,
            live,
            seen: Vec::new(),
        };
        for (family, port) in Family::BOTH.into_iter().zip([41_001, 41_002]) {
            let from = scene.client.socket(family, port);
            let to = scene.server.socket(family, PORT);
            run(&mut scene, family, from, to);
        }
    }
}

fn told(
    pod: &str,
    kind: &'static str,
    from: SocketAddr,
    to: SocketAddr,
    state: &'static str,
    reason: &'static str,
) -> Told {
    (pod.into(), kind, from, to, state, reason)
}

/// Bytes in the socket that the peer has not acknowledged.
fn unacknowledged(stream: &std::net::TcpStream) -> libc::c_int {
    let mut bytes = 0;
    // SAFETY: the request writes one number of that type.
    let result = unsafe { libc::ioctl(stream.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    bytes
}

fn linger_0(stream: std::net::TcpStream) {
    let socket = socket2::Socket::from(stream);
    socket.set_linger(Some(Duration::ZERO)).unwrap();
}

#[test]
fn a_closed_port_answers_without_a_socket() {
    each("reset-nosock", |scene, _, from, to| {
        let refuse = |scene: &Scene| {
            let answer = sockets::tcp_connect(&scene.client, from.port(), to, LIMIT).unwrap();
            assert_eq!(answer.unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused);
        };
        let expected = [
            told("server", "TCPRESET_NOSOCK", to, from, "", "NO_SOCKET"),
            told("client", "TCPRESET_RECEIVE", to, from, "TCP_SYN_SENT", ""),
        ];
        scene.check("closed port", refuse, &expected);
    });
}

#[test]
fn a_close_with_data_unread_and_a_close_that_does_not_linger_are_active() {
    each("reset-active", |scene, family, from, to| {
        let unread = |scene: &Scene| {
            let Connected { mut client, server, .. } = scene.connect(family, from.port());
            client.write_all(b"nobody reads this").unwrap();
            server.peek(&mut [0; 1]).unwrap();
            // Else it may be sent once more, to where there is no socket any more.
            until("the data to be acknowledged", || unacknowledged(&client) == 0);
            drop(server);
            client.read(&mut [0; 1]).unwrap_err();
        };
        let expected = [
            told(
                "server",
                "TCPRESET_ACTIVE",
                to,
                from,
                "TCP_ESTABLISHED",
                "TCP_ABORT_ON_CLOSE",
            ),
            told("client", "TCPRESET_RECEIVE", to, from, "TCP_ESTABLISHED", ""),
        ];
        scene.check("unread", unread, &expected);

        let lingering = |scene: &Scene| {
            let Connected { client, mut server, .. } = scene.connect(family, from.port());
            linger_0(client);
            server.read(&mut [0; 1]).unwrap_err();
        };
        let expected = [
            told("client", "TCPRESET_ACTIVE", from, to, "TCP_ESTABLISHED", "TCP_STATE"),
            told("server", "TCPRESET_RECEIVE", from, to, "TCP_ESTABLISHED", ""),
        ];
        scene.check("linger 0", lingering, &expected);
    });
}

#[test]
fn data_for_a_socket_that_was_shut_down_is_answered_and_is_no_reset_received() {
    each("reset-process", |scene, family, from, to| {
        let shut_down = |scene: &Scene| {
            let Connected { mut client, server, .. } = scene.connect(family, from.port());
            server.shutdown(Shutdown::Both).unwrap();
            assert_eq!(client.read(&mut [0; 1]).unwrap(), 0);
            client.write_all(b"too late").unwrap();
            until("the client to be reset", || client.take_error().unwrap().is_some());
        };
        let expected = [
            told(
                "server",
                "TCPRESET_PROCESS",
                to,
                from,
                "TCP_FIN_WAIT2",
                "TCP_ABORT_ON_DATA",
            ),
            told("client", "TCPRESET_RECEIVE", to, from, "TCP_CLOSE_WAIT", ""),
        ];
        scene.check("data after shutdown", shut_down, &expected);
    });
}

#[test]
fn a_reset_received_after_shutdown_is_one() {
    each("reset-received", |scene, family, from, to| {
        let reset = |scene: &Scene| {
            let Connected { mut client, server, .. } = scene.connect(family, from.port());
            server.shutdown(Shutdown::Both).unwrap();
            assert_eq!(client.read(&mut [0; 1]).unwrap(), 0);
            // Its end is acknowledged with a delay.
            until("the server to be in FIN_WAIT2", || {
                let found = scene.server.command("ss", &["-tanH", "state", "fin-wait-2"]).unwrap();
                found.contains(&from.port().to_string())
            });
            linger_0(client);
            until("the server to be reset", || server.take_error().unwrap().is_some());
        };
        let expected = [
            told("client", "TCPRESET_ACTIVE", from, to, "TCP_CLOSE_WAIT", "TCP_STATE"),
            told("server", "TCPRESET_RECEIVE", from, to, "TCP_FIN_WAIT2", ""),
        ];
        scene.check("reset after shutdown", reset, &expected);
    });
}

#[test]
fn data_for_a_socket_in_time_wait_is_answered_by_it() {
    each("reset-timewait", |scene, family, from, to| {
        let late = |scene: &Scene| {
            let Connected { mut client, server, .. } = scene.connect(family, from.port());
            drop(server);
            assert_eq!(client.read(&mut [0; 1]).unwrap(), 0);
            // Its acknowledgement may still be on its way: until then it is no TIME_WAIT socket that answers.
            until("the server to be in FIN_WAIT2", || {
                let found = scene.server.command("ss", &["-tanH", "state", "fin-wait-2"]).unwrap();
                found.contains(&from.port().to_string())
            });
            client.write_all(b"too late").unwrap();
            until("the client to be reset", || client.take_error().unwrap().is_some());
        };
        let expected = [
            told(
                "server",
                "TCPRESET_PROCESS",
                to,
                from,
                "TCP_TIME_WAIT",
                "TCP_TIMEWAIT_SOCKET",
            ),
            told("client", "TCPRESET_RECEIVE", to, from, "TCP_CLOSE_WAIT", ""),
        ];
        scene.check("time wait", late, &expected);
    });
}

#[test]
fn an_ipv6_listener_that_serves_ipv4_is_told_as_ipv4() {
    each("reset-mapped", |scene, family, from, to| {
        let dual_stack = |scene: &Scene| {
            let listener = scene.server.run(|| TcpListener::bind(("::", PORT))).unwrap().unwrap();
            let client = sockets::tcp_connect(&scene.client, from.port(), to, LIMIT)
                .unwrap()
                .unwrap();
            let (mut server, _) = listener.accept().unwrap();
            linger_0(client);
            server.read(&mut [0; 1]).unwrap_err();
        };
        let expected = [
            told("client", "TCPRESET_ACTIVE", from, to, "TCP_ESTABLISHED", "TCP_STATE"),
            told("server", "TCPRESET_RECEIVE", from, to, "TCP_ESTABLISHED", ""),
        ];
        scene.check(&format!("dual stack, {family}"), dual_stack, &expected);
        let from_server = |scene: &Scene| {
            let listener = scene.server.run(|| TcpListener::bind(("::", PORT))).unwrap().unwrap();
            let mut client = sockets::tcp_connect(&scene.client, from.port(), to, LIMIT)
                .unwrap()
                .unwrap();
            linger_0(listener.accept().unwrap().0);
            client.read(&mut [0; 1]).unwrap_err();
        };
        let expected = [
            told("server", "TCPRESET_ACTIVE", to, from, "TCP_ESTABLISHED", "TCP_STATE"),
            told("client", "TCPRESET_RECEIVE", to, from, "TCP_ESTABLISHED", ""),
        ];
        scene.check(&format!("dual stack closes, {family}"), from_server, &expected);
    });
}

#[test]
fn connections_that_end_as_they_should_reset_nothing() {
    each("reset-none", |scene, family, from, _| {
        let clean = |scene: &Scene| {
            let Connected {
                mut client, mut server, ..
            } = scene.connect(family, from.port());
            client.write_all(b"question").unwrap();
            server.read_exact(&mut [0; 8]).unwrap();
            client.shutdown(Shutdown::Write).unwrap();
            assert_eq!(server.read(&mut [0; 1]).unwrap(), 0);
            drop(server);
            assert_eq!(client.read(&mut [0; 1]).unwrap(), 0);
        };
        scene.check("clean close", clean, &[]);
    });
}
