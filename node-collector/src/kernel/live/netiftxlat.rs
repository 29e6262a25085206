//! Time in queues and drivers: a token bucket that holds packets back, and every packet where the threshold is 0.

use std::io::{Read as _, Write as _};
use std::net::UdpSocket;

use sonde_common::time::Span;
use sonde_lab::{Pod, sockets};

use super::hidden::Hidden;
use super::*;

const PORT: u16 = 7_401;
const FROM: u16 = 41_401;
const SLOTS: usize = sonde_ebpf_common::latency::SLOTS;

struct Scene {
    client: Pod,
    server: Pod,
    live: Live,
    hidden: Option<Hidden>,
}

fn scene(lab: &Lab, name: &str, rung: Rung, threshold: Duration, sample: u32) -> Option<Scene> {
    let name = format!("{name}-{}", rung.name().replace('_', ""));
    let (client, server) = (lab.pod(&name, "client").unwrap(), lab.pod(&name, "server").unwrap());
    lab.link(&client, &server).unwrap();
    let mut config = config_of("netiftxlat");
    let settings = config.probes.get_mut("netiftxlat").unwrap();
    settings.threshold = Some(Span(threshold));
    settings.sample = std::num::NonZeroU32::new(sample);
    settings.stacks = false;
    let live = start(&config, index_of([&client, &server]), Some(rung))?;
    let hidden = Hidden::at("net/net_dev_xmit", "name == \"eth0\"");
    Some(Scene {
        client,
        server,
        live,
        hidden,
    })
}

/// One device of one pod.
#[derive(Clone, Copy, Debug, Default)]
struct Times {
    qdisc: u64,
    qdisc_over_100ms: u64,
    xmit: u64,
    unmatched: u64,
}

impl Scene {
    fn times(&mut self, pod: &str, device: &str) -> Times {
        let (tables, gaps) = self.live.kernel.read(now_ns(), &self.live.index);
        assert!(gaps.is_empty(), "{gaps:?}");
        let mut times = Times::default();
        for table in &tables {
            for (row, subject) in table.subjects.iter().enumerate() {
                if name(subject) == pod && &*table.labels[row] == device {
                    let count = |column: usize| {
                        let values = &table.columns[column][row * (SLOTS + 1)..][..SLOTS];
                        values.iter().sum::<i64>() as u64
                    };
                    times = Times {
                        qdisc: count(0),
                        qdisc_over_100ms: table.columns[3][row] as u64,
                        xmit: count(4),
                        unmatched: table.columns[8][row] as u64,
                    };
                }
            }
        }
        times
    }

    /// What the device and we have counted at the same time, and what no program was shown.
    fn both(&mut self) -> Both {
        loop {
            let before = device(&self.client, "eth0");
            let times = self.times("client", "eth0");
            let hidden = self.hidden.as_ref().map_or(0, Hidden::count);
            if before == device(&self.client, "eth0") {
                return Both {
                    sent: before.sent_packets,
                    times,
                    hidden,
                };
            }
        }
    }

    /// What we have counted since then, once it is everything that the device has sent and a program was shown.
    fn grown(&mut self, since: &Both) -> Times {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let now = self.both();
            let grown = Times {
                qdisc: now.times.qdisc - since.times.qdisc,
                qdisc_over_100ms: now.times.qdisc_over_100ms - since.times.qdisc_over_100ms,
                xmit: now.times.xmit - since.times.xmit,
                unmatched: now.times.unmatched - since.times.unmatched,
            };
            // Those of other tests' devices, which have the same name, may be among them.
            let (sent, hidden) = (now.sent - since.sent, now.hidden - since.hidden);
            assert!(grown.xmit <= sent, "{sent} sent, {grown:?}");
            if grown.xmit + hidden >= sent && grown.qdisc + grown.unmatched == grown.xmit {
                println!("{sent} sent, {hidden} hidden, {grown:?}");
                return grown;
            }
            assert!(
                Instant::now() < deadline,
                "{sent} sent, {hidden} hidden from programs, {grown:?}"
            );
        }
    }
}

struct Both {
    sent: u64,
    times: Times,
    hidden: u64,
}

fn is_ours(event: &Event) -> bool {
    event.observation.dport == Some(PORT)
}

/// Packets that the device's queue has passed on, once it is empty.
fn passed(pod: &Pod) -> u64 {
    let mut packets = 0;
    until("the queue to be empty", || {
        let qdisc = pod.qdisc("eth0").unwrap();
        packets = qdisc.packets;
        assert_eq!(qdisc.drops, 0);
        qdisc.queue_length == 0
    });
    packets
}

#[test]
fn datagrams_that_a_token_bucket_holds_are_told_with_their_ports_and_counted_as_tc_counts() {
    let Some(lab) = lab_alone("netiftxlat-udp") else {
        return;
    };
    for rung in BOTH {
        let Some(mut scene) = scene(&lab, "udp", rung, Duration::from_millis(100), 1) else {
            return;
        };
        for family in Family::BOTH {
            let _sink = sockets::udp(&scene.server, family, PORT).unwrap();
            let socket = sockets::udp(&scene.client, family, FROM).unwrap();
            // Neighbours first: their packets would be among those that are counted.
            sockets::send(&socket, scene.server.socket(family, PORT), 1, 10);
            std::thread::sleep(Duration::from_millis(100));
            // 25 datagrams of some 1 kB at 256 kbit/s take 31 ms each; what comes last waits for more than half a second.
            scene
                .client
                .tc("qdisc replace dev eth0 root tbf rate 256kbit burst 2200 limit 100000")
                .unwrap();
            let before = scene.both();
            let to = scene.server.socket(family, PORT);
            let sent = sockets::send(&socket, to, 25, 1000);
            assert_eq!(sent.accepted, 25);
            assert!(passed(&scene.client) >= 25, "tc counts them too");
            let grown = scene.grown(&before);
            assert!(grown.unmatched <= 1, "seldom another packet takes a place: {grown:?}");
            let long = grown.qdisc_over_100ms;
            assert!(long >= 15, "{grown:?}");
            let events = scene.live.wait_for(long as usize, |_| true);
            assert_eq!(events.len() as u64, long);
            let is_udp = |event: &&Event| event.observation.protocol.as_deref() == Some("UDP");
            assert!(events.iter().filter(is_udp).count() >= 15);
            for event in events.iter().filter(is_udp) {
                let seen = &event.observation;
                assert_eq!(name(&event.subject), "client", "{event:?}");
                assert_eq!(seen.kind, "NETIFTXLAT_QDISC");
                assert_eq!(
                    (seen.saddr, seen.sport),
                    (Some(scene.client.address(family)), Some(FROM))
                );
                assert_eq!((seen.daddr, seen.dport), (Some(to.ip()), Some(PORT)));
                assert_eq!(seen.interface.as_deref(), Some("eth0"));
                assert_eq!(seen.direction, Direction::Egress);
                assert!(seen.latency_ns.is_some_and(|ns| ns > 100_000_000), "{seen:?}");
            }
            let longest = events.iter().filter_map(|event| event.observation.latency_ns).max();
            assert!(longest > Some(400_000_000), "{longest:?}");
            scene.client.tc("qdisc del dev eth0 root").unwrap();
        }
        assert_eq!(scene.times("server", "eth0").qdisc_over_100ms, 0);
    }
}

#[test]
fn large_segments_that_a_token_bucket_cuts_up_keep_their_time() {
    let Some(lab) = lab_alone("netiftxlat-tcp") else {
        return;
    };
    for rung in BOTH {
        let Some(mut scene) = scene(&lab, "tcp", rung, Duration::from_millis(100), 1) else {
            return;
        };
        for family in Family::BOTH {
            let mut pair = sockets::tcp_pair(&scene.client, FROM, &scene.server, family, PORT).unwrap();
            scene
                .client
                .tc("qdisc replace dev eth0 root tbf rate 2mbit burst 1600 limit 400000")
                .unwrap();
            let before = scene.both();
            let reader = std::thread::spawn(move || {
                let mut left = 200_000;
                let mut buffer = vec![0; 65_536];
                while left > 0 {
                    left -= pair.server.read(&mut buffer).unwrap();
                }
                pair.server
            });
            pair.client.write_all(&vec![7; 200_000]).unwrap();
            let server = reader.join().unwrap();
            passed(&scene.client);
            // As the device counts, and not tc: a last pair of segments that is small enough is not cut up, and tc counts it
            // twice.
            let grown = scene.grown(&before);
            let sent = grown.xmit;
            assert!(sent > 130, "the bucket passes segments of one frame each: {sent}");
            // Every segment carries the time stamp of what it was cut from; now and then another packet takes a place.
            assert!(grown.unmatched <= sent / 20, "{grown:?}");
            let long = grown.qdisc_over_100ms;
            assert!(long > 50, "{grown:?}");
            let events = scene.live.wait_for(long as usize, |_| true);
            assert_eq!(events.len() as u64, long);
            // ARP and neighbour discovery may have waited among them.
            let is_tcp = |event: &&Event| event.observation.protocol.as_deref() == Some("TCP");
            assert!(events.iter().filter(is_tcp).count() > 50);
            for event in events.iter().filter(is_tcp) {
                let seen = &event.observation;
                assert_eq!((seen.sport, seen.dport), (Some(FROM), Some(PORT)), "{event:?}");
                assert_eq!(name(&event.subject), "client");
                // 200 kB at 2 Mbit/s are 0.8 s: nothing can have waited since before the test.
                assert!(seen.latency_ns.is_some_and(|ns| ns < 20_000_000_000), "{seen:?}");
            }
            drop((pair.client, server));
            scene.client.tc("qdisc del dev eth0 root").unwrap();
        }
    }
}

#[test]
fn the_drivers_time_belongs_to_the_sender_although_veth_hands_the_packet_to_its_peer() {
    let Some(lab) = lab_alone("netiftxlat-xmit") else {
        return;
    };
    for rung in BOTH {
        // Everything takes longer than 0.
        let Some(mut scene) = scene(&lab, "xmit", rung, Duration::ZERO, 1) else {
            return;
        };
        for family in Family::BOTH {
            let sink = sockets::udp(&scene.server, family, PORT).unwrap();
            let socket = sockets::udp(&scene.client, family, FROM).unwrap();
            sockets::send(&socket, scene.server.socket(family, PORT), 20, 100);
            let ours = |event: &Event| is_ours(event) && event.observation.kind == "NETIFTXLAT_XMIT";
            let events = scene.live.wait_for(20, ours);
            let mine: Vec<_> = events.iter().filter(|event| ours(event)).collect();
            assert_eq!(mine.len(), 20);
            for event in mine {
                let seen = &event.observation;
                assert_eq!(name(&event.subject), "client", "{event:?}");
                assert_eq!((seen.sport, seen.interface.as_deref()), (Some(FROM), Some("eth0")));
                assert_eq!(seen.saddr, Some(scene.client.address(family)));
                assert!(seen.latency_ns.is_some_and(|ns| ns > 0 && ns < 20_000_000_000));
            }
            drop(sink);
        }
    }
}

#[test]
fn fragments_and_packets_inside_a_tunnel_have_the_right_ports_or_none() {
    let Some(lab) = lab_alone("netiftxlat-odd") else {
        return;
    };
    for rung in BOTH {
        let Some(mut scene) = scene(&lab, "odd", rung, Duration::ZERO, 1) else {
            return;
        };
        let _sink = sockets::udp(&scene.server, Family::V4, PORT).unwrap();
        let socket = sockets::udp(&scene.client, Family::V4, FROM).unwrap();
        // Three fragments, of which the first has the ports.
        sockets::send(&socket, scene.server.socket(Family::V4, PORT), 1, 4000);
        let qdisc = |event: &Event| event.observation.kind == "NETIFTXLAT_QDISC";
        let udp = |event: &Event| event.observation.protocol.as_deref() == Some("UDP");
        let events = scene.live.wait_for(3, |event| qdisc(event) && udp(event));
        let ports: Vec<_> = events
            .iter()
            .filter(|event| qdisc(event) && udp(event))
            .map(|event| event.observation.dport)
            .collect();
        let mut sorted = ports.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, [None, None, Some(PORT)]);

        let remote = |pod: &Pod| pod.address(Family::V4).to_string();
        for (pod, other, address) in [
            (&scene.client, remote(&scene.server), "10.77.0.1"),
            (&scene.server, remote(&scene.client), "10.77.0.2"),
        ] {
            pod.ip(&format!(
                "link add vx0 type vxlan id 7 remote {other} dstport 4789 dev eth0"
            ))
            .unwrap();
            pod.ip(&format!("addr add {address}/24 dev vx0")).unwrap();
            pod.ip("link set vx0 up").unwrap();
        }
        let _inner = sockets::udp(&scene.server, Family::V4, PORT + 1).unwrap();
        let socket = sockets::udp(&scene.client, Family::V4, FROM + 1).unwrap();
        sockets::send(&socket, format!("10.77.0.2:{}", PORT + 1).parse().unwrap(), 5, 100);
        let on = |device: &'static str| {
            move |event: &Event| {
                let seen = &event.observation;
                seen.interface.as_deref() == Some(device)
                    && seen.kind == "NETIFTXLAT_XMIT"
                    && seen.protocol.as_deref() == Some("UDP")
                    && name(&event.subject) == "client"
            }
        };
        let (inner, outer) = (on("vx0"), on("eth0"));
        let mut events = Vec::new();
        until("packets of both devices", || {
            scene.live.take(&mut events);
            events.iter().filter(|event| inner(event)).count() >= 5
                && events.iter().filter(|event| outer(event)).count() >= 5
        });
        let ports = |event: &Event| (event.observation.sport, event.observation.dport);
        let inside: Vec<_> = events.iter().filter(|event| inner(event)).map(ports).collect();
        assert_eq!(
            inside
                .iter()
                .filter(|ports| **ports == (Some(FROM + 1), Some(PORT + 1)))
                .count(),
            5
        );
        for event in events.iter().filter(|event| outer(event)) {
            assert_eq!(event.observation.dport, Some(4789), "{event:?}");
            assert_eq!(event.observation.saddr, Some(scene.client.address(Family::V4)));
        }
    }
}

#[test]
fn a_sample_says_so_and_counts_only_what_it_looked_at() {
    let Some(lab) = lab_alone("netiftxlat-sample") else {
        return;
    };
    for rung in BOTH {
        let Some(mut scene) = scene(&lab, "sample", rung, Duration::ZERO, 16) else {
            return;
        };
        let sink = sockets::udp(&scene.server, Family::V4, PORT).unwrap();
        let socket: UdpSocket = sockets::udp(&scene.client, Family::V4, FROM).unwrap();
        sockets::send(&socket, scene.server.socket(Family::V4, PORT), 1600, 10);
        until("the datagrams to have arrived", || sockets::drain(&sink).unwrap() == 0);
        let times = scene.times("client", "eth0");
        // Other packets of the machine take turns too, so the share is not exact.
        assert!((1..=800).contains(&times.qdisc), "{times:?}");
        assert_eq!(times.unmatched, 0, "a packet that was not looked at is not missed");
        let events = scene.live.wait_for(1, is_ours);
        assert!(
            events
                .iter()
                .all(|event| event.observation.attributes.contains(&("sample", "16".into())))
        );
    }
}

#[test]
fn healthy_traffic_makes_no_event_of_time() {
    let Some(lab) = lab_alone("netiftxlat-healthy") else {
        return;
    };
    for rung in BOTH {
        // As long as no busy machine delays anything, and any wrong time is far above.
        let Some(mut scene) = scene(&lab, "healthy", rung, Duration::from_secs(5), 1) else {
            return;
        };
        healthy::healthy(&scene.client, &scene.server).unwrap();
        let times = scene.times("client", "eth0");
        assert!(times.qdisc > 100, "{times:?}");
        let mut events = Vec::new();
        scene.live.take(&mut events);
        assert!(events.is_empty(), "{events:#?}");
    }
}
