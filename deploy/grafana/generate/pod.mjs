import { bars, dashboard, limits, lines, prom, sqlSeries, sqlTable, stat, table, variables } from "./kit.mjs";

const pod = 'cluster=~"$cluster", k8s_namespace="$namespace", k8s_pod="$pod"';
const same = "namespace = '$namespace' and pod = '$pod'";
const rate = (metric, more = "") => `sum(rate(sonde_${metric}_total{${more}${pod}}[$__rate_interval]))`;
const rateBy = (label, metric, more = "") => `sum by (${label}) (rate(sonde_${metric}_total{${more}${pod}}[$__rate_interval]))`;

export default dashboard({
  uid: "sonde-pod",
  title: "Pod",
  description: "What the network did to one pod: traffic, losses, resets, queues, limits, times, and every event.",
  variables: [variables.cluster, variables.namespace, variables.pod],
  gaps: `(${same} or pod = '' and node in (select p.node from sonde.pods p where p.namespace = '$namespace' and p.pod = '$pod'))`,
  changes: "namespace = '$namespace' and (pod = '$pod' or pod = '')",
  rows: [
    {
      title: "Now",
      panels: [
        table({
          title: "Sandboxes",
          description: "Every sandbox of this name: a recreated pod has another. Counters begin at 0 with each.",
          w: 12,
          h: 5,
          targets: [
            sqlTable(`select node, workload_kind, workload, array_to_string(ips, ', ') as addresses, valid_from, valid_to
                      from sonde.pods where ${same} order by valid_from desc limit 20`),
          ],
        }),
        stat({
          title: "Packets lost",
          description: "Packets of class suspect that the kernel dropped in the pod's network namespace.",
          h: 5,
          unit: "pps",
          thresholds: limits({ yellow: 0.1, red: 10 }),
          targets: [prom(rate("packetloss_drops", 'class="suspect", '), "lost")],
        }),
        stat({
          title: "Sent again",
          description: "Share of TCP segments sent again.",
          h: 5,
          unit: "percentunit",
          decimals: 2,
          thresholds: limits({ yellow: 0.01, red: 0.05 }),
          targets: [
            prom(`${rate("tcp_retransmitted_segments")} / (${rate("tcp_sent_segments")} + ${rate("tcp_retransmitted_segments")} > 0)`, "sent again"),
          ],
        }),
        stat({
          title: "Fullest accept queue",
          description: "Connections that wait for accept(), against the limit of that listening socket. Full, it refuses connections.",
          h: 5,
          unit: "percentunit",
          thresholds: limits({ yellow: 0.5, red: 0.9 }),
          targets: [
            prom(`max(sonde_tcpsockets_accept_queue_fullest{${pod}} / (sonde_tcpsockets_accept_queue_fullest_limit{${pod}} > 0))`, "full"),
          ],
        }),
        stat({
          title: "Ephemeral ports",
          description: "Ports of the range that TCP holds. Without a free one, connects fail with EADDRNOTAVAIL.",
          h: 5,
          unit: "percentunit",
          thresholds: limits({ yellow: 0.7, red: 0.9 }),
          targets: [prom(`max(sonde_ports_tcp_in_use{${pod}} / (sonde_ports_available{${pod}} > 0))`, "in use")],
        }),
      ],
    },
    {
      title: "What happened",
      panels: [
        bars({
          title: "Events by type and reason",
          description: "Every event of this pod.",
          targets: [
            sqlSeries(`select $__timeGroupAlias(time, $__interval), concat_ws(' ', type, nullif(reason, '')) as metric, count(*) as value
                       from sonde.events where $__timeFilter(time) and ${same} group by 1, 2 order by 1`),
          ],
        }),
        lines({
          title: "Packets lost, by reason",
          description: "All classes: suspect is a loss, protocol is ordinary work of a protocol, benign are buffers freed on close.",
          unit: "pps",
          stack: true,
          targets: [prom(rateBy("reason, class", "packetloss_drops"), "{{reason}} ({{class}})")],
        }),
        table({
          title: "Events, newest first",
          description: "With the connection, the other end, and where in the kernel it happened.",
          w: 24,
          h: 10,
          targets: [
            sqlTable(`select time, type, reason, direction, protocol, host(saddr) as saddr, sport, host(daddr) as daddr, dport,
                      concat_ws('/', peer_namespace, coalesce(nullif(peer_pod, ''), peer_service)) as peer,
                      latency_ns / 1e9::float8 as latency, comm, state, interface, suppressed,
                      attributes::text as attributes, array_to_string(stack[1:6], ' < ') as stack
                      from sonde.events where $__timeFilter(time) and ${same} order by time desc limit 500`),
          ],
          overrides: [{ matcher: { id: "byName", options: "latency" }, properties: [{ id: "unit", value: "s" }] }],
        }),
      ],
    },
    {
      title: "Traffic",
      panels: [
        lines({
          title: "Bytes",
          description: "Received and sent by the pod's devices.",
          unit: "Bps",
          targets: [
            prom(rateBy("device", "netdev_receive_bytes", 'device!="lo", '), "{{device}} received"),
            prom(rateBy("device", "netdev_transmit_bytes", 'device!="lo", '), "{{device}} sent"),
          ],
        }),
        lines({
          title: "Packets, drops and errors of devices",
          description: "Drops and errors should be 0.",
          unit: "pps",
          targets: [
            prom(rate("netdev_receive_packets", 'device!="lo", '), "received"),
            prom(rate("netdev_transmit_packets", 'device!="lo", '), "sent"),
            prom(`${rate("netdev_receive_drops")} + ${rate("netdev_receive_errors")}`, "lost on receipt"),
            prom(`${rate("netdev_transmit_drops")} + ${rate("netdev_transmit_errors")}`, "lost on sending"),
          ],
        }),
      ],
    },
    {
      title: "TCP",
      panels: [
        lines({
          title: "Connections opened",
          description: "By this side, and by the other side.",
          unit: "cps",
          targets: [prom(rate("tcp_active_opens"), "by this side"), prom(rate("tcp_passive_opens"), "by the other side"), prom(rate("tcp_attempt_fails"), "failed")],
        }),
        lines({
          title: "Attempts to connect, by outcome",
          description: "What came of the connections that this pod asked for.",
          unit: "cps",
          stack: true,
          targets: [prom(rateBy("result", "connect_attempts"), "{{result}}")],
        }),
        lines({
          title: "Segments sent again, by why",
          description: "Each rto costs at least 200 ms.",
          unit: "pps",
          stack: true,
          targets: [prom(rateBy("kind", "tcpretrans_segments"), "{{kind}}")],
        }),
        lines({
          title: "Resets, by type",
          description: "nosock: nobody listened; process: a socket did not accept a segment; active: this side gave up; receive: the other side did.",
          unit: "cps",
          stack: true,
          targets: [prom(rateBy("type", "tcpreset_resets"), "{{type}}")],
        }),
        lines({
          title: "Listening sockets",
          description: "Connections refused because an accept queue was full, and all that listening sockets dropped.",
          unit: "cps",
          targets: [prom(rate("tcpext_listen_overflows"), "accept queue full"), prom(rate("tcpext_listen_drops"), "dropped")],
        }),
        lines({
          title: "Sockets, by state",
          description: "close_wait that grows: the process does not close. syn_sent: nobody answers.",
          unit: "short",
          stack: true,
          targets: [prom(`sum by (state) (sonde_tcpsummary_sockets{${pod}})`, "{{state}}")],
        }),
        lines({
          title: "Queues of sockets",
          description: "Received and not read: the process is slow. Sent and not acknowledged: the network or the other side is.",
          unit: "bytes",
          targets: [
            prom(`sum(sonde_tcpsockets_receive_queue_bytes{${pod}})`, "not read"),
            prom(`sum(sonde_tcpsockets_send_queue_bytes{${pod}})`, "not acknowledged"),
          ],
        }),
        lines({
          title: "Dropped at sockets",
          description: "Segments and datagrams that reached the pod and found no room.",
          unit: "pps",
          targets: [
            prom(rate("tcpext_receive_queue_drops"), "TCP receive queue full"),
            prom(rate("tcpext_backlog_drops"), "TCP backlog full"),
            prom(rate("udp_receive_buffer_errors"), "UDP receive buffer full"),
            prom(rate("udp_send_buffer_errors"), "UDP send buffer full"),
            prom(rate("udp_no_ports"), "UDP nobody listens"),
          ],
        }),
      ],
    },
    {
      title: "Times",
      panels: [
        lines({
          title: "Time to connect",
          description: "From the first SYN to the end of the attempt.",
          unit: "s",
          targets: [0.5, 0.99].map((q) =>
            prom(`histogram_quantile(${q}, sum by (le) (rate(sonde_connect_latency_seconds_bucket{${pod}}[$__rate_interval])))`, `p${q * 100}`),
          ),
        }),
        lines({
          title: "Time in sockets, 99th percentile",
          description: "How long data waits to be read (the process is slow) and to be sent. Probe socketlatency has to be switched on.",
          unit: "s",
          targets: [
            prom(`histogram_quantile(0.99, sum by (le, operation, protocol) (rate(sonde_socketlatency_latency_seconds_bucket{${pod}}[$__rate_interval])))`, "{{protocol}} {{operation}}"),
          ],
        }),
      ],
    },
  ],
});
