//! Connections, and data that waits in sockets.

use std::io::{Read as _, Write as _};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use sonde_lab::{Family, sockets};

use super::{Check, is_between, same, talking};
use crate::guest::scene::{LIMIT, Mark, Scene};

const TO: u16 = 7_401;

pub(super) const CONNECT: Check = Check {
    signals: &["connect.times"],
    run: |scene| vec![("connect.times", connect(scene))],
};

fn connect(scene: &Scene) -> Result<String> {
    let before = scene.mark()?;
    for family in Family::BOTH {
        for _ in 0..3 {
            drop(sockets::tcp_pair(&scene.client, 0, &scene.server, family, TO)?);
        }
        for _ in 0..2 {
            let answer = sockets::tcp_connect(&scene.client, 0, scene.server.socket(family, TO), LIMIT)?;
            ensure!(answer.is_err(), "a closed port took a connection");
        }
    }
    let after = scene.mark()?;
    for family in ["ipv4", "ipv6"] {
        for (result, wanted) in [("established", 3), ("refused", 2)] {
            for name in ["sonde_connect_attempts_total", "sonde_connect_latency_seconds_count"] {
                let of = |mark: &Mark| mark.of(&scene.client, name, &[("family", family), ("result", result)]);
                same(&format!("{name} {family} {result}"), of(&after) - of(&before), wanted)?;
            }
        }
    }
    Ok("6 established, 4 refused".into())
}

/// Longer than the threshold.
const PAUSE: Duration = Duration::from_millis(150);

pub(super) const READ: Check = Check {
    signals: &["socketlatency.read"],
    run: |scene| vec![("socketlatency.read", read(scene))],
};

fn read(scene: &Scene) -> Result<String> {
    let labels = [("operation", "read"), ("protocol", "tcp")];
    let mut latency = 0;
    for (family, port) in Family::BOTH.into_iter().zip([40_401, 40_402]) {
        let mut pair = talking(scene, family, port, TO)?;
        let before = scene.mark()?;
        pair.client.write_all(b"12345")?;
        pair.server.peek(&mut [0; 1])?;
        std::thread::sleep(PAUSE);
        pair.server.read_exact(&mut [0; 5])?;
        let (own, peer) = (scene.server.socket(family, TO), scene.client.socket(family, port));
        let after = scene.mark()?;
        let events = scene.exactly(&before, &after, "slow reads", 1, |event| {
            event.is_of_pod() && event.kind == "SOCKETLAT_READSLOW"
        })?;
        let event = &events[0];
        ensure!(event.pod == "server" && is_between(event, own, peer), "{event:?}");
        latency = event.latency_ns.context("no latency")?;
        ensure!(u128::from(latency) >= PAUSE.as_nanos(), "{latency} ns: {event:?}");
        let of = |mark: &Mark| mark.of(&scene.server, "sonde_socketlatency_latency_seconds_count", &labels);
        same("reads", of(&after) - of(&before), 1)?;
    }
    Ok(format!(
        "each read counted, and told: {} ms after a pause of {}",
        latency / 1_000_000,
        PAUSE.as_millis()
    ))
}

pub(super) const SEND: Check = Check {
    signals: &["socketlatency.send"],
    run: |scene| {
        let both = send(scene).and_then(|tcp| Ok(tcp + &datagrams(scene)?));
        vec![("socketlatency.send", both)]
    },
};

/// More than fits into the receiver's buffer and the sender's window: the end of it waits until somebody reads.
fn send(scene: &Scene) -> Result<String> {
    const LENGTH: usize = 400_000;
    const FAMILY: Family = Family::V4;
    const PORT: u16 = 40_411;
    let labels = [("operation", "send"), ("protocol", "tcp")];
    let listener = sockets::tcp_listen(&scene.server, FAMILY, TO, 4)?;
    socket2::SockRef::from(&listener).set_recv_buffer_size(32 << 10)?;
    let (own, peer) = (scene.client.socket(FAMILY, PORT), scene.server.socket(FAMILY, TO));
    let mut client = sockets::tcp_connect(&scene.client, PORT, peer, LIMIT)??;
    let (mut server, _) = listener.accept()?;
    // What the sender may keep for itself: the whole message, so that one call takes it.
    socket2::SockRef::from(&client).set_send_buffer_size(2 * LENGTH)?;
    client.set_write_timeout(Some(LIMIT))?;
    let before = scene.mark()?;
    client.write_all(&vec![7; LENGTH])?;
    std::thread::sleep(PAUSE);
    server.read_exact(&mut vec![0; LENGTH])?;
    let after = scene.mark()?;
    let events = scene.exactly(&before, &after, "slow sends", 1, |event| {
        event.is_of_pod() && event.kind == "SOCKETLAT_SENDSLOW"
    })?;
    let event = &events[0];
    ensure!(event.pod == "client" && is_between(event, own, peer), "{event:?}");
    let latency = event.latency_ns.context("no latency")?;
    ensure!(u128::from(latency) >= PAUSE.as_nanos(), "{latency} ns: {event:?}");
    let of = |mark: &Mark| mark.of(&scene.client, "sonde_socketlatency_latency_seconds_count", &labels);
    same("sends", of(&after) - of(&before), 1)?;
    drop((client, server));
    let limit = event.attributes.get("limited_by").map_or("nothing", String::as_str);
    Ok(format!(
        "counted, and told: {} ms after a pause of {}, limited by {limit}",
        latency / 1_000_000,
        PAUSE.as_millis()
    ))
}

/// Datagrams that go at once, and one that waits for the address of its next hop. Nothing where the way taken tells of TCP
/// alone.
fn datagrams(scene: &Scene) -> Result<String> {
    const FAMILY: Family = Family::V4;
    const PORT: u16 = 40_421;
    const NOBODY: [u8; 4] = [192, 0, 2, 7];
    let signals = scene.signals()?;
    let rung = signals
        .get("socketlatency.send")
        .and_then(|signal| signal.rung.as_deref());
    if !matches!(rung, Some("tp_btf" | "raw_tracepoint")) {
        return Ok(String::new());
    }
    let labels = [("operation", "send"), ("protocol", "udp")];
    let of = |mark: &Mark| mark.of(&scene.client, "sonde_socketlatency_latency_seconds_count", &labels);
    let server = sockets::udp(&scene.server, FAMILY, TO)?;
    let client = sockets::udp(&scene.client, FAMILY, PORT)?;
    let to = scene.server.socket(FAMILY, TO);
    // The first one may wait too.
    client.send_to(b"0", to)?;
    server.recv_from(&mut [0; 8])?;
    let before = scene.mark()?;
    for _ in 0..20 {
        client.send_to(b"1", to)?;
    }
    let after = scene.mark()?;
    same("datagrams", of(&after) - of(&before), 20)?;

    scene.client.sysctl("net.ipv4.neigh.eth0.mcast_solicit", "60")?;
    scene.client.ip("route add 192.0.2.7/32 dev eth0")?;
    let peer = (NOBODY, TO).into();
    let before = scene.mark()?;
    client.send_to(b"2", peer)?;
    std::thread::sleep(PAUSE);
    scene
        .client
        .ip("neigh replace 192.0.2.7 lladdr 02:00:00:00:00:07 nud permanent dev eth0")?;
    let after = scene.mark()?;
    let events = scene.exactly(&before, &after, "slow datagrams", 1, |event| {
        event.is_of_pod() && event.kind == "SOCKETLAT_SENDSLOW"
    })?;
    let event = &events[0];
    let own = scene.client.socket(FAMILY, PORT);
    ensure!(event.pod == "client" && is_between(event, own, peer), "{event:?}");
    let latency = event.latency_ns.context("no latency")?;
    ensure!(u128::from(latency) >= PAUSE.as_nanos(), "{latency} ns: {event:?}");
    same("datagrams", of(&after) - of(&before), 1)?;
    scene.client.ip("neigh del 192.0.2.7 dev eth0")?;
    scene.client.ip("route del 192.0.2.7/32 dev eth0")?;
    Ok("; 21 datagrams, one of them held".into())
}
