//! Buckets, and a ring that nobody empties.

use super::*;

#[test]
fn what_the_bucket_holds_back_is_told_with_events_and_in_gaps() {
    let Some(lab) = lab_alone("kernel-bucket") else {
        return;
    };
    for rung in BOTH {
        let scene = Fault::find("nft-drop-input").unwrap().scene(&lab, rung.name()).unwrap();
        let mut config = config();
        (config.events.rate, config.events.burst) = (1, 10);
        let Some(mut live) = start(&config, index_of(scene.pods()), Some(rung)) else {
            return;
        };
        let _ = live.kernel.read(now_ns(), &live.index);
        let injected = scene.inject(Family::V4, 500).unwrap();
        let mut events = Vec::new();
        let mut held = 0;
        until("every drop to be an event or in a gap", || {
            live.take(&mut events);
            let (_, gaps) = live.kernel.read(now_ns(), &live.index);
            for gap in gaps {
                assert_eq!(
                    (gap.cause, name(&gap.subject)),
                    ("rate_limited", "server".into()),
                    "{gap:?}"
                );
                held += gap.count;
            }
            events.len() as u64 + held >= injected.dropped
        });
        assert_eq!(events.len() as u64 + held, injected.dropped);
        assert!(events.len() >= 10, "{}", events.len());
        assert!(held > 400, "{held}");
        assert_eq!(
            live.kernel.status().signals.iter().map(|s| s.suppressed).sum::<u64>(),
            held
        );

        // The next event that passes says how many did not.
        let told: u64 = events.iter().map(|event| event.observation.suppressed).sum();
        std::thread::sleep(Duration::from_millis(1100));
        scene.inject(Family::V4, 1).unwrap();
        let last = live.wait_for(1, |_| true);
        assert_eq!(told + last[0].observation.suppressed, held);
    }
}

#[test]
fn a_reader_that_stands_still_makes_losses_that_are_counted_and_blocks_nobody() {
    let Some(lab) = lab_alone("kernel-still") else {
        return;
    };
    let scene = Fault::find("nft-drop-input").unwrap().scene(&lab, "still").unwrap();
    let Some(mut live) = start_with(&config(), index_of(scene.pods()), None, 1) else {
        return;
    };
    let before = live
        .drops()
        .get(&("server".into(), "NETFILTER_DROP".into(), "suspect".into()))
        .copied()
        .unwrap_or(0);
    let sent = 30_000;
    let injected = scene.inject(Family::V4, sent).unwrap();
    let after = live.drops()[&("server".into(), "NETFILTER_DROP".into(), "suspect".into())];
    let misses: u64 = live.kernel.status().signals.iter().map(|s| s.misses).sum();
    let counted = (after - before) as u64;
    assert!(
        counted <= injected.dropped && counted + misses >= injected.dropped,
        "{counted} {misses} {injected:?}"
    );
    let status = live.kernel.status();
    let lost: u64 = status.signals.iter().map(|signal| signal.ring_lost).sum();
    assert!(lost > 0, "{status:?}");
    // Dropping it ends the thread although nobody takes what it holds.
    drop(live.kernel);
}
