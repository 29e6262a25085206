//! What looks at every packet.

use std::collections::HashMap;
use std::io::{Read as _, Write as _};
use std::net::UdpSocket;

use anyhow::{Context as _, Result, ensure};
use sonde_lab::wait::until_true;
use sonde_lab::{Family, sockets};

use super::{Check, is_between, same, talking};
use crate::guest::receiver::Event;
use crate::guest::scene::{LIMIT, Mark, Scene};

pub(super) const FLOW: Check = Check {
    signals: &["flow.count", "flow.tc"],
    // Each counts a part of the same packets, so they are right together or not at all.
    run: |scene| {
        let counted = flow(scene);
        let by_tc = match &counted {
            Ok(_) => on_devices(scene),
            Err(error) => Err(anyhow::anyhow!("{error:#}")),
        };
        vec![("flow.count", counted), ("flow.tc", by_tc)]
    },
};

/// That the packets were counted by programs on the pods' devices: what receives them is not counted by anything else then.
fn on_devices(scene: &Scene) -> Result<String> {
    let status = scene.status()?;
    let probes = status["kernel"]["probes"].as_array().context("no probes")?;
    let flow = probes.iter().find(|probe| probe["probe"] == "flow");
    let gauges = flow.and_then(|flow| flow["gauges"].as_array()).context("no gauges")?;
    let devices = gauges
        .iter()
        .find(|gauge| gauge["name"] == "sonde_collector_ebpf_flow_devices");
    let devices = devices
        .and_then(|gauge| gauge["value"].as_u64())
        .context("no devices")?;
    // Where the kernel has tunnels, each namespace has a device of every kind of them.
    let all = [&scene.client, &scene.server].map(|pod| pod.ip("-o link show"));
    let all = all.into_iter().collect::<Result<Vec<_>, _>>()?.concat();
    let others = all.lines().filter(|line| !line.contains("LOOPBACK")).count();
    same("devices with a program", devices, others as u64)?;
    Ok("the same, with a program on each pod's device, and nothing of it is left at the end".into())
}

fn flow(scene: &Scene) -> Result<String> {
    const TO: u16 = 7_501;
    const COUNT: u64 = 50;
    let before = scene.mark()?;
    for family in Family::BOTH {
        let sink = sockets::udp(&scene.server, family, TO)?;
        let socket = sockets::udp(&scene.client, family, 0)?;
        let sent = sockets::send(&socket, scene.server.socket(family, TO), COUNT, 100);
        same("datagrams sent", sent.accepted, COUNT)?;
        await_datagrams(&sink, COUNT)?;
    }
    let after = scene.mark()?;
    for (family, header) in [(Family::V4, 14 + 20 + 8), (Family::V6, 14 + 40 + 8)] {
        let [src, dst] = [&scene.client, &scene.server].map(|pod| pod.address(family).to_string());
        for (pod, direction) in [(&scene.client, "egress"), (&scene.server, "ingress")] {
            let labels = [
                ("device", "eth0"),
                ("direction", direction),
                ("protocol", "UDP"),
                ("src", src.as_str()),
                ("dst", dst.as_str()),
            ];
            for (name, wanted) in [
                ("sonde_flow_packets_total", COUNT),
                ("sonde_flow_bytes_total", COUNT * (100 + header)),
            ] {
                let of = |mark: &Mark| mark.of(pod, name, &labels);
                same(&format!("{name} {labels:?}"), of(&after) - of(&before), wanted)?;
            }
        }
    }
    Ok(format!("{} datagrams at both ends, to the byte", 2 * COUNT))
}

pub(super) fn await_datagrams(sink: &UdpSocket, count: u64) -> Result<()> {
    let mut total = 0;
    until_true("all datagrams to arrive", LIMIT, || {
        total += sockets::drain(sink)?;
        Ok(total == count)
    })?;
    Ok(())
}

pub(super) const STACK: Check = Check {
    signals: &["kernellatency.time"],
    run: |scene| vec![("kernellatency.time", stack(scene))],
};

fn stack(scene: &Scene) -> Result<String> {
    const TO: u16 = 7_511;
    const MESSAGES: u64 = 10;
    for (family, port) in Family::BOTH.into_iter().zip([40_511, 40_512]) {
        let mut pair = talking(scene, family, port, TO)?;
        let before = scene.mark()?;
        let counters = scene.client.counters()?;
        let missed = scene.misses("kernellatency.time")?;
        for _ in 0..MESSAGES {
            pair.client.write_all(b"question")?;
            pair.server.read_exact(&mut [0; 8])?;
        }
        let after = scene.mark()?;
        // A machine that is emulated is slow enough for TCP to send one again now and then.
        let again = scene.client.counters()?.since(&counters, "Tcp.RetransSegs")?;
        // And so slow that the kernel skips a program that it interrupted, which it counts.
        let missed = scene.misses("kernellatency.time")? - missed;
        let all = MESSAGES.saturating_sub(missed)..=MESSAGES + again;
        let (from, to) = (scene.client.socket(family, port), scene.server.socket(family, TO));
        let is_data = |event: &Event| {
            is_between(event, from, to)
                && event
                    .attributes
                    .get("tcp_flags")
                    .is_some_and(|flags| flags == "PSH,ACK")
        };
        for (kind, pod) in [("RXKERNEL_SLOW", "server"), ("TXKERNEL_SLOW", "client")] {
            let what = format!("{kind} of {from} > {to}");
            let events = scene.await_events(&before, &what, 1, |event| event.kind == kind && is_data(event))?;
            ensure!(
                all.contains(&(events.len() as u64)),
                "{what}: {} events, not {all:?}, {missed} missed: {events:?}",
                events.len()
            );
            let wrong = events
                .iter()
                .find(|event| event.pod != pod || event.latency_ns.is_none());
            ensure!(wrong.is_none(), "{wrong:?}");
        }
        let tcp = [("protocol", "tcp")];
        let grown = |pod, name| after.of(pod, name, &tcp) - before.of(pod, name, &tcp);
        let received = grown(&scene.server, "sonde_kernellatency_receive_seconds_count");
        let sent = grown(&scene.client, "sonde_kernellatency_send_seconds_count");
        let unmatched = grown(&scene.server, "sonde_kernellatency_unmatched_total");
        ensure!(
            all.contains(&received) && all.contains(&sent) && unmatched == 0,
            "{received} received, {sent} sent, {unmatched} unmatched, of {all:?}"
        );
    }
    Ok(format!("{} segments timed and told on both sides", 2 * MESSAGES))
}

pub(super) const QUEUE: Check = Check {
    signals: &["netiftxlat.time"],
    run: |scene| vec![("netiftxlat.time", queue(scene))],
};

/// Datagrams that a queue holds back for 100 ms.
fn queue(scene: &Scene) -> Result<String> {
    const TO: u16 = 7_521;
    const FROM: u16 = 40_521;
    const COUNT: u64 = 10;
    const HELD_NS: u64 = 100_000_000;
    scene.client.tc("qdisc replace dev eth0 root netem delay 100ms")?;
    let told = (|| {
        let before = scene.mark()?;
        let missed = scene.misses("netiftxlat.time")?;
        for family in Family::BOTH {
            let sink = sockets::udp(&scene.server, family, TO)?;
            let socket = sockets::udp(&scene.client, family, FROM)?;
            let sent = sockets::send(&socket, scene.server.socket(family, TO), COUNT, 100);
            same("datagrams sent", sent.accepted, COUNT)?;
            await_datagrams(&sink, COUNT)?;
        }
        let after = scene.mark()?;
        let missed = scene.misses("netiftxlat.time")? - missed;
        let grown = |name| {
            let of = |mark: &Mark| mark.of(&scene.client, name, &[("device", "eth0")]);
            of(&after) - of(&before)
        };
        let [held, passed, sent, unmatched] = [
            "sonde_netiftxlat_qdisc_over_100ms_total",
            "sonde_netiftxlat_qdisc_seconds_count",
            "sonde_netiftxlat_xmit_seconds_count",
            "sonde_netiftxlat_unmatched_total",
        ]
        .map(grown);
        // Two packets that wait at the same time may take the same place in the probe's table, and one is then unmatched.
        // The kernel skips a program that it interrupted.
        let least = (2 * COUNT).saturating_sub(unmatched + missed);
        // A neighbour may have been asked for meanwhile.
        ensure!(
            held >= least && passed >= held && passed + unmatched >= sent && unmatched + missed <= 2,
            "held {held}, passed {passed}, sent {sent}, unmatched {unmatched}, missed {missed}"
        );
        let mut told = [0, 0];
        for family in Family::BOTH {
            let (from, to) = (scene.client.socket(family, FROM), scene.server.socket(family, TO));
            for (kind, told) in ["NETIFTXLAT_QDISC", "NETIFTXLAT_XMIT"].into_iter().zip(&mut told) {
                let is_it = |event: &Event| event.kind == kind && is_between(event, from, to);
                let events = scene.await_events(&before, kind, 1, is_it)?;
                let is_held = |event: &Event| kind == "NETIFTXLAT_XMIT" || event.latency_ns >= Some(HELD_NS);
                ensure!(
                    events.iter().all(|event| event.pod == "client" && is_held(event)),
                    "{kind}: {events:?}"
                );
                *told += events.len() as u64;
            }
        }
        ensure!(
            (least..=2 * COUNT).contains(&told[0]) && (2 * COUNT - missed..=2 * COUNT).contains(&told[1]),
            "{told:?} told, {unmatched} unmatched, {missed} missed"
        );
        let but = match (unmatched, missed) {
            (0, 0) => String::new(),
            _ => format!(", but {unmatched} unmatched and {missed} that the kernel says it missed"),
        };
        Ok(format!("{} datagrams held for 100 ms and sent{but}", 2 * COUNT))
    })();
    scene.client.tc("qdisc del dev eth0 root")?;
    told
}

pub(super) const SOFTIRQ: Check = Check {
    signals: &["net_softirq.times"],
    run: |scene| vec![("net_softirq.times", softirqs(scene))],
};

/// Between two readings of `/proc/softirqs` the collector's own reading must lie.
fn softirqs(scene: &Scene) -> Result<String> {
    const TO: u16 = 7_531;
    let outer = received()?;
    let before = scene.mark()?;
    let inner = received()?;
    let sink = sockets::udp(&scene.server, Family::V4, TO)?;
    let socket = sockets::udp(&scene.client, Family::V4, 0)?;
    for _ in 0..200 {
        same(
            "sent",
            sockets::send(&socket, scene.server.socket(Family::V4, TO), 1, 100).accepted,
            1,
        )?;
    }
    drop(sink);
    let inner = received()? - inner;
    let after = scene.mark()?;
    let outer = received()? - outer;
    ensure!(inner >= 100, "200 datagrams made {inner} softirqs only");
    let mut told = String::new();
    for phase in ["sched", "execute"] {
        let name = format!("sonde_net_softirq_{phase}_seconds_count");
        let labels = [("vector", "net_rx")];
        let grown = after.sum(&name, &labels) - before.sum(&name, &labels);
        ensure!(
            (inner..=outer).contains(&grown),
            "{phase}: {grown}, and /proc/softirqs says {inner} to {outer}"
        );
        told = format!("{grown} of {inner} to {outer} in /proc/softirqs");
    }
    let mut kinds: HashMap<String, Event> = HashMap::new();
    for kind in ["NETSOFTIRQ_SCHED_SLOW", "NETSOFTIRQ_EXCUTE_SLOW"] {
        let events = scene.await_events(&before, kind, 1, |event| event.kind == kind)?;
        kinds.insert(kind.into(), events[0].clone());
    }
    ensure!(
        kinds
            .values()
            .all(|event| event.pod.is_empty() && event.latency_ns.is_some()),
        "{kinds:?}"
    );
    Ok(told)
}

/// Of all CPUs.
fn received() -> Result<u64> {
    let text = std::fs::read_to_string("/proc/softirqs")?;
    let line = text.lines().find_map(|line| line.trim().strip_prefix("NET_RX:"));
    let numbers = line.context("no NET_RX in /proc/softirqs")?.split_ascii_whitespace();
    Ok(numbers.map(str::parse::<u64>).sum::<Result<u64, _>>()?)
}
