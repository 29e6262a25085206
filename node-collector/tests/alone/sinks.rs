//! A fault in, the right lines out of every sink.

use nix::sys::signal::Signal;
use sonde_lab::faults::{self, Fault};
use sonde_lab::{Family, Lab};
use sonde_push::testing::{Answer, Server};

use crate::running::{Running, lines, until};

/// A server on a runtime of its own.
fn loki(answers: Vec<Answer>) -> (tokio::runtime::Runtime, Server) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let server = runtime.block_on(Server::start(answers, None)).unwrap();
    (runtime, server)
}

#[test]
fn a_real_drop_is_told_by_every_sink_and_no_spool_grows() {
    let Some(lab) = Lab::for_test("alone-sinks") else {
        return;
    };
    let answers = vec![
        Answer::Http("500 Internal Server Error\r\n", "not yet"),
        Answer::Http("429 Too Many Requests\r\nRetry-After: 1\r\n", "slowly"),
    ];
    let (_runtime, server) = loki(answers);
    let scene = Fault::find("udp-closed-port").unwrap().scene(&lab, "shop").unwrap();
    let more = format!(
        "events: {{unknown_netns: drop}}\n\
         sinks:\n\
         \x20 stderr: {{enabled: true, format: text}}\n\
         \x20 file: {{path: \"{{dir}}/events.log\"}}\n\
         \x20 loki: {{url: \"http://{}\", linger: 100ms, bearer_token_env: SONDE_TEST_TOKEN}}\n",
        server.address
    );
    let mut running = Running::start(&lab, &more);
    let kernel = running.status()["kernel"]["signals"].clone();
    let of_events = |signal: &&serde_json::Value| signal["name"] == "packetloss.events";
    let events = kernel.as_array().and_then(|all| all.iter().find(of_events).cloned());
    if events.as_ref().is_none_or(|signal| signal.get("rung").is_none()) {
        println!("SKIPPED: {events:?}");
        return;
    }
    let injected = scene.inject(Family::V4, 5).unwrap();
    let count = injected.dropped as usize;
    assert_eq!(count, 5);

    let file = running.path("events.log");
    until("the lines of the file", || (lines(&file).len() >= count).then_some(()));
    for event in lines(&file) {
        for (key, value) in [
            ("type", "PACKETLOSS"),
            ("reason", "NO_SOCKET"),
            ("namespace", scene.server.namespace()),
            ("pod", "server"),
            ("node", "alone"),
            ("protocol", "UDP"),
            ("direction", "ingress"),
            ("interface", "eth0"),
        ] {
            assert_eq!(event[key], value, "{key} of {event}");
        }
        assert_eq!(event["saddr"], scene.client.address(Family::V4).to_string());
        assert_eq!(event["daddr"], scene.server.address(Family::V4).to_string());
        assert_eq!(
            (&event["sport"], &event["dport"]),
            (&faults::FROM_PORT.into(), &faults::TO_PORT.into())
        );
        assert_eq!(event["peer"]["pod"], "client", "{event}");
    }
    // The first two answers were none, so what was taken is the last request.
    until("the lines at the server", || {
        (server.received().len() >= 3).then_some(())
    });
    until("the answer to have come", || {
        (running.metric("sonde_collector_sink_sent_total", &["loki"]) >= count as f64).then_some(())
    });
    let received = server.received();
    let streams = received.last().unwrap().loki().unwrap().streams;
    assert_eq!(streams[0].labels, r#"{instance="alone", job="kubeskoop"}"#);
    let taken: Vec<&str> = streams[0].entries.iter().map(|entry| entry.line.as_str()).collect();
    let start = format!(
        "type=PACKETLOSS pod=server namespace={} protocol=UDP saddr={} sport={} daddr={} dport={} ",
        scene.server.namespace(),
        scene.client.address(Family::V4),
        faults::FROM_PORT,
        scene.server.address(Family::V4),
        faults::TO_PORT
    );
    assert!(
        !taken.is_empty() && taken.iter().all(|line| line.starts_with(&start)),
        "{taken:?}"
    );
    assert!(taken.iter().any(|line| line.contains(" stacktrace:")), "{taken:?}");
    assert!(
        received
            .iter()
            .all(|one| one.header("authorization") == "Bearer very-secret")
    );
    assert!(server.broken().is_empty(), "{:?}", server.broken());

    until("the lines of the log", || {
        (running.log().matches(&start).count() >= count).then_some(())
    });
    let status = running.status();
    for sink in status["sinks"].as_array().unwrap() {
        assert_eq!(
            (&sink["state"], &sink["sent"]),
            (&"running".into(), &count.into()),
            "{sink}"
        );
    }
    assert_eq!(running.metric("sonde_collector_sink_retries_total", &["loki"]), 2.0);
    assert_eq!(running.metric("sonde_collector_sink_dropped_total", &[]), 0.0);
    // What goes into the spool is let go at once, a segment when it is full.
    until("the spool to hold nothing that is waited for", || {
        let spool = running.status()["spool"].clone();
        let [acked, next] = ["acked_sequence", "next_sequence"].map(|key| spool[key].as_u64().unwrap());
        (next > 1 && acked + 1 == next).then_some(())
    });
    assert_eq!(status["aggregator"]["connected"], false);
    let page = format!("{status}{}", running.get("/metrics").unwrap());
    assert!(!page.contains("very-secret"));
    assert!(running.end());
    assert!(!running.log().contains("very-secret"));
    assert_eq!(lines(&running.path("events.log")).len(), count, "no line twice");
}

#[test]
fn a_renamed_file_is_left_on_hangup_as_logrotate_wants_it() {
    let Some(lab) = Lab::for_test("alone-rotate") else {
        return;
    };
    let scene = Fault::find("udp-closed-port").unwrap().scene(&lab, "shop").unwrap();
    let more = "events: {unknown_netns: drop}\nsinks: {file: {path: \"{dir}/events.log\", max_bytes: 0}}\n";
    let mut running = Running::start(&lab, more);
    let (now, before) = (running.path("events.log"), running.path("events.log.1"));
    if scene.inject(Family::V4, 3).is_err() || running.status()["kernel"]["probes"] == serde_json::json!([]) {
        println!("SKIPPED: no eBPF here");
        return;
    }
    until("three lines", || (lines(&now).len() == 3).then_some(()));
    std::fs::rename(&now, &before).unwrap();
    running.signal(Signal::SIGHUP);
    scene.inject(Family::V6, 2).unwrap();
    until("two lines more", || {
        (lines(&now).len() + lines(&before).len() == 5).then_some(())
    });
    until("the signal to be seen", || {
        let count = lines(&now).len();
        if count == 0 {
            scene.inject(Family::V6, 1).unwrap();
        }
        (count > 0).then_some(())
    });
    assert!(running.end(), "it goes on after a hangup, and ends when asked to");
}
