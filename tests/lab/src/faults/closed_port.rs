//! Nobody listens.

use super::*;

pub(super) const TCP: Fault = Fault {
    name: "tcp-closed-port",
    about: "Connections to a port that nobody listens on. The kernel frees each SYN as NO_SOCKET in the server's namespace \
        and answers with a reset; connect fails with ECONNREFUSED. Second source: Tcp.OutRsts of the server.",
    topology: Topology::Pair,
    protocol: Protocol::Tcp,
    signal: Signal::Event(Drop {
        place: Role::Server,
        reasons: &["NO_SOCKET"],
        direction: "ingress",
        interface: Some("eth0"),
    }),
    inject: |scene, family, count| {
        let to = scene.server.socket(family, TO_PORT);
        let before = scene.server.counters()?;
        for _ in 0..count {
            match sockets::tcp_connect(&scene.client, FROM_PORT, to, LIMIT)? {
                Err(e) if e.kind() == std::io::ErrorKind::ConnectionRefused => {}
                other => {
                    return Err(LabError::Unexpected {
                        what: format!("connect to {to}"),
                        expected: "refused",
                        found: format!("{other:?}"),
                    });
                }
            }
        }
        Ok(Injected {
            family,
            place: scene.server.clone(),
            flow: scene.flow(family),
            sent: count,
            dropped: await_growth(&scene.server, &before, "Tcp.OutRsts", count)?,
            source: "Tcp.OutRsts".into(),
        })
    },
};

pub(super) const UDP: Fault = Fault {
    name: "udp-closed-port",
    about: "Datagrams to a port that nobody has. The kernel frees each as NO_SOCKET in the server's namespace and answers \
        some with ICMP port unreachable (it limits their rate). Second source: Udp.NoPorts / Udp6.NoPorts of the server.",
    topology: Topology::Pair,
    protocol: Protocol::Udp,
    signal: Signal::Event(Drop {
        place: Role::Server,
        reasons: &["NO_SOCKET"],
        direction: "ingress",
        interface: Some("eth0"),
    }),
    inject: |scene, family, count| {
        let counter = by_family(family, "Udp.NoPorts", "Udp6.NoPorts");
        let before = scene.server.counters()?;
        let sent = scene.send_datagrams(family, count, 64)?;
        Ok(Injected {
            family,
            place: scene.server.clone(),
            flow: scene.flow(family),
            sent: sent.accepted,
            dropped: await_growth(&scene.server, &before, counter, count)?,
            source: counter.into(),
        })
    },
};
