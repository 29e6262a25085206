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
use sonde_collector::serve::metrics::render;
use sonde_common::paths::HostPaths;
use sonde_common::prom::Page;

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
    let mut page = Page::new();
    render(&mut page, "node-1", &tables);
    let stats = rounds.stats();
    let errors = stats
        .lock()
        .iter()
        .filter(|s| s.failing)
        .map(|s| format!("{}: {}", s.name, s.last_error))
        .collect();
    (page.finish(), errors)
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
