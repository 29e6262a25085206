//! Drops and retransmits of flows, against what the lab made and what the kernel counts.

use super::super::hidden::Hidden;
use super::*;

/// Of a row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Lost {
    drops: i64,
    retransmits: i64,
}

/// By pod and labels, those that lost something.
fn lost(live: &mut Live) -> HashMap<(String, [String; 7]), Lost> {
    let (tables, gaps) = live.kernel.read(now_ns(), &live.index);
    assert!(gaps.is_empty(), "{gaps:?}");
    let mut all = HashMap::new();
    for table in &tables {
        for (row, subject) in table.subjects.iter().enumerate() {
            let labels = std::array::from_fn(|at| table.labels[row * 7 + at].to_string());
            let lost = Lost {
                drops: table.columns[2][row],
                retransmits: table.columns[3][row],
            };
            if lost != Lost::default() {
                all.insert((name(subject), labels), lost);
            }
        }
    }
    all
}

fn with_ports() -> Config {
    let mut config = config_of("flow");
    config.probes.get_mut("flow").unwrap().ports = true;
    config
}

fn check_fault(lab: &Lab, fault: &'static Fault, rung: Rung) {
    let scene = fault.scene(lab, &format!("{}-{}", fault.name, rung.name())).unwrap();
    let Some(mut live) = start(&with_ports(), index_of(scene.pods()), Some(rung)) else {
        return;
    };
    for family in Family::BOTH {
        let what = format!("{} {family} {}", fault.name, rung.name());
        let before = lost(&mut live);
        let injected = scene.inject(family, 20).unwrap();
        let of_drops = |all: &HashMap<(String, [String; 7]), Lost>| all.values().map(|lost| lost.drops).sum::<i64>();
        let (from, to) = (injected.flow.from, injected.flow.to);
        let Signal::Event(expected) = fault.signal else {
            assert_eq!(
                of_drops(&lost(&mut live)),
                of_drops(&before),
                "{what}: nothing is dropped"
            );
            continue;
        };
        let dropped = injected.dropped as i64;
        let mut after = HashMap::new();
        until(&format!("{what}: as many drops as {}", injected.source), || {
            after = lost(&mut live);
            of_drops(&after) - of_drops(&before) >= dropped
        });
        assert_eq!(of_drops(&after) - of_drops(&before), dropped, "{what}: {after:#?}");
        // On the way in, also what is passed on; and where the device is known, which one.
        let direction = match expected.direction {
            "egress" => "egress",
            _ => "ingress",
        };
        let labels = [
            "eth0".to_owned(),
            direction.to_owned(),
            injected.flow.protocol.to_string(),
            from.ip().to_string(),
            to.ip().to_string(),
            from.port().to_string(),
            to.port().to_string(),
        ];
        let key = (injected.place.name().to_owned(), labels);
        let own = after.get(&key).map(|lost| lost.drops);
        assert_eq!(own, Some(dropped), "{what}: all of one flow: {key:?} in {after:#?}");
    }
}

#[test]
fn drops_of_every_fault_of_the_lab_are_on_the_row_of_their_flow() {
    let Some(lab) = lab_alone("flow-faults") else {
        return;
    };
    for rung in BOTH {
        for fault in faults::ALL {
            check_fault(&lab, fault, rung);
        }
    }
}

#[test]
fn what_healthy_traffic_frees_is_no_loss() {
    let Some(lab) = lab_alone("flow-healthy") else {
        return;
    };
    for rung in BOTH {
        let Some(mut scene) = scene(&lab, "healthy", rung, true) else {
            return;
        };
        healthy::healthy(&scene.client, &scene.server).unwrap();
        let lost = lost(&mut scene.live);
        assert!(lost.values().all(|lost| lost.drops == 0), "{lost:#?}");
    }
}

#[test]
fn segments_and_syn_acks_sent_again_are_counted_as_the_kernel_counts_them() {
    let Some(lab) = lab_alone("flow-retrans") else {
        return;
    };
    let of_ours = format!("sport == {PORT} || dport == {PORT}");
    let hidden = ["tcp/tcp_retransmit_skb", "tcp/tcp_retransmit_synack"].map(|at| Hidden::at(at, &of_ours));
    for rung in BOTH {
        let Some(mut scene) = scene(&lab, "retrans", rung, true) else {
            return;
        };
        let (client, server) = (scene.client.clone(), scene.server.clone());
        for family in Family::BOTH {
            let _listener = sockets::tcp_listen(&server, family, PORT, 16).unwrap();
            let [own, peer] = [&client, &server].map(|pod| pod.address(family).to_string());
            let [from, to] = [FROM, PORT].map(|port| port.to_string());
            let row = |pod: &Pod, device: &str, ends: [&String; 4]| {
                let [src, dst, sport, dport] = ends.map(Clone::clone);
                let labels = [device.into(), "egress".into(), "TCP".into(), src, dst, sport, dport];
                (pod.name().to_owned(), labels)
            };
            let mut check = |pod: &Pod, row: &(String, [String; 7]), at_least: i64| {
                let kernels = || {
                    let counters = pod.counters().unwrap();
                    counters.get("Tcp.RetransSegs").unwrap() - counters.get("TcpExt.TCPRetransFail").unwrap()
                };
                let mut all = HashMap::new();
                until(&format!("{pod}: what was sent again: {row:?}"), || {
                    let before = kernels();
                    all = lost(&mut scene.live);
                    let hidden: u64 = hidden.iter().flatten().map(Hidden::count).sum();
                    let of_pod = all.iter().filter(|((name, _), _)| name == pod.name());
                    let ours: i64 = of_pod.map(|(_, lost)| lost.retransmits).sum();
                    let of_row = all.get(row).map_or(0, |lost| lost.retransmits);
                    before == kernels() && (ours..=ours + hidden as i64).contains(&before) && of_row >= at_least
                });
                all
            };
            // Data that is lost on the way, until it is let pass.
            let mut pair = sockets::tcp_pair(&client, FROM, &server, family, PORT + 1).unwrap();
            let port = (PORT + 1).to_string();
            let rules = format!(
                "table inet lab {{ chain c {{ type filter hook input priority 0; tcp dport {port} drop\n }}\n }}"
            );
            server.nft(&rules).unwrap();
            pair.client.write_all(&[7; 400]).unwrap();
            let drops = check(&client, &row(&client, "eth0", [&own, &peer, &from, &port]), 2);
            // The drops are the server's: what was sent first and what was sent again.
            let labels = ["eth0", "ingress", "TCP", &own, &peer, &from, &port].map(str::to_owned);
            let of_server = drops[&(server.name().to_owned(), labels)].drops;
            assert!(of_server >= 3, "{drops:#?}");
            server.nft("delete table inet lab").unwrap();
            pair.server.read_exact(&mut [0; 400]).unwrap();
            drop(pair);
            // A connection whose acceptance is lost.
            let rules = format!(
                "table inet lab {{ chain c {{ type filter hook input priority 0; tcp sport {PORT} drop\n }}\n }}"
            );
            client.nft(&rules).unwrap();
            let _socket = sockets::tcp_start_connect(&client, FROM, server.socket(family, PORT)).unwrap();
            check(&server, &row(&server, "", [&peer, &own, &to, &from]), 1);
            client.nft("delete table inet lab").unwrap();
        }
    }
}

#[test]
fn drops_of_a_flow_go_with_it_and_begin_anew() {
    let Some(lab) = lab_alone("flow-drops-idle") else {
        return;
    };
    let Some(mut scene) = scene(&lab, "idle", Rung::TpBtf, true) else {
        return;
    };
    let closed = scene.server.socket(Family::V4, PORT);
    let socket = sockets::udp(&scene.client, Family::V4, FROM).unwrap();
    // A closed port is of the sites that user space decides.
    let send = |datagrams: usize| {
        for _ in 0..datagrams {
            // Every other time the answer to the one before is told instead.
            while socket.send_to(b"x", closed).is_err() {}
        }
    };
    let drops_at = |live: &mut Live, at: u64| -> i64 {
        let (tables, _) = live.kernel.read(at, &live.index);
        tables.iter().flat_map(|table| table.columns[2].clone()).sum()
    };
    send(3);
    until("three drops", || drops_at(&mut scene.live, now_ns()) == 3);
    send(2);
    until("two more, by the kernel side alone", || {
        drops_at(&mut scene.live, now_ns()) == 5
    });
    let later = now_ns() + 301_000_000_000;
    assert_eq!(drops_at(&mut scene.live, later), 5, "the last row");
    assert_eq!(drops_at(&mut scene.live, later + 1), 0);
    send(1);
    until("one, anew", || drops_at(&mut scene.live, later + 2) == 1);
}
