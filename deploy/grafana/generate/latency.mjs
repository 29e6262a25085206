import { dashboard, heatmap, like, limits, lines, prom, promBuckets, sqlTable, table, variables } from "./kit.mjs";

const here = 'cluster=~"$cluster", k8s_node=~"$node", k8s_namespace=~"$namespace", k8s_pod=~"$pod"';
const nodes = 'cluster=~"$cluster", k8s_node=~"$node"';

/** A heat map of a histogram, and its percentiles beside it. */
const both = (title, description, metric, selector, limit) => {
  const buckets = (by) => `sum by (${by}) (rate(sonde_${metric}_bucket{${selector}}[$__rate_interval]))`;
  return [
    heatmap({ title, description, unit: "short", targets: [promBuckets(buckets("le"))] }),
    lines({
      title: `${title}: percentiles`,
      description: `${description} Upper bounds of buckets of a power of two: a value can be up to twice too high.`,
      unit: "s",
      thresholds: limits({ red: limit }),
      targets: [0.5, 0.9, 0.99, 0.999].map((q) => prom(`histogram_quantile(${q}, ${buckets("le")})`, `p${q * 100}`)),
    }),
  ];
};
const off = (probe) => `Probe ${probe} is off unless it is switched on.`;

export default dashboard({
  uid: "sonde-latency",
  title: "Latency",
  description: "Where time goes between a process and the wire: connection, socket, stack, queue, driver, interrupt, name.",
  variables: [variables.cluster, variables.nodes, variables.namespaces, variables.pods],
  gaps: like("node", "node"),
  changes: like("namespace", "namespace", true),
  rows: [
    {
      title: "Connections and names",
      panels: [
        ...both("Time to connect", "From the first SYN to the end of the attempt. Steps at 1, 3 and 7 s are SYNs that were lost.", "connect_latency_seconds", here, 0.5),
        ...both("DNS over UDP", `From a query to its answer. ${off("dns")}`, "dns_latency_seconds", here, 0.5),
        lines({
          title: "Round-trip times of connections",
          description: "Of the worst pod: the smoothed time that 99 % of its established connections do not exceed now.",
          unit: "s",
          targets: [
            prom(`topk(10, max by (k8s_namespace, k8s_pod) (sonde_tcpsockets_rtt_p99_seconds{${here}}))`, "{{k8s_namespace}}/{{k8s_pod}}"),
          ],
        }),
        lines({
          title: "DNS that goes wrong",
          description: `Answers that say so, and queries without one. ${off("dns")}`,
          unit: "cps",
          targets: ["timeouts", "retries", "servfail", "nxdomain", "refused"].map((column) =>
            prom(`sum(rate(sonde_dns_${column}_total{${here}}[$__rate_interval]))`, column),
          ),
        }),
      ],
    },
    {
      title: "Sockets",
      panels: [
        ...both("Data that waits to be read", `From readable to read: the process is slow. ${off("socketlatency")}`, "socketlatency_latency_seconds", `operation="read", ${here}`, 0.1),
        ...both("Data that waits to be sent", `From the send call to the device. ${off("socketlatency")}`, "socketlatency_latency_seconds", `operation="send", ${here}`, 0.1),
      ],
    },
    {
      title: "The kernel's stack",
      panels: [
        ...both("Received packets", `From arrival at the stack to the socket. ${off("kernellatency")}`, "kernellatency_receive_seconds", here, 0.01),
        ...both("Sent packets", `From the protocol to the device's queue. ${off("kernellatency")}`, "kernellatency_send_seconds", here, 0.01),
      ],
    },
    {
      title: "Queues and drivers",
      panels: [
        ...both("In the queueing discipline", `From hand-over to the queue to hand-over to the driver. ${off("netiftxlat")}`, "netiftxlat_qdisc_seconds", here, 0.01),
        ...both("In the driver", `Time of the driver's transmit function. ${off("netiftxlat")}`, "netiftxlat_xmit_seconds", here, 0.01),
      ],
    },
    {
      title: "Interrupts",
      panels: [
        ...both("Softirqs of the network wait", `From raised to run. ${off("net_softirq")}`, "net_softirq_sched_seconds", nodes, 0.01),
        ...both("Softirqs of the network run", `From entry to exit. ${off("net_softirq")}`, "net_softirq_execute_seconds", nodes, 0.01),
      ],
    },
    {
      title: "What was slow",
      panels: [
        table({
          title: "Slowest events",
          description: "Events about time, slowest first.",
          w: 24,
          targets: [
            sqlTable(`select time, latency_ns / 1e9::float8 as latency, type, node, namespace, pod, comm, protocol,
                      host(saddr) as saddr, sport, host(daddr) as daddr, dport, attributes::text as attributes
                      from sonde.events where $__timeFilter(time) and latency_ns is not null and ${like("node", "node")}
                      and ${like("coalesce(namespace, '')", "namespace")} and ${like("coalesce(pod, '')", "pod")}
                      order by latency_ns desc limit 200`),
          ],
          overrides: [{ matcher: { id: "byName", options: "latency" }, properties: [{ id: "unit", value: "s" }] }],
        }),
      ],
    },
  ],
});
