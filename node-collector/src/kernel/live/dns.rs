//! Names asked for: a tiny server answers as it is asked to, and what it did must be what was counted.

use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};

use sonde_lab::{Pod, sockets};

use super::*;

const SLOTS: usize = sonde_ebpf_common::latency::SLOTS;

struct Scene {
    client: Pod,
    server: Pod,
    live: Live,
}

fn scene(lab: &Lab, name: &str, rung: Rung) -> Option<Scene> {
    let name = format!("{name}-{}", rung.name().replace('_', ""));
    let (client, server) = (lab.pod(&name, "client").unwrap(), lab.pod(&name, "server").unwrap());
    lab.link(&client, &server).unwrap();
    let live = start(&config_of("dns"), index_of([&client, &server]), Some(rung))?;
    Some(Scene { client, server, live })
}

impl Scene {
    /// Answers, and every counter by name.
    fn counts(&mut self, pod: &str) -> Option<HashMap<&'static str, i64>> {
        let (tables, gaps) = self.live.kernel.read(now_ns(), &self.live.index);
        assert!(gaps.is_empty(), "{gaps:?}");
        let table = tables.first()?;
        let row = table.subjects.iter().position(|subject| name(subject) == pod)?;
        let mut counts = HashMap::new();
        for (column, values) in table.spec.columns.iter().zip(&table.columns) {
            let width = column.width();
            let value = match width {
                1 => values[row],
                _ => values[row * width..][..SLOTS].iter().sum(),
            };
            counts.insert(column.name, value);
        }
        Some(counts)
    }
}

fn message(id: u16, flags: u16) -> Vec<u8> {
    let mut message = [id.to_be_bytes(), flags.to_be_bytes()].concat();
    message.extend_from_slice(&[0, 1, 0, 0, 0, 0, 0, 0]);
    message.extend_from_slice(b"\x04test\x07example\0\0\x01\0\x01");
    message
}

/// Answers each query with the code that its number's upper half says; 0xff: not at all.
fn answer_all(socket: UdpSocket, stop: &AtomicBool) {
    socket.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
    let mut buffer = [0; 512];
    while !stop.load(Ordering::Relaxed) {
        let Ok((length, from)) = socket.recv_from(&mut buffer) else {
            continue;
        };
        if buffer[0] == 0xff {
            continue;
        }
        buffer[2] |= 0x80;
        // The code 0xf stands for an answer that was cut off.
        if buffer[0] == 0xf {
            buffer[2] |= 2;
        } else {
            buffer[3] |= buffer[0] & 0xf;
        }
        socket.send_to(&buffer[..length], from).unwrap();
    }
}

#[test]
fn every_answer_is_counted_by_its_code_and_what_never_comes_as_a_timeout() {
    let Some(lab) = lab_alone("dns-codes") else {
        return;
    };
    for rung in BOTH {
        let Some(mut scene) = scene(&lab, "codes", rung) else {
            return;
        };
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for family in Family::BOTH {
                let socket = sockets::udp(&scene.server, family, 53).unwrap();
                scope.spawn(|| answer_all(socket, &stop));
            }
            for family in Family::BOTH {
                let to: SocketAddr = scene.server.socket(family, 53);
                let socket = sockets::udp(&scene.client, family, 0).unwrap();
                socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
                // Codes, and how often.
                for (code, times) in [(0u16, 7), (2, 3), (3, 5), (5, 2), (4, 1), (0xf, 1)] {
                    for n in 0..times {
                        let id = code << 8 | n;
                        socket.send_to(&message(id, 0x0100), to).unwrap();
                        let mut buffer = [0; 512];
                        socket.recv_from(&mut buffer).unwrap();
                        assert_eq!(buffer[..2], id.to_be_bytes());
                    }
                }
                for n in 0..4u16 {
                    socket.send_to(&message(0xff00 | n, 0x0100), to).unwrap();
                }
                // Two of them once more.
                for n in 0..2u16 {
                    socket.send_to(&message(0xff00 | n, 0x0100), to).unwrap();
                }
                // None of these is a query: an answer, too short, another port.
                socket.send_to(&message(0xff77, 0x8100), to).unwrap();
                socket.send_to(&[0xff; 11], to).unwrap();
                socket
                    .send_to(&message(0xff78, 0x0100), scene.server.socket(family, 5353))
                    .unwrap();
            }
            let expected = |timeouts| {
                HashMap::from([
                    ("latency_seconds", 38),
                    ("queries", 46),
                    ("retries", 4),
                    ("timeouts", timeouts),
                    ("noerror", 16),
                    ("servfail", 6),
                    ("nxdomain", 10),
                    ("refused", 4),
                    ("other", 2),
                    ("truncated", 2),
                ])
            };
            let same = |counts: &HashMap<&'static str, i64>, timeouts| {
                expected(timeouts).iter().all(|(name, value)| counts[name] == *value)
            };
            let mut counts = HashMap::new();
            let deadline = Instant::now() + Duration::from_secs(20);
            while !same(&counts_or(&mut scene, &mut counts), 8) {
                assert!(Instant::now() < deadline, "{rung:?}: {counts:?}");
                std::thread::sleep(Duration::from_millis(100));
            }
            assert!(scene.counts("server").is_none(), "who answers asks nothing");
            stop.store(true, Ordering::Relaxed);
        });
    }
}

fn counts_or(scene: &mut Scene, last: &mut HashMap<&'static str, i64>) -> HashMap<&'static str, i64> {
    *last = scene.counts("client").unwrap();
    last.clone()
}

#[test]
fn what_a_router_passes_on_is_not_its_own() {
    let Some(lab) = lab_alone("dns-router") else {
        return;
    };
    let name = "router";
    let (client, router, server) = (
        lab.pod(name, "client").unwrap(),
        lab.router(name, "router").unwrap(),
        lab.pod(name, "server").unwrap(),
    );
    let (left, right) = (lab.link(&client, &router).unwrap(), lab.link(&server, &router).unwrap());
    client.ip(&format!("route add default via {}", left.b.v4)).unwrap();
    server.ip(&format!("route add default via {}", right.b.v4)).unwrap();
    let Some(live) = start(&config_of("dns"), index_of([&client, &router, &server]), None) else {
        return;
    };
    let mut scene = Scene { client, server, live };
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let socket = sockets::udp(&scene.server, Family::V4, 53).unwrap();
        scope.spawn(|| answer_all(socket, &stop));
        let socket = sockets::udp(&scene.client, Family::V4, 0).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        for id in 0..20u16 {
            socket
                .send_to(&message(id, 0x0100), scene.server.socket(Family::V4, 53))
                .unwrap();
            socket.recv_from(&mut [0; 512]).unwrap();
        }
        stop.store(true, Ordering::Relaxed);
    });
    let counts = scene.counts("client").unwrap();
    assert_eq!(
        (counts["queries"], counts["noerror"], counts["retries"]),
        (20, 20, 0),
        "{counts:?}"
    );
    assert!(scene.counts("router").is_none() && scene.counts("server").is_none());
}
