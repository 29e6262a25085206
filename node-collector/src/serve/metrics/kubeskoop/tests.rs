//! The names that there must be, and the values of tables made by hand.

use std::collections::HashSet;
use std::sync::Arc;

use sonde_common::config::{MetricNames, Metrics};
use sonde_common::prom::{Format, Type};

use super::*;
use crate::catalogue::{ColumnSpec, LabelSpec, ProbeSpec};
use crate::event::Subject;
use crate::pods::Pod;
use crate::probes::{packetloss, specs};
use crate::serve::metrics::Exposition;
use crate::table::Table;

/// Every metric of KubeSkoop's exporter: probe, whether its values are typed as counters, metrics.
const REFERENCE: [(&str, Type, &str); 25] = [
    (
        "netdev",
        Type::Gauge,
        "rxbytes rxerrors txbytes txerrors rxpackets rxdropped txpackets txdropped",
    ),
    ("io", Type::Counter, "readsyscall writesyscall readbytes writebytes"),
    ("fd", Type::Gauge, "openfd opensocket"),
    (
        "tcp",
        Type::Gauge,
        "activeopens passiveopens retranssegs attemptfails estabresets currestab insegs outsegs inerrs outrsts",
    ),
    (
        "udp",
        Type::Gauge,
        "indatagrams noports inerrors outdatagrams rcvbuferrors sndbuferrors incsumerrors ignoredmulti",
    ),
    (
        "ip",
        Type::Gauge,
        "forwarding defaultttl inreceives inhdrerrors inaddrerrors forwdatagrams inunknownprotos indiscards indelivers \
         outrequests outdiscards outnoroutes reasmtimeout reasmreqds reasmoks reasmfails fragoks fragfails fragcreates",
    ),
    (
        "tcpext",
        Type::Gauge,
        "listendrops listenoverflows tcpsynretrans tcpfastretrans tcpretransfail tcptimeouts tcpabortonclose \
         tcpabortonmemory tcpabortontimeout tcpabortonlinger tcpabortondata tcpabortfailed tcpackskippedsynrecv \
         tcpackskippedpaws tcpackskippedseq tcpackskippedfinwait2 tcpackskippedtimewait tcpackskippedchallenge tcprcvqdrop \
         tcpmemorypressures tcpmemorypressureschrono pawsactive pawsestab embryonicrsts tcpwinprobe tcpkeepalive \
         tcpmtupfail tcpmtupsuccess tcpzerowindowdrop tcpbacklogdrop pfmemallocdrop tcpwqueuetoobig",
    ),
    ("sock", Type::Gauge, "inuse orphan tw alloc mem"),
    ("softnet", Type::Gauge, "processed dropped"),
    (
        "tcpsummary",
        Type::Gauge,
        "tcpestablishedconn tcptimewaitconn tcpclosewaitconn tcpsynsentconn tcpsynrecvconn tcptxqueue tcprxqueue",
    ),
    (
        "conntrack",
        Type::Gauge,
        "found invalid ignore insert insertfailed drop earlydrop error searchrestart entries maxentries",
    ),
    (
        "ipvs",
        Type::Gauge,
        "connections incomingpackets incomingbytes outgoingpackets outgoingbytes",
    ),
    ("qdisc", Type::Gauge, "bytes packets drops qlen backlog overlimits"),
    ("rdma", Type::Gauge, "cm_id cq ctx mr pd qp srq"),
    ("socketlatency", Type::Gauge, "read1ms read100ms write1ms write100ms"),
    ("kernellatency", Type::Gauge, "rxslow txslow rxslow100ms txslow100ms"),
    ("netiftxlat", Type::Gauge, "qdiscslow100ms netdevslow100ms"),
    ("packetloss", Type::Counter, "total netfilter"),
    ("tcpretrans", Type::Counter, "total"),
    ("flow", Type::Counter, "bytes packets"),
    (
        "softirq",
        Type::Counter,
        "schedslow schedslow100ms excuteslow excuteslow100ms",
    ),
    ("virtcmdlatency", Type::Gauge, "latency latency100ms"),
    (
        "rdma_mlx5",
        Type::Counter,
        "port_rcv_data port_rcv_packets multicast_rcv_packets unicast_rcv_packets port_xmit_data port_xmit_packets \
         port_xmit_packets_64 port_rcv_switch_relay_errors port_rcv_errors port_rcv_constraint_errors \
         local_link_integrity_errors port_xmit_wait multicast_xmit_packets unicast_xmit_packets port_xmit_discards \
         port_xmit_constraint_errors port_rcv_remote_physical_errors symbol_error VL15_dropped link_error_recovery \
         link_downed rx_write_requests rx_read_requests rx_atomic_requests out_of_buffer out_of_sequence duplicate_request \
         rnr_nak_retry_err packet_seq_err implied_nak_seq_err local_ack_timeout_err rx_dct_connect resp_local_length_error \
         resp_cqe_error req_cqe_error req_remote_invalid_request req_remote_access_errors resp_remote_access_errors \
         resp_cqe_flush_error req_cqe_flush_error roce_adp_retrans roce_adp_retrans_to roce_slow_restart \
         roce_slow_restart_cnps roce_slow_restart_trans rp_cnp_ignored rp_cnp_handled np_ecn_marked_roce_packets np_cnp_sent \
         rx_icrc_encapsulated",
    ),
    (
        "rdma_erdma",
        Type::Counter,
        "accept_failed_cnt accept_success_cnt accept_total_cnt cmdq_comp_cnt cmdq_cq_armed_cnt cmdq_eq_event_cnt \
         cmdq_eq_notify_cnt cmdq_submitted_cnt connect_failed_cnt connect_reset_cnt connect_success_cnt connect_timeout_cnt \
         connect_total_cnt erdma_aeq_event_cnt erdma_aeq_notify_cnt hw_bps_limit_drop_cnt hw_disable_drop_cnt \
         hw_pps_limit_drop_cnt hw_rx_bps_limit_drop_cnt hw_rx_bytes_cnt hw_rx_disable_drop_cnt hw_rx_packets_cnt \
         hw_rx_pps_limit_drop_cnt hw_tx_bytes_cnt hw_tx_packets_cnt hw_tx_reqs_cnt listen_create_cnt listen_destroy_cnt \
         listen_failed_cnt listen_ipv6_cnt listen_success_cnt reject_cnt reject_failed_cnt verbs_alloc_mr_cnt \
         verbs_alloc_mr_failed_cnt verbs_alloc_pd_cnt verbs_alloc_pd_failed_cnt verbs_alloc_uctx_cnt \
         verbs_alloc_uctx_failed_cnt verbs_create_cq_cnt verbs_create_cq_failed_cnt verbs_create_qp_cnt \
         verbs_create_qp_failed_cnt verbs_destroy_cq_cnt verbs_destroy_cq_failed_cnt verbs_destroy_qp_cnt \
         verbs_destroy_qp_failed_cnt",
    ),
    (
        "rdma_erdma",
        Type::Counter,
        "verbs_dealloc_pd_cnt verbs_dealloc_uctx_cnt verbs_dereg_mr_cnt verbs_dereg_mr_failed_cnt verbs_get_dma_mr_cnt \
         verbs_get_dma_mr_failed_cnt verbs_reg_usr_mr_cnt verbs_reg_usr_mr_failed_cnt",
    ),
];

#[test]
fn every_metric_of_the_reference_is_there_with_its_type_and_no_other() {
    let mut wanted = HashSet::new();
    for (probe, kind, names) in REFERENCE {
        for name in names.split_whitespace() {
            wanted.insert((format!("kubeskoop_{probe}_{name}"), kind.as_str()));
        }
    }
    let there: HashSet<_> = entries()
        .map(|entry| (entry.name.to_owned(), entry.kind.as_str()))
        .collect();
    assert_eq!(entries().count(), there.len(), "a name stands twice");
    let missing: Vec<_> = wanted.difference(&there).collect();
    let unknown: Vec<_> = there.difference(&wanted).collect();
    assert!(
        missing.is_empty() && unknown.is_empty(),
        "missing {missing:?}, unknown {unknown:?}"
    );
}

#[test]
fn an_entry_of_a_probe_that_is_there_names_columns_and_labels_that_are() {
    let specs = specs();
    let mut made = 0;
    for entry in entries() {
        let Some(spec) = specs.iter().find(|spec| spec.name == entry.probe) else {
            continue;
        };
        made += 1;
        for name in entry.columns {
            assert!(
                spec.columns.iter().any(|column| column.name == *name),
                "{}: {name}",
                entry.name
            );
        }
        let chosen = entry.rows.label();
        let told: &[&str] = match entry.labels {
            Labels::Rdma { port: true } => &["device", "port"],
            Labels::Rdma { port: false } => &["device"],
            Labels::NodeAnd([(_, ours)]) => std::slice::from_ref(ours),
            _ => &[],
        };
        for label in chosen.iter().chain(told) {
            assert!(spec.labels.iter().any(|l| l.name == *label), "{}: {label}", entry.name);
        }
    }
    assert!(made >= 80, "{made} entries have a probe");
}

static NETDEV: ProbeSpec = ProbeSpec {
    name: "netdev",
    help: "",
    source: "",
    labels: &[LabelSpec {
        name: "device",
        help: "",
    }],
    columns: &[
        ColumnSpec::counter("receive_bytes", "bytes", ""),
        ColumnSpec::counter("transmit_bytes", "bytes", ""),
    ],
    event_types: &[],
};

static SOCK: ProbeSpec = ProbeSpec {
    name: "sock",
    help: "",
    source: "",
    labels: &[],
    columns: &[
        ColumnSpec::gauge("tcp_in_use", "sockets", ""),
        ColumnSpec::gauge("tcp6_in_use", "sockets", ""),
        ColumnSpec::gauge("tcp_memory_bytes", "bytes", ""),
    ],
    event_types: &[],
};

static RETRANS: ProbeSpec = ProbeSpec {
    name: "tcpretrans",
    help: "",
    source: "",
    labels: &[LabelSpec { name: "kind", help: "" }],
    columns: &[ColumnSpec::counter("segments", "segments", "")],
    event_types: &[],
};

static RDMA: ProbeSpec = ProbeSpec {
    name: "rdma",
    help: "",
    source: "",
    labels: &[
        LabelSpec {
            name: "device",
            help: "",
        },
        LabelSpec { name: "port", help: "" },
        LabelSpec {
            name: "counter",
            help: "",
        },
    ],
    columns: &[ColumnSpec::counter("value", "", "")],
    event_types: &[],
};

fn pod(name: &str) -> Arc<Pod> {
    Arc::new(Pod {
        sandbox: name.into(),
        namespace: "shop".into(),
        name: name.into(),
        ..Pod::default()
    })
}

fn kubeskoop() -> Exposition {
    let config = Metrics {
        names: vec![MetricNames::Kubeskoop],
        ..Metrics::default()
    };
    Exposition::new("n1", &config).unwrap()
}

fn lines(exposition: &Exposition, tables: &[Table], format: Format) -> Vec<String> {
    let mut text = String::new();
    exposition.write(tables, format, &mut |piece| text.push_str(piece));
    text.lines()
        .filter(|line| !line.contains("sonde_collector_") && !line.starts_with("# HELP"))
        .map(str::to_owned)
        .collect()
}

#[test]
fn devices_are_added_up_without_loopback_and_typed_as_there() {
    let mut table = Table::new(&NETDEV, 1);
    for (subject, device, values) in [
        (Subject::Node, "lo", [1, 1]),
        (Subject::Node, "eth0", [10, 20]),
        (Subject::Node, "cni0", [100, crate::table::ABSENT]),
        (Subject::Pod(pod("a")), "lo", [7, 7]),
    ] {
        table.push(subject, [device.into()], &values);
    }
    let node = "k8s_node=\"n1\",k8s_namespace=\"\",k8s_pod=\"\"";
    let pod = "k8s_node=\"n1\",k8s_namespace=\"shop\",k8s_pod=\"a\"";
    assert_eq!(
        lines(&kubeskoop(), &[table], Format::Text),
        [
            "# TYPE kubeskoop_netdev_rxbytes gauge".to_owned(),
            format!("kubeskoop_netdev_rxbytes{{{node}}} 110"),
            format!("kubeskoop_netdev_rxbytes{{{pod}}} 0"),
            "# TYPE kubeskoop_netdev_txbytes gauge".to_owned(),
            format!("kubeskoop_netdev_txbytes{{{node}}} 20"),
            format!("kubeskoop_netdev_txbytes{{{pod}}} 0"),
        ]
    );
}

#[test]
fn numbers_of_the_node_are_told_of_the_node_alone_and_memory_in_pages() {
    let page = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE)
        .unwrap()
        .unwrap();
    let mut table = Table::new(&SOCK, 1);
    table.push(Subject::Node, [], &[3, crate::table::ABSENT, 5 * page]);
    table.push(Subject::Pod(pod("a")), [], &[9, 9, crate::table::ABSENT]);
    let node = "{k8s_node=\"n1\",k8s_namespace=\"\",k8s_pod=\"\"}";
    let samples: Vec<String> = lines(&kubeskoop(), &[table], Format::Text);
    assert_eq!(
        samples.iter().filter(|line| !line.starts_with('#')).collect::<Vec<_>>(),
        [
            &format!("kubeskoop_sock_inuse{node} 3"),
            &format!("kubeskoop_sock_mem{node} 5"),
        ]
    );
}

const NOBODY: &str = "{k8s_node=\"n1\",protocol=\"\",src=\"\",src_type=\"unknown\",src_node=\"\",src_namespace=\"\",src_pod=\"\",\
     dst=\"\",dst_type=\"unknown\",dst_node=\"\",dst_namespace=\"\",dst_pod=\"\",sport=\"0\",dport=\"0\"}";

#[test]
fn drops_are_one_series_of_the_node_that_outlives_its_pods() {
    let exposition = kubeskoop();
    let (a, b) = (pod("a"), pod("b"));
    let table = |rows: &[(&Arc<Pod>, &str, &str, i64)]| {
        let mut table = Table::new(&packetloss::SPEC, 1);
        for (pod, reason, class, drops) in rows {
            table.push(
                Subject::Pod(Arc::clone(pod)),
                [(*reason).into(), (*class).into()],
                &[*drops, *drops],
            );
        }
        vec![table]
    };
    let first = table(&[
        (&a, "NETFILTER_DROP", "suspect", 5),
        (&a, "SOCKET_CLOSE", "benign", 100),
        (&b, "TCP_OLD_DATA", "protocol", 2),
    ]);
    let expected = |total: u64, netfilter: u64| {
        [
            "# TYPE kubeskoop_packetloss_total counter".to_owned(),
            format!("kubeskoop_packetloss_total{NOBODY} {total}"),
            "# TYPE kubeskoop_packetloss_netfilter counter".to_owned(),
            format!("kubeskoop_packetloss_netfilter{NOBODY} {netfilter}"),
        ]
    };
    assert_eq!(lines(&exposition, &first, Format::Text), expected(7, 5));
    a.valid_to_ns.store(1, std::sync::atomic::Ordering::Release);
    assert_eq!(lines(&exposition, &first, Format::Text), expected(7, 5));
    let second = table(&[
        (&b, "NETFILTER_DROP", "suspect", 1),
        (&b, "TCP_OLD_DATA", "protocol", 2),
    ]);
    assert_eq!(lines(&exposition, &second, Format::Text), expected(8, 6));
    // OpenMetrics calls the one a counter and has no word for the other.
    let open = lines(&exposition, &second, Format::OpenMetrics);
    assert_eq!(open[0], "# TYPE kubeskoop_packetloss counter");
    assert_eq!(open[1], format!("kubeskoop_packetloss_total{NOBODY} 8"));
    assert_eq!(open[2], "# TYPE kubeskoop_packetloss_netfilter unknown");
}

#[test]
fn who_sends_again_is_known_and_the_other_side_is_not() {
    let mut table = Table::new(&RETRANS, 1);
    table.push(Subject::Node, ["rto".into()], &[1]);
    table.push(Subject::Pod(pod("a")), ["rto".into()], &[2]);
    table.push(Subject::Pod(pod("a")), ["fast".into()], &[3]);
    table.push(Subject::Pod(pod("a")), ["syn_ack".into()], &[40]);
    let samples = lines(&kubeskoop(), &[table], Format::Text);
    let line = |src: &str, value: u64| {
        format!(
            "kubeskoop_tcpretrans_total{{k8s_node=\"n1\",protocol=\"TCP\",src=\"\",{src},dst=\"\",dst_type=\"unknown\",\
             dst_node=\"\",dst_namespace=\"\",dst_pod=\"\",sport=\"0\",dport=\"0\"}} {value}"
        )
    };
    assert_eq!(
        samples[1..],
        [
            line("src_type=\"node\",src_node=\"n1\",src_namespace=\"\",src_pod=\"\"", 1),
            line("src_type=\"pod\",src_node=\"\",src_namespace=\"shop\",src_pod=\"a\"", 5),
        ]
    );
}

#[test]
fn counters_of_rdma_are_told_for_the_driver_that_has_them() {
    let mut table = Table::new(&RDMA, 1);
    for (device, counter, count) in [
        ("mlx5_0", "port_rcv_data", 1),
        ("erdma_0", "hw_rx_bytes_cnt", 2),
        ("mlx5_0", "hw_rx_bytes_cnt", 3),
        ("rxe0", "port_rcv_data", 4),
    ] {
        table.push(Subject::Node, [device.into(), "1".into(), counter.into()], &[count]);
    }
    let node = "k8s_node=\"n1\",k8s_namespace=\"\",k8s_pod=\"\"";
    let samples: Vec<String> = lines(&kubeskoop(), &[table], Format::Text);
    assert_eq!(
        samples.iter().filter(|line| !line.starts_with('#')).collect::<Vec<_>>(),
        [
            &format!("kubeskoop_rdma_mlx5_port_rcv_data{{{node},device=\"mlx5_0\",type=\"mlx5\",port=\"1\"}} 1"),
            &format!("kubeskoop_rdma_erdma_hw_rx_bytes_cnt{{{node},device=\"erdma_0\",type=\"erdma\",port=\"1\"}} 2"),
        ]
    );
}

#[test]
fn both_generations_of_probe_names_are_understood() {
    assert_eq!(probe("softirq"), "net_softirq");
    assert_eq!(probe("netiftxlatency"), "netiftxlat");
    assert_eq!(probe("netdev"), "netdev");
}
