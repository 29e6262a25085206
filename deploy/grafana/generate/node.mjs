import { bars, dashboard, limits, lines, prom, sqlSeries, sqlTable, stat, table, toPod, variables } from "./kit.mjs";

const all = 'cluster=~"$cluster", k8s_node="$node"';
const host = `${all}, k8s_pod=""`;

export default dashboard({
  uid: "sonde-node",
  title: "Node",
  description: "One kernel: its devices, queues, interrupts, tables and limits, and what they did to the pods on it.",
  variables: [variables.cluster, variables.node],
  gaps: "node = '$node'",
  changes: "node = '$node'",
  rows: [
    {
      title: "Now",
      panels: [
        table({
          title: "Node",
          description: "Its kernel, its collector, and when that was heard last.",
          w: 12,
          h: 4,
          targets: [
            sqlTable(`select n.node, n.kernel, n.version as collector, n.last_seen,
                      extract(epoch from now() - n.last_seen)::float8 as seconds_ago, n.interval_seconds,
                      (select count(*) from sonde.pods p where p.node = n.node and p.valid_to is null) as pods
                      from sonde.nodes n where n.node = '$node'`),
          ],
          overrides: [
            { matcher: { id: "byName", options: "seconds_ago" }, properties: [{ id: "unit", value: "s" }, { id: "thresholds", value: limits({ yellow: 60, red: 120 }) }, { id: "custom.cellOptions", value: { type: "color-background" } }] },
          ],
        }),
        stat({
          title: "Packets lost",
          description: "Packets that this kernel dropped, of class suspect, pods and host together.",
          unit: "pps",
          thresholds: limits({ yellow: 1, red: 100 }),
          targets: [prom(`sum(rate(sonde_packetloss_drops_total{class="suspect", ${all}}[$__rate_interval]))`, "lost")],
        }),
        stat({
          title: "Connection tracking",
          description: "How full the node's own table is. When it is full, new connections are dropped.",
          unit: "percentunit",
          thresholds: limits({ yellow: 0.8, red: 0.95 }),
          targets: [prom(`max(sonde_conntrack_entries{${host}} / (sonde_conntrack_entries_limit{${host}} > 0))`, "full")],
        }),
        stat({
          title: "TCP memory",
          description: "Memory of all TCP buffers, against the limit where the kernel refuses more (tcp_mem).",
          unit: "percentunit",
          thresholds: limits({ yellow: 0.7, red: 0.9 }),
          targets: [prom(`max(sonde_sock_tcp_memory_bytes{${host}}) / max(sonde_sockmem_tcp_limit_bytes{${all}} > 0)`, "used")],
        }),
        stat({
          title: "Softirq waits over 10 ms",
          description: "Times that the network's softirq waited longer than 10 ms to run. Probe net_softirq has to be switched on.",
          unit: "cps",
          noValue: "probe is off",
          thresholds: limits({ yellow: 1, red: 10 }),
          targets: [prom(`sum(rate(sonde_net_softirq_sched_over_10ms_total{${all}}[$__rate_interval]))`, "waits")],
        }),
      ],
    },
    {
      title: "Devices and queues",
      panels: [
        lines({
          title: "Received, by device",
          description: "Of the host's own network namespace; pods are behind these devices.",
          unit: "Bps",
          targets: [prom(`sum by (device) (rate(sonde_netdev_receive_bytes_total{device!="lo", ${host}}[$__rate_interval]))`, "{{device}}")],
        }),
        lines({
          title: "Sent, by device",
          description: "Of the host's own network namespace.",
          unit: "Bps",
          targets: [prom(`sum by (device) (rate(sonde_netdev_transmit_bytes_total{device!="lo", ${host}}[$__rate_interval]))`, "{{device}}")],
        }),
        lines({
          title: "Errors and drops of devices",
          description: "What drivers and devices gave up. Anything that stays above 0 is a fault of a cable, a driver, a ring that is too small, or a virtual machine's limit.",
          unit: "pps",
          targets: ["receive_errors", "receive_drops", "transmit_errors", "transmit_drops"].map((column) =>
            prom(`sum by (device) (rate(sonde_netdev_${column}_total{${host}}[$__rate_interval]))`, `{{device}} ${column.replace("_", " ")}`),
          ),
        }),
        lines({
          title: "Queueing disciplines",
          description: "Packets dropped, packets put back because the device was busy, and packets that wait now.",
          unit: "short",
          targets: [
            prom(`sum by (device, kind) (rate(sonde_qdisc_drops_total{${all}}[$__rate_interval]))`, "{{device}} {{kind}} drops/s"),
            prom(`sum by (device, kind) (rate(sonde_qdisc_requeues_total{${all}}[$__rate_interval]))`, "{{device}} {{kind}} requeues/s"),
            prom(`sum by (device, kind) (sonde_qdisc_queue_packets{${all}})`, "{{device}} {{kind}} waiting"),
          ],
        }),
        lines({
          title: "Receive backlog of the CPUs",
          description: "dropped: a CPU's backlog was full (net.core.netdev_max_backlog). squeezed: a round ended with work left (netdev_budget).",
          unit: "cps",
          targets: [
            prom(`sum(rate(sonde_softnet_dropped_total{${all}}[$__rate_interval]))`, "dropped"),
            prom(`sum(rate(sonde_softnet_time_squeeze_total{${all}}[$__rate_interval]))`, "squeezed"),
            prom(`sum(rate(sonde_softnet_flow_limit_total{${all}}[$__rate_interval]))`, "flow limit"),
          ],
        }),
        lines({
          title: "Softirqs of the network, 99th percentile",
          description: "How long they wait until they run, and how long they run. A long wait delays every packet of the node: look for a CPU that is kept busy in the kernel.",
          unit: "s",
          thresholds: limits({ yellow: 0.001, red: 0.01 }),
          targets: [
            prom(`histogram_quantile(0.99, sum by (le, vector) (rate(sonde_net_softirq_sched_seconds_bucket{${all}}[$__rate_interval])))`, "{{vector}} waits"),
            prom(`histogram_quantile(0.99, sum by (le, vector) (rate(sonde_net_softirq_execute_seconds_bucket{${all}}[$__rate_interval])))`, "{{vector}} runs"),
          ],
        }),
      ],
    },
    {
      title: "Tables and limits",
      panels: [
        lines({
          title: "Connection tracking",
          description: "Entries of the node's own table and its limit, nf_conntrack_max.",
          unit: "short",
          targets: [
            prom(`max(sonde_conntrack_entries{${host}})`, "entries"),
            prom(`max(sonde_conntrack_entries_limit{${host}})`, "limit"),
          ],
        }),
        lines({
          title: "What connection tracking gave up",
          description: "drops: packets of connections that found no room; insert failures: two packets of one connection met, often DNS over UDP; invalid: packets that fit no connection.",
          unit: "cps",
          targets: ["drops", "early_drops", "insert_failures", "invalid"].map((column) =>
            prom(`sum(rate(sonde_conntrack_${column}_total{${all}}[$__rate_interval]))`, column.replace("_", " ")),
          ),
        }),
        lines({
          title: "Neighbour tables",
          description: "How full they are: above the hard limit (gc_thresh3) packets to new neighbours are dropped.",
          unit: "percentunit",
          thresholds: limits({ yellow: 0.8, red: 0.95 }),
          targets: [prom(`max by (family) (sonde_neigh_entries{${all}} / (sonde_neigh_entries_limit{${all}} > 0))`, "{{family}}")],
        }),
        lines({
          title: "Sockets",
          description: "Of the whole node. Orphans are sockets without a process.",
          unit: "short",
          targets: [
            prom(`max(sonde_sock_tcp_allocated{${host}})`, "TCP allocated"),
            prom(`max(sonde_sock_tcp_orphans{${host}})`, "TCP orphans"),
            prom(`sum(sonde_tcpsummary_sockets{state="time_wait", ${all}})`, "time wait"),
          ],
        }),
      ],
    },
    {
      title: "Pods of this node",
      panels: [
        table({
          title: "Pods with the most events",
          description: "Events in the time range. A row without a pod is the node itself.",
          targets: [
            sqlTable(`select namespace, pod, workload, count(*) as events,
                      count(*) filter (where type = 'PACKETLOSS') as lost,
                      count(*) filter (where type like 'TCPRESET%') as resets,
                      count(*) filter (where type = 'TCPRETRANS') as sent_again, max(time) as last
                      from sonde.events where $__timeFilter(time) and node = '$node'
                      group by 1, 2, 3 order by events desc limit 50`),
          ],
        }),
        lines({
          title: "Pods that lose most",
          description: "Packets of class suspect.",
          unit: "pps",
          links: toPod,
          targets: [
            prom(`topk(10, sum by (k8s_namespace, k8s_pod) (rate(sonde_packetloss_drops_total{class="suspect", ${all}}[$__rate_interval])))`, "{{k8s_namespace}}/{{k8s_pod}}"),
          ],
        }),
        bars({
          title: "Events by type",
          description: "Of the node and its pods.",
          targets: [
            sqlSeries(`select $__timeGroupAlias(time, $__interval), type as metric, count(*) as value
                       from sonde.events where $__timeFilter(time) and node = '$node' group by 1, 2 order by 1`),
          ],
        }),
        table({
          title: "Gaps",
          description: "When something could not be seen on this node, newest first.",
          targets: [
            sqlTable(`select time, end_time, probe, cause, count, namespace, pod, detail from sonde.gaps
                      where time <= $__timeTo() and end_time >= $__timeFrom() and node = '$node' order by time desc limit 200`),
          ],
        }),
      ],
    },
  ],
});
