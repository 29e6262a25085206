import { bars, dashboard, like, lines, prom, sqlSeries, sqlTable, table, toNode, toPod, variables } from "./kit.mjs";

const here = 'cluster=~"$cluster", k8s_node=~"$node", k8s_namespace=~"$namespace", k8s_pod=~"$pod"';
const place =
  `${like("node", "node")} and ${like("coalesce(namespace, '')", "namespace")} and ${like("coalesce(pod, '')", "pod")}`;
const lost = `from sonde.events where $__timeFilter(time) and type = 'PACKETLOSS' and ${place}`;
// What a table counts by many things at once has a bound, whatever the time range.
const newest = `from (select * ${lost} order by time desc limit 100000) as newest`;
const rate = (metric) => `rate(sonde_${metric}_total{${here}}[$__rate_interval])`;

export default dashboard({
  uid: "sonde-packet-loss",
  title: "Packet loss",
  description: "Every place where a packet can be lost on a node, from the device to the socket, and why the kernel says it was.",
  variables: [variables.cluster, variables.nodes, variables.namespaces, variables.pods],
  gaps: `${like("node", "node")} and probe in ('', 'packetloss')`,
  changes: like("namespace", "namespace", true),
  rows: [
    {
      title: "Dropped by the kernel",
      panels: [
        lines({
          title: "By reason",
          description: "Class suspect: a loss. Counted in the kernel, every one.",
          unit: "pps",
          stack: true,
          targets: [prom(`sum by (reason) (rate(sonde_packetloss_drops_total{class="suspect", ${here}}[$__rate_interval]))`, "{{reason}}")],
        }),
        lines({
          title: "By class",
          description: "suspect: a loss; protocol: ordinary work of a protocol; benign: buffers freed with their socket or queue. A storm of protocol drops is worth a look too.",
          unit: "pps",
          stack: true,
          targets: [prom(`sum by (class) (${rate("packetloss_drops")})`, "{{class}}")],
        }),
        lines({
          title: "Nodes that lose most",
          description: "Class suspect, pods and host together.",
          unit: "pps",
          links: toNode,
          targets: [prom(`topk(10, sum by (k8s_node) (rate(sonde_packetloss_drops_total{class="suspect", ${here}}[$__rate_interval])))`, "{{k8s_node}}")],
        }),
        lines({
          title: "Pods that lose most",
          description: "Class suspect.",
          unit: "pps",
          links: toPod,
          targets: [
            prom(`topk(10, sum by (k8s_namespace, k8s_pod) (rate(sonde_packetloss_drops_total{class="suspect", k8s_pod!="", ${here}}[$__rate_interval])))`, "{{k8s_namespace}}/{{k8s_pod}}"),
          ],
        }),
      ],
    },
    {
      title: "Single losses",
      panels: [
        bars({
          title: "Events by reason",
          description: "A sample of the losses, with their connection and stack: kernels hold back what comes too fast.",
          targets: [
            sqlSeries(`select $__timeGroupAlias(time, $__interval), coalesce(reason, 'unknown') as metric, count(*) as value
                       ${lost} group by 1, 2 order by 1`),
          ],
        }),
        table({
          title: "Connections that lose most",
          description: "Of the newest 100,000 losses, by addresses and port of the destination.",
          targets: [
            sqlTable(`select reason, direction, protocol, host(saddr) as saddr, host(daddr) as daddr, dport, namespace, pod,
                      count(*) as events, max(time) as last
                      ${newest} group by reason, direction, protocol, saddr, daddr, dport, namespace, pod order by events desc limit 100`),
          ],
        }),
        table({
          title: "Places in the kernel",
          description: "Of the newest 100,000 losses: the function that dropped the packet, and the stack above it.",
          targets: [
            sqlTable(`select attributes->>'location' as location, array_to_string(stack[1:6], ' < ') as stack, reason, count(*) as events
                      ${newest} group by 1, 2, 3 order by events desc limit 50`),
          ],
        }),
        table({
          title: "Firewall rules",
          description: "Rules and policies that can have dropped the packet: with candidates 1 it is that one.",
          targets: [
            sqlTable(`select attributes->>'nft' as rule, attributes->>'nft_candidates' as candidates, attributes->>'hook' as hook,
                      namespace, pod, count(*) as events, max(time) as last
                      ${lost} and reason = 'NETFILTER_DROP' group by 1, 2, 3, 4, 5 order by events desc limit 50`),
          ],
        }),
      ],
    },
    {
      title: "On the way up and down",
      panels: [
        lines({
          title: "Devices",
          description: "What drivers and devices dropped or got broken.",
          unit: "pps",
          links: toNode,
          targets: ["receive_drops", "receive_errors", "transmit_drops", "transmit_errors"].map((column) =>
            prom(`sum by (k8s_node) (${rate(`netdev_${column}`)})`, `{{k8s_node}} ${column.replace("_", " ")}`),
          ),
        }),
        lines({
          title: "Queueing disciplines",
          description: "Packets dropped by the queue in front of a device: a limit of bandwidth, or a device that is too slow.",
          unit: "pps",
          targets: [prom(`topk(10, sum by (k8s_node, k8s_namespace, k8s_pod, device, kind) (${rate("qdisc_drops")}))`, "{{k8s_node}} {{k8s_namespace}}/{{k8s_pod}} {{device}} {{kind}}")],
        }),
        lines({
          title: "Backlogs of CPUs",
          description: "Packets dropped because a CPU's receive backlog was full.",
          unit: "pps",
          links: toNode,
          targets: [
            prom(`topk(10, sum by (k8s_node) (rate(sonde_softnet_dropped_total{cluster=~"$cluster", k8s_node=~"$node"}[$__rate_interval])))`, "{{k8s_node}}"),
          ],
        }),
        lines({
          title: "Connection tracking",
          description: "Packets dropped because their connection could not be tracked, and connections that could not be added.",
          unit: "pps",
          targets: [
            prom(`topk(10, sum by (k8s_node) (${rate("conntrack_drops")}))`, "{{k8s_node}} dropped"),
            prom(`topk(10, sum by (k8s_node) (${rate("conntrack_insert_failures")}))`, "{{k8s_node}} not added"),
          ],
        }),
        lines({
          title: "IP",
          description: "Packets without a route, with a bad header (time to live over), or that could not be put together.",
          unit: "pps",
          targets: [
            prom(`sum by (family) (${rate("ip_header_errors")})`, "{{family}} bad headers"),
            prom(`sum by (family) (${rate("ip_sent_no_routes")})`, "{{family}} no route"),
            prom(`sum by (family) (${rate("ip_reassembly_failures")})`, "{{family}} not put together"),
          ],
        }),
        lines({
          title: "Sockets",
          description: "What reached its pod and found no room: the process is too slow, or its buffer too small.",
          unit: "pps",
          targets: [
            prom(`sum(${rate("udp_receive_buffer_errors")})`, "UDP receive buffer full"),
            prom(`sum(${rate("tcpext_listen_overflows")})`, "accept queue full"),
            prom(`sum(${rate("tcpext_backlog_drops")})`, "TCP backlog full"),
            prom(`sum(${rate("tcpext_receive_queue_drops")})`, "TCP receive queue full"),
          ],
        }),
      ],
    },
  ],
});
