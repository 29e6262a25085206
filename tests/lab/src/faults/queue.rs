//! A queueing discipline that is full.

use super::*;

/// Length of the datagram behind the others.
const LAST: usize = 8;

pub(super) const TBF: Fault = Fault {
    name: "tbf-queue-drop",
    about: "More datagrams at once than a token bucket (tbf) at the sender's device lets through or queues. The kernel frees \
        those over the limit as QDISC_DROP in the sender's namespace; the send call still succeeds. Second source: drops \
        of `tc -s qdisc`.",
    topology: Topology::Pair,
    protocol: Protocol::Udp,
    signal: Signal::Event(Drop {
        place: Role::Client,
        reasons: &["QDISC_DROP", "QDISC_OVERLIMIT"],
        direction: "egress",
        interface: Some("eth0"),
    }),
    inject: |scene, family, count| {
        let client = &scene.client;
        // Two datagrams of 1,000 bytes pass at once, two wait; 128 kbit/s empties that in an eighth of a second.
        client.tc("qdisc replace dev eth0 root tbf rate 128kbit burst 2200 limit 2200")?;
        // What gets through is to arrive: no second fault at a closed port.
        let sink = sockets::udp(&scene.server, family, TO_PORT)?;
        let sent = scene.send_datagrams(family, count, 1000)?;
        // Datagrams that wait when the qdisc goes would be freed as if they were lost.
        let what = format!("the queue of {client} to run empty");
        let dropped = until(&what, LIMIT, || {
            let qdisc = client.qdisc("eth0")?;
            Ok(match qdisc.queue_length {
                0 => Look::Found(qdisc.drops),
                _ => Look::NotYet(format!("{qdisc:?}")),
            })
        })?;
        let offered = client.qdisc("eth0")?;
        client.tc("qdisc del dev eth0 root")?;
        // The kernel's own packets (a router solicitation, a probe of a neighbour) may have been in the queue, and among the
        // dropped. So what came through counts, up to a last datagram behind them all, and tc must agree.
        scene.send_datagrams(family, 1, LAST)?;
        let mut arrived = 0;
        let what = format!("the last datagram to arrive at {}", scene.server);
        until_true(&what, LIMIT, || {
            let lengths = sockets::lengths(&sink)?;
            arrived += lengths.iter().filter(|length| **length != LAST).count() as u64;
            Ok(lengths.contains(&LAST))
        })?;
        let lost = sent.accepted - arrived;
        let foreign = (offered.packets + offered.drops).saturating_sub(sent.accepted);
        if !(dropped.saturating_sub(foreign)..=dropped).contains(&lost) {
            return Err(LabError::Unexpected {
                what: format!("{client}: {lost} datagrams did not arrive"),
                expected: "as many as tc says were dropped",
                found: format!("{offered:?}"),
            });
        }
        Ok(Injected {
            family,
            place: client.clone(),
            flow: scene.flow(family),
            sent: sent.accepted,
            dropped: lost,
            source: "what did not arrive, and drops of `tc -s qdisc`".into(),
        })
    },
};
