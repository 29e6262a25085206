//! For each signal the real thing, and what the collector must say of it: counts exactly where it is known how many there
//! were, ports always.

mod commands;
mod drops;
mod names;
mod packets;
mod resets;
mod retransmits;
mod sockets;
mod stages;

use std::net::SocketAddr;

use anyhow::Result;
use sonde_lab::sockets::Connected;
use sonde_lab::{Family, sockets as lab_sockets};

use super::receiver::Event;
use super::scene::Scene;

/// What was found of each signal: what was right, or what was not.
type Found = Vec<(&'static str, Result<String>)>;

pub(super) struct Check {
    pub signals: &'static [&'static str],
    pub run: fn(&Scene) -> Found,
}

pub(super) const ALL: &[Check] = &[
    drops::CHECK,
    resets::CHECK,
    retransmits::CHECK,
    sockets::CONNECT,
    sockets::READ,
    sockets::SEND,
    packets::FLOW,
    packets::STACK,
    stages::CHECK,
    packets::QUEUE,
    packets::SOFTIRQ,
    names::CHECK,
    commands::CHECK,
];

/// A connection with data passed both ways: what is special about the first segments of one is over.
fn talking(scene: &Scene, family: Family, from: u16, port: u16) -> Result<Connected> {
    use std::io::{Read as _, Write as _};
    let mut pair = lab_sockets::tcp_pair(&scene.client, from, &scene.server, family, port)?;
    pair.client.set_nodelay(true)?;
    pair.client.write_all(b"hello")?;
    pair.server.read_exact(&mut [0; 5])?;
    pair.server.write_all(b"hello")?;
    pair.client.read_exact(&mut [0; 5])?;
    Ok(pair)
}

fn is_between(event: &Event, from: SocketAddr, to: SocketAddr) -> bool {
    (event.from, event.to) == (Some(from), Some(to))
}

/// That a number is what it must be.
fn same(what: &str, found: u64, expected: u64) -> Result<()> {
    anyhow::ensure!(found == expected, "{what}: {found}, not {expected}");
    Ok(())
}
