//! Pods from real network namespaces, and counters that real packets move.

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt as _;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use parking_lot::Mutex;
use sonde_collector::event::{NetnsKey, Subject};
use sonde_collector::handles::Wanted;
use sonde_collector::missing::Missing;
use sonde_collector::pods::names::Globs;
use sonde_collector::pods::netns::{NetnsSource, Settings, own_netns};
use sonde_collector::pods::{PodIndex, Targets};
use sonde_collector::probes::PROBES;
use sonde_collector::round::Rounds;
use sonde_collector::table::Table;
use sonde_common::paths::HostPaths;
use sonde_common::time::now_ns;
use sonde_lab::{Family, Lab, sockets, wait};

const PATIENCE: Duration = Duration::from_secs(10);

/// A running source of pods, as the collector has it.
struct Watched {
    source: Option<NetnsSource>,
    index: Arc<PodIndex>,
    targets: Arc<Targets>,
    keys: Arc<Mutex<Vec<NetnsKey>>>,
    visits: Arc<Mutex<Vec<Visited>>>,
}

/// A namespace that was visited, and where the visiting thread was: that namespace's inode, and its devices.
type Visited = (NetnsKey, u64, Vec<String>);

fn visited(netns: NetnsKey) -> Visited {
    let inode = std::fs::metadata("/proc/thread-self/ns/net").unwrap().ino();
    let devices = nix::net::if_::if_nameindex().unwrap();
    let names = devices.iter().map(|device| device.name().to_str().unwrap().to_owned());
    (netns, inode, names.collect())
}

impl Watched {
    fn new(globs: &[String], keep_handles: usize) -> Self {
        let paths = HostPaths::default();
        let index = Arc::new(PodIndex::new(own_netns(&paths).unwrap()));
        let targets = Arc::new(Targets::default());
        let keys = Arc::new(Mutex::new(Vec::new()));
        let visits = Arc::new(Mutex::new(Vec::new()));
        let settings = Settings {
            paths,
            globs: Some(Globs::new(globs).unwrap()),
            cri: None,
            node_name: "node-1".into(),
            include_host: true,
            pod: Wanted::of(PROBES),
            node: Wanted::of(PROBES),
            keep_handles,
            visits_due: Arc::default(),
            visit: Some(Box::new({
                let visits = Arc::clone(&visits);
                move |netns| visits.lock().push(visited(netns))
            })),
            on_change: Box::new({
                let keys = Arc::clone(&keys);
                move |live| *keys.lock() = live.to_vec()
            }),
        };
        let source = NetnsSource::start(
            settings,
            Arc::clone(&index),
            Arc::clone(&targets),
            Arc::new(Missing::default()),
        )
        .unwrap();
        Self {
            source: Some(source),
            index,
            targets,
            keys,
            visits,
        }
    }

    fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = self
            .index
            .live()
            .iter()
            .map(|p| format!("{}/{}", p.namespace, p.name))
            .collect();
        names.sort();
        names
    }

    fn wait_for(&self, names: &[&str]) {
        wait::until_true(&format!("pods {names:?}"), PATIENCE, || Ok(self.names() == names)).unwrap();
        // The keys follow at once, from the same thread.
        wait::until_true("keys", PATIENCE, || Ok(self.keys.lock().len() == names.len())).unwrap();
    }

    fn tables(&self) -> Vec<Table> {
        let (tables, gaps) = Rounds::new(PROBES).read(now_ns(), &self.targets.load());
        assert!(gaps.is_empty(), "{gaps:?}");
        tables
    }
}

fn name(subject: Subject) -> String {
    match subject {
        Subject::Node => "node".into(),
        Subject::Unknown => "unknown".into(),
        Subject::Pod(pod) => pod.name.clone(),
    }
}

/// Values of one column by pod and labels.
fn column(tables: &[Table], probe: &str, column: &str) -> HashMap<String, i64> {
    let table = tables.iter().find(|t| t.spec.name == probe).unwrap();
    let at = table.spec.columns.iter().position(|c| c.name == column).unwrap();
    let width = table.spec.labels.len();
    (0..table.len())
        .map(|row| {
            let labels = table.labels[row * width..][..width].join(" ");
            (
                format!("{} {labels}", name(table.subjects[row].clone())),
                table.columns[at][row],
            )
        })
        .collect()
}

#[test]
fn a_pod_is_visited_when_it_is_found_and_when_its_devices_change() {
    let Some(lab) = Lab::for_test("collector-visits") else {
        return;
    };
    let watched = Watched::new(&[lab.glob()], usize::MAX);
    let pod = lab.pod("demo", "one").unwrap();
    let last = || watched.visits.lock().last().cloned();
    wait::until_true("the first visit", PATIENCE, || Ok(last().is_some())).unwrap();
    pod.ip("link add later type bridge").unwrap();
    let seen = |device: &str| last().is_some_and(|(_, _, devices)| devices.iter().any(|name| name == device));
    wait::until_true("a visit for a new device", PATIENCE, || Ok(seen("later"))).unwrap();
    pod.ip("link del later").unwrap();
    wait::until_true("a visit for one that went", PATIENCE, || Ok(!seen("later"))).unwrap();
    for (netns, inode, _) in &*watched.visits.lock() {
        assert_eq!((u64::from(netns.inode), *inode), (pod.inode(), pod.inode()));
    }
}

#[test]
fn pods_come_and_go_with_their_namespaces() {
    let Some(lab) = Lab::for_test("collector-pods") else {
        return;
    };
    let namespace = |ns: &str| format!("{}-{ns}", lab.prefix());
    let there = lab.pod("demo", "before").unwrap();
    let other = lab.pod("other", "x").unwrap();
    let watched = Watched::new(&[format!("{}-demo.*", lab.prefix())], usize::MAX);
    let before = format!("{}/before", namespace("demo"));
    assert_eq!(
        watched.names(),
        std::slice::from_ref(&before),
        "the first look is done when the source has started"
    );

    let late = lab.pod("demo", "late.1").unwrap();
    let late_name = format!("{}/late.1", namespace("demo"));
    watched.wait_for(&[&before, &late_name]);
    let pod = watched.index.live().into_iter().find(|p| p.name == "late.1").unwrap();
    assert_eq!(u64::from(pod.netns.inode), late.inode());
    assert!(pod.netns.cookie != 0, "the kernel of this test has cookies");
    assert!(
        pod.sandbox
            .starts_with(&format!("netns/{}/{}@", late.netns(), pod.netns.cookie)),
        "{}",
        pod.sandbox
    );
    assert!(watched.keys.lock().contains(&pod.netns));
    assert!(!pod.has_ended());

    // Not in the glob: known as such, not as a pod.
    let excluded = NetnsKey {
        inode: other.inode() as u32,
        cookie: 0,
    };
    assert!(watched.index.is_excluded(excluded) && !watched.index.is_excluded(pod.netns));
    assert_eq!(name(watched.index.by_netns(excluded, now_ns())), "unknown");

    there.delete().unwrap();
    watched.wait_for(&[&late_name]);
    late.delete().unwrap();
    watched.wait_for(&[]);
    assert!(pod.has_ended() && pod.valid_to_ns.load(Ordering::Acquire) >= pod.valid_from_ns);
    // A late event still finds it.
    assert_eq!(name(watched.index.by_netns(pod.netns, now_ns())), "late.1");
    assert_eq!(watched.targets.load().len(), 1, "only the node is read");
}

#[test]
fn a_reused_inode_is_not_taken_for_the_one_before() {
    let Some(lab) = Lab::for_test("collector-inodes") else {
        return;
    };
    let watched = Watched::new(&[lab.glob()], usize::MAX);
    let mut seen: Vec<(NetnsKey, u64, String)> = Vec::new();
    // Another test may take the inode in between; alone, the second round has that of the first.
    let reused = |seen: &[(NetnsKey, u64, String)]| {
        seen.iter()
            .enumerate()
            .any(|(i, (a, ..))| seen[..i].iter().any(|(b, ..)| a.inode == b.inode))
    };
    for round in 0..100 {
        if round >= 4 && reused(&seen) {
            break;
        }
        let pod = lab.pod("reuse", &format!("pod{round}")).unwrap();
        let full = format!("{}/pod{round}", pod.namespace());
        watched.wait_for(&[&full]);
        let found = watched.index.live().remove(0);
        seen.push((found.netns, now_ns(), format!("pod{round}")));
        pod.delete().unwrap();
        watched.wait_for(&[]);
    }
    assert!(
        reused(&seen),
        "this kernel gave no inode twice in {} rounds",
        seen.len()
    );
    for (key, at_ns, pod) in &seen {
        assert_eq!(&name(watched.index.by_netns(*key, *at_ns)), pod, "by cookie");
        assert_eq!(
            &name(watched.index.by_netns(*key, now_ns())),
            pod,
            "by cookie, however late"
        );
        let without = NetnsKey { cookie: 0, ..*key };
        assert_eq!(&name(watched.index.by_netns(without, *at_ns)), pod, "by time");
        let stranger = NetnsKey {
            cookie: key.cookie + 1_000_000,
            ..*key
        };
        assert_eq!(name(watched.index.by_netns(stranger, *at_ns)), "unknown");
    }
}

#[test]
fn addresses_and_host_side_devices_name_their_pod() {
    let Some(lab) = Lab::for_test("collector-addresses") else {
        return;
    };
    let (a, b) = (lab.pod("net", "a").unwrap(), lab.pod("net", "b").unwrap());
    let watched = Watched::new(&[lab.glob()], usize::MAX);
    lab.link(&a, &b).unwrap();
    let owner = |ip| watched.index.by_ip(ip, now_ns()).map(name);
    for family in [Family::V4, Family::V6] {
        for pod in [&a, &b] {
            let ip = pod.address(family);
            wait::until_true(&format!("{ip} known"), PATIENCE, || {
                Ok(owner(ip).as_deref() == Some(pod.name()))
            })
            .unwrap();
        }
    }
    let pod = watched.index.live().into_iter().find(|p| p.name == "a").unwrap();
    assert!(watched.index.addresses(&pod).contains(&a.address(Family::V4)));

    // A pair with its other end in the namespace of this process: device numbers of the two are chosen apart.
    let device = format!("{}h", lab.prefix());
    let host = |args: &str| {
        let status = std::process::Command::new("ip").args(args.split(' ')).status().unwrap();
        assert!(status.success(), "ip {args}");
    };
    host(&format!(
        "link add {device} index 7341 type veth peer name up0 netns {} index 7342",
        a.netns()
    ));
    let behind = || watched.index.by_host_ifindex(7341, now_ns()).map(name);
    wait::until_true("pair known", PATIENCE, || Ok(behind().as_deref() == Some("a"))).unwrap();
    assert_eq!(watched.index.by_host_ifindex(7342, now_ns()).map(name), None);
    // A macvlan on that device names it too, but does not own it.
    b.ip("link set lo up").unwrap();
    host(&format!(
        "link add link {device} name {}m netns {} type macvlan",
        lab.prefix(),
        b.netns()
    ));
    assert_eq!(behind().as_deref(), Some("a"));
    let before_ns = now_ns();
    host(&format!("link del {device}"));
    wait::until_true("pair gone", PATIENCE, || Ok(behind().is_none())).unwrap();
    assert_eq!(
        watched.index.by_host_ifindex(7341, before_ns).map(name).as_deref(),
        Some("a")
    );

    let ip = b.address(Family::V4);
    b.delete().unwrap();
    wait::until_true("address gone", PATIENCE, || Ok(owner(ip).is_none())).unwrap();
}

#[test]
fn counters_move_by_exactly_what_was_sent() {
    let Some(lab) = Lab::for_test("collector-counters") else {
        return;
    };
    let (client, server) = (lab.pod("count", "client").unwrap(), lab.pod("count", "server").unwrap());
    lab.link(&client, &server).unwrap();
    let watched = Watched::new(&[lab.glob()], usize::MAX);
    for family in [Family::V4, Family::V6] {
        let label = if family == Family::V4 { "ipv4" } else { "ipv6" };
        let receiver = sockets::udp(&server, family, 4000).unwrap();
        let sender = sockets::udp(&client, family, 4001).unwrap();
        let before = watched.tables();
        let sent = sockets::send(&sender, server.socket(family, 4000), 37, 100);
        let closed = sockets::send(&sender, server.socket(family, 4999), 5, 100);
        assert_eq!((sent.accepted, closed.accepted), (37, 5));
        wait::until_true("datagrams arrived", PATIENCE, || {
            Ok(server.counters()?.get(no_ports(family)) >= Some(5))
        })
        .unwrap();
        // The kernel counts a datagram as received when a process reads it.
        assert_eq!(sockets::drain(&receiver).unwrap(), 37);
        let after = watched.tables();
        let moved = |probe: &str, of: &str, key: &str| column(&after, probe, of)[key] - column(&before, probe, of)[key];
        assert_eq!(moved("udp", "sent_datagrams", &format!("client {label}")), 42);
        assert_eq!(moved("udp", "received_datagrams", &format!("server {label}")), 37);
        assert_eq!(moved("udp", "no_ports", &format!("server {label}")), 5);
        assert_eq!(moved("udp", "sent_datagrams", &format!("server {label}")), 0);
        assert!(moved("netdev", "transmit_packets", "client eth0") >= 42);
        assert!(moved("netdev", "transmit_bytes", "client eth0") >= 42 * 100);
        assert_eq!(moved("netdev", "receive_packets", "server lo"), 0);
        assert!(moved("ip", "delivered_packets", &format!("server {label}")) >= 42);
    }

    let listener = sockets::tcp_listen(&server, Family::V4, 80, 5).unwrap();
    let before = watched.tables();
    let connected = sockets::tcp_connect(&client, 0, server.socket(Family::V4, 80), PATIENCE)
        .unwrap()
        .unwrap();
    let refused = sockets::tcp_connect(&client, 0, server.socket(Family::V4, 81), PATIENCE).unwrap();
    assert!(refused.is_err());
    let after = watched.tables();
    let moved = |of: &str, key: &str| column(&after, "tcp", of)[key] - column(&before, "tcp", of)[key];
    assert_eq!(
        (moved("active_opens", "client "), moved("attempt_fails", "client ")),
        (2, 1)
    );
    assert_eq!(
        (moved("passive_opens", "server "), moved("sent_resets", "server ")),
        (1, 1)
    );
    assert_eq!(column(&after, "tcp", "current_established")["server "], 1);
    assert_eq!(column(&after, "sock", "tcp_in_use")["server "], 2);
    // Of the whole node, so not of a pod.
    assert_eq!(
        column(&after, "sock", "tcp_memory_bytes")["server "],
        sonde_collector::table::ABSENT
    );
    assert!(column(&after, "sock", "tcp_memory_bytes")["node "] >= 0);
    drop((connected, listener));
}

fn no_ports(family: Family) -> &'static str {
    match family {
        Family::V4 => "Udp.NoPorts",
        Family::V6 => "Udp6.NoPorts",
    }
}

#[test]
fn without_handles_to_spare_the_numbers_are_the_same() {
    let Some(lab) = Lab::for_test("collector-handles") else {
        return;
    };
    let (client, server) = (lab.pod("few", "client").unwrap(), lab.pod("few", "server").unwrap());
    lab.link(&client, &server).unwrap();
    let sender = sockets::udp(&client, Family::V4, 0).unwrap();
    sockets::send(&sender, server.socket(Family::V4, 4000), 11, 10);
    wait::until_true("datagrams arrived", PATIENCE, || {
        Ok(server.counters()?.get("Udp.NoPorts") >= Some(11))
    })
    .unwrap();
    let kept = Watched::new(&[lab.glob()], usize::MAX);
    let reopened = Watched::new(&[lab.glob()], 0);
    assert!(
        reopened
            .targets
            .load()
            .iter()
            .filter(|t| t.netns.is_some())
            .all(|t| t.handles.kept() == 0)
    );
    let (kept, reopened) = (kept.tables(), reopened.tables());
    for (probe, of) in [
        ("udp", "no_ports"),
        ("udp", "sent_datagrams"),
        ("tcp", "sent_segments"),
        ("netdev", "receive_drops"),
    ] {
        assert_eq!(column(&kept, probe, of), column(&reopened, probe, of), "{probe} {of}");
    }
    assert_eq!(column(&reopened, "udp", "no_ports")["server ipv4"], 11);
    assert_eq!(column(&reopened, "udp", "sent_datagrams")["client ipv4"], 11);
}

#[test]
fn a_known_namespace_is_let_go_when_its_name_goes() {
    let Some(lab) = Lab::for_test("collector-letgo") else {
        return;
    };
    let (a, b) = (lab.pod("go", "a").unwrap(), lab.pod("go", "b").unwrap());
    lab.link(&a, &b).unwrap();
    let mut watched = Watched::new(&[lab.glob()], usize::MAX);
    a.delete().unwrap();
    // With the namespace its end of the pair goes, and with that the other end: nothing of ours holds it.
    wait::until_true("other end gone", PATIENCE, || Ok(!b.ip("-o link")?.contains("eth0"))).unwrap();
    drop(watched.source.take());
}
