import { dashboard, lines, prom, sqlTable, table, variables } from "./kit.mjs";

const here = 'cluster=~"$cluster", k8s_node=~"$node", k8s_namespace=~"$namespace", k8s_pod=~"$pod"';
const flow = (metric, by) => `sum by (${by}) (rate(sonde_flow_${metric}_total{${here}}[$__rate_interval]))`;
const place = "node ~ '^(${node:regex})$' and namespace ~ '^(${namespace:regex})$' and pod ~ '^(${pod:regex})$'";

// Pods by address, the newest that has it: the names of both ends.
const named = (address) =>
  `(select p.namespace || '/' || p.pod from sonde.pods p where ${address} in (select host(ip) from unnest(p.ips) as ip)
    order by p.valid_to desc nulls first, p.valid_from desc limit 1)`;

export default dashboard({
  uid: "sonde-flows",
  title: "Flows",
  description: "Who talks to whom, how much, and what is lost or sent again on the way. Probe flow has to be switched on.",
  variables: [variables.cluster, variables.nodes, variables.namespaces, variables.pods],
  gaps: "node ~ '^(${node:regex})$' and probe in ('', 'flow')",
  changes: "namespace ~ '^(${namespace:regex}|)$'",
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
                      select top.*, ${named("top.src")} as src_pod, ${named("top.dst")} as dst_pod from top`),
          ],
          overrides: [{ matcher: { id: "byName", options: "bytes" }, properties: [{ id: "unit", value: "bytes" }] }],
        }),
      ],
    },
  ],
});
