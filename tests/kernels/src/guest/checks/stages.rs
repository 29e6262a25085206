//! What functions of the IP layer tell of packets: netfilter's share, the parts of a time, and datagrams.

use std::io::{Read as _, Write as _};

use anyhow::{Context as _, Result, ensure};
use sonde_lab::{Family, sockets};

use super::packets::await_datagrams;
use super::{Check, is_between, same, talking};
use crate::guest::receiver::Event;
use crate::guest::scene::{Mark, Scene};

pub(super) const CHECK: Check = Check {
    signals: &["kernellatency.stages"],
    run: |scene| vec![("kernellatency.stages", stages(scene))],
};

const COUNT: u64 = 10;
const MANY: usize = 3_000;

/// Rules that no packet here matches, in the hook that the pod's own packets pass.
fn rules(hook: &str, count: usize) -> String {
    let rules = "meta mark 0x5a5a counter\n".repeat(count);
    format!("table inet many {{ chain c {{ type filter hook {hook} priority 0; policy accept;\n{rules}}}\n}}")
}

fn stages(scene: &Scene) -> Result<String> {
    let [one, many] = [1, MANY].map(|count| -> Result<u64> {
        scene.server.nft(&rules("input", count))?;
        scene.client.nft(&rules("output", count))?;
        let mut hooks = Vec::new();
        let told = datagrams(scene, &mut hooks).and_then(|()| segments(scene, &mut hooks));
        for pod in [&scene.client, &scene.server] {
            pod.nft("delete table inet many")?;
        }
        told?;
        hooks.sort_unstable();
        Ok(hooks[hooks.len() / 2])
    });
    let (one, many) = (one?, many?);
    // Some hundred times as long; what else the machine does meanwhile is in both.
    ensure!(many > 5 * one, "one rule takes {one} ns, {MANY} take {many}");
    Ok(format!(
        "{} datagrams and {} segments, each time the sum of its parts; {MANY} rules take {} times as long as one",
        4 * COUNT,
        4 * COUNT,
        many / one.max(1)
    ))
}

/// Runs of the probe's programs that the kernel says it skipped: it runs none of them on a breakpoint while another
/// program has the CPU, or user space reads a map there (`bpf_prog_active` in `trace_call_bpf`). Each is a time that is not
/// taken, or a part of one.
fn misses(scene: &Scene) -> Result<u64> {
    Ok(scene.misses("kernellatency.time")? + scene.misses("kernellatency.stages")?)
}

fn datagrams(scene: &Scene, hooks: &mut Vec<u64>) -> Result<()> {
    const TO: u16 = 7_541;
    const FROM: u16 = 40_541;
    for family in Family::BOTH {
        let sink = sockets::udp(&scene.server, family, TO)?;
        let socket = sockets::udp(&scene.client, family, FROM)?;
        // The first one waits for its neighbour.
        same(
            "datagrams sent",
            sockets::send(&socket, scene.server.socket(family, TO), 1, 100).accepted,
            1,
        )?;
        await_datagrams(&sink, 1)?;
        let missed = misses(scene)?;
        let before = scene.mark()?;
        same(
            "datagrams sent",
            sockets::send(&socket, scene.server.socket(family, TO), COUNT, 100).accepted,
            COUNT,
        )?;
        await_datagrams(&sink, COUNT)?;
        let after = scene.mark()?;
        let missed = misses(scene)? - missed;
        let (from, to) = (scene.client.socket(family, FROM), scene.server.socket(family, TO));
        hooks.extend(events(scene, &before, missed, |event| is_between(event, from, to))?);
        let udp = [("protocol", "udp")];
        for (pod, name) in [
            (&scene.server, "receive_seconds_count"),
            (&scene.server, "receive_netfilter_seconds_count"),
            (&scene.client, "send_seconds_count"),
            (&scene.client, "send_netfilter_seconds_count"),
        ] {
            let name = format!("sonde_kernellatency_{name}");
            let counted = after.of(pod, &name, &udp) - before.of(pod, &name, &udp);
            ensure!(
                (COUNT.saturating_sub(missed)..=COUNT).contains(&counted),
                "{name} of {}: {counted}, not {COUNT}; {missed} missed",
                pod.name()
            );
        }
        let unmatched = after.of(&scene.server, "sonde_kernellatency_unmatched_total", &udp)
            - before.of(&scene.server, "sonde_kernellatency_unmatched_total", &udp);
        ensure!(unmatched <= missed, "{unmatched} unmatched, {missed} missed");
    }
    Ok(())
}

fn segments(scene: &Scene, hooks: &mut Vec<u64>) -> Result<()> {
    const TO: u16 = 7_542;
    for (family, port) in Family::BOTH.into_iter().zip([40_542, 40_543]) {
        let mut pair = talking(scene, family, port, TO)?;
        let missed = misses(scene)?;
        let before = scene.mark()?;
        for _ in 0..COUNT {
            pair.client.write_all(b"question")?;
            pair.server.read_exact(&mut [0; 8])?;
        }
        scene.mark()?;
        let missed = misses(scene)? - missed;
        let (from, to) = (scene.client.socket(family, port), scene.server.socket(family, TO));
        hooks.extend(events(scene, &before, missed, |event| {
            is_between(event, from, to)
                && event
                    .attributes
                    .get("tcp_flags")
                    .is_some_and(|flags| flags == "PSH,ACK")
        })?);
    }
    Ok(())
}

/// One of each direction for each packet, and more where one was sent again. The parts are all of its time; how much of
/// it netfilter had is given back. As many as were `missed` may be absent, or lack parts.
fn events(scene: &Scene, before: &Mark, missed: u64, is_ours: impl Fn(&Event) -> bool) -> Result<Vec<u64>> {
    let mut all = Vec::new();
    for (kind, pod) in [("RXKERNEL_SLOW", "server"), ("TXKERNEL_SLOW", "client")] {
        let least = COUNT.saturating_sub(missed);
        let what = format!("{kind}, {missed} missed");
        let found = scene.await_events(before, &what, least as usize, |event| {
            event.kind == kind && is_ours(event)
        })?;
        let mut whole = 0;
        for event in &found {
            ensure!(event.pod == pod, "{event:?}");
            match netfilter_share(event) {
                Ok(hooks) => {
                    whole += 1;
                    all.push(hooks);
                }
                Err(error) => ensure!(missed > 0, "{error:#}"),
            }
        }
        ensure!(whole >= least, "{whole} are whole, {missed} missed: {found:?}");
    }
    Ok(all)
}

/// Of an event whose parts are all there and make up its time.
fn netfilter_share(event: &Event) -> Result<u64> {
    let part = |name: &str| -> Result<Option<u64>> {
        let text = event.attributes.get(name);
        Ok(text.map(|text| text.parse()).transpose()?)
    };
    let [device, ip, hooks, transport] = ["device_ns", "ip_ns", "netfilter_ns", "transport_ns"].map(part);
    let (device, ip, hooks, transport) = (device?, ip?, hooks?, transport?);
    let hooks = hooks.with_context(|| format!("no netfilter_ns: {event:?}"))?;
    ensure!(
        ip.is_some() && (event.kind == "TXKERNEL_SLOW" || device.and(transport).is_some()),
        "{event:?}"
    );
    let sum = hooks + [device, ip, transport].iter().flatten().sum::<u64>();
    ensure!(event.latency_ns == Some(sum), "its parts are {sum}: {event:?}");
    Ok(hooks)
}
