//! KubeSkoop's two dashboards (`skoop-exporter-nodes` and `skoop-exporter-pods`, version 1.0) on the compatible names: each of
//! their queries, as it is written there, at a Prometheus that scraped a collector. Left out are those that are empty there as
//! well: sockets of pods (the metric is of the node alone, and one query has a variable that nobody declares), and the seven
//! panels of RDMA, which need such a device.

use anyhow::{Context as _, Result, ensure};

use crate::system::System;

/// How queries of a dashboard pick their series.
#[derive(Clone, Copy)]
enum Of {
    Host,
    PodsOfNode,
    Node,
    Pod,
}

/// Panels "times": `rate(METRIC{...}[1m])`.
const RATES: [&str; 18] = [
    "netdev_rxbytes",
    "netdev_txbytes",
    "netdev_txerrors",
    "netdev_rxerrors",
    "netdev_txpackets",
    "netdev_rxpackets",
    "tcp_passiveopens",
    "tcp_activeopens",
    "tcpext_listendrops",
    "tcpext_listenoverflows",
    "tcpext_tcpsynretrans",
    "tcpext_tcprcvqdrop",
    "tcpext_pfmemallocdrop",
    "tcpext_tcpbacklogdrop",
    "udp_rcvbuferrors",
    "udp_sndbuferrors",
    "udp_noports",
    "udp_inerrors",
];

/// Panels of what is now: `METRIC{...}`.
const NOW: [&str; 7] = [
    "tcpsummary_tcptimewaitconn",
    "tcpsummary_tcpestablishedconn",
    "tcpsummary_tcpclosewaitconn",
    "tcpsummary_tcpsynsentconn",
    "tcpsummary_tcpsynrecvconn",
    "tcpsummary_tcptxqueue",
    "tcpsummary_tcprxqueue",
];

fn selector(of: Of, node: &str, namespace: &str, pod: &str) -> String {
    match of {
        Of::Host => format!("{{k8s_node=\"{node}\", k8s_pod=\"\"}}"),
        Of::PodsOfNode => format!("{{k8s_node=\"{node}\", k8s_pod!=\"\"}}"),
        Of::Node => format!("{{k8s_node=\"{node}\"}}"),
        Of::Pod => format!("{{k8s_namespace=\"{namespace}\", k8s_pod=\"{pod}\"}}"),
    }
}

fn queries(select: impl Fn(Of) -> String) -> Vec<String> {
    let mut queries = vec![format!("sum(rate(kubeskoop_packetloss_total{}[1m]))", select(Of::Node))];
    for of in [Of::Host, Of::Pod] {
        queries.extend(RATES.map(|metric| format!("rate(kubeskoop_{metric}{}[1m])", select(of))));
        queries.extend(NOW.map(|metric| format!("kubeskoop_{metric}{}", select(of))));
    }
    for metric in ["netdev_rxbytes", "netdev_txbytes"] {
        queries.push(format!("rate(kubeskoop_{metric}{}[1m])", select(Of::PodsOfNode)));
    }
    let host = select(Of::Host);
    queries.push(format!("kubeskoop_sock_inuse{host}+kubeskoop_sock_orphan{host}"));
    queries
}

pub(crate) fn check(system: &System) -> Result<()> {
    let prometheus = &system.prometheus;
    let server = &system.traffic.server;
    // The variables: `label_values(node)`, a label that the scrape adds from Kubernetes; and namespace and pod.
    let node = &system.site.node;
    let nodes = prometheus.values("node", None)?;
    ensure!(nodes.contains(node), "label_values(node): {nodes:?}");
    let namespaces = prometheus.values("k8s_namespace", None)?;
    ensure!(namespaces.iter().any(|n| n == server.namespace()), "{namespaces:?}");
    let of_namespace = format!("{{k8s_namespace=\"{}\"}}", server.namespace());
    let pods = prometheus.values("k8s_pod", Some(&of_namespace))?;
    ensure!(pods.iter().any(|p| p == server.name()), "{pods:?}");

    let range = system.range();
    let (from, to) = (range.from as f64 / 1e3, range.to as f64 / 1e3);
    let queries = queries(|of| selector(of, node, server.namespace(), server.name()));
    let mut without = Vec::new();
    for query in &queries {
        let series = prometheus.over(query, from, to, 1.0).with_context(|| query.clone())?;
        if series.is_empty() {
            without.push(query.as_str());
        }
    }
    ensure!(
        without.is_empty(),
        "{} of {} without rows:\n{}",
        without.len(),
        queries.len(),
        without.join("\n")
    );
    println!("{} queries have rows", queries.len());
    Ok(())
}
