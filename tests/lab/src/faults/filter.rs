//! Packets that a nftables rule drops.

use super::*;

const TABLE: &str = "lab";

pub(super) const INPUT: Fault = Fault {
    name: "nft-drop-input",
    about: "A rule of the input hook drops UDP datagrams at their receiver. The kernel frees each as NETFILTER_DROP in the \
        receiver's namespace; the sender notices nothing. Second source: the rule's counter.",
    topology: Topology::Pair,
    protocol: Protocol::Udp,
    signal: Signal::Event(Drop {
        place: Role::Server,
        reasons: &["NETFILTER_DROP"],
        direction: "ingress",
        interface: Some("eth0"),
    }),
    inject: |scene, family, count| drop_by_rule(scene, Role::Server, "input", family, count),
};

pub(super) const OUTPUT: Fault = Fault {
    name: "nft-drop-output",
    about: "A rule of the output hook drops UDP datagrams at their sender: NETFILTER_DROP before the packet has a device, \
        and the send call fails with EPERM. Second source: the rule's counter.",
    topology: Topology::Pair,
    protocol: Protocol::Udp,
    signal: Signal::Event(Drop {
        place: Role::Client,
        reasons: &["NETFILTER_DROP"],
        direction: "egress",
        interface: None,
    }),
    inject: |scene, family, count| drop_by_rule(scene, Role::Client, "output", family, count),
};

pub(super) const FORWARD: Fault = Fault {
    name: "nft-drop-forward",
    about: "A rule of the forward hook of a router drops UDP datagrams on their way: NETFILTER_DROP in the router's \
        namespace; neither end notices. Second source: the rule's counter.",
    topology: Topology::Routed,
    protocol: Protocol::Udp,
    signal: Signal::Event(Drop {
        place: Role::Router,
        reasons: &["NETFILTER_DROP"],
        direction: "forward",
        interface: Some("eth0"),
    }),
    inject: |scene, family, count| drop_by_rule(scene, Role::Router, "forward", family, count),
};

fn drop_by_rule(scene: &Scene, place: Role, hook: &str, family: Family, count: u64) -> Result<Injected> {
    let place = scene.pod(place);
    place.nft(&format!(
        "table inet {TABLE} {{\n\
           counter dropped {{ }}\n\
           chain drops {{ type filter hook {hook} priority 0; policy accept; udp dport {TO_PORT} counter name dropped drop; }}\n\
         }}"
    ))?;
    let sent = scene.send_datagrams(family, count, 64)?;
    let dropped = until(&format!("the rule of {place} to count {count}"), LIMIT, || {
        let counter = place.nft_counter("dropped")?;
        Ok(match counter.packets >= count {
            true => Look::Found(counter.packets),
            false => Look::NotYet(counter.packets.to_string()),
        })
    })?;
    place.nft(&format!("delete table inet {TABLE}"))?;
    Ok(Injected {
        family,
        place: place.clone(),
        flow: scene.flow(family),
        sent: sent.accepted + sent.refused,
        dropped,
        source: format!("nft counter of the {hook} chain"),
    })
}
