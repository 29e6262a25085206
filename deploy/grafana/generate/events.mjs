import { bars, dashboard, like, owner, sqlSeries, sqlTable, table, variables } from "./kit.mjs";

// Every filter that is left as it comes matches everything.
const filters = [
  like("node", "node"),
  like("coalesce(namespace, '')", "namespace"),
  like("coalesce(pod, '')", "pod"),
  like("type", "type"),
  like("coalesce(reason, '')", "reason"),
  "('$ip' = '' or saddr <<= nullif('$ip', '')::inet or daddr <<= nullif('$ip', '')::inet)",
  "('$port' = '' or '$port' in (sport::text, dport::text))",
  "('$text' = '' or concat_ws(' ', reason, comm, attributes::text, stack::text) ilike '%$text%')",
].join("\n  and ");
const found = `from sonde.events\nwhere $__timeFilter(time)\n  and ${filters}`;
// Counted by what is there, and written out after that: see `owner`.
const top = (title, description, by, shown, more = "") =>
  table({
    title,
    description,
    w: 8,
    targets: [
      sqlTable(`select ${shown}, events, last from (
                select ${by}, count(*) as events, max(time) as last
                ${found}${more}
                group by ${by.replace(/ as \w+/g, "")} order by events desc limit 30) as top
                order by events desc`),
    ],
  });

export default dashboard({
  uid: "sonde-events",
  title: "Events",
  description: "Search through everything abnormal that kernels saw: by place, type, reason, address, port and text.",
  variables: [
    variables.nodes,
    variables.namespaces,
    variables.pods,
    variables.types,
    variables.reasons,
    variables.text("ip", "Address or network"),
    variables.text("port", "Port"),
    variables.text("text", "Text in reason, process, attributes, stack"),
  ],
  gaps: like("node", "node"),
  changes: like("namespace", "namespace", true),
  rows: [
    {
      title: "When",
      panels: [
        bars({
          title: "Events by type",
          description: "Of the filters above. Red spans: something could not be seen.",
          w: 24,
          targets: [sqlSeries(`select $__timeGroupAlias(time, $__interval), type as metric, count(*) as value\n${found}\ngroup by 1, 2 order by 1`)],
        }),
      ],
    },
    {
      title: "What they have in common",
      panels: [
        top("Reasons", "Why, in the kernel's words.", "type, reason", "type, reason"),
        top("Pods", "Whom it happened to.", "node, namespace, pod", "node, namespace, pod"),
        top(
          "Other ends",
          "A pod, a service or an address.",
          "case when direction = 'ingress' then saddr else daddr end as other",
          `${owner("other")} as other_end`,
        ),
        top("Ports", "Of the destination.", "protocol, dport", "protocol, dport"),
        top("Places in the kernel", "The function that dropped the packet, and above it in the stack.", "attributes->>'location' as location, stack[1:3] as stack", "location, array_to_string(stack, ' < ') as stack"),
        top("Rules of nftables", "Those that can have dropped the packet.", "attributes->>'nft' as rule", "rule", "\n  and attributes ? 'nft'"),
      ],
    },
    {
      title: "Events",
      panels: [
        table({
          title: "Newest first",
          description: "The newest 1,000 that match.",
          w: 24,
          h: 18,
          targets: [
            sqlTable(`select time, node, namespace, pod, type, reason, direction, protocol, host(saddr) as saddr, sport, host(daddr) as daddr, dport,
                      concat_ws('/', peer_namespace, coalesce(nullif(peer_pod, ''), peer_service)) as peer,
                      latency_ns / 1e9::float8 as latency, comm, state, interface, suppressed,
                      attributes::text as attributes, array_to_string(stack[1:8], ' < ') as stack
                      ${found}
                      order by time desc limit 1000`),
          ],
          overrides: [{ matcher: { id: "byName", options: "latency" }, properties: [{ id: "unit", value: "s" }] }],
        }),
      ],
    },
  ],
});
