//! Traffic by address: what was sent, what the devices counted and what TCP counted must be the same.

use std::io::{Read as _, Write as _};

use sonde_lab::{Pod, sockets};

use super::*;

mod losses;
mod tc;

const PORT: u16 = 7_601;
const FROM: u16 = 41_601;

struct Scene {
    client: Pod,
    server: Pod,
    live: Live,
}

fn scene(lab: &Lab, name: &str, rung: Rung, ports: bool) -> Option<Scene> {
    let name = format!("{name}-{}", rung.name().replace('_', ""));
    let (client, server) = (lab.pod(&name, "client").unwrap(), lab.pod(&name, "server").unwrap());
    let mut config = config_of("flow");
    config.probes.get_mut("flow").unwrap().ports = ports;
    let live = start(&config, index_of([&client, &server]), Some(rung))?;
    // Afterwards, so that the devices have sent nothing that was not counted.
    lab.link(&client, &server).unwrap();
    Some(Scene { client, server, live })
}

/// Bytes and packets by labels: device, direction, protocol, src, dst, sport, dport.
type Flows = HashMap<[String; 7], (u64, u64)>;

impl Scene {
    fn flows(&mut self, pod: &str) -> Flows {
        let (tables, gaps) = self.live.kernel.read(now_ns(), &self.live.index);
        assert!(gaps.is_empty(), "{gaps:?}");
        let mut flows = Flows::new();
        for table in &tables {
            for (row, subject) in table
                .subjects
                .iter()
                .enumerate()
                .filter(|(_, subject)| name(subject) == pod)
            {
                assert_eq!(name(subject), pod);
                let labels = std::array::from_fn(|at| table.labels[row * 7 + at].to_string());
                let count = (table.columns[0][row] as u64, table.columns[1][row] as u64);
                assert!(flows.insert(labels, count).is_none(), "one row for each");
            }
        }
        flows
    }

    /// Once the device and we have counted the same number of packets sent.
    fn settled(&mut self, pod: &Pod, ours: impl Fn(&Flows) -> bool) -> (Device, Flows) {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let before = device(pod, "eth0");
            let flows = self.flows(pod.name());
            let after = device(pod, "eth0");
            if before == after && ours(&flows) {
                return (after, flows);
            }
            assert!(Instant::now() < deadline, "{before:?} {flows:#?}");
        }
    }
}

fn sum(flows: &Flows, direction: &str) -> (u64, u64) {
    let of = flows
        .iter()
        .filter(|(labels, _)| labels[0] == "eth0" && labels[1] == direction);
    of.fold((0, 0), |sum, (_, (bytes, packets))| (sum.0 + bytes, sum.1 + packets))
}

#[test]
fn datagrams_of_a_known_size_are_counted_to_the_byte_and_everything_as_the_devices_count() {
    let Some(lab) = lab_alone("flow-udp") else {
        return;
    };
    for rung in BOTH {
        for ports in [false, true] {
            let Some(mut scene) = scene(&lab, if ports { "ports" } else { "plain" }, rung, ports) else {
                return;
            };
            for family in Family::BOTH {
                let sink = sockets::udp(&scene.server, family, PORT).unwrap();
                let socket = sockets::udp(&scene.client, family, FROM).unwrap();
                assert_eq!(
                    sockets::send(&socket, scene.server.socket(family, PORT), 500, 100).accepted,
                    500
                );
                // A datagram of three fragments, the later ones without ports.
                assert_eq!(
                    sockets::send(&socket, scene.server.socket(family, PORT), 1, 4000).accepted,
                    1
                );
                drop(sink);
            }
            let (client, server) = (scene.client.clone(), scene.server.clone());
            for (pod, direction) in [(&client, "egress"), (&server, "ingress")] {
                let key = |family: Family, ports_of: [&str; 2]| {
                    let ends = [client.address(family).to_string(), server.address(family).to_string()];
                    let [src, dst] = ends;
                    let [sport, dport] = ports_of.map(str::to_owned);
                    ["eth0".into(), direction.into(), "UDP".into(), src, dst, sport, dport]
                };
                let (from, to) = (FROM.to_string(), PORT.to_string());
                let whole = if ports { [&*from, &*to] } else { ["", ""] };
                let all = |flows: &Flows| {
                    let v6 = flows
                        .get(&key(Family::V6, whole))
                        .is_some_and(|(_, packets)| *packets >= 501);
                    v6 && flows
                        .get(&key(Family::V4, whole))
                        .is_some_and(|(_, packets)| *packets >= 501)
                };
                let (device, flows) = scene.settled(pod, all);
                for (family, header, fragment) in [(Family::V4, 20, 0), (Family::V6, 40, 8)] {
                    let small = 500 * (14 + header + 8 + 100);
                    let large = 4000 + 8 + 3 * (14 + header + fragment);
                    let seen = flows[&key(family, whole)];
                    if ports {
                        let later = flows[&key(family, ["", ""])];
                        assert_eq!((seen.1, later.1), (501, 2), "{family}: {flows:#?}");
                        assert_eq!(seen.0 + later.0, small + large, "{family}: {flows:#?}");
                    } else {
                        assert_eq!(seen, (small + large, 503), "{family}: {flows:#?}");
                    }
                }
                let told = match direction {
                    "egress" => (device.sent_bytes, device.sent_packets),
                    _ => (device.received_bytes, device.received_packets),
                };
                assert_eq!(sum(&flows, direction), told, "{direction}: {flows:#?}");
            }
        }
    }
}

#[test]
fn large_buffers_count_as_the_segments_that_tcp_says_it_sent() {
    let Some(lab) = lab_alone("flow-tcp") else {
        return;
    };
    const BYTES: usize = 3_000_000;
    for rung in BOTH {
        let Some(mut scene) = scene(&lab, "tcp", rung, true) else {
            return;
        };
        for (family, header) in [(Family::V4, 20), (Family::V6, 40)] {
            let mut pair = sockets::tcp_pair(&scene.client, FROM, &scene.server, family, PORT).unwrap();
            let out = |pod: &Pod| {
                let counters = pod.counters().unwrap();
                // The kernel counts segments that only repeat apart.
                let of = |name| counters.get(name).unwrap() as u64;
                of("Tcp.OutSegs") + of("Tcp.RetransSegs")
            };
            let key = |direction: &str, pods: [&Pod; 2]| {
                let [src, dst] = pods.map(|pod| pod.address(family).to_string());
                [
                    "eth0".into(),
                    direction.into(),
                    "TCP".into(),
                    src,
                    dst,
                    FROM.to_string(),
                    PORT.to_string(),
                ]
            };
            let client = scene.client.clone();
            let sent = key("egress", [&scene.client, &scene.server]);
            let (_, before) = scene.settled(&client, |flows| flows.contains_key(&sent));
            let segments_before = out(&client);
            let writer = std::thread::spawn(move || {
                pair.client.write_all(&vec![1; BYTES]).unwrap();
                pair.client
            });
            pair.server.read_exact(&mut vec![0; BYTES]).unwrap();
            let stream = writer.join().unwrap();
            let again = client.counters().unwrap().get("Tcp.RetransSegs").unwrap();
            let (device, after) = scene.settled(&client, |flows| flows[&sent].0 - before[&sent].0 > BYTES as u64);
            let grown = (after[&sent].0 - before[&sent].0, after[&sent].1 - before[&sent].1);
            assert_eq!(
                grown.1,
                out(&client) - segments_before,
                "as TCP counts, {again} of them again"
            );
            if again == 0 {
                // Ethernet, IP, TCP with time stamps.
                assert_eq!(grown.0, BYTES as u64 + grown.1 * (14 + header + 32));
            }
            let (bytes, packets) = sum(&after, "egress");
            assert!(packets > device.sent_packets, "the device counts buffers");
            assert!(bytes > device.sent_bytes);
            // The receiver sees the same buffers.
            let server = scene.server.clone();
            let received = key("ingress", [&scene.client, &scene.server]);
            let same = |flows: &Flows| flows.get(&received) == Some(&after[&sent]);
            scene.settled(&server, same);
            drop((stream, pair.server));
        }
    }
}

#[test]
fn a_pod_that_speaks_to_everybody_has_a_row_for_the_rest_and_the_sum_stays_exact() {
    let Some(lab) = lab_alone("flow-rest") else {
        return;
    };
    for rung in BOTH {
        let Some(mut scene) = scene(&lab, "rest", rung, true) else {
            return;
        };
        let _sink = sockets::udp(&scene.server, Family::V4, PORT).unwrap();
        let to = scene.server.socket(Family::V4, PORT);
        scene
            .client
            .run(|| {
                for port in 0..2000 {
                    let socket = std::net::UdpSocket::bind(("0.0.0.0", 20_000 + port)).unwrap();
                    socket.send_to(b"x", to).unwrap();
                }
            })
            .unwrap();
        let client = scene.client.clone();
        let (device, flows) = scene.settled(&client, |flows| sum(flows, "egress").1 >= 2000);
        assert!(flows.len() <= 1024 + 4, "{}", flows.len());
        let rest: u64 = flows
            .iter()
            .filter(|(labels, _)| labels[3] == "rest")
            .map(|(_, count)| count.1)
            .sum();
        assert!((900..1100).contains(&rest), "{rest}");
        assert_eq!(sum(&flows, "egress"), (device.sent_bytes, device.sent_packets));
    }
}

#[test]
fn flows_that_are_silent_are_forgotten_and_make_room() {
    let Some(lab) = lab_alone("flow-idle") else {
        return;
    };
    let Some(mut scene) = scene(&lab, "idle", Rung::TpBtf, true) else {
        return;
    };
    let _sink = sockets::udp(&scene.server, Family::V4, PORT).unwrap();
    let socket = sockets::udp(&scene.client, Family::V4, FROM).unwrap();
    sockets::send(&socket, scene.server.socket(Family::V4, PORT), 3, 10);
    let client = scene.client.clone();
    let ours = |flows: &Flows| flows.keys().any(|labels| labels[5] == FROM.to_string());
    let (_, flows) = scene.settled(&client, ours);
    assert!(ours(&flows));
    let later = now_ns() + 301_000_000_000;
    let read = |live: &mut Live, at| {
        let (tables, _) = live.kernel.read(at, &live.index);
        tables
            .iter()
            .flat_map(|table| table.labels.clone())
            .any(|label| *label == *FROM.to_string())
    };
    assert!(read(&mut scene.live, later), "its last row");
    assert!(!read(&mut scene.live, later + 1));
    sockets::send(&socket, scene.server.socket(Family::V4, PORT), 2, 10);
    until("the flow to come back", || read(&mut scene.live, later + 2));
    let (_, flows) = scene.settled(&client, ours);
    let (_, count) = flows.iter().find(|(labels, _)| labels[5] == FROM.to_string()).unwrap();
    assert_eq!(count.1, 2, "it begins anew");
}

#[test]
fn a_tunnels_packets_are_counted_inside_and_outside_under_their_own_names() {
    let Some(lab) = lab_alone("flow-tunnel") else {
        return;
    };
    for rung in BOTH {
        let Some(mut scene) = scene(&lab, "tunnel", rung, true) else {
            return;
        };
        let remote = |pod: &Pod| pod.address(Family::V4).to_string();
        for (pod, other, address) in [
            (&scene.client, remote(&scene.server), "10.78.0.1"),
            (&scene.server, remote(&scene.client), "10.78.0.2"),
        ] {
            pod.ip(&format!(
                "link add vx0 type vxlan id 8 remote {other} dstport 4789 dev eth0"
            ))
            .unwrap();
            pod.ip(&format!("addr add {address}/24 dev vx0")).unwrap();
            pod.ip("link set vx0 up").unwrap();
        }
        let to = "10.78.0.2".parse().unwrap();
        let listener = sockets::tcp_listen(&scene.server, Family::V4, PORT, 4).unwrap();
        let mut stream = sockets::tcp_connect(
            &scene.client,
            FROM,
            std::net::SocketAddr::new(to, PORT),
            Duration::from_secs(10),
        )
        .unwrap()
        .unwrap();
        let mut other = listener.accept().unwrap().0;
        let writer = std::thread::spawn(move || {
            stream.write_all(&vec![1; 500_000]).unwrap();
            stream
        });
        other.read_exact(&mut vec![0; 500_000]).unwrap();
        let stream = writer.join().unwrap();
        let client = scene.client.clone();
        let all = |flows: &Flows, device: &str, protocol: &str, dport: &str| {
            let of = flows.iter().filter(|(labels, _)| {
                labels[0] == device && labels[1] == "egress" && labels[2] == protocol && labels[6] == dport
            });
            of.fold((0, 0), |sum, (_, (bytes, packets))| (sum.0 + bytes, sum.1 + packets))
        };
        let port = PORT.to_string();
        let (_, flows) = scene.settled(&client, |flows| all(flows, "vx0", "TCP", &port).0 > 500_000);
        let (inside, outside) = (all(&flows, "vx0", "TCP", &port), all(&flows, "eth0", "UDP", "4789"));
        // Neighbours of the tunnel's own travel outside too.
        let others: u64 = flows
            .iter()
            .filter(|(labels, _)| {
                labels[0] == "vx0" && labels[1] == "egress" && !(labels[2] == "TCP" && labels[6] == port)
            })
            .map(|(_, count)| count.1)
            .sum();
        assert!(inside.1 > 300, "{flows:#?}");
        assert_eq!(outside.1, inside.1 + others, "{flows:#?}");
        // Ethernet, IP, UDP and VXLAN around each segment.
        let other_bytes: u64 = flows
            .iter()
            .filter(|(labels, _)| {
                labels[0] == "vx0" && labels[1] == "egress" && !(labels[2] == "TCP" && labels[6] == port)
            })
            .map(|(_, count)| count.0)
            .sum();
        assert_eq!(
            outside.0,
            inside.0 + other_bytes + outside.1 * (14 + 20 + 8 + 8),
            "{flows:#?}"
        );
        drop((stream, other));
    }
}
