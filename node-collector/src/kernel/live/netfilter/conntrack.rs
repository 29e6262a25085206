//! Drops of connection tracking that has no room, told by its counter.

use super::*;

/// One setting for the whole machine, held against the entries of each namespace on their own.
const LIMIT: &str = "/proc/sys/net/netfilter/nf_conntrack_max";
/// More entries than anything else that runs here has in one namespace.
const ENTRIES: u16 = 400;

/// The machine's limit, lowered until this is dropped.
struct Lowered(String);

impl Lowered {
    fn to(limit: u16) -> Self {
        let before = std::fs::read_to_string(LIMIT).unwrap();
        std::fs::write(LIMIT, limit.to_string()).unwrap();
        Self(before)
    }
}

impl std::ops::Drop for Lowered {
    fn drop(&mut self) {
        std::fs::write(LIMIT, &self.0).unwrap();
    }
}

/// `drop` of all CPUs, as the kernel's file has it.
fn not_tracked(pod: &LabPod) -> u64 {
    counter(pod, "drop")
}

fn counter(pod: &LabPod, name: &str) -> u64 {
    let text = pod
        .run(|| std::fs::read_to_string("/proc/thread-self/net/stat/nf_conntrack").unwrap())
        .unwrap();
    let mut lines = text.lines();
    let names: Vec<&str> = lines.next().unwrap().split_ascii_whitespace().collect();
    let at = names.iter().position(|title| *title == name).unwrap();
    let value = |line: &str| u64::from_str_radix(line.split_ascii_whitespace().nth(at).unwrap(), 16).unwrap();
    lines.map(value).sum()
}

#[test]
fn a_full_table_is_told_where_its_counter_moved_and_not_where_it_stood_still() {
    let Some(lab) = lab_alone("nft-conntrack") else { return };
    if !std::path::Path::new(LIMIT).exists() {
        println!("SKIPPED: this kernel has no connection tracking");
        return;
    }
    let scene = Fault::find("nft-drop-input").unwrap().scene(&lab, "full").unwrap();
    let Some(mut explained) = explain(&config(), &scene.pods()) else {
        return;
    };
    let track = "table inet t { chain c { type filter hook input priority 0; ct state new accept\n }\n }";
    scene.server.nft(track).unwrap();
    let open = scene
        .server
        .run(|| std::net::UdpSocket::bind(("0.0.0.0", TO_PORT)).unwrap())
        .unwrap();
    let socket = sockets::udp(&scene.client, Family::V4, FROM_PORT).unwrap();
    let send = |port: u16| {
        socket.send_to(b"x", scene.server.socket(Family::V4, port)).unwrap();
    };
    // To a port that is open, and to others whose packets are dropped after they are tracked.
    for n in 0..ENTRIES {
        send(20_000 + n);
    }
    let others = explained.live.wait_for(ENTRIES.into(), |event| {
        event.observation.reason.as_deref() == Some("NO_SOCKET")
    });
    assert!(others.len() >= ENTRIES.into());

    let mut told = Vec::new();
    {
        let _lowered = Lowered::to(ENTRIES / 2);
        let mut port = 30_000;
        for _ in 0..2 {
            // Where the kernel finds another entry near the new one's place, it makes room by throwing that one out.
            let counters = || (not_tracked(&scene.server), counter(&scene.server, "early_drop"));
            loop {
                let before = counters();
                port += 1;
                send(port);
                until("the kernel to drop it or to make room", || counters() != before);
                if counters().0 != before.0 {
                    break;
                }
            }
            let event = explained.next(1).remove(0);
            let what = line(&event);
            assert_eq!(event.observation.reason.as_deref(), Some("NETFILTER_DROP"), "{what}");
            assert_eq!(event.observation.dport, Some(port), "{what}");
            assert_eq!(attribute(&event, "hook"), Some("prerouting"), "{what}");
            let value = attribute(&event, "conntrack_table_full").unwrap_or_else(|| panic!("{what}"));
            told.push(value.to_owned());
        }
    }
    assert_eq!(not_tracked(&scene.server), 2, "the kernel's own count");
    assert!(
        told[0].starts_with("1 not tracked by ") && told[0].contains("not read before"),
        "{}",
        told[0]
    );
    assert!(told[1].starts_with("1 not tracked between "), "{}", told[1]);
    assert!(told[1].ends_with(" of 200 entries"), "{}", told[1]);

    let legacy = ["-t", "raw", "-A", "PREROUTING", "-p", "udp", "-j", "DROP"];
    if let Err(error) = scene.server.command("iptables-legacy", &legacy) {
        println!("SKIPPED: this kernel has no iptables-legacy: {error}");
        return;
    }
    send(TO_PORT);
    let event = explained.next(1).remove(0);
    let what = line(&event);
    assert_eq!(attribute(&event, "hook"), Some("prerouting"), "{what}");
    assert_eq!(attribute(&event, "conntrack_table_full"), None, "{what}");
    assert_eq!(attribute(&event, "conntrack_drops"), None, "{what}");
    drop(open);
}
