use serde_json::Value;

use super::*;

/// The qdisc that `tc -s -j` shows as the root of a device.
fn tc(pod: &Pod, device: &str) -> Value {
    let text = pod
        .command("tc", &["-s", "-j", "qdisc", "show", "dev", device, "root"])
        .unwrap();
    serde_json::from_str::<Value>(&text).unwrap()[0].clone()
}

fn assert_tc_agrees(round: &Round, pod: &Pod, device: &str) {
    let theirs = tc(pod, device);
    let labels = [device, theirs["kind"].as_str().unwrap()];
    for (ours, key) in [
        ("sent_bytes", "bytes"),
        ("sent_packets", "packets"),
        ("drops", "drops"),
        ("requeues", "requeues"),
        ("overlimits", "overlimits"),
        ("queue_packets", "qlen"),
        ("backlog_bytes", "backlog"),
    ] {
        assert_eq!(
            round.value("qdisc", ours, pod.name(), &labels),
            theirs[key].as_i64().unwrap(),
            "{ours}: {theirs}"
        );
    }
}

#[test]
fn what_a_queue_sends_and_drops_is_told_under_the_name_its_device_has_in_its_namespace() {
    let Some((_lab, client, server)) = pair("qdisc") else {
        return;
    };
    let mut collector = Collector::of(&[&client, &server]);
    assert_eq!(
        collector.read().rows("qdisc", "client"),
        0,
        "noqueue counts nothing and says nothing"
    );
    // Two datagrams of 1,000 bytes pass at once, two wait.
    client
        .tc("qdisc replace dev eth0 root tbf rate 128kbit burst 2200 limit 2200")
        .unwrap();
    server.tc("qdisc replace dev eth0 root pfifo limit 100").unwrap();
    for family in FAMILIES {
        let sink = sockets::udp(&server, family, 4_000).unwrap();
        let sender = sockets::udp(&client, family, 4_001).unwrap();
        let before = collector.read();
        assert_eq!(
            sockets::send(&sender, server.socket(family, 4_000), 10, 1_000).accepted,
            10
        );
        let tbf = ["eth0", "tbf"];
        let round = until(&mut collector, "the queue to run empty", |r| {
            r.value("qdisc", "queue_packets", "client", &tbf) == 0
        });
        let sent = moved(&before, &round, "qdisc", "sent_packets", "client", &tbf);
        let dropped = moved(&before, &round, "qdisc", "drops", "client", &tbf);
        assert_eq!(sent + dropped, 10);
        assert!(dropped >= 5, "{dropped}");
        let header = if family == Family::V4 { 42 } else { 62 };
        assert_eq!(
            moved(&before, &round, "qdisc", "sent_bytes", "client", &tbf),
            sent * (1_000 + header)
        );
        assert_tc_agrees(&round, &client, "eth0");
        // A device of the same name in another namespace has its own.
        assert_tc_agrees(&collector.read(), &server, "eth0");
        wait::until_true("what was sent to arrive", PATIENCE, || Ok(sockets::drain(&sink)? > 0)).unwrap();
    }
}

#[test]
fn many_queues_of_a_device_are_counted_once() {
    let Some(lab) = Lab::for_test("qdisc-mq") else {
        return;
    };
    let (client, server) = (lab.pod("mq", "client").unwrap(), lab.pod("mq", "server").unwrap());
    client
        .ip(&format!(
            "link add eth0 numtxqueues 4 numrxqueues 4 type veth peer name eth0 netns {}",
            server.netns()
        ))
        .unwrap();
    client.tc("qdisc replace dev eth0 root handle 1: mq").unwrap();
    for i in 1..=4 {
        client
            .tc(&format!("qdisc replace dev eth0 parent 1:{i} pfifo limit 100"))
            .unwrap();
    }
    for (pod, host) in [(&client, 1), (&server, 2)] {
        // Nothing but ours: no neighbour discovery of IPv6.
        pod.sysctl("net.ipv6.conf.eth0.disable_ipv6", "1").unwrap();
        pod.ip("link set eth0 up").unwrap();
        pod.ip(&format!("addr add 192.0.2.{host}/24 dev eth0")).unwrap();
    }
    for (pod, far, address) in [(&client, &server, "192.0.2.2"), (&server, &client, "192.0.2.1")] {
        let mac = hardware_address(far);
        pod.ip(&format!("neigh replace {address} lladdr {mac} dev eth0 nud permanent"))
            .unwrap();
    }
    let mut collector = Collector::of(&[&client]);
    let labels = ["eth0", "mq"];
    wait::until_true("the device to be running", PATIENCE, || {
        Ok(client.ip("-o link show eth0")?.contains("LOWER_UP"))
    })
    .unwrap();
    let before = collector.read();
    assert_eq!(before.rows("qdisc", "client"), 1, "the root alone");
    let count = 40;
    for port in 0..count {
        // Each from a port of its own, so that they spread over the queues.
        let sender = sockets::udp(&client, Family::V4, 5_000 + port).unwrap();
        sockets::send(&sender, "192.0.2.2:4000".parse().unwrap(), 1, 100);
    }
    let round = until(&mut collector, "all to be sent", |r| {
        moved(&before, r, "qdisc", "sent_packets", "client", &labels) >= i64::from(count)
    });
    assert_eq!(
        moved(&before, &round, "qdisc", "sent_packets", "client", &labels),
        i64::from(count)
    );
    assert_eq!(
        moved(&before, &round, "qdisc", "sent_bytes", "client", &labels),
        i64::from(count) * 142
    );
    assert_tc_agrees(&round, &client, "eth0");
}

#[test]
fn news_that_overrun_the_socket_cost_no_reading_and_no_qdisc() {
    let Some((_lab, client, server)) = pair("qdisc-news") else {
        return;
    };
    let mut collector = Collector::of(&[&client, &server]);
    assert_eq!(collector.read().rows("qdisc", "client"), 0);
    client.tc("qdisc replace dev eth0 root pfifo limit 100").unwrap();
    assert_eq!(collector.read().rows("qdisc", "client"), 1);
    // Each change is told in a message of some kilobytes; the socket holds a few hundred.
    let script = tempfile::NamedTempFile::new().unwrap();
    let lines: String = (0..1_000)
        .map(|i| format!("link set eth0 mtu {}\n", 1_400 + i % 2))
        .collect();
    std::fs::write(script.path(), lines).unwrap();
    let overrun = |pod: &Pod| {
        pod.command("ip", &["-batch", script.path().to_str().unwrap()]).unwrap();
        // sk Eth Pid Groups Rmem Wmem Dump Locks Drops Inode
        let sockets = pod
            .run(|| std::fs::read_to_string("/proc/thread-self/net/netlink"))
            .unwrap()
            .unwrap();
        let lost = |line: &str| {
            let words: Vec<&str> = line.split_ascii_whitespace().collect();
            words[1] == "0" && words[8].parse::<u64>().is_ok_and(|drops| drops > 0)
        };
        assert!(sockets.lines().skip(1).any(lost), "the news did not overrun: {sockets}");
    };
    overrun(&client);
    assert_tc_agrees(&collector.read(), &client, "eth0");
    // Where nothing was asked before, the change that was lost among the news is found all the same.
    overrun(&server);
    server.tc("qdisc replace dev eth0 root pfifo limit 100").unwrap();
    assert_tc_agrees(&collector.read(), &server, "eth0");
    server.tc("qdisc del dev eth0 root").unwrap();
    assert_eq!(collector.read().rows("qdisc", "server"), 0);
}
