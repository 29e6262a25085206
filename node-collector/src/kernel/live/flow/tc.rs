//! Packets that another program moves past the host's side, beside other programs on the same device.

use std::os::fd::{AsFd as _, OwnedFd};

use aya_obj::generated::bpf_prog_type::BPF_PROG_TYPE_SCHED_CLS;

use super::super::super::sys::RawMap;
use super::super::assembled::{self as bpf, EXIT, Instruction, R0, R1, R2, R10, helper};
use super::*;

mod clsact;

const DATAGRAMS: u64 = 50;

/// `return redirect_peer(ifindex, 0)`
fn redirect_to_peer_of(ifindex: u32) -> OwnedFd {
    const REDIRECT_PEER: i32 = 155;
    let program = [
        bpf::set(R1, ifindex as i32),
        bpf::set(R2, 0),
        bpf::call(REDIRECT_PEER),
        EXIT,
    ];
    bpf::load(BPF_PROG_TYPE_SCHED_CLS, &program).unwrap()
}

/// `map[0] += 1; return verdict`
fn count_and(map: &OwnedFd, verdict: i32) -> OwnedFd {
    let [map0, map1] = bpf::map(R1, map);
    let program: [Instruction; 11] = [
        bpf::store32_number(R10, -4, 0),
        map0,
        map1,
        bpf::copy(R2, R10),
        bpf::add(R2, -4),
        bpf::call(helper::LOOK_UP),
        bpf::skip_if_zero(R0, 2),
        bpf::set(R1, 1),
        bpf::add_to(R0, R1),
        bpf::set(R0, verdict),
        EXIT,
    ];
    bpf::load(BPF_PROG_TYPE_SCHED_CLS, &program).unwrap()
}

const NEXT: i32 = -1;

fn ifindex(pod: &Pod, device: &str) -> u32 {
    let json: serde_json::Value =
        serde_json::from_str(&pod.ip(&format!("-j link show dev {device}")).unwrap()).unwrap();
    json[0]["ifindex"].as_u64().unwrap() as u32
}

/// A client, a router and a server, whose packets to the server the router's program gives to the server's device.
struct Past {
    client: Pod,
    router: Pod,
    server: Pod,
    redirected: Option<OwnedFd>,
}

impl Past {
    fn new(lab: &Lab, name: &str) -> Self {
        let (client, server) = (lab.pod(name, "client").unwrap(), lab.pod(name, "server").unwrap());
        let router = lab.router(name, "router").unwrap();
        let left = lab.link(&client, &router).unwrap();
        let right = lab.link(&server, &router).unwrap();
        for (pod, gateway) in [(&client, left.b), (&server, right.b)] {
            pod.ip(&format!("route add default via {}", gateway.v4)).unwrap();
        }
        Self {
            client,
            router,
            server,
            redirected: None,
        }
    }

    fn redirect(&mut self) {
        let (from, to) = (ifindex(&self.router, "eth0"), ifindex(&self.router, "eth1"));
        let program = redirect_to_peer_of(to);
        let link = self.router.run(move || bpf::attach_last(&program, from)).unwrap();
        self.redirected = Some(link.unwrap());
    }

    fn send(&self) {
        let socket = sockets::udp(&self.client, Family::V4, FROM).unwrap();
        let sent = sockets::send(&socket, self.server.socket(Family::V4, PORT), DATAGRAMS, 100);
        assert_eq!(sent.accepted as u64, DATAGRAMS);
    }
}

/// What a datagram of 100 bytes is on Ethernet.
const FRAME: i64 = 14 + 20 + 8 + 100;

fn with_tc(tc: bool) -> Config {
    let mut config = config_of("flow");
    let flow = config.probes.get_mut("flow").unwrap();
    (flow.ports, flow.tc) = (true, tc);
    config
}

/// Bytes and packets that came into the server.
fn came(live: &mut Live) -> (i64, i64) {
    let (tables, gaps) = live.kernel.read(now_ns(), &live.index);
    assert!(gaps.is_empty(), "{gaps:?}");
    let mut came = (0, 0);
    for table in &tables {
        for (row, subject) in table.subjects.iter().enumerate() {
            let labels = &table.labels[row * 7..][..7];
            let ours = name(subject) == "server" && &*labels[1] == "ingress" && *labels[6] == *PORT.to_string();
            if ours {
                came.0 += table.columns[0][row];
                came.1 += table.columns[1][row];
            }
        }
    }
    came
}

#[test]
fn packets_that_are_redirected_past_the_host_are_counted_by_tc_and_by_nothing_else() {
    let Some(lab) = lab_alone("flow-peer") else {
        return;
    };
    for (rung, way) in [
        (Rung::TpBtf, Some(Rung::Tcx)),
        (Rung::RawTracepoint, Some(Rung::Tcx)),
        (Rung::TpBtf, Some(Rung::Clsact)),
        (Rung::RawTracepoint, Some(Rung::Clsact)),
        (Rung::TpBtf, None),
    ] {
        let tc = way.is_some();
        let name = format!(
            "peer-{}-{}",
            rung.name().replace('_', ""),
            way.map_or("none", Rung::name)
        );
        let mut past = Past::new(&lab, &name);
        let index = index_of([&past.client, &past.server]);
        let allowed = |step: &super::super::plan::Step| step.rung == rung || Some(step.rung) == way;
        let Some(mut live) = start_on(&with_tc(tc), index, allowed, 4096) else {
            return;
        };
        assert_eq!(live.rung("flow.tc"), way.map(Rung::name));
        let server = past.server.clone();
        let netns = netns_of(&server);
        server.run(|| live.kernel.visit(netns)).unwrap();
        let sink = sockets::udp(&server, Family::V4, PORT).unwrap();

        // The ordinary way, through the router: once each, whoever counts.
        past.send();
        until("the datagrams to have been counted", || {
            came(&mut live).1 == DATAGRAMS as i64
        });
        assert_eq!(came(&mut live).0, DATAGRAMS as i64 * FRAME, "{tc}");

        past.redirect();
        let before = device(&server, "eth0");
        past.send();
        until("the datagrams to have come", || {
            device(&server, "eth0").received_packets >= before.received_packets + DATAGRAMS
        });
        let mut received = 0;
        until("all datagrams to be received", || {
            received += sockets::drain(&sink).unwrap();
            received == 2 * DATAGRAMS
        });
        let times = if tc { 2 } else { 1 };
        assert_eq!(
            came(&mut live),
            (times * DATAGRAMS as i64 * FRAME, times * DATAGRAMS as i64),
            "by tc: {way:?}"
        );
    }
}

#[test]
fn the_program_on_devices_comes_and_goes_with_the_configuration() {
    let Some(lab) = lab_alone("flow-tc-change") else {
        return;
    };
    for way in [Rung::Tcx, Rung::Clsact] {
        let mut past = Past::new(&lab, &format!("change-{}", way.name()));
        let server = past.server.clone();
        let sink = sockets::udp(&server, Family::V4, PORT).unwrap();
        let receive = |past: &Past| {
            past.send();
            let mut received = 0;
            until("all datagrams to be received", || {
                received += sockets::drain(&sink).unwrap();
                received == DATAGRAMS
            });
        };
        // Who is whose neighbour is asked before the router's program takes that away too.
        receive(&past);
        past.redirect();
        let with_tc = |tc| {
            let mut config = with_tc(tc);
            config.kernel.rungs = vec![Rung::TpBtf, way];
            config
        };
        let Some(mut live) = start_on(&with_tc(false), index_of([&past.client, &server]), |_| true, 4096) else {
            return;
        };
        let netns = netns_of(&server);
        let mut before = false;
        for tc in [false, true, false, true] {
            let changed = live.kernel.apply(&with_tc(tc));
            assert_eq!(changed.error, None);
            let told: Vec<_> = changed.gaps.iter().map(|gap| (gap.probe, gap.cause)).collect();
            // The first time it is what it was.
            let begun_anew = std::mem::replace(&mut before, tc) != tc;
            let expected = begun_anew.then_some(("flow", sonde_proto::gap::SWITCHED_OFF));
            assert_eq!(told, Vec::from_iter(expected), "{way:?} {tc}");
            assert_eq!(live.rung("flow.tc"), tc.then_some(way.name()), "{way:?} {tc}");
            assert_eq!(live.rung("flow.count"), Some("tp_btf"), "{way:?} {tc}");
            server.run(|| live.kernel.visit(netns)).unwrap();
            receive(&past);
            // Begun anew each time, so nothing is left of what was counted before.
            let of_all = if tc { DATAGRAMS as i64 } else { 0 };
            assert_eq!(came(&mut live), (of_all * FRAME, of_all), "{way:?} by tc: {tc}");
            let shown = server.tc("filter show dev eth0 ingress").unwrap();
            assert_eq!(shown.contains("sonde_flow:"), tc && way == Rung::Clsact, "{shown}");
        }
    }
}

#[test]
fn what_a_macvlan_device_takes_from_the_one_below_is_counted_by_tc_and_by_nothing_else() {
    let Some(lab) = lab_alone("flow-macvlan") else {
        return;
    };
    for tc in [true, false] {
        let name = format!("macvlan-{tc}");
        let [client, lower, server] = ["client", "lower", "server"].map(|role| lab.pod(&name, role).unwrap());
        lab.link(&client, &lower).unwrap();
        let make = format!(
            "link add link eth0 name mv0 netns {} type macvlan mode bridge",
            server.netns()
        );
        if lower.ip(&make).is_err() {
            println!("SKIPPED: this kernel has no macvlan");
            return;
        }
        client.ip("addr add 10.79.0.1/24 dev eth0").unwrap();
        server.ip("addr add 10.79.0.2/24 dev mv0").unwrap();
        server.ip("link set mv0 up").unwrap();
        let Some(mut live) = start_on(&with_tc(tc), index_of([&server]), |_| true, 4096) else {
            return;
        };
        let netns = netns_of(&server);
        server.run(|| live.kernel.visit(netns)).unwrap();
        let sink = sockets::udp(&server, Family::V4, PORT).unwrap();
        let socket = sockets::udp(&client, Family::V4, FROM).unwrap();
        let to = format!("10.79.0.2:{PORT}").parse().unwrap();
        assert_eq!(sockets::send(&socket, to, DATAGRAMS, 100).accepted, DATAGRAMS);
        let mut received = 0;
        until("all datagrams to be received", || {
            received += sockets::drain(&sink).unwrap();
            received == DATAGRAMS
        });
        let of_all = if tc { DATAGRAMS as i64 } else { 0 };
        assert_eq!(came(&mut live), (of_all * FRAME, of_all), "by tc: {tc}");
    }
}

#[test]
fn other_programs_of_a_device_keep_their_place_and_see_what_they_saw() {
    let Some(lab) = lab_alone("flow-beside") else {
        return;
    };
    let past = Past::new(&lab, "beside");
    let server = past.server.clone();
    let on = ifindex(&server, "eth0");
    let counts = [bpf::hash(1).unwrap(), bpf::hash(1).unwrap()];
    let maps = counts
        .each_ref()
        .map(|map| RawMap::<u32, u64>::new(map.as_fd(), 1).unwrap());
    let seen = || maps.each_ref().map(|map| map.get(&0).unwrap().unwrap()[0]);
    for map in &maps {
        map.set(&0, &0, 0).unwrap();
    }
    let others = counts.each_ref().map(|map| {
        let program = count_and(map, NEXT);
        server.run(move || bpf::attach_last(&program, on)).unwrap().unwrap()
    });
    server.ip("link add copies type bridge").unwrap();
    server.ip("link set copies up").unwrap();
    server.tc("qdisc add dev eth0 clsact").unwrap();
    let ours = format!("match ip protocol 17 0xff match ip dport {PORT} 0xffff");
    server
        .tc(&format!(
            "filter add dev eth0 ingress protocol ip u32 {ours} action mirred egress mirror dev copies"
        ))
        .unwrap();
    let order = || server.run(move || bpf::attached(on)).unwrap().unwrap();
    let alone = order();
    assert_eq!(alone.len(), 2);

    let Some(mut live) = start_on(&with_tc(true), index_of([&past.client, &server]), |_| true, 4096) else {
        return;
    };
    let netns = netns_of(&server);
    // Twice: what is there stays.
    for _ in 0..2 {
        server.run(|| live.kernel.visit(netns)).unwrap();
    }
    let with_ours = order();
    assert_eq!(
        (with_ours.len(), &with_ours[1..]),
        (3, &*alone),
        "first, and the others as they were"
    );
    let sink = sockets::udp(&server, Family::V4, PORT).unwrap();
    let before = seen();
    let copies = || server.tc("-s filter show dev eth0 ingress").unwrap();
    past.send();
    until("the datagrams to have been counted", || {
        came(&mut live).1 == DATAGRAMS as i64
    });
    for (before, after) in before.into_iter().zip(seen()) {
        assert!(after - before >= DATAGRAMS, "{before} to {after}");
    }
    assert!(copies().contains(&format!(" {DATAGRAMS} pkt")), "{}", copies());
    assert_eq!(sockets::drain(&sink).unwrap(), DATAGRAMS);

    // A device that comes later is found at the next visit, one that goes takes its program along.
    server.ip("link add later type bridge").unwrap();
    let later = ifindex(&server, "later");
    server.run(|| live.kernel.visit(netns)).unwrap();
    let on_later = |server: &Pod| server.run(move || bpf::attached(later)).unwrap();
    assert_eq!(on_later(&server).unwrap().len(), 1);
    server.ip("link del later").unwrap();
    // Its index goes to another one.
    server.ip(&format!("link add again index {later} type bridge")).unwrap();
    assert_eq!(on_later(&server).unwrap().len(), 0);
    server.run(|| live.kernel.visit(netns)).unwrap();
    assert_eq!(on_later(&server).unwrap().len(), 1);

    // When the pod is none any more, and when the kernel side ends, nothing is left.
    live.kernel.netns_changed(&[netns]);
    assert_eq!(order().len(), 3);
    live.kernel.netns_changed(&[]);
    assert_eq!(order(), alone);
    server.run(|| live.kernel.visit(netns)).unwrap();
    assert_eq!(order().len(), 3);
    drop(live);
    assert_eq!(order(), alone);
    drop(others);
}
