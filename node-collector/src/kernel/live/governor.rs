//! Programs that cost more than they may: stepped down for what the kernel says they cost, and up again.

use std::time::Duration;

use sonde_common::time::Span;
use sonde_lab::{Family, sockets};
use sonde_proto::gap;

use super::changes::{FROM, PORT, apply, is_data, set, talk, timed};
use super::*;
use crate::kernel::governor::tests::{govern, look_at};

/// One look of the governor, while ten messages go from client to server.
fn look(live: Live, pair: &mut sockets::Connected) -> (Live, Option<Changed>) {
    let Live { kernel, events, index } = live;
    let (kernel, changed) = look_at(kernel, || talk(pair));
    (Live { kernel, events, index }, changed)
}

fn data(events: &[Event]) -> usize {
    events.iter().filter(|event| is_data(event)).count()
}

fn governor_gaps(changed: &Option<Changed>) -> Vec<&str> {
    let gaps = changed.iter().flat_map(|changed| &changed.gaps);
    gaps.filter(|told| told.cause == gap::GOVERNOR && told.probe == "kernellatency" && told.from_ns <= told.to_ns)
        .map(|told| told.detail.rsplit(": ").next().unwrap_or_default())
        .collect()
}

#[test]
fn a_probe_above_the_budget_goes_step_by_step_and_comes_back_with_gaps_for_what_it_left_out() {
    let Some(lab) = lab_alone("governor") else {
        return;
    };
    let [client, server] = ["client", "server"].map(|role| lab.pod("governor", role).unwrap());
    lab.link(&client, &server).unwrap();
    let mut config = config_of("kernellatency");
    set(&mut config, "kernellatency", |probe| {
        probe.threshold = Some(Span(Duration::ZERO));
        probe.stacks = false;
    });
    config.kernel.cpu_budget_percent = 100.0;
    let Some(mut live) = start(&config, index_of([&client, &server]), None) else {
        return;
    };
    let mut pair = sockets::tcp_pair(&client, FROM, &server, Family::V4, PORT).unwrap();
    let before = timed(&mut live);

    // Within the budget.
    let (mut live, changed) = look(live, &mut pair);
    assert!(changed.is_none());
    let cost = live.kernel.status().governor.cost_percent.unwrap();
    assert!(cost > 0.0 && cost < 100.0, "{cost}");
    assert_eq!(data(&live.wait_for(20, is_data)), 20);
    assert_eq!(timed(&mut live).0 - before.0, 10);

    // Far above it: counts go on, events end.
    config.kernel.cpu_budget_percent = 1e-9;
    apply(&mut live, &config);
    let (mut live, changed) = look(live, &mut pair);
    assert!(governor_gaps(&changed).is_empty());
    let down = |live: &Live| live.kernel.status().governor.stepped_down.get("kernellatency").copied();
    assert_eq!(down(&live), Some("no events"));
    // Those of the messages while it looked.
    assert_eq!(data(&live.wait_for(20, is_data)), 20);
    let counted = timed(&mut live).0;
    talk(&mut pair);
    assert_eq!(timed(&mut live).0 - counted, 10);
    std::thread::sleep(Duration::from_millis(300));
    let mut events = Vec::new();
    live.take(&mut events);
    assert!(!events.iter().any(is_data), "{events:?}");

    let (live, changed) = look(live, &mut pair);
    assert_eq!(governor_gaps(&changed), ["no events"]);
    assert_eq!(down(&live), Some("no events, one packet in 64"));
    let (mut live, changed) = look(live, &mut pair);
    assert_eq!(governor_gaps(&changed), ["no events, one packet in 64"]);
    assert_eq!(down(&live), Some("off"));
    let status = live.kernel.status();
    let time = status
        .signals
        .iter()
        .find(|signal| signal.signal.name == "kernellatency.time")
        .unwrap();
    assert_eq!(time.signal.rung, None);
    assert_eq!(
        time.signal.reason,
        "stepped down by the governor; of its probe there is left: off"
    );

    // Room again, for as long as it takes: one step at a time, up to where it was.
    let start = Instant::now();
    let mut told = Vec::new();
    for minute in 1..600 {
        let changed = govern(
            &mut live.kernel,
            &[("kernellatency", 0.0)],
            start + Duration::from_secs(60 * minute),
        );
        told.extend(governor_gaps(&changed).into_iter().map(str::to_owned));
        if down(&live).is_none() {
            break;
        }
    }
    assert_eq!(told, ["off", "no events, one packet in 64", "no events"]);
    let counted = timed(&mut live).0;
    live.take(&mut events);
    events.clear();
    talk(&mut pair);
    assert_eq!(timed(&mut live).0 - counted, 10);
    assert_eq!(data(&live.wait_for(20, is_data)), 20);
}
