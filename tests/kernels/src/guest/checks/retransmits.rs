//! A SYN and a segment that do not arrive.

use std::io::{Read as _, Write as _};

use anyhow::{Result, ensure};
use sonde_lab::wait::until_true;
use sonde_lab::{Counters, Family, sockets};

use super::{Check, Found, is_between, same, talking};
use crate::guest::scene::{LIMIT, Mark, Scene};

const TO: u16 = 7_301;
const FROM: [u16; 2] = [40_301, 40_302];

pub(super) const CHECK: Check = Check {
    signals: &["tcpretrans.count", "tcpretrans.events"],
    run: |scene| match make_and_compare(scene) {
        Ok(found) => found,
        Err(error) => vec![("tcpretrans.count", Err(error))],
    },
};

fn make_and_compare(scene: &Scene) -> Result<Found> {
    const FAMILY: Family = Family::V4;
    let before = scene.mark()?;
    let counters = scene.client.counters()?;
    let grown = |name: &'static str| move |now: &Counters| now.since(&counters, name);
    let syns = grown("TcpExt.TCPSynRetrans");
    let counters = scene.client.counters()?;
    let segments = |now: &Counters| {
        Ok::<_, sonde_lab::LabError>(
            now.since(&counters, "Tcp.RetransSegs")? - now.since(&counters, "TcpExt.TCPRetransFail")?,
        )
    };

    drop_tcp(scene)?;
    let to = scene.server.socket(FAMILY, TO);
    let given_up = sockets::tcp_start_connect(&scene.client, FROM[0], to)?;
    until_true("a SYN sent again", LIMIT, || Ok(syns(&scene.client.counters()?)? >= 1))?;
    drop(given_up);
    pass(scene)?;

    let mut pair = talking(scene, FAMILY, FROM[1], TO)?;
    drop_tcp(scene)?;
    pair.client.write_all(&[7; 400])?;
    let already = segments(&scene.client.counters()?)?;
    until_true("the segment sent again, twice", LIMIT, || {
        Ok(segments(&scene.client.counters()?)? >= already + 2)
    })?;
    pass(scene)?;
    pair.server.read_exact(&mut [0; 400])?;
    drop(pair);

    let sent = segments(&scene.client.counters()?)?;
    let after = scene.mark()?;
    let mut kinds: Vec<String> = Vec::new();
    let events = (|| {
        let events = scene.exactly(&before, &after, "segments sent again", sent as usize, |event| {
            event.is_of_pod() && event.kind == "TCPRETRANS"
        })?;
        for event in &events {
            let from = |port: u16| scene.client.socket(FAMILY, port);
            let (port, states) = match event.reason.as_str() {
                "syn" => (FROM[0], "TCP_SYN_SENT"),
                "tlp" | "rto" | "loss_recovery" => (FROM[1], "TCP_ESTABLISHED"),
                other => anyhow::bail!("of kind {other}: {event:?}"),
            };
            let is_right = event.pod == "client" && is_between(event, from(port), to) && event.state == states;
            ensure!(is_right && !event.stack.is_empty(), "{event:?}");
            kinds.push(event.reason.clone());
        }
        kinds.sort_unstable();
        kinds.dedup();
        ensure!(
            kinds.iter().any(|kind| kind == "syn") && kinds.len() > 1,
            "kinds: {kinds:?}"
        );
        Ok(format!("{sent} events: {}", kinds.join(", ")))
    })();
    let of = |mark: &Mark| mark.of(&scene.client, "sonde_tcpretrans_segments_total", &[]);
    let count = same("segments sent again", of(&after) - of(&before), sent);
    let count = count.map(|()| format!("{sent} segments, as the kernel counts"));
    Ok(vec![("tcpretrans.count", count), ("tcpretrans.events", events)])
}

fn drop_tcp(scene: &Scene) -> Result<()> {
    scene.server.nft(&format!(
        "table inet matrix {{ chain input {{ type filter hook input priority 0; tcp dport {TO} drop\n }}\n }}"
    ))?;
    Ok(())
}

fn pass(scene: &Scene) -> Result<()> {
    Ok(scene.server.nft("delete table inet matrix")?)
}
