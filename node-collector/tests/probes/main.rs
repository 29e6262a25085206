//! Every probe of `/proc` and netlink on the kernel of this machine: what happens in the lab moves its numbers by
//! exactly as much, and another program says the same. One file a probe.

mod conntrack;
mod icmp;
mod ip;
mod ipvs;
mod neigh;
mod netdev;
mod ports;
mod qdisc;
mod rdma;
mod sock;
mod sockmem;
mod softnet;
mod tcpext;
mod tcpsockets;
mod tcpsummary;
mod udp;

use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use sonde_collector::event::Subject;
use sonde_collector::handles::{self, Wanted};
use sonde_collector::pods::{self, Target};
use sonde_collector::probes::PROBES;
use sonde_collector::round::Rounds;
use sonde_collector::table::{ABSENT, Table};
use sonde_common::paths::HostPaths;
use sonde_common::time::now_ns;
use sonde_lab::{Family, Lab, Pod, sockets, wait};

const PATIENCE: Duration = Duration::from_secs(20);
const FAMILIES: [Family; 2] = Family::BOTH;

/// The rounds of a collector that knows some pods, and the node.
struct Collector {
    rounds: Rounds,
    targets: Vec<Arc<Target>>,
}

/// What one round read.
struct Round(Vec<Table>);

impl Collector {
    fn of(pods: &[&Pod]) -> Self {
        Self::with(pods, true)
    }

    fn with(pods: &[&Pod], keep: bool) -> Self {
        let paths = HostPaths::default();
        let wanted = Wanted::of(PROBES);
        let node = Target {
            subject: Subject::Node,
            handles: handles::open(&paths, &wanted, true),
            netns: None,
        };
        let pod = |pod: &&Pod| {
            let known = pods::Pod {
                sandbox: pod.netns().into(),
                namespace: pod.namespace().into(),
                name: pod.name().into(),
                ..pods::Pod::default()
            };
            Target {
                subject: Subject::Pod(Arc::new(known)),
                handles: pod.run(|| handles::open(&paths, &wanted, keep)).unwrap(),
                netns: Some(std::fs::File::open(pod.path()).unwrap().into()),
            }
        };
        Self {
            targets: [node].into_iter().chain(pods.iter().map(pod)).map(Arc::new).collect(),
            rounds: Rounds::new(PROBES),
        }
    }

    fn read(&mut self) -> Round {
        let (tables, gaps) = self.rounds.read(now_ns(), &self.targets);
        let stats = self.rounds.stats();
        let failing: Vec<_> = stats.lock().iter().filter(|s| s.failing).cloned().collect();
        assert!(gaps.is_empty() && failing.is_empty(), "{gaps:?} {failing:?}");
        Round(tables)
    }
}

impl Round {
    /// The value of a column in the row of a subject (a pod's name, or `node`) with these labels; `None` without the
    /// row or where it is absent there.
    fn get(&self, probe: &str, column: &str, subject: &str, labels: &[&str]) -> Option<i64> {
        let table = self.0.iter().find(|t| t.spec.name == probe)?;
        let at = table.spec.columns.iter().position(|c| c.name == column);
        let at = at.unwrap_or_else(|| panic!("{probe} has no column {column}"));
        let width = table.spec.labels.len();
        assert_eq!(labels.len(), width, "{probe}");
        let rows: Vec<usize> = (0..table.len())
            .filter(|row| {
                let name = match &table.subjects[*row] {
                    Subject::Pod(pod) => &pod.name,
                    _ => "node",
                };
                let mine = &table.labels[row * width..][..width];
                name == subject && mine.iter().zip(labels).all(|(is, wanted)| &**is == *wanted)
            })
            .collect();
        assert!(
            rows.len() <= 1,
            "{probe} of {subject} {labels:?} has {} rows",
            rows.len()
        );
        rows.first()
            .map(|row| table.columns[at][*row])
            .filter(|value| *value != ABSENT)
    }

    /// The same, and it must be there.
    fn value(&self, probe: &str, column: &str, subject: &str, labels: &[&str]) -> i64 {
        self.get(probe, column, subject, labels)
            .unwrap_or_else(|| panic!("{probe} has no {column} of {subject} {labels:?}"))
    }

    /// What a probe says of pods, row by row.
    fn of_pods(&self, probe: &str) -> Vec<String> {
        let Some(table) = self.0.iter().find(|t| t.spec.name == probe) else {
            return Vec::new();
        };
        let width = table.spec.labels.len();
        (0..table.len())
            .filter_map(|row| {
                let Subject::Pod(pod) = &table.subjects[row] else {
                    return None;
                };
                let values: Vec<String> = (table.spec.columns.iter().zip(&table.columns))
                    .map(|(column, values)| format!("{}={}", column.name, values[row]))
                    .collect();
                Some(format!(
                    "{} {:?} {values:?}",
                    pod.name,
                    &table.labels[row * width..][..width]
                ))
            })
            .collect()
    }

    /// Rows of a subject.
    fn rows(&self, probe: &str, subject: &str) -> usize {
        let table = self.0.iter().find(|t| t.spec.name == probe);
        let is = |of: &Subject| match of {
            Subject::Pod(pod) => pod.name == subject,
            _ => subject == "node",
        };
        table.map_or(0, |t| t.subjects.iter().filter(|s| is(s)).count())
    }
}

/// How much a counter grew between two rounds.
fn moved(before: &Round, after: &Round, probe: &str, column: &str, subject: &str, labels: &[&str]) -> i64 {
    after.value(probe, column, subject, labels) - before.value(probe, column, subject, labels)
}

fn label(family: Family) -> &'static str {
    match family {
        Family::V4 => "ipv4",
        Family::V6 => "ipv6",
    }
}

/// Client and server on one wire, each knowing the other's hardware address, so that nothing is sent but what a test
/// sends.
fn pair(name: &str) -> Option<(Lab, Pod, Pod)> {
    let lab = Lab::for_test(name)?;
    let (client, server) = (lab.pod("probe", "client").unwrap(), lab.pod("probe", "server").unwrap());
    lab.link(&client, &server).unwrap();
    introduce(&client, &server);
    introduce(&server, &client);
    for pod in [&client, &server] {
        // A device that came up tells its multicast groups for a while.
        pod.nft("table ip6 quiet {\n chain o {\n type filter hook output priority 0;\n icmpv6 type mld2-listener-report drop\n }\n}\n")
            .unwrap();
    }
    Some((lab, client, server))
}

/// Of `eth0`.
fn hardware_address(pod: &Pod) -> String {
    let link = pod.ip("-o link show eth0").unwrap();
    link.split("link/ether ")
        .nth(1)
        .unwrap()
        .split(' ')
        .next()
        .unwrap()
        .into()
}

/// Makes `far` a permanent neighbour of `pod`, both behind their `eth0`.
fn introduce(pod: &Pod, far: &Pod) {
    let mac = hardware_address(far);
    for family in FAMILIES {
        pod.ip(&format!(
            "neigh replace {} lladdr {mac} dev eth0 nud permanent",
            far.address(family)
        ))
        .unwrap();
    }
}

/// A rule of nftables in table `inet t`, at a hook and its priority; counter object `told` can be named in it.
fn rule(pod: &Pod, hook: &str, priority: i32, rule: &str) {
    pod.nft(&format!(
        "table inet t {{\n counter told {{\n }}\n chain {hook} {{\n type filter hook {hook} priority {priority};\n {rule}\n }}\n}}\n"
    ))
    .unwrap();
}

fn connect(from: &Pod, to: &Pod, family: Family, port: u16) -> TcpStream {
    sockets::tcp_connect(from, 0, to.socket(family, port), PATIENCE)
        .unwrap()
        .unwrap()
}

/// What `ss -H -tan` says with these words, line by line.
fn ss(pod: &Pod, words: &str) -> Vec<String> {
    let args: Vec<&str> = ["-H", "-t", "-n"]
        .into_iter()
        .chain(words.split_ascii_whitespace())
        .collect();
    let text = pod.command("ss", &args).unwrap();
    text.lines()
        .map(str::to_owned)
        .filter(|l| !l.trim().is_empty())
        .collect()
}

/// One of the kernel's own counters, as `nstat` shows it.
fn nstat(pod: &Pod, name: &str) -> i64 {
    let text = pod.command("nstat", &["-asz", name]).unwrap();
    let line = text
        .lines()
        .find(|line| line.starts_with(name))
        .unwrap_or_else(|| panic!("nstat: {text}"));
    line.split_ascii_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Waits until rounds say so.
fn until(collector: &mut Collector, what: &str, mut is_so: impl FnMut(&Round) -> bool) -> Round {
    let mut last = None;
    wait::until_true(what, PATIENCE, || {
        let round = collector.read();
        let found = is_so(&round);
        last = Some(round);
        Ok(found)
    })
    .unwrap();
    last.expect("a round was read")
}
