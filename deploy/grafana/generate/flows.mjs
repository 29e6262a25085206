import { dashboard, like, lines, owner, prom, sqlTable, table, variables } from "./kit.mjs";

const here = 'cluster=~"$cluster", k8s_node=~"$node", k8s_namespace=~"$namespace", k8s_pod=~"$pod"';
const flow = (metric, by) => `sum by (${by}) (rate(sonde_flow_${metric}_total{${here}}[$__rate_interval]))`;
const place = `${like("node", "node")} and ${like("namespace", "namespace")} and ${like("pod", "pod")}`;

// `rest` stands for all flows that have no row of their own.
const inet = (column) => `case when ${column} ~ '^[0-9a-f.:]+$' then ${column}::inet end`;

export default dashboard({
  uid: "sonde-flows",
  title: "Flows",
  description: "Who talks to whom, how much, and what is lost or sent again on the way. Probe flow has to be switched on.",
  variables: [variables.cluster, variables.nodes, variables.namespaces, variables.pods],
  gaps: `${like("node", "node")} and probe in ('', 'flow')`,
  changes: like("namespace", "namespace", true),
  rows: [
    {
      title: "Traffic",
      panels: [
        lines({
          title: "Received, by protocol",
          description: "Bytes with link-layer headers, as pods and hosts see them.",
          unit: "Bps",
          stack: true,
          targets: [prom(`sum by (protocol) (rate(sonde_flow_bytes_total{direction="ingress", ${here}}[$__rate_interval]))`, "{{protocol}}")],
        }),
        lines({
          title: "Sent, by protocol",
          description: "Bytes with link-layer headers, as pods and hosts see them.",
          unit: "Bps",
          stack: true,
          targets: [prom(`sum by (protocol) (rate(sonde_flow_bytes_total{direction="egress", ${here}}[$__rate_interval]))`, "{{protocol}}")],
        }),
        lines({
          title: "Pairs with the most bytes",
          description: "By source and destination address.",
          unit: "Bps",
          targets: [prom(`topk(10, ${flow("bytes", "src, dst")})`, "{{src}} -> {{dst}}")],
        }),
        lines({
          title: "Pairs with the most packets",
          description: "Many small packets cost more than few large ones.",
          unit: "pps",
          targets: [prom(`topk(10, ${flow("packets", "src, dst")})`, "{{src}} -> {{dst}}")],
        }),
      ],
    },
    {
      title: "Trouble",
      panels: [
        lines({
          title: "Pairs that lose most",
          description: "Packets that the kernel dropped in the namespace of one end, of class suspect.",
          unit: "pps",
          targets: [prom(`topk(10, ${flow("drops", "src, dst")})`, "{{src}} -> {{dst}}")],
        }),
        lines({
          title: "Pairs that send most again",
          description: "TCP segments sent again.",
          unit: "pps",
          targets: [prom(`topk(10, ${flow("retransmits", "src, dst")})`, "{{src}} -> {{dst}}")],
        }),
        table({
          title: "Flows of the time range",
          description: "By how much each flow's counters rose while it was read; what came before its first reading is not in it.",
          w: 24,
          h: 14,
          targets: [
            sqlTable(`with flows as (
                        select namespace, pod, direction, protocol, src, dst, dport, device,
                               max(bytes) - min(bytes) as bytes, max(packets) - min(packets) as packets,
                               max(drops) - min(drops) as drops, max(retransmits) - min(retransmits) as retransmits
                        from sonde.flow where $__timeFilter(time) and ${place}
                        group by node, namespace, pod, direction, protocol, src, dst, sport, dport, device),
                      top as (
                        select namespace, pod, direction, protocol, src, dst, dport, sum(bytes)::float8 as bytes, sum(packets)::float8 as packets,
                               sum(drops)::float8 as drops, sum(retransmits)::float8 as retransmits
                        from flows group by 1, 2, 3, 4, 5, 6, 7 order by bytes desc nulls last limit 100)
                      select namespace, pod, direction, protocol, src, dst, dport, bytes, packets, drops, retransmits,
                             ${owner("src_ip")} as src_owner, ${owner("dst_ip")} as dst_owner
                      from (select top.*, ${inet("src")} as src_ip, ${inet("dst")} as dst_ip from top) as named`),
          ],
          overrides: [{ matcher: { id: "byName", options: "bytes" }, properties: [{ id: "unit", value: "bytes" }] }],
        }),
      ],
    },
  ],
});
