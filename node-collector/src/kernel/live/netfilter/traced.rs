//! The rule that dropped, by the kernel's own trace.

use super::*;

fn tracing() -> Config {
    let mut config = config();
    config.probes.get_mut("packetloss").unwrap().nft_trace = true;
    config
}

fn has_table(pod: &LabPod) -> bool {
    pod.command("nft", &["list", "tables"]).unwrap().contains("sonde_trace")
}

/// Sends until an event tells the rule: the trace begins with the first drop, and sees one that comes after it.
fn traced(explained: &mut Explained, from: &LabPod, to: &LabPod, family: Family) -> Event {
    let mut found = None;
    until("an event with its rule", || {
        send(from, to, family);
        found = explained
            .next(1)
            .into_iter()
            .find(|event| attribute(event, "nft_rule").is_some());
        found.is_some()
    });
    found.unwrap()
}

#[test]
fn the_trace_tells_which_of_several_rules_it_was_and_leaves_nothing_behind() {
    let Some(lab) = lab_alone("nft-trace") else { return };
    for (place, hook, fault) in [
        (Role::Server, "input", "nft-drop-input"),
        (Role::Server, "prerouting", "nft-drop-input"),
        (Role::Client, "output", "nft-drop-input"),
        (Role::Client, "postrouting", "nft-drop-input"),
        (Role::Router, "forward", "nft-drop-forward"),
    ] {
        let scene = Fault::find(fault)
            .unwrap()
            .scene(&lab, &format!("trace-{hook}"))
            .unwrap();
        let Some(mut explained) = explain(&tracing(), &scene.pods()) else {
            return;
        };
        let pod = scene.pod(place);
        pod.nft(&format!(
            "table inet t {{ chain blocked {{ meta mark 3 drop comment \"no\"; udp dport 40009 drop comment \"it\"; meta mark 4 drop\n }}\n
             chain c {{ type filter hook {hook} priority 10; meta mark 5 drop; jump blocked\n }}\n }}"
        ))
        .unwrap();
        let told = format!("inet/t c > blocked rule {} drop \"it\"", handle(pod, "it"));
        for family in Family::BOTH {
            send(&scene.client, &scene.server, family);
            let first = &explained.next(1)[0];
            assert_eq!(attribute(first, "nft_candidates"), Some("4"), "{hook}: {}", line(first));
            assert_eq!(
                attribute(first, "nft_rule"),
                None,
                "nobody can know yet: {}",
                line(first)
            );
            let event = traced(&mut explained, &scene.client, &scene.server, family);
            assert_eq!(
                attribute(&event, "nft_rule"),
                Some(&*told),
                "{hook} {family}: {}",
                line(&event)
            );
            assert!(!has_table(pod), "{hook}: the table is gone with the answer");
        }
        assert!(explained.missing.list().is_empty(), "{:?}", explained.missing.list());
    }
}

#[test]
fn a_policy_is_told_by_the_trace_and_what_replaced_a_rule_is_not_taken_for_it() {
    let Some(lab) = lab_alone("nft-trace-policy") else {
        return;
    };
    let scene = Fault::find("nft-drop-input").unwrap().scene(&lab, "policy").unwrap();
    let Some(mut explained) = explain(&tracing(), &scene.pods()) else {
        return;
    };
    scene
        .server
        .nft("table ip t { chain c { type filter hook input priority 0; policy drop; meta mark 3 drop\n }\n }")
        .unwrap();
    let event = traced(&mut explained, &scene.client, &scene.server, Family::V4);
    assert_eq!(
        attribute(&event, "nft_rule"),
        Some("ip/t c policy drop"),
        "{}",
        line(&event)
    );
    scene
        .server
        .nft("flush ruleset; table ip t { chain c { type filter hook input priority 0; udp dport 40009 drop comment \"new\"\n }\n }")
        .unwrap();
    send(&scene.client, &scene.server, Family::V4);
    let event = &explained.next(1)[0];
    assert_eq!(
        attribute(event, "nft_rule"),
        None,
        "it is not there any more: {}",
        line(event)
    );
    let told = format!("ip/t c rule {} drop \"new\"", handle(&scene.server, "new"));
    assert_eq!(attribute(event, "nft"), Some(&*told), "{}", line(event));
}

#[test]
fn a_trace_that_hears_nothing_goes_with_its_process_and_off_means_off() {
    let Some(lab) = lab_alone("nft-trace-end") else { return };
    let scene = Fault::find("nft-drop-input").unwrap().scene(&lab, "end").unwrap();
    let drop = "table inet t { chain c { type filter hook input priority 0; udp dport 40009 drop\n }\n }";
    scene.server.nft(drop).unwrap();
    let Some(mut explained) = explain(&config(), &scene.pods()) else {
        return;
    };
    send(&scene.client, &scene.server, Family::V4);
    explained.next(1);
    assert!(!has_table(&scene.server), "not asked for");
    assert_eq!(
        explained
            .explainer
            .stats()
            .traces
            .load(std::sync::atomic::Ordering::Relaxed),
        0
    );
    std::mem::drop(explained);

    let Some(mut explained) = explain(&tracing(), &scene.pods()) else {
        return;
    };
    send(&scene.client, &scene.server, Family::V4);
    explained.next(1);
    assert!(has_table(&scene.server), "the trace waits for the next packet");
    assert_eq!(
        explained
            .explainer
            .stats()
            .traces
            .load(std::sync::atomic::Ordering::Relaxed),
        1
    );
    // The socket goes here as it goes with a process that is killed: the kernel removes the table.
    std::mem::drop(explained);
    assert!(!has_table(&scene.server), "nothing is left behind");
}

#[test]
fn traces_come_and_go_with_the_configuration() {
    let Some(lab) = lab_alone("nft-trace-change") else {
        return;
    };
    let scene = Fault::find("nft-drop-input").unwrap().scene(&lab, "change").unwrap();
    let drop = "table inet t { chain c { type filter hook input priority 0; udp dport 40009 drop\n }\n }";
    scene.server.nft(drop).unwrap();
    let Some(mut explained) = explain(&config(), &scene.pods()) else {
        return;
    };
    let traces = |explained: &Explained| {
        let stats = explained.explainer.stats();
        stats.traces.load(std::sync::atomic::Ordering::Relaxed)
    };
    let switch = explained.explainer.tracing();
    for round in 0..2 {
        send(&scene.client, &scene.server, Family::V4);
        explained.next(1);
        assert_eq!(traces(&explained), round, "not asked for");
        switch.set(&tracing());
        send(&scene.client, &scene.server, Family::V4);
        explained.next(1);
        assert_eq!(traces(&explained), round + 1);
        // It waits for the next packet.
        switch.set(&config());
        until("the table to go", || !has_table(&scene.server));
    }
}

#[test]
fn the_traces_of_somebody_else_are_not_ours() {
    let Some(lab) = lab_alone("nft-trace-others") else {
        return;
    };
    let scene = Fault::find("nft-drop-input").unwrap().scene(&lab, "others").unwrap();
    let Some(mut explained) = explain(&tracing(), &scene.pods()) else {
        return;
    };
    // Another port is traced by somebody, and dropped by another rule.
    scene
        .server
        .nft(
            "table inet t { chain p { type filter hook prerouting priority -350; udp dport 40010 meta nftrace set 1\n }\n
             chain c { type filter hook input priority 0; meta mark 9 drop; udp dport 40010 drop comment \"other\"; udp dport 40009 drop comment \"it\"\n }\n }",
        )
        .unwrap();
    send(&scene.client, &scene.server, Family::V4);
    explained.next(1);
    for _ in 0..3 {
        send_to_port(&scene.client, &scene.server, Family::V4, TO_PORT + 1);
        let event = &explained.next(1)[0];
        assert_eq!(
            attribute(event, "nft_rule"),
            None,
            "of another connection: {}",
            line(event)
        );
    }
    assert!(has_table(&scene.server), "still waiting for its own");
    let event = traced(&mut explained, &scene.client, &scene.server, Family::V4);
    let told = format!("inet/t c rule {} drop \"it\"", handle(&scene.server, "it"));
    assert_eq!(attribute(&event, "nft_rule"), Some(&*told), "{}", line(&event));
}
