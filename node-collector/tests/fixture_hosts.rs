//! Hosts made of files, for kernels that are not at hand: a whole `/proc` in, the metrics page out.
//!
//! The values count up in the order of the file, so that a column taken for another one shows. After a change on purpose:
//! `SONDE_GOLDEN=write cargo test -p sonde-collector --test fixture_hosts`, then read the difference.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use sonde_collector::event::Subject;
use sonde_collector::pods::{Pod, Target};
use sonde_collector::probes::PROBES;
use sonde_collector::procfs::{NetFile, NetFiles};
use sonde_collector::round::Rounds;
use sonde_collector::serve::metrics::kubeskoop::entries;
use sonde_collector::serve::metrics::{Exposition, render};
use sonde_collector::table::Table;
use sonde_common::config::{MetricNames, Metrics};
use sonde_common::paths::HostPaths;
use sonde_common::prom::{Format, Page};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn target(subject: Subject, dir: PathBuf) -> Arc<Target> {
    Arc::new(Target {
        subject,
        files: NetFiles::open(&dir, &NetFile::ALL, true),
        dir,
        netns: None,
    })
}

/// The metrics page of a host, and the errors of its probes as `probe kind count`.
fn page(host: &str) -> (String, Vec<String>) {
    let (tables, errors) = tables(host);
    let mut page = Page::new();
    render(&mut page, "node-1", &tables);
    (page.finish(), errors)
}

fn tables(host: &str) -> (Vec<Table>, Vec<String>) {
    let paths = HostPaths::below(&fixture(host));
    let mut targets = vec![target(Subject::Node, paths.proc.join("thread-self/net"))];
    let pod = paths.proc.join("4242/net");
    if pod.exists() {
        let sandbox = Pod {
            sandbox: "s".into(),
            namespace: "demo".into(),
            name: "server".into(),
            ..Pod::default()
        };
        targets.push(target(Subject::Pod(Arc::new(sandbox)), pod));
    }
    let mut rounds = Rounds::new(PROBES);
    let (tables, _) = rounds.read(1_700_000_000_000_000_000, &targets);
    let stats = rounds.stats();
    let errors = stats
        .lock()
        .iter()
        .filter(|s| s.failing)
        .map(|s| format!("{}: {}", s.name, s.last_error))
        .collect();
    (tables, errors)
}

fn assert_golden(host: &str, text: &str) {
    let golden = fixture(host).join("metrics.prom");
    if std::env::var_os("SONDE_GOLDEN").is_some_and(|v| v == "write") {
        std::fs::write(&golden, text).unwrap();
    }
    let expected = std::fs::read_to_string(&golden).unwrap();
    for (line, (is, should)) in text.lines().zip(expected.lines()).enumerate() {
        assert_eq!(is, should, "{}:{}", golden.display(), line + 1);
    }
    assert_eq!(text.lines().count(), expected.lines().count(), "{}", golden.display());
}

/// The value of a series.
fn value<'a>(text: &'a str, series: &str) -> Option<&'a str> {
    text.lines()
        .find_map(|line| line.strip_prefix(series)?.strip_prefix(' '))
}

#[test]
fn linux_6_18_with_a_pod() {
    let (text, errors) = page("linux-6.18");
    assert_eq!(errors, [""; 0]);
    assert_golden("linux-6.18", &text);
    let node = "k8s_node=\"node-1\",k8s_namespace=\"\",k8s_pod=\"\"";
    let pod = "k8s_node=\"node-1\",k8s_namespace=\"demo\",k8s_pod=\"server\"";
    for (series, expected) in [
        (
            format!("sonde_netdev_receive_bytes_total{{{pod},device=\"eth0\"}}"),
            "24000",
        ),
        (
            format!("sonde_netdev_transmit_carrier_errors_total{{{pod},device=\"eth0\"}}"),
            "24014",
        ),
        (format!("sonde_ip_forwarding{{{node},family=\"ipv4\"}}"), "1"),
        (format!("sonde_sock_tcp_memory_bytes{{{node}}}"), "1196032"),
        (format!("sonde_sock_tcp_in_use{{{pod}}}"), "20001"),
        (format!("sonde_softnet_processed_total{{{node}}}"), "4294967300"),
        (format!("sonde_softnet_backlog_packets{{{node}}}"), "7"),
    ] {
        assert_eq!(value(&text, &series), Some(expected), "{series}");
    }
    // Numbers of the node stand once.
    for family in [
        "sonde_softnet_processed_total",
        "sonde_sock_tcp_memory_bytes",
        "sonde_sock_tcp_orphans",
    ] {
        assert_eq!(
            text.lines()
                .filter(|line| line.starts_with(&format!("{family}{{")))
                .count(),
            1,
            "{family}"
        );
    }
}

#[test]
fn linux_4_19_without_ipv6() {
    let (text, errors) = page("linux-4.19-without-ipv6");
    assert_eq!(errors, [""; 0], "what the kernel does not have is no error");
    assert_golden("linux-4.19-without-ipv6", &text);
    assert!(!text.contains("ipv6") && !text.contains("tcp6"));
    for absent in [
        "sonde_tcpext_receive_queue_drops",
        "sonde_udp_memory_errors",
        "sonde_softnet_backlog",
        "sonde_ip_transmitted_packets",
    ] {
        assert!(!text.contains(absent), "{absent}");
    }
    assert!(text.contains("sonde_tcpext_listen_overflows_total{"));
}

#[test]
fn a_newer_kernel_with_broken_files() {
    let (text, mut errors) = page("broken-and-newer");
    errors.sort();
    assert_eq!(
        errors,
        [
            "ip: netstat: line 4: 1 names but 0 values",
            "netdev: dev: line 3: 16 names but 3 values",
            "sock: sockstat6: line 1: expected a number, found \"x\"",
            "tcpext: netstat: line 2: 2 names but 1 values",
        ]
    );
    assert_golden("broken-and-newer", &text);
    // What can be read is there all the same.
    let node = "k8s_node=\"node-1\",k8s_namespace=\"\",k8s_pod=\"\"";
    assert_eq!(value(&text, &format!("sonde_sock_used{{{node}}}")), Some("17"));
    assert!(text.contains("sonde_ip_received_packets_total{") && text.contains("family=\"ipv6\""));
}

#[test]
fn promtool_accepts_every_page() {
    for host in ["linux-6.18", "linux-4.19-without-ipv6", "broken-and-newer"] {
        let golden = std::fs::File::open(fixture(host).join("metrics.prom")).unwrap();
        let promtool = std::process::Command::new("promtool")
            .args(["check", "metrics"])
            .stdin(golden)
            .output();
        let Ok(output) = promtool else {
            println!("SKIPPED: promtool is not installed");
            return;
        };
        assert!(
            output.status.success() && output.stderr.is_empty(),
            "{host}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
}

/// The page of a host under KubeSkoop's names alone.
fn kubeskoop(host: &str) -> String {
    let config = Metrics {
        names: vec![MetricNames::Kubeskoop],
        ..Metrics::default()
    };
    let exposition = Exposition::new("node-1", &config).unwrap();
    let mut text = String::new();
    exposition.write(&tables(host).0, Format::Text, &mut |piece| text.push_str(piece));
    text
}

const NODE: &str = "k8s_node=\"node-1\",k8s_namespace=\"\",k8s_pod=\"\"";
const POD: &str = "k8s_node=\"node-1\",k8s_namespace=\"demo\",k8s_pod=\"server\"";

/// Name and value of each counter of a group such as `Tcp:`, by a reading of its own.
fn group(file: &Path, group: &str) -> Vec<(String, String)> {
    let text = std::fs::read_to_string(file).unwrap();
    let mut lines = text.lines().filter_map(|line| line.strip_prefix(group));
    let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
    let pairs = names.split_whitespace().zip(values.split_whitespace());
    pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

#[test]
fn kubeskoops_names_have_the_values_of_the_kernels_files() {
    let text = kubeskoop("linux-6.18");
    let net = |dir: &str| fixture("linux-6.18").join("proc").join(dir).join("net");
    let mut checked = 0;
    for (labels, dir) in [(NODE, "thread-self"), (POD, "4242")] {
        for (probe, file, title) in [
            ("tcp", "snmp", "Tcp:"),
            ("udp", "snmp", "Udp:"),
            ("ip", "snmp", "Ip:"),
            ("tcpext", "netstat", "TcpExt:"),
        ] {
            // Its names are the kernel's in lower case.
            for (name, expected) in group(&net(dir).join(file), title) {
                let name = format!("kubeskoop_{probe}_{}", name.to_lowercase());
                if entries().any(|entry| entry.name == name) {
                    let series = format!("{name}{{{labels}}}");
                    assert_eq!(value(&text, &series), Some(expected.as_str()), "{series}");
                    checked += 1;
                }
            }
        }
    }
    assert_eq!(checked, 2 * (10 + 8 + 19 + 32));
    let node = |name: &str| value(&text, &format!("kubeskoop_{name}{{{NODE}}}"));
    for (name, expected) in [
        // eth0 and the veth, not lo.
        ("netdev_rxbytes", "29000"),
        ("netdev_rxpackets", "29002"),
        ("netdev_rxerrors", "29004"),
        ("netdev_rxdropped", "29006"),
        ("netdev_txbytes", "29016"),
        ("netdev_txpackets", "29018"),
        ("netdev_txerrors", "29020"),
        ("netdev_txdropped", "29022"),
        ("sock_inuse", "20012"),
        ("sock_orphan", "7"),
        ("sock_tw", "10002"),
        ("sock_alloc", "9"),
        ("sock_mem", "292"),
        ("softnet_processed", "4294967300"),
        ("softnet_dropped", "1"),
    ] {
        assert_eq!(node(name), Some(expected), "{name}");
    }
    assert_eq!(
        value(&text, &format!("kubeskoop_netdev_rxbytes{{{POD}}}")),
        Some("24000")
    );
    // Where KubeSkoop told each pod the node's number as its own, or nothing, pods have none.
    assert!(!text.contains(&format!("kubeskoop_sock_inuse{{{POD}}}")));
    assert!(!text.contains(&format!("kubeskoop_softnet_processed{{{POD}}}")));
}

#[test]
fn kubeskoops_names_are_absent_where_the_kernel_has_nothing() {
    let text = kubeskoop("linux-4.19-without-ipv6");
    assert!(
        !text.contains("kubeskoop_tcpext_tcprcvqdrop"),
        "Linux 4.20 has it first"
    );
    assert!(text.contains(&format!("kubeskoop_sock_inuse{{{NODE}}}")), "IPv4 alone");
    let broken = kubeskoop("broken-and-newer");
    assert!(!broken.contains("kubeskoop_tcpext_"), "its file is broken");
}

/// What the panels of KubeSkoop's two dashboards ask for.
const DASHBOARDS: &str = "packetloss_total netdev_rxbytes netdev_txbytes netdev_txerrors netdev_rxerrors netdev_txpackets \
    netdev_rxpackets tcpsummary_tcptimewaitconn tcpsummary_tcpestablishedconn tcpsummary_tcpclosewaitconn \
    tcpsummary_tcpsynsentconn tcpsummary_tcpsynrecvconn sock_inuse sock_orphan tcpsummary_tcptxqueue tcpsummary_tcprxqueue \
    tcp_passiveopens tcp_activeopens tcpext_listendrops tcpext_listenoverflows tcpext_tcpsynretrans tcpext_tcprcvqdrop \
    tcpext_pfmemallocdrop tcpext_tcpbacklogdrop udp_rcvbuferrors udp_sndbuferrors udp_noports udp_inerrors \
    rdma_erdma_hw_rx_bytes_cnt rdma_erdma_hw_tx_bytes_cnt rdma_erdma_hw_rx_packets_cnt rdma_erdma_hw_tx_packets_cnt rdma_qp \
    rdma_mr rdma_erdma_hw_bps_limit_drop_cnt rdma_erdma_hw_pps_limit_drop_cnt rdma_erdma_hw_rx_bps_limit_drop_cnt \
    rdma_erdma_hw_rx_pps_limit_drop_cnt";

#[test]
fn kubeskoops_dashboards_find_what_they_ask_for() {
    let (text, (tables, _)) = (kubeskoop("linux-6.18"), tables("linux-6.18"));
    let mut seen = std::collections::HashSet::new();
    for name in DASHBOARDS.split_whitespace() {
        let name = format!("kubeskoop_{name}");
        let entry = entries().find(|entry| entry.name == name);
        let entry = entry.unwrap_or_else(|| panic!("{name} is on a dashboard and nowhere else"));
        // Of what the fixture has; counters of RDMA are there for the driver's devices alone.
        let table = tables.iter().find(|table| table.spec.name == entry.probe);
        for subject in table
            .filter(|_| entry.driver.is_none())
            .iter()
            .flat_map(|table| &table.subjects)
        {
            let labels = match subject {
                Subject::Pod(_) if entry.of_node => continue,
                Subject::Pod(_) => POD,
                Subject::Node | Subject::Unknown => NODE,
            };
            assert!(value(&text, &format!("{name}{{{labels}}}")).is_some(), "{name}");
            seen.insert(name.clone());
        }
    }
    assert!(seen.len() >= 20, "{seen:?}");
}
