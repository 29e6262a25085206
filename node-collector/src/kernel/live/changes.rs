//! A new configuration while programs run: what changes, changes; what is counted goes on.

use std::io::{Read as _, Write as _};
use std::sync::atomic::{AtomicBool, Ordering};

use sonde_common::time::Span;
use sonde_lab::{Pod, sockets};
use sonde_proto::gap;

use super::*;

pub(super) const PORT: u16 = 7_601;
pub(super) const FROM: u16 = 41_601;
const NEVER: Span = Span::from_secs(3600);

pub(super) fn set(config: &mut Config, probe: &str, change: impl FnOnce(&mut sonde_common::config::Probe)) {
    change(config.probes.get_mut(probe).unwrap());
}

pub(super) fn apply(live: &mut Live, config: &Config) -> Changed {
    let changed = live.kernel.apply(config);
    assert_eq!(changed.error, None);
    changed
}

/// Segments timed in the client's send path and the server's receive path.
pub(super) fn timed(live: &mut Live) -> (i64, i64) {
    let rows = live.rows("kernellatency");
    let count = |pod: &str, column: &str| {
        let values = rows
            .get(&format!("{pod} tcp"))
            .map(|row| row[column].clone())
            .unwrap_or_default();
        // The last one is the sum of the times.
        values.iter().rev().skip(1).sum::<i64>()
    };
    (count("client", "send_seconds"), count("server", "receive_seconds"))
}

pub(super) fn talk(pair: &mut sockets::Connected) {
    pair.client.set_nodelay(true).unwrap();
    for _ in 0..10 {
        pair.client.write_all(b"question").unwrap();
        pair.server.read_exact(&mut [0; 8]).unwrap();
    }
}

pub(super) fn is_data(event: &Event) -> bool {
    let flags = ("tcp_flags", "PSH,ACK".into());
    event.observation.dport == Some(PORT) && event.observation.attributes.contains(&flags)
}

#[test]
fn a_threshold_holds_from_when_it_is_set_and_nothing_that_is_counted_is_touched() {
    let Some(lab) = lab_alone("change-threshold") else {
        return;
    };
    for rung in BOTH {
        let place = format!("threshold-{}", rung.name().replace('_', ""));
        let [client, server] = ["client", "server"].map(|role| lab.pod(&place, role).unwrap());
        lab.link(&client, &server).unwrap();
        let mut config = config_with_marks("kernellatency");
        set(&mut config, "kernellatency", |probe| {
            (probe.threshold, probe.stacks) = (Some(NEVER), false);
        });
        let Some(mut live) = start(&config, index_of([&client, &server]), Some(rung)) else {
            return;
        };
        let mut pair = sockets::tcp_pair(&client, FROM, &server, Family::V4, PORT).unwrap();
        live.settle(&client);
        let mut before = timed(&mut live);
        // Threshold, whether events have stacks, whether there are events, and so how many of ten segments.
        for (threshold, stacks, events, expected) in [
            (NEVER, false, true, 0),
            (Span::from_secs(0), false, true, 20),
            (Span::from_secs(0), true, true, 20),
            (Span::from_secs(0), true, false, 0),
            (Span::from_secs(0), false, true, 20),
            (NEVER, false, true, 0),
        ] {
            set(&mut config, "kernellatency", |probe| {
                (probe.threshold, probe.stacks, probe.events) = (Some(threshold), stacks, events);
            });
            let what = format!("{rung:?} {threshold} {stacks} {events}");
            let changed = apply(&mut live, &config);
            assert!(
                changed
                    .signals
                    .iter()
                    .all(|signal| signal.chosen || signal.rung.is_some() || !is_due(signal.name, |_| true)),
                "{what}"
            );
            talk(&mut pair);
            let mut told = live.settle(&client);
            told.retain(is_data);
            assert_eq!(
                told.len(),
                expected,
                "{what}: {:#?}",
                told.iter().map(line).collect::<Vec<_>>()
            );
            assert!(
                told.iter().all(|event| event.observation.stack.is_empty() != stacks),
                "{what}"
            );
            let now = timed(&mut live);
            assert_eq!(now.0 - before.0, 10, "{what}: sent, whatever of it is told");
            assert!(now.1 - before.1 >= 10, "{what}: {now:?} {before:?}");
            before = now;
        }
    }
}

/// Datagrams to a port that nobody has, until it is said; the server's kernel counts them too.
fn storm(client: &Pod, server: &Pod, stop: &AtomicBool) {
    let socket = sockets::udp(client, Family::V4, FROM).unwrap();
    let to = server.socket(Family::V4, PORT);
    while !stop.load(Ordering::Relaxed) {
        // Answers that nobody listens come back as errors of the next send.
        let _ = socket.send_to(b"x", to);
        std::thread::sleep(Duration::from_micros(200));
    }
}

fn no_socket(live: &mut Live) -> i64 {
    let drops = live.drops();
    let of_server = drops
        .iter()
        .filter(|((pod, reason, _), _)| pod == "server" && reason == "NO_SOCKET");
    of_server.map(|(_, count)| count).sum()
}

#[test]
fn probes_come_and_go_and_the_others_count_every_packet_once() {
    let Some(lab) = lab_alone("change-probes") else {
        return;
    };
    let [client, server] = ["client", "server"].map(|role| lab.pod("probes", role).unwrap());
    lab.link(&client, &server).unwrap();
    let mut config = config();
    set(&mut config, "packetloss", |probe| probe.stacks = false);
    let Some(mut live) = start(&config, index_of([&client, &server]), None) else {
        return;
    };
    let counters = server.counters().unwrap();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let sender = scope.spawn(|| storm(&client, &server, &stop));
        for round in 0..3 {
            for on in [true, false] {
                for probe in ["flow", "tcpreset", "kernellatency"] {
                    set(&mut config, probe, |settings| settings.enabled = Some(on));
                }
                let changed = apply(&mut live, &config);
                let runs = |name: &str| changed.signals.iter().any(|one| one.name == name && one.rung.is_some());
                assert_eq!(
                    (runs("flow.count"), runs("tcpreset.events"), runs("packetloss.count")),
                    (on, on, true)
                );
                // Before the first time they were off since the start, and that is told too.
                let told: Vec<_> = changed.gaps.iter().map(|gap| (gap.probe, gap.cause)).collect();
                let off = |probe| told.contains(&(probe, gap::SWITCHED_OFF));
                assert_eq!(
                    (off("flow"), off("tcpreset"), off("packetloss")),
                    (on, on, false),
                    "{round} {told:?}"
                );
                let probes: Vec<_> = live.kernel.status().probes.iter().map(|probe| probe.probe).collect();
                assert_eq!(probes.len(), if on { 4 } else { 1 }, "{probes:?}");
                let before = no_socket(&mut live);
                until("the counts to go on", || no_socket(&mut live) > before);
                if on {
                    until("flows", || !live.rows("flow").is_empty());
                }
            }
        }
        stop.store(true, Ordering::Relaxed);
        sender.join().unwrap();
    });
    let sent = |counters: &sonde_lab::Counters| {
        let now = server.counters().unwrap();
        now.since(counters, "Udp.NoPorts").unwrap() as i64
    };
    until("what was sent to have arrived", || {
        let before = sent(&counters);
        std::thread::sleep(Duration::from_millis(20));
        sent(&counters) == before
    });
    assert_eq!(no_socket(&mut live), sent(&counters), "as the server's kernel counts");
    assert!(sent(&counters) > 100);
}

#[test]
fn a_probe_that_counts_by_other_keys_is_begun_anew_and_that_is_a_gap() {
    let Some(lab) = lab_alone("change-keys") else {
        return;
    };
    let [client, server] = ["client", "server"].map(|role| lab.pod("keys", role).unwrap());
    lab.link(&client, &server).unwrap();
    let mut config = config_with_marks("flow");
    let Some(mut live) = start(&config, index_of([&client, &server]), None) else {
        return;
    };
    let _sink = sockets::udp(&server, Family::V4, PORT).unwrap();
    let socket = sockets::udp(&client, Family::V4, FROM).unwrap();
    // Rows of the client by the last two labels, source and destination port.
    let ports = |live: &mut Live, count| {
        sockets::send(&socket, server.socket(Family::V4, PORT), count, 100);
        let rows = live.rows("flow");
        let ours = rows.keys().filter(|key| key.starts_with("client eth0 egress UDP"));
        ours.map(|key| key.ends_with(&format!("{FROM} {PORT}")))
            .collect::<Vec<_>>()
    };
    until("flows without ports", || ports(&mut live, 5) == [false]);
    set(&mut config, "flow", |probe| probe.ports = true);
    let changed = apply(&mut live, &config);
    let told: Vec<_> = changed.gaps.iter().map(|gap| (gap.probe, gap.cause)).collect();
    assert_eq!(told, [("flow", gap::SWITCHED_OFF)]);
    until("flows with ports", || ports(&mut live, 5) == [true]);
}

#[test]
fn events_of_a_probe_go_off_and_on_and_what_was_off_is_a_gap() {
    let Some(lab) = lab_alone("change-events") else {
        return;
    };
    let fault = Fault::find("udp-closed-port").unwrap();
    let scene = fault.scene(&lab, "events").unwrap();
    let mut config = config();
    // Off at the start: rings and their thread are there all the same.
    set(&mut config, "packetloss", |probe| probe.events = false);
    let Some(mut live) = start(&config, index_of(scene.pods()), None) else {
        return;
    };
    let (before, mut all) = (no_socket(&mut live), 0);
    let mut drop = |live: &mut Live, count| {
        all += scene.inject(Family::V4, count).unwrap().dropped as i64;
        assert_eq!(no_socket(live) - before, all, "counted whatever is told");
    };
    drop(&mut live, 3);
    set(&mut config, "packetloss", |probe| probe.events = true);
    let changed = apply(&mut live, &config);
    let told: Vec<_> = changed
        .gaps
        .iter()
        .map(|gap| (gap.probe, gap.cause, gap.count))
        .collect();
    assert_eq!(told, [("packetloss", gap::SWITCHED_OFF, 0)]);
    drop(&mut live, 4);
    assert_eq!(live.wait_for(4, |_| true).len(), 4, "none of those before");
    set(&mut config, "packetloss", |probe| probe.events = false);
    let changed = apply(&mut live, &config);
    let of_events = |signal: &&SignalStatus| signal.name == "packetloss.events";
    let reason = changed
        .signals
        .iter()
        .find(of_events)
        .map(|signal| signal.reason.as_str());
    assert_eq!(reason, Some("probes.packetloss.events is false"));
    drop(&mut live, 5);
    // A rate that lets next to nothing through, at once.
    set(&mut config, "packetloss", |probe| probe.events = true);
    (config.events.rate, config.events.burst) = (1, 1);
    apply(&mut live, &config);
    drop(&mut live, 50);
    let told = live.wait_for(1, |_| true);
    assert!(told.len() < 10, "{}", told.len());
    (config.events.rate, config.events.burst) = (1_000_000, 1_000_000);
    apply(&mut live, &config);
    live.take(&mut Vec::new());
    drop(&mut live, 20);
    assert!(live.wait_for(20, |_| true).len() >= 20);
}

#[test]
fn what_a_probe_counted_last_is_told_when_it_goes() {
    let Some(lab) = lab_alone("change-last") else {
        return;
    };
    let scene = Fault::find("udp-closed-port").unwrap().scene(&lab, "last").unwrap();
    let mut config = config();
    let Some(mut live) = start(&config, index_of(scene.pods()), None) else {
        return;
    };
    let before = no_socket(&mut live);
    let dropped = scene.inject(Family::V6, 7).unwrap().dropped as i64;
    set(&mut config, "packetloss", |probe| probe.enabled = Some(false));
    let changed = apply(&mut live, &config);
    let table = changed
        .tables
        .iter()
        .find(|table| table.spec.name == "packetloss")
        .unwrap();
    let rows = table.subjects.iter().enumerate();
    let last = rows.filter(|(row, subject)| name(subject) == "server" && &*table.labels[row * 2] == "NO_SOCKET");
    assert_eq!(
        last.map(|(row, _)| table.columns[0][row]).sum::<i64>() - before,
        dropped
    );
    assert_eq!(live.wait_for(7, |_| true).len(), 7, "what was in the ring is read");
    let status = live.kernel.status();
    assert_eq!((status.probes.len(), status.map_bytes), (0, 0));
    assert!(status.signals.iter().all(|signal| signal.signal.rung.is_none()));
}
