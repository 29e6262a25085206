//! Control commands of virtio-net: a device that gives them is not to be had everywhere, and a function that can be hooked
//! neither.

use super::*;

#[test]
fn the_functions_are_hooked_or_the_kernel_says_why_not() {
    let config = config_of("virtcmdlatency");
    let report = doctor(&config);
    let of_commands = |line: &&doctor::SignalLine| line.name == "virtcmdlatency.times";
    let line = report.signals.iter().find(of_commands).unwrap();
    if line.state.contains("no permission") {
        println!("SKIPPED: {}", line.state);
        return;
    }
    assert_eq!(
        line.rungs.iter().map(|rung| rung.rung).collect::<Vec<_>>(),
        ["fentry", "kprobe"]
    );
    for rung in &line.rungs {
        // Refused by the verifier would be no fault of the host.
        assert!(
            !rung.finding.contains("permission denied:") && !rung.finding.contains("R1"),
            "{rung:?}"
        );
        println!("{}: {}", rung.rung, rung.finding);
    }
    if line.rung.is_none() {
        for rung in ["fentry: ", "kprobe: "] {
            let why = line.state.split(rung).nth(1).unwrap_or_default();
            assert!(why.len() > 10, "{}", line.state);
        }
        return;
    }
    let mut node = config;
    node.pods.include_host = true;
    let Some(mut live) = start(&node, PodIndex::new(NetnsKey { inode: 1, cookie: 0 }), None) else {
        return;
    };
    let rows = live.rows("virtcmdlatency");
    assert_eq!(
        rows["node"]["latency_seconds"].len(),
        super::latency::LATENCY_BOUNDS.len() + 2
    );
}
