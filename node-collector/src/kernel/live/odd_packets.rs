//! Packets that are not plain TCP or UDP over IPv4: what is said of each is right, or is not said. They are made byte by
//! byte and sent by a packet socket; rules that drop them count them too.

mod cut;
mod frames;
mod table;

use std::net::IpAddr;

use sonde_lab::Pod;

use super::*;
use frames::{MAC, V4, V6, Wire, ether, extension, ipv4, ipv6, syn, syn_with, udp};
use table::Odd;

struct Scene {
    client: Pod,
    server: Pod,
    live: Live,
    wire: Wire,
}

fn scene(lab: &Lab, name: &str, rung: Rung, config: &Config) -> Option<Scene> {
    let name = format!("{name}-{}", rung.name().replace('_', ""));
    let (client, server) = (lab.pod(&name, "client").unwrap(), lab.pod(&name, "server").unwrap());
    lab.link(&client, &server).unwrap();
    let live = start(config, index_of([&client, &server]), Some(rung))?;
    let wire = Wire::open(&client, &server);
    Some(Scene {
        client,
        server,
        live,
        wire,
    })
}

/// Where frames are dropped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum At {
    Ingress,
    Prerouting,
    Egress,
}

impl At {
    fn rules(self) -> String {
        let by_mac = |hook: &str| {
            format!(
                "table netdev odd {{ counter odd {{ }}\n chain c {{ type filter hook {hook} device eth0 priority 0\n \
                 ether saddr {MAC} counter name odd drop\n }}\n }}"
            )
        };
        match self {
            Self::Ingress => by_mac("ingress"),
            Self::Egress => by_mac("egress"),
            Self::Prerouting => format!(
                "table inet odd {{ counter odd {{ }}\n chain c {{ type filter hook prerouting priority -300\n \
                 ip saddr {} counter name odd drop\n ip6 saddr {} counter name odd drop\n }}\n }}",
                V4[0], V6[0]
            ),
        }
    }

    fn takes(self, odd: &Odd) -> bool {
        self != Self::Prerouting || odd.reaches_ip
    }
}

const TOLD: [&str; 4] = ["ip_protocol", "fragment", "icmp_type", "tcp_flags"];

fn check(event: &Event, odd: &Odd, what: &str) {
    let seen = &event.observation;
    let [from, to] = odd.ends.map_or([None; 2], |ends| ends.map(Some));
    let line = line(event);
    assert_eq!(seen.reason.as_deref(), Some("NETFILTER_DROP"), "{what}: {line}");
    assert_eq!(seen.protocol.as_deref(), odd.protocol, "{what}: {line}");
    assert_eq!((seen.saddr, seen.daddr), (from, to), "{what}: {line}");
    assert_eq!([seen.sport, seen.dport], odd.ports, "{what}: {line}");
    let told: Vec<_> = seen.attributes.iter().map(|(name, value)| (*name, &**value)).collect();
    let told: Vec<_> = told.into_iter().filter(|(name, _)| TOLD.contains(name)).collect();
    assert_eq!(told, odd.attributes, "{what}: {line}");
}

/// Traffic by address, as rows of `flow` have it: device, direction, protocol, ends and ports, to packets.
fn expected_flows(odd: &[Odd], pod: &str, direction: &str) -> HashMap<String, i64> {
    let mut flows = HashMap::new();
    for odd in odd {
        let Some((protocol, has_ports)) = odd.flow else {
            continue;
        };
        let is_ipv6 = odd.frame.starts_with(&[0x86, 0xdd]) || odd.ends.is_some_and(|[from, _]| from.is_ipv6());
        let [from, to] = if is_ipv6 {
            V6.map(IpAddr::V6)
        } else {
            V4.map(IpAddr::V4)
        };
        let port = |port: Option<u16>| {
            port.filter(|_| has_ports)
                .map_or_else(String::new, |port| port.to_string())
        };
        let [sport, dport] = odd.ports.map(port);
        let key = format!("{pod} eth0 {direction} {protocol} {from} {to} {sport} {dport}");
        *flows.entry(key).or_default() += 1;
    }
    flows
}

#[test]
fn of_odd_packets_ends_and_ports_are_right_or_absent() {
    let Some(lab) = lab_alone("odd") else {
        return;
    };
    let all = table::all();
    for rung in BOTH {
        for at in [At::Ingress, At::Prerouting, At::Egress] {
            let mut config = config();
            let flow = config.probes.get_mut("flow").unwrap();
            (flow.enabled, flow.ports) = (Some(true), true);
            let Some(mut scene) = scene(&lab, &format!("{at:?}").to_lowercase(), rung, &config) else {
                return;
            };
            let place = if at == At::Egress { &scene.client } else { &scene.server };
            let place = place.clone();
            place.nft(&at.rules()).unwrap();
            let mut sent = 0;
            for odd in all.iter().filter(|odd| at.takes(odd)) {
                let what = format!("{} {at:?} {}", odd.name, rung.name());
                scene.wire.send(&odd.frame);
                sent += 1;
                let events = scene.live.settle(&scene.client);
                let ours: Vec<_> = events
                    .iter()
                    .filter(|event| name(&event.subject) == place.name())
                    .collect();
                assert_eq!(ours.len(), 1, "{what}: {events:#?}");
                check(ours[0], odd, &what);
                let egress = matches!(ours[0].observation.direction, Direction::Egress);
                assert_eq!(egress, at == At::Egress, "{what}");
                assert_eq!(ours[0].observation.interface.as_deref(), Some("eth0"), "{what}");
            }
            assert_eq!(place.nft_counter("odd").unwrap().packets, sent, "{at:?}");
            let counted = scene.live.drops();
            let key = (
                place.name().to_owned(),
                "NETFILTER_DROP".to_owned(),
                "suspect".to_owned(),
            );
            assert_eq!(counted[&key] as u64, sent, "{at:?} {counted:?}");
            if at == At::Ingress {
                let rows = scene.live.rows("flow");
                for (pod, direction) in [("client", "egress"), ("server", "ingress")] {
                    let of_ours = |key: &&String| {
                        let ours = [V4[0].to_string(), V6[0].to_string()];
                        key.starts_with(pod) && ours.iter().any(|end| key.split(' ').any(|word| word == end))
                    };
                    let found: HashMap<String, i64> = rows
                        .keys()
                        .filter(of_ours)
                        .map(|key| (key.clone(), rows[key]["packets"][0]))
                        .collect();
                    assert_eq!(found, expected_flows(&all, pod, direction), "{}", rung.name());
                }
            }
        }
    }
}

/// A tunnel's device on the server's side, and the frame that a packet is in on the wire.
fn tunnelled(scene: &Scene, inner: &[u8]) -> Vec<u8> {
    let ends = [scene.client.address(Family::V4), scene.server.address(Family::V4)];
    let [IpAddr::V4(from), IpAddr::V4(to)] = ends else {
        unreachable!("of IPv4")
    };
    let frame = [&[2, 0, 0, 0, 0, 0x77][..], &[2, 0, 0, 0, 0, 0x78], inner].concat();
    let vxlan = [&[8, 0, 0, 0, 0, 0, 8, 0][..], &frame].concat();
    ether(&[], 0x0800, &ipv4([from, to], 0, 0, 17, &udp([50_000, 4789], &vxlan)))
}

fn make_tunnel(scene: &Scene) {
    let remote = scene.client.address(Family::V4);
    let link = format!("link add vx0 address 02:00:00:00:00:77 type vxlan id 8 remote {remote} dstport 4789 dev eth0");
    scene.server.ip(&link).unwrap();
    scene.server.ip("addr add 10.78.0.2/24 dev vx0").unwrap();
    scene.server.ip("link set vx0 up").unwrap();
}

#[test]
fn a_packet_that_came_out_of_a_tunnel_is_the_inner_one() {
    let Some(lab) = lab_alone("odd-tunnel") else {
        return;
    };
    for rung in BOTH {
        let Some(mut scene) = scene(&lab, "tunnel", rung, &config()) else {
            return;
        };
        make_tunnel(&scene);
        scene.server.nft(&At::Prerouting.rules()).unwrap();
        let inner = ether(&[], 0x0800, &ipv4(V4, 2, 0, 17, &udp([1111, 2222], b"x")));
        let frame = tunnelled(&scene, &inner);
        scene.wire.send(&frame);
        let events = scene.live.settle(&scene.client);
        let found: Vec<_> = events
            .iter()
            .filter(|event| event.observation.dport == Some(2222))
            .collect();
        assert_eq!(found.len(), 1, "{events:#?}");
        let seen = &found[0].observation;
        assert_eq!((seen.saddr, seen.sport), (Some(V4[0].into()), Some(1111)));
        assert_eq!(
            (seen.daddr, seen.interface.as_deref()),
            (Some(V4[1].into()), Some("vx0"))
        );
        assert_eq!(scene.server.nft_counter("odd").unwrap().packets, 1);
    }
}

#[test]
fn resets_that_answer_odd_segments_have_their_ports() {
    let Some(lab) = lab_alone("odd-resets") else {
        return;
    };
    for rung in BOTH {
        let Some(mut scene) = scene(&lab, "resets", rung, &config_with_marks("tcpreset")) else {
            return;
        };
        make_tunnel(&scene);
        let v4 = [&scene.client, &scene.server].map(|pod| match pod.address(Family::V4) {
            IpAddr::V4(ip) => ip,
            IpAddr::V6(_) => unreachable!("of IPv4"),
        });
        let v6 = [&scene.client, &scene.server].map(|pod| match pod.address(Family::V6) {
            IpAddr::V6(ip) => ip,
            IpAddr::V4(_) => unreachable!("of IPv6"),
        });
        let inside = ["10.78.0.1", "10.78.0.2"].map(|ip| ip.parse().unwrap());
        let (v4_ends, v6_ends) = (v4.map(IpAddr::V4), v6.map(IpAddr::V6));
        let ports = |number: u16| [21_000 + number, 31_000 + number];
        let four = |payload: &[u8], options, fragment| ether(&[], 0x0800, &ipv4(v4, options, fragment, 6, payload));
        let six = |next, payload: &[u8]| ether(&[], 0x86dd, &ipv6(v6, next, payload));
        // The first fragment of an IPv6 packet must hold the whole header (RFC 7112).
        let (first, fifth) = (syn(ports(2), v4_ends), syn_with(ports(5), v6_ends, &[0; 12]));
        let fragment = |offset: u16, part: &[u8]| {
            let header = [&[6, 0][..], &offset.to_be_bytes(), &[0, 0, 0, 9], part].concat();
            six(44, &header)
        };
        let inner = ether(
            &[],
            0x0800,
            &ipv4(inside, 1, 0, 6, &syn(ports(6), inside.map(IpAddr::V4))),
        );
        let cases = [
            (vec![four(&syn(ports(0), v4_ends), 0, 0)], v4_ends),
            (vec![four(&syn(ports(1), v4_ends), 10, 0)], v4_ends),
            (vec![four(&first[..8], 3, 0x2000), four(&first[8..], 0, 1)], v4_ends),
            (
                vec![six(0, &extension(60, 1, &extension(6, 3, &syn(ports(3), v6_ends))))],
                v6_ends,
            ),
            (vec![six(60, &extension(6, 2, &syn(ports(4), v6_ends)))], v6_ends),
            (vec![fragment(1, &fifth[..24]), fragment(24, &fifth[24..])], v6_ends),
            (vec![tunnelled(&scene, &inner)], inside.map(IpAddr::V4)),
        ];
        let before = scene.server.counters().unwrap();
        for (number, (frames, [from, to])) in cases.iter().enumerate() {
            frames.iter().for_each(|frame| scene.wire.send(frame));
            let events = scene.live.settle(&scene.client);
            let sent: Vec<_> = events
                .iter()
                .filter(|event| event.observation.kind == "TCPRESET_NOSOCK")
                .collect();
            assert_eq!(sent.len(), 1, "{number} {}: {events:#?}", rung.name());
            let seen = &sent[0].observation;
            let [source, destination] = ports(number as u16);
            assert_eq!(name(&sent[0].subject), "server");
            assert_eq!((seen.saddr, seen.sport), (Some(*to), Some(destination)), "{number}");
            assert_eq!((seen.daddr, seen.dport), (Some(*from), Some(source)), "{number}");
        }
        let after = scene.server.counters().unwrap();
        assert_eq!(after.since(&before, "Tcp.OutRsts").unwrap(), cases.len() as u64);
    }
}

#[test]
fn names_are_asked_for_and_answered_in_odd_packets_too() {
    let Some(lab) = lab_alone("odd-dns") else {
        return;
    };
    let message = |id: u16, flags: u16| {
        let mut message = [id.to_be_bytes(), flags.to_be_bytes()].concat();
        message.extend([0, 1, 0, 0, 0, 0, 0, 0]);
        message.extend(b"\x04test\x07example\0\0\x01\0\x01");
        message
    };
    // From the first of the ends to the second: which message, between which ports.
    type Shape = fn(bool, &[u8]) -> Vec<u8>;
    const WHOLE: [Shape; 6] = [
        |back, udp| ether(&[], 0x0800, &ipv4(four(back), 0, 0, 17, udp)),
        |back, udp| ether(&[], 0x0800, &ipv4(four(back), 10, 0, 17, udp)),
        |back, udp| ether(&[(0x8100, 7)], 0x0800, &ipv4(four(back), 1, 0, 17, udp)),
        |back, udp| ether(&[], 0x86dd, &ipv6(six(back), 0, &extension(17, 2, udp))),
        |back, udp| {
            ether(
                &[(0x88a8, 7), (0x8100, 8)],
                0x86dd,
                &ipv6(six(back), 60, &extension(17, 1, udp)),
            )
        },
        |back, udp| {
            let fragment = [&[17, 0, 0, 1, 0, 0, 0, 1][..], udp].concat();
            ether(&[], 0x86dd, &ipv6(six(back), 44, &fragment))
        },
    ];
    // What only looks like one.
    const NONE: [Shape; 5] = [
        |back, udp| ether(&[], 0x0800, &ipv4(four(back), 0, 0x0002, 17, udp)),
        |back, udp| ether(&[], 0x0800, &ipv4(four(back), 0, 0, 17, &udp[..19])),
        |back, udp| ether(&[], 0x0800, &ipv4(four(back), 0, 0, 132, udp)),
        |back, udp| ether(&[], 0x0806, &ipv4(four(back), 0, 0, 17, udp)),
        |back, udp| {
            ether(
                &[],
                0x86dd,
                &ipv6(six(back), 44, &[&[17, 0, 0, 9, 0, 0, 0, 1][..], udp].concat()),
            )
        },
    ];
    for rung in BOTH {
        let Some(mut scene) = scene(&lab, "dns", rung, &config_of("dns")) else {
            return;
        };
        let back = Wire::open(&scene.server, &scene.client);
        for (id, shape) in (1..).zip(WHOLE) {
            scene
                .wire
                .send(&shape(false, &udp([40_000 + id, 53], &message(id, 0x0100))));
            back.send(&shape(true, &udp([53, 40_000 + id], &message(id, 0x8180))));
        }
        for (id, shape) in (100..).zip(NONE) {
            scene
                .wire
                .send(&shape(false, &udp([40_000 + id, 53], &message(id, 0x0100))));
        }
        let (tables, gaps) = scene.live.kernel.read(now_ns(), &scene.live.index);
        assert!(gaps.is_empty(), "{gaps:?}");
        let table = &tables[0];
        assert_eq!(table.subjects.iter().map(name).collect::<Vec<_>>(), ["client"]);
        let of = |column: &str| {
            let place = table.spec.columns.iter().position(|spec| spec.name == column).unwrap();
            table.columns[place][0]
        };
        let counts = ["queries", "noerror", "retries", "other"].map(of);
        assert_eq!(
            counts,
            [WHOLE.len() as i64, WHOLE.len() as i64, 0, 0],
            "{}",
            rung.name()
        );
    }
}

/// The ends of an answer are those of its question, turned round.
fn four(back: bool) -> [std::net::Ipv4Addr; 2] {
    if back { [V4[1], V4[0]] } else { V4 }
}

fn six(back: bool) -> [std::net::Ipv6Addr; 2] {
    if back { [V6[1], V6[0]] } else { V6 }
}
