//! Hosts that permit less.

use super::*;

#[test]
fn without_any_right_everything_is_off_and_says_why() {
    let report = std::thread::spawn(|| {
        drop_capabilities();
        let (sender, _events) = channel(1);
        let (mut kernel, signals) = Kernel::start(&Config::default(), Arc::default(), sender);
        kernel.netns_changed(&[NetnsKey { inode: 1, cookie: 2 }]);
        assert!(kernel.read(now_ns(), &PodIndex::default()).0.is_empty());
        let mut page = Page::new();
        kernel.self_metrics(&mut page);
        assert!(
            page.finish()
                .contains("signal_up{signal=\"packetloss.count\",rung=\"off\"} 0")
        );
        (signals, doctor(&Config::default()).to_string())
    });
    let (signals, report) = report.join().unwrap();
    assert_eq!(signals.len(), probes::signals().count());
    for signal in signals {
        assert!(
            signal.rung.is_none() && (signal.chosen || signal.reason.contains("no permission")),
            "{signal:?}"
        );
    }
    assert!(
        report.contains("no permission: loading programs needs CAP_BPF and CAP_PERFMON"),
        "{report}"
    );
}

#[test]
fn doctor_sees_the_probes_of_times_fire_on_every_rung_that_is_there() {
    let mut config = Config::default();
    for probe in ["socketlatency", "connect", "net_softirq"] {
        config.probes.entry(probe.into()).or_default().enabled = Some(true);
    }
    let report = doctor(&config);
    for name in [
        "socketlatency.read",
        "socketlatency.send",
        "connect.times",
        "net_softirq.times",
    ] {
        let signal = report.signals.iter().find(|signal| signal.name == name).unwrap();
        if signal.state.contains("no permission") {
            println!("SKIPPED: {}", signal.state);
            return;
        }
        for rung in signal
            .rungs
            .iter()
            .filter(|rung| !matches!(rung.rung, "fentry" | "kprobe"))
        {
            assert_eq!(rung.finding, "loads and attaches, and fires", "{name} {}", rung.rung);
        }
    }
}

/// All of this thread's, which cannot get them back.
fn drop_capabilities() {
    #[repr(C)]
    struct Header {
        version: u32,
        pid: i32,
    }
    const VERSION_3: u32 = 0x2008_0522;
    let header = Header {
        version: VERSION_3,
        pid: 0,
    };
    let none = [0u32; 6];
    // SAFETY: both live through the call and have the sizes that this version of the interface has.
    let result = unsafe { libc::syscall(libc::SYS_capset, &raw const header, none.as_ptr()) };
    assert_eq!(result, 0);
}

#[test]
fn doctor_tries_every_rung_and_sees_it_fire() {
    let report = doctor(&Config::default());
    let text = report.to_string();
    let count = report
        .signals
        .iter()
        .find(|signal| signal.name == "packetloss.count")
        .unwrap();
    if count.rung.is_none() {
        println!("SKIPPED: {}", count.state);
        return;
    }
    for rung in &count.rungs {
        assert_eq!(rung.finding, "loads and attaches, and fires", "{text}");
    }
    println!("{text}");
    let off: Config = serde_json::from_str(r#"{"kernel":{"ebpf":"off"}}"#).unwrap();
    assert!(doctor(&off).to_string().contains("kernel.ebpf is off"));
}

#[test]
fn maps_take_little_and_those_of_probes_that_are_off_next_to_nothing() {
    let bytes = |config: &Config| {
        let live = start(config, PodIndex::default(), None)?;
        Some(live.kernel.status().map_bytes)
    };
    let mut everything = Config::default();
    for probe in probes::ALL.iter().filter(|probe| probe.spec.name != "virtcmdlatency") {
        let settings = everything.probes.entry(probe.spec.name.into()).or_default();
        settings.enabled = Some(true);
    }
    // Its functions are not to be had everywhere.
    everything.probes.entry("virtcmdlatency".into()).or_default().enabled = Some(false);
    let (Some(all), Some(one)) = (bytes(&everything), bytes(&config())) else {
        return;
    };
    println!("all: {all} bytes, packetloss alone: {one} bytes");
    assert!(one > 1 << 20, "the ring alone has more: {one}");
    assert!(all < 32 << 20, "{all}");
    let mut none = config();
    none.probes.get_mut("packetloss").unwrap().events = false;
    let without_events = bytes(&none).unwrap();
    assert!(without_events + (1 << 20) < one, "{without_events}");
}

#[test]
fn with_btf_from_a_file_the_raw_tracepoint_sees_the_same() {
    let Some(lab) = lab_alone("kernel-btf-file") else {
        return;
    };
    let scene = Fault::find("udp-closed-port").unwrap().scene(&lab, "file").unwrap();
    // A host whose kernel has no BTF of its own, as far as anybody can see.
    let sys = tempfile::tempdir().unwrap();
    let mut config = config();
    config.host.sys = sys.path().to_owned();
    config.kernel.btf_path = "/sys/kernel/btf/vmlinux".into();
    let Some(mut live) = start(&config, index_of(scene.pods()), None) else {
        return;
    };
    let drops = |signal: &SignalReport| signal.signal.name.starts_with("packetloss.");
    for signal in live.kernel.status().signals.into_iter().filter(drops) {
        assert_eq!(signal.signal.rung, Some("raw_tracepoint"));
        assert!(
            signal
                .signal
                .reason
                .starts_with("tp_btf: the kernel has no BTF of its own"),
            "{signal:?}"
        );
    }
    scene.inject(Family::V6, 3).unwrap();
    assert_eq!(live.settle(&scene.client).len(), 3);
}
