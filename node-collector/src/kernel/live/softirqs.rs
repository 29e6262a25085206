//! Softirqs of this machine, of which there are always some.

use sonde_common::time::Span;

use super::*;

/// Of all CPUs, by /proc/softirqs.
fn counted(vector: &str) -> i64 {
    let text = std::fs::read_to_string("/proc/softirqs").unwrap();
    let line = text.lines().find_map(|line| line.trim().strip_prefix(vector)).unwrap();
    line.split_ascii_whitespace().map(|n| n.parse::<i64>().unwrap()).sum()
}

fn index_of_node() -> PodIndex {
    use std::os::unix::fs::MetadataExt as _;
    let inode = std::fs::metadata("/proc/self/ns/net").unwrap().ino() as u32;
    let cookie = RouteSocket::open().map_or(0, |socket| socket.netns_cookie());
    PodIndex::new(NetnsKey { inode, cookie })
}

fn config_of_node() -> Config {
    let mut config = config_of("net_softirq");
    config.pods.include_host = true;
    config
}

fn receive(packets: usize) {
    let receiver = std::net::UdpSocket::bind(("127.0.0.1", 0)).unwrap();
    let sender = std::net::UdpSocket::bind(("127.0.0.1", 0)).unwrap();
    for _ in 0..packets {
        sender.send_to(b"x", receiver.local_addr().unwrap()).unwrap();
        receiver.recv(&mut [0; 8]).unwrap();
    }
}

#[test]
fn softirqs_are_timed_as_often_as_the_kernel_runs_them() {
    for rung in BOTH {
        // There are softirqs also while the programs are attached, one after another.
        let started = std::sync::atomic::AtomicBool::new(false);
        let live = std::thread::scope(|scope| {
            scope.spawn(|| {
                while !started.load(std::sync::atomic::Ordering::Relaxed) {
                    receive(1);
                }
            });
            let live = start(&config_of_node(), index_of_node(), Some(rung));
            started.store(true, std::sync::atomic::Ordering::Relaxed);
            live
        });
        let Some(mut live) = live else {
            return;
        };
        let of = |live: &mut Live, column| -> i64 {
            let row = &live.rows("net_softirq")["node net_rx"];
            // The last value of a histogram is its sum.
            row[column].split_last().unwrap().1.iter().sum()
        };
        // Each look at the kernel's own count is between two at ours.
        let (before_first, kernel_first) = (of(&mut live, "execute_seconds"), counted("NET_RX:"));
        let after_first = of(&mut live, "execute_seconds");
        receive(2000);
        let (before_last, kernel_last) = (of(&mut live, "execute_seconds"), counted("NET_RX:"));
        let after_last = of(&mut live, "execute_seconds");
        let kernel = kernel_last - kernel_first;
        // One a CPU may have begun and not yet ended at each look.
        let cpus = std::thread::available_parallelism().unwrap().get() as i64;
        assert!(kernel >= 1000, "{kernel}");
        assert!(
            (before_last - after_first - cpus..=after_last - before_first + cpus).contains(&kernel),
            "{}: {kernel} by the kernel, {before_first} {after_first} {before_last} {after_last} by us",
            rung.name()
        );
        let (waits, runs) = (of(&mut live, "sched_seconds"), of(&mut live, "execute_seconds"));
        assert!(waits > 1000 && waits <= runs + cpus, "{waits} {runs}");
        let row = &live.rows("net_softirq")["node net_rx"];
        let sum_ns = *row["execute_seconds"].last().unwrap();
        assert!(sum_ns > 1000 * 100 && sum_ns < 3600 * 1_000_000_000, "{sum_ns}");
    }
}

#[test]
fn beyond_the_threshold_each_is_an_event_of_the_node_with_its_cpu() {
    for rung in BOTH {
        let mut config = config_of_node();
        config.probes.get_mut("net_softirq").unwrap().threshold = Some(Span(Duration::from_micros(1)));
        let Some(mut live) = start(&config, index_of_node(), Some(rung)) else {
            return;
        };
        receive(50);
        let events = live.wait_for(20, |event| {
            event.observation.latency_ns.is_some_and(|ns| ns <= 100_000_000)
        });
        let cpus = std::thread::available_parallelism().unwrap().get() as u32;
        let mut kinds = std::collections::BTreeSet::new();
        for event in &events {
            let seen = &event.observation;
            kinds.insert(seen.kind);
            assert!(matches!(event.subject, Subject::Node), "{}", line(event));
            assert!(seen.latency_ns > Some(1000) && seen.cpu.is_some_and(|cpu| cpu < cpus.max(64)));
            assert_eq!((seen.pid, seen.protocol.as_deref(), seen.saddr), (None, None, None));
            let long = seen.latency_ns > Some(100_000_000);
            assert_eq!(seen.kind.ends_with("_100MS"), long, "{}", line(event));
            assert!(matches!(&*seen.attributes[0].1, "net_rx" | "net_tx"));
        }
        assert!(kinds.contains("NETSOFTIRQ_EXCUTE_SLOW"), "{kinds:?}");
    }
}

#[test]
fn where_the_node_is_not_told_of_there_are_neither_rows_nor_events_of_it() {
    let mut config = config_of_node();
    config.pods.include_host = false;
    config.probes.get_mut("net_softirq").unwrap().threshold = Some(Span(Duration::from_micros(1)));
    let Some(mut live) = start(&config, index_of_node(), None) else {
        return;
    };
    receive(200);
    assert!(live.rows("net_softirq").is_empty());
    let mut events = Vec::new();
    live.take(&mut events);
    assert!(events.is_empty(), "{}", line(&events[0]));
}
