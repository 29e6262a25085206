//! Hosts made of files, for kernels that are not at hand: a whole `/proc` in, the metrics page out.
//!
//! The values count up in the order of the file, so that a column taken for another one shows. After a change on purpose:
//! `SONDE_GOLDEN=write cargo test -p sonde-collector --test fixture_hosts`, then read the difference.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use sonde_collector::event::Subject;
use sonde_collector::handles::{self, Netlink, Wanted};
use sonde_collector::netlink::socket::Transport;
use sonde_collector::pods::{Pod, Target};
use sonde_collector::probes::PROBES;
use sonde_collector::procfs::ReadError;
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

/// A dump as it was recorded, message after message, in the place of a socket.
#[derive(Debug)]
struct Recorded {
    dump: Vec<u8>,
    sequence: AtomicU32,
    told: AtomicBool,
}

impl Transport for Recorded {
    fn send(&self, message: &[u8]) -> io::Result<()> {
        self.sequence.store(
            u32::from_ne_bytes(message[8..12].try_into().unwrap()),
            Ordering::Relaxed,
        );
        self.told.store(false, Ordering::Relaxed);
        Ok(())
    }

    fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.told.swap(true, Ordering::Relaxed) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let mut dump = self.dump.clone();
        let mut at = 0;
        while let Some(len) = dump.get(at..at + 4) {
            let len = u32::from_ne_bytes(len.try_into().unwrap()) as usize;
            dump[at + 8..at + 12].copy_from_slice(&self.sequence.load(Ordering::Relaxed).to_ne_bytes());
            at += len.div_ceil(4) * 4;
        }
        buffer[..dump.len()].copy_from_slice(&dump);
        Ok(dump.len())
    }

    fn device_name(&self, ifindex: u32) -> io::Result<String> {
        Ok(format!("dev{ifindex}"))
    }
}

fn target(subject: Subject, root: &Path) -> Arc<Target> {
    let mut handles = handles::open(&HostPaths::below(root), &Wanted::all().without_netlink(), true);
    for family in Netlink::ALL {
        if let Ok(dump) = std::fs::read(root.join("netlink").join(family.name())) {
            let recorded = Recorded {
                dump,
                sequence: AtomicU32::new(0),
                told: AtomicBool::new(false),
            };
            handles = handles.with_transport(family, Box::new(recorded));
        }
    }
    Arc::new(Target {
        subject,
        handles,
        netns: None,
    })
}

/// The metrics page of a host, and the errors of its probes: name and the last one.
fn page(host: &str) -> (String, Vec<String>) {
    let (tables, errors) = tables(host);
    let mut page = Page::new();
    render(&mut page, "node-1", &tables);
    (page.finish(), errors)
}

fn tables(host: &str) -> (Vec<Table>, Vec<String>) {
    let root = fixture(host);
    let mut targets = vec![target(Subject::Node, &root)];
    // The same host as it looks from inside the pod.
    let pod = root.join("pod");
    if pod.exists() {
        let sandbox = Pod {
            sandbox: "s".into(),
            namespace: "demo".into(),
            name: "server".into(),
            ..Pod::default()
        };
        targets.push(target(Subject::Pod(Arc::new(sandbox)), &pod));
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

/// What a probe could not read in the first round of a host.
fn errors_by_kind(host: &str, probe: &str) -> Vec<(&'static str, u64)> {
    let mut rounds = Rounds::new(PROBES);
    rounds.read(1, &[target(Subject::Node, &fixture(host))]);
    let stats = rounds.stats();
    let stats = stats.lock();
    let of = stats.iter().find(|s| s.name == probe).unwrap();
    let kinds = ReadError::KINDS.into_iter().zip(of.errors);
    kinds.filter(|(_, count)| *count > 0).collect()
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
        // Of recorded dumps: 6 established, one of them of IPv6 with its two ends; what ss said then.
        (format!("sonde_tcpsummary_sockets{{{pod},state=\"established\"}}"), "6"),
        (format!("sonde_tcpsummary_sockets{{{pod},state=\"fin_wait2\"}}"), "1"),
        (format!("sonde_tcpsockets_receive_queue_bytes{{{pod}}}"), "1078"),
        (format!("sonde_tcpsockets_accept_queues_full{{{pod}}}"), "1"),
        (format!("sonde_tcpsockets_accept_queue{{{pod}}}"), "2"),
        (
            format!("sonde_qdisc_sent_packets_total{{{pod},device=\"dev1\",kind=\"pfifo\"}}"),
            "18",
        ),
        (format!("sonde_ports_available{{{pod}}}"), "28221"),
        (format!("sonde_ports_tcp_in_use{{{pod}}}"), "4"),
        // Two CPUs: entries are not summed, the rest is.
        (format!("sonde_conntrack_entries{{{pod}}}"), "35000"),
        (format!("sonde_conntrack_invalid_total{{{pod}}}"), "71008"),
        (
            format!("sonde_neigh_table_fulls_total{{{node},family=\"ipv6\"}}"),
            "65024",
        ),
        // Packets are packets.
        (format!("sonde_ipvs_received_packets_total{{{node}}}"), "33001"),
        (format!("sonde_ipvs_received_bytes_total{{{node}}}"), "33003"),
        (
            format!("sonde_rdma_value_total{{{node},device=\"mlx5_0\",port=\"1\",counter=\"out_of_buffer\"}}"),
            "34100",
        ),
        (format!("sonde_sockmem_tcp_under_pressure{{{node}}}"), "1"),
        (format!("sonde_sockmem_tcp_limit_bytes{{{node}}}"), "1228800"),
    ] {
        assert_eq!(value(&text, &series), Some(expected), "{series}");
    }
    // Numbers of the node stand once.
    for family in [
        "sonde_softnet_processed_total",
        "sonde_sock_tcp_memory_bytes",
        "sonde_sock_tcp_orphans",
        "sonde_sockmem_tcp_limit_bytes",
        "sonde_ipvs_connections_total",
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
        // Its tcp_info ends before the windows.
        "sonde_tcpsockets_zero_send_window",
        "sonde_tcpsockets_zero_receive_window",
        "sonde_conntrack_clashes_resolved",
        "sonde_icmp_rate_limited_host",
        "sonde_rdma",
    ] {
        assert!(!text.contains(absent), "{absent}");
    }
    assert!(text.contains("sonde_tcpext_listen_overflows_total{"));
    let node = "k8s_node=\"node-1\",k8s_namespace=\"\",k8s_pod=\"\"";
    for (series, expected) in [
        (format!("sonde_tcpsummary_sockets{{{node},state=\"established\"}}"), "4"),
        (format!("sonde_tcpsockets_rtt_connections{{{node}}}"), "4"),
        (format!("sonde_conntrack_invalid_total{{{node}}}"), "30004"),
    ] {
        assert_eq!(value(&text, &series), Some(expected), "{series}");
    }
}

#[test]
fn a_newer_kernel_with_broken_files() {
    let (text, mut errors) = page("broken-and-newer");
    errors.sort();
    assert_eq!(
        errors,
        [
            "conntrack: sys/net/netfilter/nf_conntrack_max: line 1: expected a number, found \"x\"",
            "ip: netstat: line 4: 1 names but 0 values",
            "ipvs: ip_vs_stats: line 1: expected the titles of connections, packets and bytes",
            "neigh: stat/ndisc_cache: line 2: 3 names but 2 values",
            "netdev: dev: line 3: 16 names but 3 values",
            "ports: sys/net/ipv4/ip_local_port_range: line 1: 2 names but 1 values",
            "qdisc: rtnetlink: dump truncated, 3 times",
            "rdma: sys/class/infiniband: cannot be read: mlx5_0 port 1: link_downed: expected a number",
            "sock: sockstat6: line 1: expected a number, found \"x\"",
            "sockmem: sys/net/ipv4/tcp_mem: line 1: 3 names but 2 values",
            "tcpext: netstat: line 2: 2 names but 1 values",
        ]
    );
    assert_golden("broken-and-newer", &text);
    // What can be read is there all the same.
    let node = "k8s_node=\"node-1\",k8s_namespace=\"\",k8s_pod=\"\"";
    assert_eq!(value(&text, &format!("sonde_sock_used{{{node}}}")), Some("17"));
    assert!(text.contains("sonde_ip_received_packets_total{") && text.contains("family=\"ipv6\""));
    // The half of a dump is none, and is counted as what it is.
    assert_eq!(errors_by_kind("broken-and-newer", "qdisc"), [("dump_truncated", 1)]);
    assert!(!text.contains("sonde_qdisc_"));
    // Longer structures and unknown attributes do no harm.
    let established = format!("sonde_tcpsummary_sockets{{{node},state=\"established\"}}");
    assert_eq!(value(&text, &established), Some("6"));
    assert_eq!(
        value(&text, &format!("sonde_conntrack_entries{{{node}}}")),
        Some("7"),
        "without statistics"
    );
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
    let net = |root: &str| fixture("linux-6.18").join(root).join("proc/thread-self/net");
    let mut checked = 0;
    for (labels, root) in [(NODE, ""), (POD, "pod")] {
        for (probe, file, title) in [
            ("tcp", "snmp", "Tcp:"),
            ("udp", "snmp", "Udp:"),
            ("ip", "snmp", "Ip:"),
            ("tcpext", "netstat", "TcpExt:"),
        ] {
            // Its names are the kernel's in lower case.
            for (name, expected) in group(&net(root).join(file), title) {
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
fn kubeskoops_names_have_the_values_of_dumps_and_of_the_nodes_files() {
    let text = kubeskoop("linux-6.18");
    let both = |first: u32, second: u32| (u64::from(first) + u64::from(second)).to_string();
    let (erdma, mlx5) = ("device=\"erdma_0\",type=\"erdma\"", "device=\"mlx5_0\",type=\"mlx5\"");
    for (series, expected) in [
        (format!("tcpsummary_tcpestablishedconn{{{POD}}}"), "6".to_owned()),
        (format!("tcpsummary_tcpclosewaitconn{{{POD}}}"), "1".into()),
        (format!("tcpsummary_tcpsynrecvconn{{{POD}}}"), "0".into()),
        (format!("tcpsummary_tcptimewaitconn{{{POD}}}"), "0".into()),
        (format!("tcpsummary_tcprxqueue{{{POD}}}"), "1078".into()),
        (format!("tcpsummary_tcptxqueue{{{POD}}}"), "0".into()),
        (format!("qdisc_bytes{{{POD}}}"), (2389 + 128).to_string()),
        (format!("qdisc_packets{{{POD}}}"), (18 + 2).to_string()),
        (format!("qdisc_qlen{{{POD}}}"), "0".into()),
        // One line a CPU; the number of entries stands in each.
        (format!("conntrack_entries{{{NODE}}}"), 0x7530.to_string()),
        (format!("conntrack_maxentries{{{NODE}}}"), "262144".into()),
        (format!("conntrack_found{{{NODE}}}"), both(0x7532, 0x791a)),
        (format!("conntrack_invalid{{{NODE}}}"), both(0x7534, 0x791c)),
        (format!("conntrack_insert{{{NODE}}}"), both(0x7538, 0x7920)),
        (format!("conntrack_insertfailed{{{NODE}}}"), both(0x7539, 0x7921)),
        (format!("conntrack_drop{{{NODE}}}"), both(0x753a, 0x7922)),
        (format!("conntrack_earlydrop{{{NODE}}}"), both(0x753b, 0x7923)),
        (format!("conntrack_error{{{NODE}}}"), both(0x753c, 0x7924)),
        (format!("conntrack_searchrestart{{{NODE}}}"), both(0x7540, 0x7928)),
        (format!("ipvs_connections{{{NODE}}}"), 0x80e8.to_string()),
        (format!("ipvs_incomingpackets{{{NODE}}}"), 0x80e9.to_string()),
        (format!("ipvs_outgoingpackets{{{NODE}}}"), 0x80ea.to_string()),
        (format!("ipvs_incomingbytes{{{NODE}}}"), 0x80eb.to_string()),
        (format!("ipvs_outgoingbytes{{{NODE}}}"), 0x80ec.to_string()),
        (
            format!("rdma_erdma_hw_rx_bytes_cnt{{{NODE},{erdma},port=\"\"}}"),
            "34200".into(),
        ),
        (
            format!("rdma_mlx5_port_rcv_data{{{NODE},{mlx5},port=\"1\"}}"),
            "34000".into(),
        ),
        (
            format!("rdma_mlx5_rnr_nak_retry_err{{{NODE},{mlx5},port=\"1\"}}"),
            "34101".into(),
        ),
        (format!("rdma_qp{{{NODE},{erdma}}}"), "103".into()),
        (format!("rdma_mr{{{NODE},{mlx5}}}"), "205".into()),
        (format!("rdma_srq{{{NODE},{mlx5}}}"), "207".into()),
    ] {
        assert_eq!(
            value(&text, &format!("kubeskoop_{series}")),
            Some(&*expected),
            "{series}"
        );
    }
    assert!(
        !text.contains("kubeskoop_rdma_mlx5_out_of_sequence"),
        "the device has none"
    );
    assert!(
        !text.contains(&format!("kubeskoop_conntrack_entries{{{POD}}}")),
        "Sonde's own names have it"
    );
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
        // Of what the fixture has; what RDMA has is there for its devices alone, and looked for above.
        let table = tables.iter().find(|table| table.spec.name == entry.probe);
        for subject in table
            .filter(|_| !entry.probe.starts_with("rdma"))
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
    assert!(seen.len() >= 27, "{seen:?}");
}
