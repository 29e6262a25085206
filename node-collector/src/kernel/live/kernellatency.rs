//! Time in the stack: every segment is an event where the threshold is 0, and none where it is far above.

use std::io::{Read as _, Write as _};

use sonde_common::time::Span;
use sonde_lab::{Pod, sockets};

use super::*;

const PORT: u16 = 7_501;
const FROM: u16 = 41_501;
const SLOTS: usize = sonde_ebpf_common::latency::SLOTS;

struct Scene {
    client: Pod,
    server: Pod,
    live: Live,
}

fn scene(lab: &Lab, name: &str, rung: Rung, threshold: Duration) -> Option<Scene> {
    let name = format!("{name}-{}", rung.name().replace('_', ""));
    let (client, server) = (lab.pod(&name, "client").unwrap(), lab.pod(&name, "server").unwrap());
    lab.link(&client, &server).unwrap();
    let mut config = config_of("kernellatency");
    let settings = config.probes.get_mut("kernellatency").unwrap();
    settings.threshold = Some(Span(threshold));
    settings.stacks = false;
    let live = start(&config, index_of([&client, &server]), Some(rung))?;
    Some(Scene { client, server, live })
}

#[derive(Clone, Copy, Debug, Default)]
struct Times {
    receive: u64,
    send: u64,
    unmatched: u64,
}

impl Scene {
    fn times(&mut self, pod: &str) -> Times {
        let (tables, gaps) = self.live.kernel.read(now_ns(), &self.live.index);
        assert!(gaps.is_empty(), "{gaps:?}");
        let mut times = Times::default();
        for table in &tables {
            let Some(row) = table.subjects.iter().position(|subject| name(subject) == pod) else {
                continue;
            };
            let count = |column: usize| {
                let values = &table.columns[column][row * (SLOTS + 1)..][..SLOTS];
                values.iter().sum::<i64>() as u64
            };
            times = Times {
                receive: count(0),
                send: count(4),
                unmatched: table.columns[10][row] as u64,
            };
        }
        times
    }
}

/// Ten small messages from the client, each read before the next.
fn talk(pair: &mut sockets::Connected, messages: usize) {
    pair.client.set_nodelay(true).unwrap();
    for _ in 0..messages {
        pair.client.write_all(b"question").unwrap();
        pair.server.read_exact(&mut [0; 8]).unwrap();
    }
}

#[test]
fn every_segment_is_timed_on_both_sides_and_told_with_its_ports() {
    let Some(lab) = lab_alone("kernellatency-all") else {
        return;
    };
    for rung in BOTH {
        let Some(mut scene) = scene(&lab, "all", rung, Duration::ZERO) else {
            return;
        };
        for family in Family::BOTH {
            let mut pair = sockets::tcp_pair(&scene.client, FROM, &scene.server, family, PORT).unwrap();
            let before = (scene.times("client"), scene.times("server"));
            talk(&mut pair, 10);
            let data = |event: &Event| {
                let flags = ("tcp_flags", "PSH,ACK".into());
                event.observation.dport == Some(PORT) && event.observation.attributes.contains(&flags)
            };
            let events = scene.live.wait_for(20, data);
            let of = |kind: &str| {
                let ours = events
                    .iter()
                    .filter(|event| data(event) && event.observation.kind == kind);
                ours.collect::<Vec<_>>()
            };
            let (received, sent) = (of("RXKERNEL_SLOW"), of("TXKERNEL_SLOW"));
            assert_eq!(
                (received.len(), sent.len()),
                (10, 10),
                "{:#?}",
                events.iter().map(line).collect::<Vec<_>>()
            );
            for (event, pod, direction) in received
                .iter()
                .map(|event| (event, "server", Direction::Ingress))
                .chain(sent.iter().map(|event| (event, "client", Direction::Egress)))
            {
                let seen = &event.observation;
                assert_eq!(
                    (name(&event.subject), seen.direction),
                    (pod.to_owned(), direction),
                    "{event:?}"
                );
                assert_eq!(
                    (seen.saddr, seen.sport),
                    (Some(scene.client.address(family)), Some(FROM))
                );
                assert_eq!(
                    (seen.daddr, seen.dport),
                    (Some(scene.server.address(family)), Some(PORT))
                );
                assert_eq!(seen.protocol.as_deref(), Some("TCP"));
                assert!(seen.latency_ns.is_some_and(|ns| ns < 20_000_000_000), "{seen:?}");
            }
            let after = (scene.times("client"), scene.times("server"));
            assert_eq!(after.0.send - before.0.send, 10, "acknowledgements alone are left out");
            assert!(after.1.receive - before.1.receive >= 10);
            assert_eq!((after.0.unmatched, after.1.unmatched), (0, 0), "{after:?}");
        }
    }
}

#[test]
fn healthy_traffic_makes_no_event_of_the_stack() {
    let Some(lab) = lab_alone("kernellatency-healthy") else {
        return;
    };
    for rung in BOTH {
        // As long as no busy machine delays anything, and any wrong time is far above.
        let Some(mut scene) = scene(&lab, "healthy", rung, Duration::from_secs(5)) else {
            return;
        };
        healthy::healthy(&scene.client, &scene.server).unwrap();
        let times = scene.times("server");
        assert!(times.receive > 50 && times.send > 10, "{times:?}");
        let mut events = Vec::new();
        scene.live.take(&mut events);
        assert!(events.is_empty(), "{:#?}", events.iter().map(line).collect::<Vec<_>>());
    }
}
