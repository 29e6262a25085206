//! No way to go, or too long a way.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::*;

/// Addresses for documentation (RFC 5737, RFC 3849): no route of the lab leads there.
fn nowhere(family: Family) -> SocketAddr {
    let address: IpAddr = match family {
        Family::V4 => Ipv4Addr::new(192, 0, 2, 1).into(),
        Family::V6 => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into(),
    };
    SocketAddr::new(address, TO_PORT)
}

fn datagrams_to_nowhere(scene: &Scene, family: Family, count: u64) -> Result<(Flow, sockets::Sent)> {
    let to = nowhere(family);
    let socket = sockets::udp(&scene.client, family, FROM_PORT)?;
    let sent = sockets::send(&socket, to, count, 64);
    let from = scene.client.socket(family, FROM_PORT);
    let protocol = Protocol::Udp;
    Ok((Flow { protocol, from, to }, sent))
}

pub(super) const FORWARD: Fault = Fault {
    name: "no-route-forward",
    about: "Datagrams to an address that the router on the way has no route to. It frees each as IP_INNOROUTES and answers \
        some with ICMP network unreachable. Second source: Ip6.InNoRoutes of the router; for IPv4 IpExt.InNoRoutes.",
    topology: Topology::Routed,
    protocol: Protocol::Udp,
    signal: Signal::Event(Drop {
        place: Role::Router,
        reasons: &["IP_INNOROUTES"],
        direction: "ingress",
        interface: Some("eth0"),
    }),
    inject: |scene, family, count| {
        let router = scene.pod(Role::Router);
        let counter = by_family(family, "IpExt.InNoRoutes", "Ip6.InNoRoutes");
        let before = router.counters()?;
        let (flow, sent) = datagrams_to_nowhere(scene, family, count)?;
        Ok(Injected {
            family,
            place: router.clone(),
            flow,
            sent: sent.accepted,
            dropped: await_growth(router, &before, counter, count)?,
            source: counter.into(),
        })
    },
};

pub(super) const LOCAL: Fault = Fault {
    name: "no-route-local",
    about: "Datagrams to an address that the sender itself has no route to. The send call fails with ENETUNREACH before there \
        is a packet, so nothing is freed; Ip.OutNoRoutes / Ip6.OutNoRoutes of the sender counts it.",
    topology: Topology::Pair,
    protocol: Protocol::Udp,
    signal: Signal::Counter {
        place: Role::Client,
        v4: "Ip.OutNoRoutes",
        v6: "Ip6.OutNoRoutes",
    },
    inject: |scene, family, count| {
        let counter = by_family(family, "Ip.OutNoRoutes", "Ip6.OutNoRoutes");
        let before = scene.client.counters()?;
        let (flow, sent) = datagrams_to_nowhere(scene, family, count)?;
        let dropped = await_growth(&scene.client, &before, counter, count)?;
        if (sent.refused, sent.errno) != (count, Some(nix::libc::ENETUNREACH)) {
            return Err(LabError::Unexpected {
                what: format!("sending {count} datagrams along {flow}"),
                expected: "ENETUNREACH for each",
                found: format!("{sent:?}"),
            });
        }
        Ok(Injected {
            family,
            place: scene.client.clone(),
            flow,
            sent: count,
            dropped,
            source: counter.into(),
        })
    },
};

pub(super) const TTL: Fault = Fault {
    name: "ttl-expired",
    about: "Datagrams with a time to live (hop limit) of 1 that would need a router. It frees each as IP_INHDR and answers some \
        with ICMP time exceeded. Second source: Ip.InHdrErrors / Ip6.InHdrErrors of the router.",
    topology: Topology::Routed,
    protocol: Protocol::Udp,
    signal: Signal::Event(Drop {
        place: Role::Router,
        reasons: &["IP_INHDR"],
        direction: "forward",
        interface: Some("eth0"),
    }),
    inject: |scene, family, count| {
        let router = scene.pod(Role::Router);
        let counter = by_family(family, "Ip.InHdrErrors", "Ip6.InHdrErrors");
        let before = router.counters()?;
        let socket = sockets::udp(&scene.client, family, FROM_PORT)?;
        sockets::set_hops(&socket, family, 1)?;
        let flow = scene.flow(family);
        let sent = sockets::send(&socket, flow.to, count, 64);
        Ok(Injected {
            family,
            place: router.clone(),
            flow,
            sent: sent.accepted,
            dropped: await_growth(router, &before, counter, count)?,
            source: counter.into(),
        })
    },
};
