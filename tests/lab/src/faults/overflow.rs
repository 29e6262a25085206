//! A socket's queue is full.

use super::*;
use crate::error::At;

pub(super) const UDP_BUFFER: Fault = Fault {
    name: "udp-buffer-overflow",
    about: "Datagrams to a socket with the smallest receive buffer that nobody reads. The first ones fit; the kernel frees the \
        others as SOCKET_RCVBUFF in the server's namespace. Second source: Udp.RcvbufErrors / Udp6.RcvbufErrors.",
    topology: Topology::Pair,
    protocol: Protocol::Udp,
    signal: Signal::Event(Drop {
        place: Role::Server,
        reasons: &["SOCKET_RCVBUFF"],
        direction: "ingress",
        interface: Some("eth0"),
    }),
    inject: |scene, family, count| {
        let counter = by_family(family, "Udp.RcvbufErrors", "Udp6.RcvbufErrors");
        let sink = sockets::udp_small(&scene.server, family, TO_PORT)?;
        let before = scene.server.counters()?;
        let sent = scene.send_datagrams(family, count, 512)?.accepted;
        // Every datagram is either dropped or can be read.
        let mut read = 0;
        let what = format!("{sent} datagrams at {}", scene.server);
        let dropped = until(&what, LIMIT, || {
            let dropped = scene.server.counters()?.since(&before, counter)?;
            if dropped + read >= sent {
                return Ok(Look::Found(dropped));
            }
            read += sockets::drain(&sink)?;
            Ok(Look::NotYet(format!("{dropped} dropped, {read} read")))
        })?;
        Ok(Injected {
            family,
            place: scene.server.clone(),
            flow: scene.flow(family),
            sent,
            dropped,
            source: counter.into(),
        })
    },
};

pub(super) const LISTEN_QUEUE: Fault = Fault {
    name: "listen-queue-overflow",
    about: "Connections to a server that never accepts, once its accept queue is full. The kernel consumes each further SYN \
        without freeing it as dropped on any version, so no packet loss is seen; TcpExt.ListenOverflows counts it.",
    topology: Topology::Pair,
    protocol: Protocol::Tcp,
    signal: Signal::Counter {
        place: Role::Server,
        v4: "TcpExt.ListenOverflows",
        v6: "TcpExt.ListenOverflows",
    },
    inject: |scene, family, count| {
        let counter = "TcpExt.ListenOverflows";
        let backlog = 1;
        let _listener = sockets::tcp_listen(&scene.server, family, TO_PORT, backlog)?;
        let to = scene.server.socket(family, TO_PORT);
        let mut queued = Vec::new();
        let empty = scene.server.counters()?;
        for _ in 0..=backlog {
            let connected = sockets::tcp_connect(&scene.client, 0, to, LIMIT)?;
            queued.push(connected.at(|| format!("connect to {to}"))?);
        }
        // The client is connected before its last ACK has put the connection into the queue.
        await_growth(&scene.server, &empty, "Tcp.CurrEstab", queued.len() as u64)?;
        let before = scene.server.counters()?;
        let mut dropped = 0;
        for _ in 0..count {
            // Given up as soon as its SYN is counted; a SYN sent again in between counts too, so read what the kernel has.
            let attempt = sockets::tcp_start_connect(&scene.client, FROM_PORT, to)?;
            dropped = await_growth(&scene.server, &before, counter, dropped + 1)?;
            drop(attempt);
        }
        Ok(Injected {
            family,
            place: scene.server.clone(),
            flow: scene.flow(family),
            sent: count,
            dropped,
            source: counter.into(),
        })
    },
};
