//! One reset of each type, for both families.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr};

use anyhow::{Result, ensure};
use sonde_lab::wait::until_true;
use sonde_lab::{Family, sockets};

use super::{Check, Found, is_between, same, talking};
use crate::guest::scene::{LIMIT, Mark, Scene};

const TO: u16 = 7_201;

pub(super) const CHECK: Check = Check {
    signals: &["tcpreset.count", "tcpreset.events"],
    run: |scene| match make_and_compare(scene) {
        Ok(found) => found,
        Err(error) => vec![("tcpreset.count", Err(error))],
    },
};

/// Type, pod that tells it, sender, receiver, state of the socket.
type Reset = (&'static str, &'static str, SocketAddr, SocketAddr, &'static str);

fn make_and_compare(scene: &Scene) -> Result<Found> {
    let before = scene.mark()?;
    let sent = [&scene.client, &scene.server].map(|pod| pod.counters());
    let mut expected = Vec::new();
    for (family, base) in Family::BOTH.into_iter().zip([40_201, 40_211]) {
        expected.extend(closed_port(scene, family, base)?);
        expected.extend(unread(scene, family, base + 1)?);
        expected.extend(after_shutdown(scene, family, base + 2)?);
        expected.extend(time_wait(scene, family, base + 3)?);
    }
    for (pod, sent) in [&scene.client, &scene.server].into_iter().zip(sent) {
        let resets = pod.counters()?.since(&sent?, "Tcp.OutRsts")?;
        let ours = expected
            .iter()
            .filter(|(kind, of, ..)| *of == pod.name() && *kind != "TCPRESET_RECEIVE");
        same(
            &format!("resets that {pod} sent, as the kernel counts"),
            resets,
            ours.count() as u64,
        )?;
    }
    let after = scene.mark()?;
    Ok(vec![
        ("tcpreset.count", counts(scene, &before, &after, &expected)),
        ("tcpreset.events", events(scene, &before, &after, &expected)),
    ])
}

fn counts(scene: &Scene, before: &Mark, after: &Mark, expected: &[Reset]) -> Result<String> {
    for pod in [&scene.client, &scene.server] {
        for kind in ["NOSOCK", "PROCESS", "ACTIVE", "RECEIVE"] {
            let label = kind.to_lowercase();
            let of = |mark: &Mark| mark.of(pod, "sonde_tcpreset_resets_total", &[("type", label.as_str())]);
            let is_it = |(wanted, of, ..): &&Reset| *of == pod.name() && wanted.strip_prefix("TCPRESET_") == Some(kind);
            let wanted = expected.iter().filter(is_it).count() as u64;
            same(&format!("{label} of {}", pod.name()), of(after) - of(before), wanted)?;
        }
    }
    Ok(format!("{} resets, four types", expected.len()))
}

fn events(scene: &Scene, before: &Mark, after: &Mark, expected: &[Reset]) -> Result<String> {
    let all = scene.exactly(before, after, "resets", expected.len(), |event| {
        event.is_of_pod() && event.kind.starts_with("TCPRESET_")
    })?;
    for (kind, pod, from, to, state) in expected {
        let found = all.iter().filter(|event| {
            event.kind == *kind && event.pod == *pod && is_between(event, *from, *to) && event.state == *state
        });
        ensure!(
            found.count() == 1,
            "no {kind} of {pod}, {from} > {to}, {state:?} in {all:#?}"
        );
    }
    ensure!(
        all.iter().all(|event| !event.stack.is_empty()),
        "one without stack: {all:?}"
    );
    let reasons: Vec<&str> = all
        .iter()
        .map(|event| event.reason.as_str())
        .filter(|reason| !reason.is_empty())
        .collect();
    Ok(match reasons.as_slice() {
        [] => format!("{} events, no reasons on this kernel", all.len()),
        some => format!("{} events, {} with a reason", all.len(), some.len()),
    })
}

fn closed_port(scene: &Scene, family: Family, port: u16) -> Result<Vec<Reset>> {
    let to = scene.server.socket(family, TO);
    let answer = sockets::tcp_connect(&scene.client, port, to, LIMIT)?;
    ensure!(answer.is_err(), "a closed port took a connection");
    let from = scene.client.socket(family, port);
    Ok(vec![
        ("TCPRESET_NOSOCK", "server", to, from, ""),
        ("TCPRESET_RECEIVE", "client", to, from, "TCP_SYN_SENT"),
    ])
}

fn unread(scene: &Scene, family: Family, port: u16) -> Result<Vec<Reset>> {
    let mut pair = talking(scene, family, port, TO)?;
    let (from, to) = (scene.client.socket(family, port), scene.server.socket(family, TO));
    pair.client.write_all(b"nobody reads this")?;
    pair.server.peek(&mut [0; 1])?;
    drop(pair.server);
    ensure!(pair.client.read(&mut [0; 1]).is_err(), "no reset came");
    Ok(vec![
        ("TCPRESET_ACTIVE", "server", to, from, "TCP_ESTABLISHED"),
        ("TCPRESET_RECEIVE", "client", to, from, "TCP_ESTABLISHED"),
    ])
}

fn await_reset(stream: &std::net::TcpStream) -> Result<()> {
    until_true("a reset", LIMIT, || Ok(stream.take_error().ok().flatten().is_some()))?;
    Ok(())
}

/// The socket is there, and takes no data any more. The kernel "receives" a reset then, which is none.
fn after_shutdown(scene: &Scene, family: Family, port: u16) -> Result<Vec<Reset>> {
    let mut pair = talking(scene, family, port, TO)?;
    let (from, to) = (scene.client.socket(family, port), scene.server.socket(family, TO));
    pair.server.shutdown(Shutdown::Both)?;
    ensure!(pair.client.read(&mut [0; 1])? == 0, "no end came");
    pair.client.write_all(b"too late")?;
    await_reset(&pair.client)?;
    Ok(vec![
        ("TCPRESET_PROCESS", "server", to, from, "TCP_FIN_WAIT2"),
        ("TCPRESET_RECEIVE", "client", to, from, "TCP_CLOSE_WAIT"),
    ])
}

fn time_wait(scene: &Scene, family: Family, port: u16) -> Result<Vec<Reset>> {
    let mut pair = talking(scene, family, port, TO)?;
    let (from, to) = (scene.client.socket(family, port), scene.server.socket(family, TO));
    drop(pair.server);
    ensure!(pair.client.read(&mut [0; 1])? == 0, "no end came");
    // Once its end is acknowledged, a closed socket waits as one of those in TIME_WAIT.
    until_true("the end to be acknowledged", LIMIT, || {
        Ok(!scene.server.run(|| has_state(FIN_WAIT1))?.unwrap_or(true))
    })?;
    pair.client.write_all(b"too late")?;
    await_reset(&pair.client)?;
    Ok(vec![
        ("TCPRESET_PROCESS", "server", to, from, "TCP_TIME_WAIT"),
        ("TCPRESET_RECEIVE", "client", to, from, "TCP_CLOSE_WAIT"),
    ])
}

/// As in `/proc/net/tcp`.
const FIN_WAIT1: &str = "04";

/// Whether a TCP socket of this namespace is in that state.
fn has_state(state: &str) -> std::io::Result<bool> {
    for file in ["tcp", "tcp6"] {
        let text = std::fs::read_to_string(format!("/proc/thread-self/net/{file}"))?;
        let mut sockets = text.lines().skip(1);
        if sockets.any(|line| line.split_ascii_whitespace().nth(3) == Some(state)) {
            return Ok(true);
        }
    }
    Ok(false)
}
