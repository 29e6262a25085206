//! Two rings: what is seldom is not lost in what is not.

use super::*;

#[test]
fn a_storm_of_drops_does_not_cost_a_reset() {
    let Some(lab) = lab_alone("kernel-rings") else {
        return;
    };
    let storm = Fault::find("nft-drop-input").unwrap().scene(&lab, "storm").unwrap();
    let resets = Fault::find("tcp-closed-port").unwrap().scene(&lab, "resets").unwrap();
    let mut config = config();
    for probe in ["packetloss", "tcpreset"] {
        config.probes.get_mut(probe).unwrap().enabled = Some(true);
    }
    // Nobody takes more than one batch from the thread, so it leaves the rings alone.
    let pods = storm.pods().into_iter().chain(resets.pods());
    let Some(mut live) = start_with(&config, index_of(pods), None, 1) else {
        return;
    };
    storm.inject(Family::V4, 30_000).unwrap();
    let refused = resets.inject(Family::V4, 20).unwrap();
    storm.inject(Family::V4, 1_000).unwrap();
    let _ = live.kernel.read(now_ns(), &live.index);
    let status = live.kernel.status();
    let lost = |signal: &str| {
        let found = status.signals.iter().find(|report| report.signal.name == signal);
        found.unwrap().ring_lost
    };
    assert!(lost("packetloss.events") > 0, "the storm is one: {status:?}");
    assert_eq!(lost("tcpreset.events"), 0);
    let is = |kind: &'static str| move |event: &Event| event.observation.kind == kind;
    let count = refused.dropped as usize;
    let events = live.wait_for(2 * count, |event| event.observation.probe == "tcpreset");
    for kind in ["TCPRESET_NOSOCK", "TCPRESET_RECEIVE"] {
        assert_eq!(events.iter().filter(|event| is(kind)(event)).count(), count, "{kind}");
    }
}

#[test]
fn each_type_has_a_bucket_of_its_own() {
    let Some(lab) = lab_alone("kernel-types") else {
        return;
    };
    let scene = Fault::find("tcp-closed-port").unwrap().scene(&lab, "types").unwrap();
    let mut config = config_of("tcpreset");
    (config.events.rate, config.events.burst) = (1, 5);
    let Some(mut live) = start(&config, index_of(scene.pods()), None) else {
        return;
    };
    let _ = live.kernel.read(now_ns(), &live.index);
    let injected = scene.inject(Family::V4, 50).unwrap();
    let (mut events, mut held) = (Vec::new(), HashMap::new());
    until("every reset to be an event or in a gap", || {
        live.take(&mut events);
        for gap in live.kernel.read(now_ns(), &live.index).1 {
            assert_eq!((gap.cause, gap.probe), ("rate_limited", "tcpreset"), "{gap:?}");
            *held.entry(name(&gap.subject)).or_insert(0) += gap.count;
        }
        events.len() as u64 + held.values().sum::<u64>() >= 2 * injected.dropped
    });
    for (pod, kind) in [("server", "TCPRESET_NOSOCK"), ("client", "TCPRESET_RECEIVE")] {
        let of_pod = events.iter().filter(|event| name(&event.subject) == pod);
        let (told, suppressed) = of_pod.fold((0, 0), |(told, suppressed), event| {
            assert_eq!(event.observation.kind, kind);
            (told + 1, suppressed + event.observation.suppressed)
        });
        assert_eq!(told + held[pod], injected.dropped, "{pod}");
        assert!((5..20).contains(&told), "{pod}: {told}");
        assert!(suppressed <= held[pod], "{pod}");
    }
}
