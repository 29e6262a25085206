//! The kernel side on the kernel that runs here: real namespaces, real drops, counted by a second source.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sonde_common::config::{Config, UnknownNetns};
use sonde_common::time::now_ns;
use sonde_lab::faults::{self, Fault, Signal};
use sonde_lab::{Family, Lab, healthy};
use tokio::sync::mpsc::{Receiver, channel};

use super::*;
use crate::event::{Direction, Event, Subject};
use crate::netlink::route::RouteSocket;
use crate::pods::{Facts, Pod};

/// A kernel side that sees the pods of one test and nothing else.
struct Live {
    kernel: Kernel,
    events: Receiver<Vec<Observation>>,
    index: Arc<PodIndex>,
}

/// `None`, with a word to the reader, where this host does not permit it.
fn start(config: &Config, index: PodIndex, rung: Option<Rung>) -> Option<Live> {
    start_with(config, index, rung, 4096)
}

fn start_with(config: &Config, index: PodIndex, rung: Option<Rung>, room: usize) -> Option<Live> {
    let index = Arc::new(index);
    let (sender, events) = channel(room);
    let allowed = |candidate| rung.is_none_or(|rung| rung == candidate);
    let (kernel, signals) = Kernel::start_on(config, Arc::clone(&index), sender, allowed);
    if let Some(off) = signals.iter().find(|signal| signal.rung.is_none()) {
        println!("SKIPPED: {}: {}", off.name, off.reason);
        return None;
    }
    Some(Live { kernel, events, index })
}

/// Only listed namespaces, and buckets that hold nothing back.
fn config() -> Config {
    let mut config = Config::default();
    config.events.unknown_netns = UnknownNetns::Drop;
    (config.events.rate, config.events.burst) = (1_000_000, 1_000_000);
    config.pods.include_host = false;
    config
}

fn netns_of(pod: &sonde_lab::Pod) -> NetnsKey {
    let cookie = pod
        .run(|| RouteSocket::open().map_or(0, |socket| socket.netns_cookie()))
        .unwrap();
    NetnsKey {
        inode: pod.inode() as u32,
        cookie,
    }
}

fn add(index: &PodIndex, pod: &sonde_lab::Pod) -> Arc<Pod> {
    let netns = netns_of(pod);
    let found = Arc::new(Pod {
        sandbox: format!("{}/{}", pod.netns(), netns.cookie),
        namespace: pod.namespace().into(),
        name: pod.name().into(),
        netns,
        valid_from_ns: now_ns(),
        ..Pod::default()
    });
    index.add(Arc::clone(&found));
    found
}

fn index_of<'a>(pods: impl IntoIterator<Item = &'a sonde_lab::Pod>) -> PodIndex {
    let index = PodIndex::default();
    for pod in pods {
        add(&index, pod);
    }
    index
}

/// Waits for something to become true; the deadline is for a kernel that does not do it at all.
fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

impl Live {
    /// Everything that has come, in order.
    fn take(&mut self, into: &mut Vec<Event>) {
        while let Ok(batch) = self.events.try_recv() {
            into.extend(batch.into_iter().map(|observation| attribute(observation, &self.index)));
        }
    }

    fn wait_for(&mut self, count: usize, of: impl Fn(&Event) -> bool) -> Vec<Event> {
        let mut all = Vec::new();
        until(&format!("{count} events"), || {
            self.take(&mut all);
            all.iter().filter(|event| of(event)).count() >= count
        });
        all
    }

    /// Waits until the ring's thread has read all that the kernel wrote before now: a drop in `pod` is told last.
    fn settle(&mut self, pod: &sonde_lab::Pod) -> Vec<Event> {
        let port = pod
            .run(|| {
                let closed = std::net::UdpSocket::bind(("127.0.0.1", 0))
                    .unwrap()
                    .local_addr()
                    .unwrap();
                std::net::UdpSocket::bind(("127.0.0.1", 0))
                    .unwrap()
                    .send_to(b"mark", closed)
                    .unwrap();
                closed.port()
            })
            .unwrap();
        let mark = |event: &Event| event.observation.dport == Some(port);
        let mut all = self.wait_for(1, mark);
        all.retain(|event| !mark(event));
        all
    }

    /// Drops by (pod, reason, class).
    fn drops(&mut self) -> HashMap<(String, String, String), i64> {
        let (tables, _) = self.kernel.read(now_ns(), &self.index);
        let mut drops = HashMap::new();
        for table in tables {
            for (row, subject) in table.subjects.iter().enumerate() {
                let key = (
                    name(subject),
                    table.labels[row * 2].to_string(),
                    table.labels[row * 2 + 1].to_string(),
                );
                assert!(drops.insert(key, table.columns[0][row]).is_none(), "one row for each");
            }
        }
        drops
    }
}

/// An event in one line, for a test that failed.
fn line(event: &Event) -> String {
    let seen = &event.observation;
    let attributes: Vec<String> = seen
        .attributes
        .iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    format!(
        "{} {:?} {:?} {:?}:{:?} > {:?}:{:?} {:?} {} {}",
        name(&event.subject),
        seen.reason,
        seen.protocol,
        seen.saddr,
        seen.sport,
        seen.daddr,
        seen.dport,
        seen.direction,
        attributes.join(" "),
        seen.stack.join(" ")
    )
}

fn name(subject: &Subject) -> String {
    match subject {
        Subject::Node => "node".into(),
        Subject::Unknown => "unknown".into(),
        Subject::Pod(pod) => pod.name.clone(),
    }
}

const BOTH: [Rung; 2] = [Rung::TpBtf, Rung::RawTracepoint];

fn check_fault(lab: &Lab, fault: &'static Fault, rung: Rung) {
    let scene = fault.scene(lab, &format!("{}-{}", fault.name, rung.name())).unwrap();
    let Some(mut live) = start(&config(), index_of(scene.pods()), Some(rung)) else {
        return;
    };
    for family in Family::BOTH {
        let what = format!("{} {family} {}", fault.name, rung.name());
        let before = live.drops();
        let injected = scene.inject(family, 20).unwrap();
        let events = live.settle(&scene.client);
        let place = injected.place.name();
        let of_flow = |event: &&Event| {
            let seen = &event.observation;
            let (from, to) = (injected.flow.from, injected.flow.to);
            (seen.saddr, seen.sport, seen.daddr, seen.dport)
                == (Some(from.ip()), Some(from.port()), Some(to.ip()), Some(to.port()))
        };
        let Signal::Event(expected) = fault.signal else {
            assert!(events.iter().filter(of_flow).count() == 0, "{what}: {events:#?}");
            continue;
        };
        let found: Vec<&Event> = events.iter().filter(of_flow).collect();
        assert_eq!(
            found.len() as u64,
            injected.dropped,
            "{what}: {} says so\n{events:#?}",
            injected.source
        );
        for event in &found {
            let seen = &event.observation;
            let reason = seen.reason.as_deref().unwrap();
            assert_eq!(name(&event.subject), place, "{what}: {event:#?}");
            assert!(expected.reasons.contains(&reason), "{what}: {event:#?}");
            assert_eq!(
                seen.protocol.as_deref(),
                Some(&*injected.flow.protocol.to_string()),
                "{what}"
            );
            assert_eq!(
                format!("{:?}", seen.direction).to_lowercase(),
                expected.direction,
                "{what}: {event:#?}"
            );
            assert_eq!(seen.interface.as_deref(), expected.interface, "{what}: {event:#?}");
            assert_eq!(
                event.peer.as_ref().map(name),
                None,
                "{what}: no address is known to the index"
            );
            assert!(
                !seen.stack.is_empty() && !seen.stack[0].starts_with("bpf_"),
                "{what}: {:?}",
                seen.stack
            );
        }
        assert_eq!(events.len(), found.len(), "{what}: and nothing else\n{events:#?}");
        let after = live.drops();
        let grown: i64 = expected
            .reasons
            .iter()
            .map(|reason| {
                let key = (place.to_owned(), (*reason).to_owned(), "suspect".to_owned());
                after.get(&key).unwrap_or(&0) - before.get(&key).unwrap_or(&0)
            })
            .sum();
        // The mark that `settle` drops is a NO_SOCKET of the client's.
        let mark = i64::from(place == "client" && expected.reasons.contains(&"NO_SOCKET"));
        assert_eq!(
            grown as u64,
            injected.dropped + mark as u64,
            "{what}: counted\n{before:?}\n{after:?}"
        );
    }
}

#[test]
fn every_fault_of_the_lab_is_counted_exactly_and_told_with_its_reason_and_connection() {
    let Some(lab) = Lab::for_test("kernel-faults") else {
        return;
    };
    for rung in BOTH {
        for fault in faults::ALL {
            check_fault(&lab, fault, rung);
        }
    }
}

#[test]
fn healthy_traffic_makes_no_event() {
    let Some(lab) = Lab::for_test("kernel-healthy") else {
        return;
    };
    for rung in BOTH {
        let (client, server) = (
            lab.pod(rung.name(), "client").unwrap(),
            lab.pod(rung.name(), "server").unwrap(),
        );
        let Some(mut live) = start(&config(), index_of([&client, &server]), Some(rung)) else {
            return;
        };
        // The kernel side watches while the link is made: the noise of new devices belongs to health.
        lab.link(&client, &server).unwrap();
        healthy::healthy(&client, &server).unwrap();
        let events = live.settle(&client);
        assert!(
            events.is_empty(),
            "{}: {:#?}",
            rung.name(),
            events.iter().map(line).collect::<Vec<_>>()
        );
        let drops = live.drops();
        let frees: i64 = drops.values().sum();
        assert!(frees > 50, "the traffic does make the kernel free packets: {drops:?}");
        let mut suspect = drops.into_iter().filter(|((_, _, class), _)| class == "suspect");
        assert_eq!(
            suspect.next(),
            Some((("client".into(), "NO_SOCKET".into(), "suspect".into()), 1)),
            "the mark"
        );
        assert_eq!(suspect.next(), None);
    }
}

#[test]
fn the_sender_is_named_where_it_drops_its_own_packets() {
    let Some(lab) = Lab::for_test("kernel-sender") else {
        return;
    };
    let scene = Fault::find("nft-drop-output").unwrap().scene(&lab, "out").unwrap();
    let Some(mut live) = start(&config(), index_of(scene.pods()), None) else {
        return;
    };
    for family in Family::BOTH {
        scene.inject(family, 3).unwrap();
        for event in live.settle(&scene.client) {
            let seen = &event.observation;
            assert_eq!(seen.pid, Some(std::process::id()), "{:?}", seen.stack);
            assert!(seen.comm.is_some());
            let hook = seen
                .attributes
                .iter()
                .find(|(name, _)| *name == "hook")
                .map(|(_, value)| &**value);
            assert_eq!(hook, Some("output"), "{:?}", seen.stack);
        }
    }
    // On the receiver's side the same task is on the CPU, and it is not the receiver.
    let scene = Fault::find("nft-drop-input").unwrap().scene(&lab, "in").unwrap();
    for pod in scene.pods() {
        add(&live.index, pod);
    }
    live.kernel
        .netns_changed(&live.index.live().iter().map(|pod| pod.netns).collect::<Vec<_>>());
    scene.inject(Family::V4, 3).unwrap();
    let events = live.settle(&scene.client);
    assert_eq!(events.len(), 3);
    assert!(
        events.iter().all(|event| event.observation.pid.is_none()),
        "{events:#?}"
    );
}

#[test]
fn without_stacks_an_event_has_none_and_names_no_process() {
    let Some(lab) = Lab::for_test("kernel-stacks") else {
        return;
    };
    let scene = Fault::find("nft-drop-output").unwrap().scene(&lab, "out").unwrap();
    let mut config = config();
    config.probes.insert(
        "packetloss".into(),
        sonde_common::config::Probe {
            stacks: false,
            ..Default::default()
        },
    );
    let Some(mut live) = start(&config, index_of(scene.pods()), None) else {
        return;
    };
    scene.inject(Family::V4, 3).unwrap();
    let events = live.settle(&scene.client);
    assert_eq!(events.len(), 3);
    for event in events {
        assert!(event.observation.stack.is_empty() && event.observation.pid.is_none());
        assert_eq!(event.observation.dport, Some(faults::TO_PORT));
    }
}

#[test]
fn what_the_bucket_holds_back_is_told_with_events_and_in_gaps() {
    let Some(lab) = Lab::for_test("kernel-bucket") else {
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
    let Some(lab) = Lab::for_test("kernel-still") else {
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
fn counts_of_a_pod_that_ended_do_not_go_to_the_next_owner_of_its_inode() {
    let Some(lab) = Lab::for_test("kernel-reuse") else {
        return;
    };
    let drop_one = |pod: &sonde_lab::Pod| {
        pod.run(|| {
            let closed = std::net::UdpSocket::bind(("127.0.0.1", 0))
                .unwrap()
                .local_addr()
                .unwrap();
            std::net::UdpSocket::bind(("127.0.0.1", 0))
                .unwrap()
                .send_to(b"x", closed)
                .unwrap();
        })
        .unwrap();
    };
    let Some(mut live) = start(&config(), PodIndex::default(), None) else {
        return;
    };
    let netns = |live: &Live| live.index.live().iter().map(|pod| pod.netns).collect::<Vec<_>>();
    let key = |name: &str| (name.to_owned(), "NO_SOCKET".to_owned(), "suspect".to_owned());
    let mut inodes = Vec::new();
    for round in 0..4 {
        let name = format!("pod{round}");
        let pod = lab.pod("reuse", &name).unwrap();
        inodes.push(pod.inode());
        let found = add(&live.index, &pod);
        live.kernel.netns_changed(&netns(&live));
        let own = key(&name);
        (0..=round).for_each(|_| drop_one(&pod));
        until("the drops to be counted", || {
            live.drops().get(&own) == Some(&(round + 1))
        });
        drop_one(&pod);
        pod.delete().unwrap();
        live.index.end(&found, now_ns());
        live.kernel.netns_changed(&netns(&live));
        let last = live.drops();
        assert_eq!(
            last.get(&own),
            Some(&(round + 2)),
            "what came after the last round is in one more"
        );
        assert_eq!(last.len(), 1, "{last:?}");
        assert!(live.drops().is_empty(), "and then it is over");
    }
    inodes.dedup();
    println!("inodes used: {inodes:?}");
}

#[test]
fn a_drop_on_the_hosts_side_is_told_of_the_pod_behind_it_and_counted_where_it_was() {
    let Some(lab) = Lab::for_test("kernel-host") else {
        return;
    };
    let node = lab.node("n1").unwrap();
    let (a, b) = (node.pod("host", "a").unwrap(), node.pod("host", "b").unwrap());
    let index = PodIndex::new(netns_of(node.host()));
    let host_device = |pod| {
        let text = node
            .host()
            .ip(&format!("-o link show {}", node.host_device(pod)))
            .unwrap();
        text.split(':').next().unwrap().trim().parse::<u32>().unwrap()
    };
    for pod in [&a, &b] {
        let found = add(&index, pod);
        let facts = Facts {
            addresses: vec![pod.address(Family::V4)],
            host_ifindexes: vec![host_device(pod)],
        };
        index.set_facts(Some(&found), facts, 0);
    }
    let mut config = config();
    config.pods.include_host = true;
    let Some(mut live) = start(&config, index, None) else {
        return;
    };
    let drops = "table inet t { chain c { type filter hook forward priority 0; udp dport 9 drop\n }\n }";
    node.host().nft(drops).unwrap();
    node.host()
        .nft("table netdev t { chain c { type filter hook ingress device veth2 priority 0; udp dport 10 drop\n }\n }")
        .unwrap();
    let to = b.socket(Family::V4, 10);
    a.run(|| {
        std::net::UdpSocket::bind("0.0.0.0:5000")
            .unwrap()
            .send_to(b"x", to)
            .unwrap()
    })
    .unwrap();
    let events = live.wait_for(1, |_| true);
    let seen = &events[0];
    assert_eq!(
        (name(&seen.subject), seen.peer.as_ref().map(name)),
        ("a".into(), Some("b".into())),
        "{seen:#?}"
    );
    assert_eq!(
        seen.observation.netns,
        Some(netns_of(node.host())),
        "the place is the host's"
    );
    assert_eq!(seen.observation.direction, Direction::Ingress);
    let counted = live.drops();
    assert_eq!(
        counted.get(&("node".into(), "NETFILTER_DROP".into(), "suspect".into())),
        Some(&1),
        "{counted:?}"
    );
}

#[test]
fn namespaces_that_are_not_listed_are_none_of_our_business() {
    let Some(lab) = Lab::for_test("kernel-others") else {
        return;
    };
    let scene = Fault::find("udp-closed-port").unwrap().scene(&lab, "mine").unwrap();
    let theirs = Fault::find("udp-closed-port").unwrap().scene(&lab, "theirs").unwrap();
    let Some(mut live) = start(&config(), index_of(scene.pods()), None) else {
        return;
    };
    theirs.inject(Family::V4, 5).unwrap();
    scene.inject(Family::V4, 2).unwrap();
    let events = live.settle(&scene.client);
    assert_eq!(events.len(), 2, "{events:#?}");
    assert_eq!(live.drops().values().sum::<i64>(), 3, "two, and the mark");
    assert_eq!(live.kernel.status().unknown_drops, 0);

    // The other way round: everybody's, but rows for pods only.
    let mut all = config();
    all.events.unknown_netns = UnknownNetns::Keep;
    let Some(mut live) = start(&all, index_of(scene.pods()), None) else {
        return;
    };
    theirs.inject(Family::V4, 5).unwrap();
    let server = netns_of(&theirs.server);
    let events = live.wait_for(5, |event| event.observation.netns == Some(server));
    assert!(
        events
            .iter()
            .filter(|e| e.observation.netns == Some(server))
            .all(|e| e.subject == Subject::Unknown)
    );
    assert!(live.drops().is_empty());
    assert!(live.kernel.status().unknown_drops >= 5);
}

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
    assert_eq!(signals.len(), 2);
    for signal in signals {
        assert!(
            signal.rung.is_none() && signal.reason.contains("no permission"),
            "{signal:?}"
        );
    }
    assert!(
        report.contains("no permission: loading programs needs CAP_BPF and CAP_PERFMON"),
        "{report}"
    );
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
    let off: Config = serde_json::from_str(r#"{"kernel":{"ebpf":"off"}}"#).unwrap();
    assert!(doctor(&off).to_string().contains("kernel.ebpf is off"));
}
