//! The same by filters of the clsact qdisc, beside those of others: what is taken away, and what stays.

use std::os::fd::BorrowedFd;

use super::*;
use crate::netlink::filter;
use crate::netlink::socket::AskSocket;

const TC_ACT_OK: i32 = 0;

/// Flows of the scene's pods, with a filter on each of their devices; `None`: not on this host.
fn start(pods: [&Pod; 2]) -> Option<Live> {
    start_on(&with_tc(true), index_of(pods), |step| step.rung != Rung::Tcx, 4096)
}

/// What `tc` shows of the server's device: the qdiscs, and the filters of both sides.
fn shown(pod: &Pod) -> (String, String) {
    let filters = |side: &str| pod.tc(&format!("filter show dev eth0 {side}")).unwrap();
    (
        pod.tc("qdisc show dev eth0").unwrap(),
        filters("ingress") + "---\n" + &filters("egress"),
    )
}

/// Ours, by priority.
fn ours(pod: &Pod) -> Vec<u16> {
    let (_, filters) = shown(pod);
    let lines = filters.lines().filter(|line| line.contains("sonde_flow:"));
    let priority = |line: &str| line.split("pref ").nth(1)?.split(' ').next()?.parse().ok();
    lines.map(|line| priority(line).unwrap()).collect()
}

/// A program of somebody else, with that priority.
fn add_other(pod: &Pod, program: BorrowedFd<'_>, priority: u16) {
    let on = ifindex(pod, "eth0");
    let added = pod.run(|| {
        let socket = AskSocket::route().unwrap();
        filter::add_program(&socket, (on, priority, 1), (program, "other"), &mut [0; 8192])
    });
    added.unwrap().unwrap();
}

fn visit(live: &mut Live, pod: &Pod) {
    let netns = netns_of(pod);
    pod.run(|| live.kernel.visit(netns)).unwrap();
}

/// Sends, and checks that it was all counted to the byte and came.
fn send_and_count(past: &Past, live: &mut Live, sink: &std::net::UdpSocket, total: &mut i64) {
    past.send();
    let mut received = 0;
    until("all datagrams to be received", || {
        received += sockets::drain(sink).unwrap();
        received == DATAGRAMS
    });
    *total += DATAGRAMS as i64;
    assert_eq!(came(live), (*total * FRAME, *total));
}

/// Gaps of a round, by the name of their pod.
fn gaps(live: &mut Live) -> Vec<(&'static str, String)> {
    let (_, gaps) = live.kernel.read(now_ns(), &live.index);
    gaps.iter().map(|gap| (gap.cause, name(&gap.subject))).collect()
}

#[test]
fn a_filter_is_before_those_of_others_and_nothing_of_it_stays() {
    let Some(lab) = lab_alone("flow-clsact") else {
        return;
    };
    let mut past = Past::new(&lab, "alone");
    let server = past.server.clone();
    let before = shown(&server);
    let Some(mut live) = start([&past.client, &server]) else {
        return;
    };
    assert_eq!(live.rung("flow.tc"), Some("clsact"));
    // Twice: what is there stays.
    visit(&mut live, &server);
    visit(&mut live, &server);
    assert_eq!(ours(&server), [10], "{:?}", shown(&server));
    let sink = sockets::udp(&server, Family::V4, PORT).unwrap();
    let mut total = 0;
    send_and_count(&past, &mut live, &sink, &mut total);
    past.redirect();
    send_and_count(&past, &mut live, &sink, &mut total);
    // A pod that is none any more, one that comes again, and the end.
    live.kernel.netns_changed(&[]);
    assert_eq!(shown(&server), before);
    visit(&mut live, &server);
    assert_eq!(ours(&server), [10]);
    drop(live);
    assert_eq!(shown(&server), before);
}

#[test]
fn filters_of_others_see_what_they_saw_and_stay_with_their_qdisc() {
    let Some(lab) = lab_alone("flow-clsact-beside") else {
        return;
    };
    let past = Past::new(&lab, "beside");
    let server = past.server.clone();
    let count = bpf::hash(1).unwrap();
    let map = RawMap::<u32, u64>::new(count.as_fd(), 1).unwrap();
    map.set(&0, &0, 0).unwrap();
    let other = count_and(&count, TC_ACT_OK);
    server.tc("qdisc add dev eth0 clsact").unwrap();
    // It ends the search, so that one behind it would see nothing.
    add_other(&server, other.as_fd(), 1);
    server
        .tc("filter add dev eth0 egress pref 3 protocol ip u32 match u32 0 0 flowid 1:1")
        .unwrap();
    let before = shown(&server);
    let Some(mut live) = start([&past.client, &server]) else {
        return;
    };
    visit(&mut live, &server);
    assert_eq!(ours(&server), [1], "{:?}", shown(&server));
    let sink = sockets::udp(&server, Family::V4, PORT).unwrap();
    let seen = map.get(&0).unwrap().unwrap()[0];
    send_and_count(&past, &mut live, &sink, &mut 0);
    let now = map.get(&0).unwrap().unwrap()[0];
    assert!(now - seen >= DATAGRAMS, "{seen} to {now}");
    drop(live);
    assert_eq!(shown(&server), before);
}

#[test]
fn where_no_filter_can_be_before_anothers_the_tracepoint_counts() {
    let Some(lab) = lab_alone("flow-clsact-taken") else {
        return;
    };
    let past = Past::new(&lab, "taken");
    let server = past.server.clone();
    server.tc("qdisc add dev eth0 clsact").unwrap();
    server
        .tc("filter add dev eth0 ingress pref 1 protocol ip u32 match u32 0 0 flowid 1:1")
        .unwrap();
    let before = shown(&server);
    let Some(mut live) = start([&past.client, &server]) else {
        return;
    };
    visit(&mut live, &server);
    assert_eq!(shown(&server), before);
    let sink = sockets::udp(&server, Family::V4, PORT).unwrap();
    let mut total = 0;
    send_and_count(&past, &mut live, &sink, &mut total);
    // Once it can, it is: nobody has to visit for that.
    server.tc("filter del dev eth0 ingress pref 1").unwrap();
    assert!(gaps(&mut live).is_empty());
    assert_eq!(ours(&server), [10]);
    send_and_count(&past, &mut live, &sink, &mut total);
}

#[test]
fn a_filter_that_others_take_away_or_come_before_is_put_back_and_that_is_said() {
    let Some(lab) = lab_alone("flow-clsact-moved") else {
        return;
    };
    let past = Past::new(&lab, "moved");
    let server = past.server.clone();
    let Some(mut live) = start([&past.client, &server]) else {
        return;
    };
    visit(&mut live, &server);
    let sink = sockets::udp(&server, Family::V4, PORT).unwrap();
    let mut total = 0;
    send_and_count(&past, &mut live, &sink, &mut total);
    let gap = [(sonde_proto::gap::PROGRAM_SKIPPED, "server".to_owned())];

    let count = bpf::hash(1).unwrap();
    let other = count_and(&count, TC_ACT_OK);
    add_other(&server, other.as_fd(), 5);
    assert_eq!(gaps(&mut live), gap);
    assert_eq!(ours(&server), [4]);
    assert!(gaps(&mut live).is_empty());
    send_and_count(&past, &mut live, &sink, &mut total);
    add_other(&server, other.as_fd(), 1);
    assert_eq!((gaps(&mut live), ours(&server)), (gap.to_vec(), vec![1]));
    send_and_count(&past, &mut live, &sink, &mut total);

    // With everything that hangs there.
    server.tc("qdisc del dev eth0 clsact").unwrap();
    assert_eq!((gaps(&mut live), ours(&server)), (gap.to_vec(), vec![10]));
    send_and_count(&past, &mut live, &sink, &mut total);

    // Somebody has use for the qdisc that was made for ours.
    server
        .tc("filter add dev eth0 egress pref 3 protocol ip u32 match u32 0 0 flowid 1:1")
        .unwrap();
    drop(live);
    assert!(ours(&server).is_empty());
    let (qdiscs, filters) = shown(&server);
    assert!(
        qdiscs.contains("clsact") && filters.contains("u32"),
        "{qdiscs} {filters}"
    );
}

#[test]
fn two_collectors_on_one_pod_leave_each_other_in_peace() {
    let Some(lab) = lab_alone("flow-clsact-two") else {
        return;
    };
    let past = Past::new(&lab, "two");
    let server = past.server.clone();
    let before = shown(&server);
    let started = [(), ()].map(|()| start([&past.client, &server]));
    let [Some(mut one), Some(mut other)] = started else {
        return;
    };
    visit(&mut one, &server);
    visit(&mut other, &server);
    assert_eq!(ours(&server), [9, 10]);
    let sink = sockets::udp(&server, Family::V4, PORT).unwrap();
    let mut total = 0;
    send_and_count(&past, &mut one, &sink, &mut total);
    assert_eq!(came(&mut other), (total * FRAME, total));
    assert_eq!(ours(&server), [9, 10], "none had to come before the other");
    drop(other);
    assert_eq!(ours(&server), [10]);
    send_and_count(&past, &mut one, &sink, &mut total);
    drop(one);
    assert_eq!(shown(&server), before);
}

#[test]
fn a_device_that_comes_later_has_its_filter_too_whatever_its_index_was() {
    let Some(lab) = lab_alone("flow-clsact-later") else {
        return;
    };
    let past = Past::new(&lab, "later");
    let server = past.server.clone();
    let Some(mut live) = start([&past.client, &server]) else {
        return;
    };
    let on_later = || {
        let shown = server.tc("filter show dev later ingress").unwrap();
        shown.lines().filter(|line| line.contains("sonde_flow:")).count()
    };
    server.ip("link add later type bridge").unwrap();
    let index = ifindex(&server, "later");
    visit(&mut live, &server);
    assert_eq!(on_later(), 1);
    server.ip("link del later").unwrap();
    server.ip(&format!("link add later index {index} type bridge")).unwrap();
    assert_eq!(on_later(), 0);
    visit(&mut live, &server);
    assert_eq!(on_later(), 1);
    server.ip("link del later").unwrap();
    visit(&mut live, &server);
    let gauge = live
        .report()
        .gauges
        .iter()
        .find(|gauge| gauge.name.ends_with("flow_devices"))
        .unwrap()
        .value;
    assert_eq!(gauge, 1);
    drop(live);
    assert!(ours(&server).is_empty());
}

/// The newest map of that name, which is the one of the collector that started last.
fn newest_map(name: &str) -> aya::maps::MapInfo {
    let all = aya::maps::loaded_maps().map(Result::unwrap);
    let ours = all.filter(|map| map.name_as_str() == Some(name));
    ours.max_by_key(aya::maps::MapInfo::id).unwrap()
}

#[test]
fn a_filter_without_its_collector_stands_aside_and_that_is_said_when_it_comes_back() {
    let Some(lab) = lab_alone("flow-clsact-silent") else {
        return;
    };
    let past = Past::new(&lab, "silent");
    let server = past.server.clone();
    let Some(mut live) = start([&past.client, &server]) else {
        return;
    };
    let beat = newest_map("FLOW_BEAT").fd().unwrap();
    let beat = RawMap::<u32, u64>::new(beat.as_fd(), 1).unwrap();
    visit(&mut live, &server);
    let sink = sockets::udp(&server, Family::V4, PORT).unwrap();
    let mut total = 0;
    send_and_count(&past, &mut live, &sink, &mut total);
    let send = || {
        past.send();
        let mut drained = 0;
        until("all datagrams to be handed on", || {
            drained += sockets::drain(&sink).unwrap();
            drained == DATAGRAMS
        });
    };
    // As if there had been no round since the machine started; each CPU looks within some packets.
    beat.set(&0, &0, 0).unwrap();
    for _ in 0..8 {
        send();
    }
    let gap = [(sonde_proto::gap::PROGRAM_SKIPPED, "server".to_owned())];
    assert_eq!(
        gaps(&mut live),
        gap,
        "the round tells of it, and is the sign that it is over"
    );
    let mut before = came(&mut live).1;
    assert!(before > 0 && before < total + 8 * DATAGRAMS as i64, "{before}");
    until("the filter to count again", || {
        send();
        // CPUs that have not looked again yet pass some more.
        gaps(&mut live);
        let now = came(&mut live).1;
        std::mem::replace(&mut before, now) + DATAGRAMS as i64 == now
    });
}
