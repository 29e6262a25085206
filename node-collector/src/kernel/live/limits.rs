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

#[test]
fn a_flood_of_one_pod_hides_no_drop_of_another() {
    const AT_LEAST: u64 = 300_000;
    const AT_ONCE: u64 = 50_000;
    let Some(lab) = lab_alone("kernel-flood") else {
        return;
    };
    let fault = Fault::find("nft-drop-input").unwrap();
    let (flood, quiet) = (fault.scene(&lab, "flood").unwrap(), fault.scene(&lab, "quiet").unwrap());
    let mut config = config();
    let limits = Config::default().events;
    (config.events.rate, config.events.burst) = (limits.rate, limits.burst);
    let pods = flood.pods().into_iter().chain(quiet.pods());
    let Some(mut live) = start(&config, index_of(pods), None) else {
        return;
    };
    // Ends when the other pod has had its drops, and enough packets were dropped meanwhile.
    let done = std::sync::atomic::AtomicBool::new(false);
    let flooded = std::sync::atomic::AtomicU64::new(0);
    let order = std::sync::atomic::Ordering::SeqCst;
    let of_quiet = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(order) || flooded.load(order) < AT_LEAST {
                flooded.fetch_add(flood.inject(Family::V4, AT_ONCE).unwrap().dropped, order);
            }
        });
        let mut dropped = 0;
        for so_far in 1..=3 {
            until("the flood to go on", || flooded.load(order) >= so_far * AT_ONCE);
            dropped += quiet.inject(Family::V4, 1).unwrap().dropped;
        }
        done.store(true, order);
        dropped
    });
    let of_flood = flooded.load(order);
    assert_eq!(of_quiet, 3, "as the rule counts");
    let (flooding, calm) = (netns_of(&flood.server), netns_of(&quiet.server));
    let is_of = |subject: &Subject, netns: NetnsKey| matches!(subject, Subject::Pod(pod) if pod.netns == netns);
    let mut events = live.settle(&quiet.client);
    let (tables, gaps) = live.kernel.read(now_ns(), &live.index);
    live.take(&mut events);
    let counted = |netns| -> i64 {
        let rows = tables.iter().flat_map(|table| {
            let rows = table.subjects.iter().enumerate();
            rows.filter(move |(_, subject)| is_of(subject, netns)).map(|(row, _)| {
                let is_rule = *table.labels[row * 2] == *"NETFILTER_DROP";
                if is_rule { table.columns[0][row] } else { 0 }
            })
        });
        rows.sum()
    };
    let status = live.kernel.status();
    let misses = |signal: &str| {
        let found = status.signals.iter().find(|report| report.signal.name == signal);
        found.unwrap().misses
    };
    let told = |netns| events.iter().filter(|event| is_of(&event.subject, netns)).count() as u64;
    assert_eq!((counted(calm), told(calm)), (3, 3), "{status:?}");
    let flood_counted = counted(flooding) as u64;
    assert!(
        (of_flood.saturating_sub(misses("packetloss.count"))..=of_flood).contains(&flood_counted),
        "{flood_counted} of {of_flood}: {status:?}"
    );
    // Runs that the kernel skipped are a gap of their own.
    let gaps: Vec<_> = gaps.into_iter().filter(|gap| gap.cause != "program_skipped").collect();
    let held: u64 = gaps
        .iter()
        .filter(|gap| is_of(&gap.subject, flooding))
        .map(|gap| gap.count)
        .sum();
    assert!(
        gaps.iter()
            .all(|gap| gap.cause == "rate_limited" && is_of(&gap.subject, flooding)),
        "{gaps:?}"
    );
    let seen = told(flooding) + held;
    assert!(
        (of_flood.saturating_sub(misses("packetloss.events"))..=of_flood).contains(&seen),
        "{seen} of {of_flood}: {status:?}"
    );
    assert!(held > of_flood / 2, "{held} of {of_flood}");
    println!(
        "{of_flood} drops, {} told, {held} held back, {status:?}",
        told(flooding)
    );
}
