//! Segments sent again, of every kind that can be made by dropping exactly the right packets.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};

use sonde_lab::sockets::{self, Connected};
use sonde_lab::wait::Look;

use super::hidden::Hidden;
use super::*;

const PORT: u16 = 7_301;
const LIMIT: Duration = Duration::from_secs(10);
/// Large enough that no acknowledgement is mistaken for it.
const PAYLOAD: usize = 400;

struct Scene {
    client: sonde_lab::Pod,
    server: sonde_lab::Pod,
    live: Live,
    /// What was sent again and shown to no program, of segments and of SYN-ACKs.
    hidden: [Option<Hidden>; 2],
}

/// Two pods for each family, and a kernel side that sees them all.
fn scenes(lab: &Lab, name: &str, rung: Rung, families: &[Family]) -> Option<(Vec<[sonde_lab::Pod; 2]>, Live)> {
    let name = format!("{name}-{}", rung.name().replace('_', ""));
    let pair = |family: &Family| {
        let number = if *family == Family::V4 { 4 } else { 6 };
        let [client, server] = ["client", "server"].map(|role| lab.pod(&name, &format!("{role}{number}")).unwrap());
        lab.link(&client, &server).unwrap();
        [client, server]
    };
    let pairs: Vec<_> = families.iter().map(pair).collect();
    let live = start(&config_of("tcpretrans"), index_of(pairs.iter().flatten()), Some(rung))?;
    Some((pairs, live))
}

fn scene(lab: &Lab, name: &str, rung: Rung) -> Option<Scene> {
    let (mut pairs, live) = scenes(lab, name, rung, &[Family::V4])?;
    let [client, server] = pairs.remove(0);
    Some(Scene::new(client, server, live))
}

impl Scene {
    fn new(client: sonde_lab::Pod, server: sonde_lab::Pod, live: Live) -> Self {
        let of_ours = format!("sport == {PORT} || dport == {PORT}");
        let hidden = ["tcp/tcp_retransmit_skb", "tcp/tcp_retransmit_synack"].map(|at| Hidden::at(at, &of_ours));
        Self {
            client,
            server,
            live,
            hidden,
        }
    }

    /// At most so many buffers, those of other tests with these ports included.
    fn hidden(&self) -> i64 {
        let counts = self.hidden.iter().flatten().map(Hidden::count);
        counts.sum::<u64>() as i64
    }

    fn connect(&self, family: Family, from: u16) -> Connected {
        let connected = sockets::tcp_pair(&self.client, from, &self.server, family, PORT).unwrap();
        connected.client.set_nodelay(true).unwrap();
        connected
    }

    /// Drops the packets of `rule` on their way into the pod.
    fn drop_incoming(pod: &sonde_lab::Pod, rule: &str) {
        pod.nft(&format!(
            "table inet lab {{ chain drops {{ type filter hook input priority 0; {rule} drop\n }}\n }}"
        ))
        .unwrap();
    }

    fn let_pass(pod: &sonde_lab::Pod) {
        pod.nft("delete table inet lab").unwrap();
    }

    /// By kind, of one pod.
    fn counts(&mut self, pod: &str) -> HashMap<String, i64> {
        let (tables, gaps) = self.live.kernel.read(now_ns(), &self.live.index);
        assert!(gaps.is_empty(), "{gaps:?}");
        tables
            .iter()
            .flat_map(|table| {
                let rows = table.subjects.iter().zip(&table.labels).zip(&table.columns[0]);
                rows.filter(|((subject, _), _)| name(subject) == pod)
                    .map(|((_, kind), count)| (kind.to_string(), *count))
            })
            .collect()
    }

    /// Our counts when they are the kernel's, less those of segments that could not be sent, and how many of its were hidden
    /// from programs.
    fn agree(&mut self, pod: &sonde_lab::Pod, what: &str) -> (HashMap<String, i64>, i64) {
        let segments = |counters: &sonde_lab::Counters| {
            counters.get("Tcp.RetransSegs").unwrap() - counters.get("TcpExt.TCPRetransFail").unwrap()
        };
        let (mut counts, mut hidden) = (HashMap::new(), 0);
        sonde_lab::wait::until(&format!("{what}: our counts to be the kernel's"), LIMIT, || {
            let before = segments(&pod.counters()?);
            counts = self.counts(pod.name());
            hidden = self.hidden();
            let after = segments(&pod.counters()?);
            let ours = counts.values().sum::<i64>();
            Ok(match before == after && (ours..=ours + hidden).contains(&before) {
                true => Look::Found(()),
                false => Look::NotYet(format!(
                    "ours {counts:?}, {hidden} hidden from programs, the kernel's {before} to {after}"
                )),
            })
        })
        .unwrap();
        (counts, hidden)
    }

    /// Waits for the kernel's own counter, then compares ours with it, and events with ours.
    fn check(&mut self, pod: &sonde_lab::Pod, counter: &str, at_least: u64, kind: &str) -> Vec<Event> {
        let what = format!("{pod} {kind}");
        sonde_lab::wait::until_true(&format!("{what}: {counter}"), LIMIT, || {
            Ok(pod.counters()?.get(counter).unwrap_or(0) as u64 >= at_least)
        })
        .unwrap();
        let (counts, hidden) = self.agree(pod, &what);
        let of_this = counts.get(kind).copied().unwrap_or(0);
        assert!(of_this + hidden >= at_least as i64, "{what}: {counts:?}");
        let (total, name_of) = (counts.values().sum::<i64>() as usize, pod.name().to_owned());
        let events = self.live.wait_for(total, |event| name(&event.subject) == name_of);
        let mine: Vec<Event> = events
            .into_iter()
            .filter(|event| name(&event.subject) == name_of)
            .collect();
        let of_kind = mine
            .iter()
            .filter(|event| event.observation.reason.as_deref() == Some(kind));
        assert_eq!(of_kind.count() as i64, of_this, "{what}: each counted one is told");
        assert_eq!(mine.len(), total, "{what}");
        for event in &mine {
            let seen = &event.observation;
            assert_eq!((seen.kind, seen.direction), ("TCPRETRANS", Direction::Egress), "{what}");
            assert_eq!(seen.protocol.as_deref(), Some("TCP"));
            assert!(
                seen.stack
                    .iter()
                    .any(|frame| frame.starts_with("tcp_") || frame.starts_with("inet_")),
                "{what}: {:?}",
                seen.stack
            );
            assert!(!seen.stack[0].starts_with("bpf_"), "{what}: {:?}", seen.stack);
        }
        println!("{what}: {counts:?}, {hidden} hidden");
        mine
    }
}

fn ends(event: &Event) -> (Option<SocketAddr>, Option<SocketAddr>) {
    let seen = &event.observation;
    let end = |ip: Option<std::net::IpAddr>, port: Option<u16>| Some(SocketAddr::new(ip?, port?));
    (end(seen.saddr, seen.sport), end(seen.daddr, seen.dport))
}

fn check_ends(events: &[Event], kind: &str, from: SocketAddr, to: SocketAddr, state: &str) {
    for event in events {
        if event.observation.reason.as_deref() == Some(kind) {
            assert_eq!(ends(event), (Some(from), Some(to)), "{}", line(event));
            assert_eq!(event.observation.state.as_deref(), Some(state), "{}", line(event));
        }
    }
}

fn send(stream: &mut TcpStream, segments: usize) {
    for _ in 0..segments {
        stream.write_all(&[7; PAYLOAD]).unwrap();
    }
}

/// Everything arrives in the end.
fn receive(stream: &mut TcpStream, segments: usize) {
    stream.read_exact(&mut vec![0; segments * PAYLOAD]).unwrap();
}

fn each(test: &str, run: impl Fn(&mut Scene, Family, u16)) {
    let Some(lab) = lab_alone(&format!("kernel-{test}")) else {
        return;
    };
    for rung in BOTH {
        let Some((pairs, mut live)) = scenes(&lab, "each", rung, &Family::BOTH) else {
            return;
        };
        for ((family, from), [client, server]) in Family::BOTH.into_iter().zip([40_001, 40_002]).zip(pairs) {
            let mut scene = Scene::new(client, server, live);
            run(&mut scene, family, from);
            live = scene.live;
        }
    }
}

#[test]
fn a_connection_request_that_is_not_answered_is_a_syn() {
    each("retrans-syn", |scene, family, from| {
        let to = scene.server.socket(family, PORT);
        Scene::drop_incoming(&scene.server, &format!("tcp dport {PORT}"));
        let _socket = sockets::tcp_start_connect(&scene.client, from, to).unwrap();
        let client = scene.client.clone();
        let events = scene.check(&client, "TcpExt.TCPSynRetrans", 1, "syn");
        check_ends(&events, "syn", client.socket(family, from), to, "TCP_SYN_SENT");
    });
}

#[test]
fn an_answer_that_is_not_acknowledged_is_a_syn_ack() {
    each("retrans-synack", |scene, family, from| {
        let to = scene.server.socket(family, PORT);
        let _listener = sockets::tcp_listen(&scene.server, family, PORT, 16).unwrap();
        Scene::drop_incoming(&scene.client, &format!("tcp sport {PORT}"));
        let _socket = sockets::tcp_start_connect(&scene.client, from, to).unwrap();
        let server = scene.server.clone();
        let events = scene.check(&server, "TcpExt.TCPSynRetrans", 1, "syn_ack");
        let from = scene.client.socket(family, from);
        check_ends(&events, "syn_ack", to, from, "TCP_NEW_SYN_RECV");
    });
}

#[test]
fn data_lost_until_time_runs_out_is_an_rto() {
    each("retrans-rto", |scene, family, from| {
        scene.client.sysctl("net.ipv4.tcp_early_retrans", "0").unwrap();
        let mut connected = scene.connect(family, from);
        Scene::drop_incoming(&scene.server, &format!("tcp dport {PORT}"));
        send(&mut connected.client, 1);
        let client = scene.client.clone();
        let events = scene.check(&client, "TcpExt.TCPTimeouts", 2, "rto");
        let to = scene.server.socket(family, PORT);
        check_ends(&events, "rto", client.socket(family, from), to, "TCP_ESTABLISHED");
        Scene::let_pass(&scene.server);
        receive(&mut connected.server, 1);
    });
}

#[test]
fn a_lost_tail_is_probed_for() {
    each("retrans-tlp", |scene, family, from| {
        let mut connected = scene.connect(family, from);
        let rule = format!("tcp dport {PORT} meta length > {PAYLOAD} numgen inc mod 1000000 < 1");
        Scene::drop_incoming(&scene.server, &rule);
        send(&mut connected.client, 1);
        let client = scene.client.clone();
        let events = scene.check(&client, "TcpExt.TCPLossProbes", 1, "tlp");
        let to = scene.server.socket(family, PORT);
        check_ends(&events, "tlp", client.socket(family, from), to, "TCP_ESTABLISHED");
        receive(&mut connected.server, 1);
    });
}

#[test]
fn one_segment_of_many_that_is_lost_is_sent_again_fast() {
    each("retrans-fast", |scene, family, from| {
        let mut connected = scene.connect(family, from);
        let rule = format!("tcp dport {PORT} meta length > {PAYLOAD} numgen inc mod 1000000 < 1");
        Scene::drop_incoming(&scene.server, &rule);
        send(&mut connected.client, 9);
        let client = scene.client.clone();
        let events = scene.check(&client, "TcpExt.TCPFastRetrans", 1, "fast");
        let to = scene.server.socket(family, PORT);
        check_ends(&events, "fast", client.socket(family, from), to, "TCP_ESTABLISHED");
        receive(&mut connected.server, 9);
    });
}

#[test]
fn what_follows_a_time_out_is_loss_recovery() {
    each("retrans-loss", |scene, family, from| {
        scene.client.sysctl("net.ipv4.tcp_early_retrans", "0").unwrap();
        let mut connected = scene.connect(family, from);
        let rule = format!("tcp dport {PORT} meta length > {PAYLOAD} numgen inc mod 1000000 < 6");
        Scene::drop_incoming(&scene.server, &rule);
        send(&mut connected.client, 6);
        receive(&mut connected.server, 6);
        let client = scene.client.clone();
        let events = scene.check(&client, "TcpExt.TCPSlowStartRetrans", 1, "loss_recovery");
        let to = scene.server.socket(family, PORT);
        for kind in ["rto", "loss_recovery"] {
            assert!(
                events
                    .iter()
                    .any(|event| event.observation.reason.as_deref() == Some(kind))
                    || scene.hidden() > 0
            );
            check_ends(&events, kind, client.socket(family, from), to, "TCP_ESTABLISHED");
        }
    });
}

#[test]
fn a_buffer_of_several_segments_counts_each() {
    let Some(lab) = lab_alone("kernel-retrans-gso") else {
        return;
    };
    let Some(mut scene) = scene(&lab, "gso", Rung::TpBtf) else {
        return;
    };
    let mut connected = scene.connect(Family::V4, 40_003);
    // The whole of what is sent at once is one buffer, and is lost as one.
    let rule = format!("tcp dport {PORT} meta length > 3000 numgen inc mod 1000000 < 1");
    Scene::drop_incoming(&scene.server, &rule);
    connected.client.write_all(&[7; 10_000]).unwrap();
    connected.server.read_exact(&mut [0; 10_000]).unwrap();
    let client = scene.client.clone();
    sonde_lab::wait::until_true("RetransSegs", LIMIT, || {
        Ok(client.counters()?.get("Tcp.RetransSegs").unwrap_or(0) > 1)
    })
    .unwrap();
    let segments = client.counters().unwrap().get("Tcp.RetransSegs").unwrap();
    if scene.hidden() > 0 {
        println!("SKIPPED: this kernel shows no program what was sent again");
        return;
    }
    assert_eq!(scene.counts(client.name()).values().sum::<i64>(), segments);
    let events = scene.live.wait_for(1, |_| true);
    let told: i64 = events
        .iter()
        .flat_map(|event| &event.observation.attributes)
        .map(|(_, segments)| segments.parse::<i64>().unwrap())
        .sum();
    assert_eq!(told, segments, "{}", line(&events[0]));
    assert!((events.len() as i64) < segments, "some buffer had several: {segments}");
}

#[test]
fn an_ipv6_socket_that_speaks_ipv4_is_told_as_ipv4() {
    let Some(lab) = lab_alone("kernel-retrans-mapped") else {
        return;
    };
    let Some(mut scene) = scene(&lab, "mapped", Rung::TpBtf) else {
        return;
    };
    let to = scene.server.socket(Family::V4, PORT);
    let std::net::IpAddr::V4(v4) = to.ip() else {
        unreachable!("asked for IPv4")
    };
    Scene::drop_incoming(&scene.server, &format!("tcp dport {PORT}"));
    let mapped = SocketAddr::new(v4.to_ipv6_mapped().into(), PORT);
    let _socket = scene
        .client
        .run(|| sockets::tcp_start_dual_stack(40_004, mapped))
        .unwrap()
        .unwrap();
    let client = scene.client.clone();
    let events = scene.check(&client, "TcpExt.TCPSynRetrans", 1, "syn");
    check_ends(&events, "syn", client.socket(Family::V4, 40_004), to, "TCP_SYN_SENT");
}

#[test]
fn what_a_connection_without_loss_sends_again_is_what_the_kernel_says() {
    let Some(lab) = lab_alone("kernel-retrans-none") else {
        return;
    };
    let Some(mut scene) = scene(&lab, "none", Rung::TpBtf) else {
        return;
    };
    healthy::healthy(&scene.client, &scene.server).unwrap();
    for pod in [scene.client.clone(), scene.server.clone()] {
        // On a busy machine TCP sends a segment again whose acknowledgement is late: that is no error.
        scene.agree(&pod, pod.name());
    }
}
