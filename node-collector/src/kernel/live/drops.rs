//! Faults and healthy traffic of the lab.

use super::*;

fn check_fault(lab: &Lab, fault: &'static Fault, rung: Rung) {
    let scene = fault.scene(lab, &format!("{}-{}", fault.name, rung.name())).unwrap();
    let Some(mut live) = start(&config(), index_of(scene.pods()), Some(rung)) else {
        return;
    };
    for family in Family::BOTH {
        let what = format!("{} {family} {}", fault.name, rung.name());
        let before = live.drops();
        let injected = scene.inject(family, 20).unwrap();
        let events = live.settle(&scene.client);
        let place = injected.place.name();
        let of_flow = |event: &&Event| {
            let seen = &event.observation;
            let (from, to) = (injected.flow.from, injected.flow.to);
            (seen.saddr, seen.sport, seen.daddr, seen.dport)
                == (Some(from.ip()), Some(from.port()), Some(to.ip()), Some(to.port()))
        };
        let Signal::Event(expected) = fault.signal else {
            assert!(events.iter().filter(of_flow).count() == 0, "{what}: {events:#?}");
            continue;
        };
        let found: Vec<&Event> = events.iter().filter(of_flow).collect();
        assert_eq!(
            found.len() as u64,
            injected.dropped,
            "{what}: {} says so\n{events:#?}",
            injected.source
        );
        for event in &found {
            let seen = &event.observation;
            let reason = seen.reason.as_deref().unwrap();
            assert_eq!(name(&event.subject), place, "{what}: {event:#?}");
            assert!(expected.reasons.contains(&reason), "{what}: {event:#?}");
            assert_eq!(
                seen.protocol.as_deref(),
                Some(&*injected.flow.protocol.to_string()),
                "{what}"
            );
            assert_eq!(
                format!("{:?}", seen.direction).to_lowercase(),
                expected.direction,
                "{what}: {event:#?}"
            );
            assert_eq!(seen.interface.as_deref(), expected.interface, "{what}: {event:#?}");
            assert_eq!(
                event.peer.as_ref().map(name),
                None,
                "{what}: no address is known to the index"
            );
            assert!(
                !seen.stack.is_empty() && !seen.stack[0].starts_with("bpf_"),
                "{what}: {:?}",
                seen.stack
            );
        }
        assert_eq!(events.len(), found.len(), "{what}: and nothing else\n{events:#?}");
        let after = live.drops();
        let grown: i64 = expected
            .reasons
            .iter()
            .map(|reason| {
                let key = (place.to_owned(), (*reason).to_owned(), "suspect".to_owned());
                after.get(&key).unwrap_or(&0) - before.get(&key).unwrap_or(&0)
            })
            .sum();
        // The mark that `settle` drops is a NO_SOCKET of the client's.
        let mark = i64::from(place == "client" && expected.reasons.contains(&"NO_SOCKET"));
        assert_eq!(
            grown as u64,
            injected.dropped + mark as u64,
            "{what}: counted\n{before:?}\n{after:?}"
        );
    }
}

#[test]
fn every_fault_of_the_lab_is_counted_exactly_and_told_with_its_reason_and_connection() {
    let Some(lab) = lab_alone("kernel-faults") else {
        return;
    };
    for rung in BOTH {
        for fault in faults::ALL {
            check_fault(&lab, fault, rung);
        }
    }
}

#[test]
fn healthy_traffic_makes_no_event() {
    let Some(lab) = lab_alone("kernel-healthy") else {
        return;
    };
    for rung in BOTH {
        let (client, server) = (
            lab.pod(rung.name(), "client").unwrap(),
            lab.pod(rung.name(), "server").unwrap(),
        );
        let Some(mut live) = start(&config(), index_of([&client, &server]), Some(rung)) else {
            return;
        };
        // The kernel side watches while the link is made: the noise of new devices belongs to health.
        lab.link(&client, &server).unwrap();
        healthy::healthy(&client, &server).unwrap();
        let events = live.settle(&client);
        assert!(
            events.is_empty(),
            "{}: {:#?}",
            rung.name(),
            events.iter().map(line).collect::<Vec<_>>()
        );
        let drops = live.drops();
        let frees: i64 = drops.values().sum();
        assert!(frees > 50, "the traffic does make the kernel free packets: {drops:?}");
        let mut suspect = drops.into_iter().filter(|((_, _, class), _)| class == "suspect");
        assert_eq!(
            suspect.next(),
            Some((("client".into(), "NO_SOCKET".into(), "suspect".into()), 1)),
            "the mark"
        );
        assert_eq!(suspect.next(), None);
    }
}

#[test]
fn the_sender_is_named_where_it_drops_its_own_packets() {
    let Some(lab) = lab_alone("kernel-sender") else {
        return;
    };
    let scene = Fault::find("nft-drop-output").unwrap().scene(&lab, "out").unwrap();
    let Some(mut live) = start(&config(), index_of(scene.pods()), None) else {
        return;
    };
    for family in Family::BOTH {
        scene.inject(family, 3).unwrap();
        for event in live.settle(&scene.client) {
            let seen = &event.observation;
            assert_eq!(seen.pid, Some(std::process::id()), "{:?}", seen.stack);
            assert!(seen.comm.is_some());
            let hook = seen
                .attributes
                .iter()
                .find(|(name, _)| *name == "hook")
                .map(|(_, value)| &**value);
            assert_eq!(hook, Some("output"), "{:?}", seen.stack);
        }
    }
    // On the receiver's side the same task is on the CPU, and it is not the receiver.
    let scene = Fault::find("nft-drop-input").unwrap().scene(&lab, "in").unwrap();
    for pod in scene.pods() {
        add(&live.index, pod);
    }
    live.kernel
        .netns_changed(&live.index.live().iter().map(|pod| pod.netns).collect::<Vec<_>>());
    scene.inject(Family::V4, 3).unwrap();
    let events = live.settle(&scene.client);
    assert_eq!(events.len(), 3);
    assert!(
        events.iter().all(|event| event.observation.pid.is_none()),
        "{events:#?}"
    );
}

#[test]
fn without_stacks_an_event_has_none_and_names_no_process() {
    let Some(lab) = lab_alone("kernel-stacks") else {
        return;
    };
    let scene = Fault::find("nft-drop-output").unwrap().scene(&lab, "out").unwrap();
    let mut config = config();
    config.probes.insert(
        "packetloss".into(),
        sonde_common::config::Probe {
            stacks: false,
            ..Default::default()
        },
    );
    let Some(mut live) = start(&config, index_of(scene.pods()), None) else {
        return;
    };
    scene.inject(Family::V4, 3).unwrap();
    let events = live.settle(&scene.client);
    assert_eq!(events.len(), 3);
    for event in events {
        assert!(event.observation.stack.is_empty() && event.observation.pid.is_none());
        assert_eq!(event.observation.dport, Some(faults::TO_PORT));
    }
}
