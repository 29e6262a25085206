//! Datagrams that a rule drops, and traffic of which nothing is lost.

use anyhow::{Context as _, Result, ensure};
use sonde_lab::{Family, healthy, sockets};

use super::{Check, Found, is_between, same};
use crate::guest::receiver::Event;
use crate::guest::scene::{Mark, Scene};

const COUNT: u64 = 10;
const FROM: u16 = 40_101;
const TO: u16 = 7_101;

pub(super) const CHECK: Check = Check {
    signals: &["packetloss.count", "packetloss.events"],
    run: |scene| {
        let made = scene.mark().and_then(|before| {
            make(scene)?;
            Ok(before)
        });
        match made {
            Err(error) => vec![("packetloss.count", Err(error))],
            Ok(before) => found(scene, &before),
        }
    },
};

fn make(scene: &Scene) -> Result<()> {
    scene.server.nft(&format!(
        "table inet matrix {{ counter dropped {{ }}\n\
         chain input {{ type filter hook input priority 0; udp dport {TO} counter name dropped drop\n }}\n }}"
    ))?;
    for family in Family::BOTH {
        let socket = sockets::udp(&scene.client, family, FROM)?;
        let sent = sockets::send(&socket, scene.server.socket(family, TO), COUNT, 100);
        same("datagrams sent", sent.accepted, COUNT)?;
    }
    let dropped = scene.server.nft_counter("dropped")?.packets;
    scene.server.nft("delete table inet matrix")?;
    same("dropped by the rule, as nft counts", dropped, 2 * COUNT)
}

fn found(scene: &Scene, before: &Mark) -> Found {
    let after = match scene.mark() {
        Ok(after) => after,
        Err(error) => return vec![("packetloss.count", Err(error))],
    };
    let mut reason = String::new();
    let events = (|| {
        let mut seen = 0;
        for family in Family::BOTH {
            let (from, to) = (scene.client.socket(family, FROM), scene.server.socket(family, TO));
            let what = format!("drops of {from} > {to}");
            let events = scene.exactly(before, &after, &what, COUNT as usize, |event| {
                event.kind == "PACKETLOSS"
                    && event.pod == "server"
                    && event.protocol == "UDP"
                    && is_between(event, from, to)
            })?;
            seen += events.len();
            let first = events.into_iter().next().context("no event")?;
            ensure!(!first.stack.is_empty(), "no stack: {first:?}");
            reason = first.reason;
        }
        // The rules were put up and taken away meanwhile, which must look like no loss.
        let of_any = |event: &Event| event.is_of_pod() && event.kind == "PACKETLOSS";
        scene.exactly(before, &after, "drops in all", seen, of_any)?;
        let noise = if scene.is_default {
            healthy(scene)?
        } else {
            String::new()
        };
        Ok(format!("{seen} events, reason {reason}{noise}"))
    })();
    let name = "sonde_packetloss_drops_total";
    let labels: &[_] = match reason.as_str() {
        "" => &[("class", "suspect")],
        reason => &[("class", "suspect"), ("reason", reason)],
    };
    let grown = after.of(&scene.server, name, labels) - before.of(&scene.server, name, labels);
    let count = same(&format!("drops {labels:?}"), grown, 2 * COUNT).map(|()| format!("{grown} drops"));
    vec![("packetloss.count", count), ("packetloss.events", events)]
}

/// What must give no event.
fn healthy(scene: &Scene) -> Result<String> {
    let before = scene.mark()?;
    healthy::healthy(&scene.client, &scene.server)?;
    let after = scene.mark()?;
    let is_noise =
        |event: &Event| event.is_of_pod() && (event.kind == "PACKETLOSS" || event.kind.starts_with("TCPRESET"));
    scene.exactly(&before, &after, "healthy traffic", 0, is_noise)?;
    Ok(format!(", and none of {} kinds of healthy traffic", healthy::ALL.len()))
}
