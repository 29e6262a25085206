//! A configuration that changes while the collector runs.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use nix::sys::signal::Signal;
use sonde_lab::faults::Fault;
use sonde_lab::{Family, Lab};

use crate::running::{Running, lines, until, yaml};

const RELOADS: &str = "sonde_collector_config_reloads_total";

fn reloads(running: &Running, result: &str) -> f64 {
    running.metric(RELOADS, &[&format!("result=\"{result}\"")])
}

/// Replaces the file as an editor does.
fn write(running: &Running, lab: &Lab, more: &str) {
    let new = running.path("config.yaml.new");
    fs::write(&new, yaml(lab, running.dir.path(), more)).unwrap();
    fs::rename(&new, running.path("config.yaml")).unwrap();
}

#[test]
fn what_may_change_changes_and_a_broken_file_is_refused_with_its_place() {
    let Some(lab) = Lab::for_test("alone-reload") else {
        return;
    };
    let none = "kernel: {ebpf: off}\n";
    let mut running = Running::start(&lab, none);
    assert_eq!(
        RELOADS_NONE,
        [reloads(&running, "applied"), reloads(&running, "refused")]
    );
    let state = |running: &Running, probe: &str| {
        let status = running.status();
        let probes = status["probes"].as_array().unwrap();
        let probe = probes.iter().find(|one| one["name"] == probe).unwrap();
        probe["state"].as_str().unwrap().to_owned()
    };
    assert_eq!(
        (state(&running, "tcp"), state(&running, "fd")),
        ("running".into(), "running".into())
    );

    write(
        &running,
        &lab,
        &format!(
            "{none}probes: {{tcp: {{enabled: false}}, fd: {{enabled: false}}}}\nsinks: {{file: {{path: \"{{dir}}/e.log\"}}}}\n"
        ),
    );
    until("the new file to be seen", || {
        (reloads(&running, "applied") == 1.0).then_some(())
    });
    assert_eq!(
        (state(&running, "tcp"), state(&running, "fd")),
        ("off".into(), "off".into())
    );
    assert_eq!(state(&running, "udp"), "running");
    assert_eq!(running.status()["sinks"][0]["state"], "running");

    // Said by key, value, place and what was expected; all stays.
    write(&running, &lab, &format!("{none}events: {{rate: many}}\n"));
    until("the broken file to be refused", || {
        (reloads(&running, "refused") == 1.0).then_some(())
    });
    let error = running.status()["config"]["error"].as_str().unwrap().to_owned();
    for part in ["config.yaml", "events.rate", "many", "u32", "line"] {
        assert!(error.contains(part), "no {part} in {error}");
    }
    assert!(running.log().contains("new configuration refused"), "{}", running.log());
    assert_eq!(state(&running, "tcp"), "off");
    write(&running, &lab, &format!("{none}probes: {{tpc: {{enabled: true}}}}\n"));
    until("an unknown probe to be refused", || {
        (reloads(&running, "refused") == 2.0).then_some(())
    });

    // What cannot change is said by key, and what can is changed all the same.
    let other = format!("{none}node: {{name: alone}}\nspool: {{max_bytes: 2000000}}\n");
    write(&running, &lab, &other.replace("node: {name: alone}\n", ""));
    running.signal(Signal::SIGHUP);
    until("the change", || (reloads(&running, "applied") == 2.0).then_some(()));
    assert_eq!(state(&running, "tcp"), "running");
    for probe in ["tcp", "fd"] {
        until("what was off to be told as a gap", || {
            let gaps = running.status()["gaps"]["newest"].clone();
            let told = |gap: &serde_json::Value| gap["cause"] == "switched_off" && gap["probe"] == probe;
            gaps.as_array().unwrap().iter().any(told).then_some(())
        });
    }
    let config = running.status()["config"].clone();
    assert_eq!(config["needs_restart"], serde_json::json!(["spool.max_bytes"]));
    assert_eq!(config.get("error"), None);
    assert!(running.log().contains("keys=\"spool.max_bytes\"") || running.log().contains("keys=spool.max_bytes"));
    write(&running, &lab, none);
    until("nothing to be left to restart for", || {
        (running.status()["config"]["needs_restart"] == serde_json::json!([])).then_some(())
    });
    // Nothing else is said by the file now, and a signal makes it be read at once.
    let before = reloads(&running, "unchanged");
    running.signal(Signal::SIGHUP);
    until("the signal", || {
        (reloads(&running, "unchanged") == before + 1.0).then_some(())
    });
    assert!(running.end());
}

const RELOADS_NONE: [f64; 2] = [0.0, 0.0];

/// Lays a version beside the others and swaps the link to it, as the kubelet does.
fn swap(dir: &Path, version: &str, text: &str) {
    let data = dir.join(version);
    fs::create_dir(&data).unwrap();
    fs::write(data.join("config.yaml"), text).unwrap();
    symlink(version, dir.join("..data_tmp")).unwrap();
    fs::rename(dir.join("..data_tmp"), dir.join("..data")).unwrap();
}

#[test]
fn a_swapped_config_map_is_seen_each_time_and_counts_go_on() {
    let Some(lab) = Lab::for_test("alone-map") else { return };
    let scene = Fault::find("udp-closed-port").unwrap().scene(&lab, "shop").unwrap();
    let dir = tempfile::tempdir().unwrap();
    let text = |events: bool| {
        let more = format!(
            "events: {{unknown_netns: drop}}\nsinks: {{file: {{path: \"{{dir}}/e.log\"}}}}\nprobes: {{packetloss: {{events: {events}}}}}\n"
        );
        yaml(&lab, dir.path(), &more)
    };
    let versions = [text(true), text(false), text(true)];
    swap(dir.path(), "..2026_1", &versions[0]);
    symlink("..data/config.yaml", dir.path().join("config.yaml")).unwrap();
    let mut running = Running::start_with(&lab, dir, "config.yaml");
    if running.status()["kernel"]["probes"] == serde_json::json!([]) {
        println!("SKIPPED: no eBPF here");
        return;
    }
    let told = |running: &Running| lines(&running.path("e.log")).len();
    let counted =
        |running: &Running| running.metric("sonde_packetloss_drops_total", &["k8s_pod=\"server\"", "NO_SOCKET"]) as u64;
    let mut dropped = 0;
    let mut inject = |count| {
        dropped += scene.inject(Family::V4, count).unwrap().dropped;
        dropped
    };
    let all = inject(3);
    until("three events", || (told(&running) == 3).then_some(()));
    until("three drops", || (counted(&running) == all).then_some(()));

    swap(running.dir.path(), "..2026_2", &versions[1]);
    until("the first swap", || (reloads(&running, "applied") == 1.0).then_some(()));
    let all = inject(4);
    until("seven drops, counted on", || (counted(&running) == all).then_some(()));

    swap(running.dir.path(), "..2026_3", &versions[2]);
    until("the second swap", || {
        (reloads(&running, "applied") == 2.0).then_some(())
    });
    let all = inject(2);
    until("two events more", || (told(&running) >= 5).then_some(()));
    until("nine drops, counted on", || (counted(&running) == all).then_some(()));
    assert_eq!(told(&running), 5, "none of the four while they were off");
    let off = until("the time without events to be a gap", || {
        let gaps = running.status()["gaps"]["newest"].clone();
        let mut all = gaps.as_array().unwrap().iter();
        all.find(|gap| gap["cause"] == "switched_off" && gap["probe"] == "packetloss")
            .cloned()
    });
    assert_eq!((&off["probe"], &off["count"]), (&"packetloss".into(), &0.into()));
    assert!(running.end());
}
