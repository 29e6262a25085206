import { bars, dashboard, like, limits, lines, owner, prom, sqlSeries, sqlTable, stat, table, toNode, toPod, variables } from "./kit.mjs";

const here = 'cluster=~"$cluster", k8s_node=~"$node", k8s_namespace=~"$namespace"';
const nodes = 'cluster=~"$cluster", k8s_node=~"$node"';
// An event of no known pod has neither namespace nor pod: it belongs to its node.
const place = `${like("node", "node")} and ${like("coalesce(namespace, '')", "namespace")}`;

export default dashboard({
  uid: "sonde-overview",
  title: "Cluster overview",
  description: "What the network does to the pods of the cluster, where it is worst, and what changed before.",
  variables: [variables.cluster, variables.nodes, variables.namespaces],
  gaps: like("node", "node"),
  changes: like("namespace", "namespace", true),
  rows: [
    {
      title: "Now",
      panels: [
        stat({
          title: "Nodes that report",
          description: "Nodes whose collector was connected in the last two minutes, of all that ever were. What a node does not report, nobody sees.",
          targets: [
            sqlTable(`select count(*) filter (where last_seen > now() - interval '2 minutes') as reporting,
                      count(*) filter (where last_seen <= now() - interval '2 minutes') as silent
                      from sonde.nodes where ${like("node", "node")}`),
          ],
          overrides: [
            { matcher: { id: "byName", options: "silent" }, properties: [{ id: "thresholds", value: limits({ red: 1 }) }] },
          ],
        }),
        stat({
          title: "Pods",
          description: "Pods that are there now.",
          targets: [
            sqlTable(`select count(*) as pods from sonde.pods
                      where valid_to is null and ${like("node", "node")} and ${like("namespace", "namespace")}`),
          ],
        }),
        stat({
          title: "Events",
          description: "Events in the time range: packets lost, connections reset, segments sent again, slow sockets and interrupts.",
          targets: [sqlTable(`select count(*) as events from sonde.events where $__timeFilter(time) and ${place}`)],
        }),
        stat({
          title: "Packets lost",
          description: "Packets that kernels dropped for a reason that ordinary traffic does not give (class suspect).",
          unit: "pps",
          thresholds: limits({ yellow: 1, red: 100 }),
          targets: [prom(`sum(rate(sonde_packetloss_drops_total{class="suspect", ${here}}[$__rate_interval]))`, "lost")],
        }),
        stat({
          title: "Sent again",
          description: "Share of TCP segments that had to be sent again. Above 1 % something loses packets; above 5 % people notice.",
          unit: "percentunit",
          decimals: 2,
          thresholds: limits({ yellow: 0.01, red: 0.05 }),
          targets: [
            prom(
              `sum(rate(sonde_tcp_retransmitted_segments_total{${here}}[$__rate_interval]))
               / (sum(rate(sonde_tcp_sent_segments_total{${here}}[$__rate_interval]))
                  + sum(rate(sonde_tcp_retransmitted_segments_total{${here}}[$__rate_interval])) > 0)`,
              "sent again",
            ),
          ],
        }),
        stat({
          title: "Resets",
          description: "TCP resets sent and received.",
          unit: "cps",
          thresholds: limits({ yellow: 10, red: 100 }),
          targets: [prom(`sum(rate(sonde_tcpreset_resets_total{${here}}[$__rate_interval]))`, "resets")],
        }),
        stat({
          title: "Connects that fail",
          description: "Attempts to connect that were refused, timed out, were reset or found no route. Those given up by their caller are left out.",
          unit: "cps",
          thresholds: limits({ yellow: 1, red: 10 }),
          targets: [
            prom(`sum(rate(sonde_connect_attempts_total{result!~"established|aborted", ${here}}[$__rate_interval]))`, "failed"),
          ],
        }),
        stat({
          title: "Gaps",
          description: "Spans of the time range in which something could not be seen. Where this is not 0, silence is no health: dashboard Sonde / Itself says why.",
          thresholds: limits({ yellow: 1 }),
          targets: [
            sqlTable(`select count(*) as gaps from sonde.gaps
                      where time <= $__timeTo() and end_time >= $__timeFrom() and ${like("node", "node")}`),
          ],
        }),
      ],
    },
    {
      title: "What happened",
      panels: [
        bars({
          title: "Events by type",
          description: "Each event is one abnormal thing at one time. Kernels hold events of a storm back; the counters below do not.",
          unit: "short",
          targets: [
            sqlSeries(`select $__timeGroupAlias(time, $__interval), type as metric, count(*) as value
                       from sonde.events where $__timeFilter(time) and ${place} group by 1, 2 order by 1`),
          ],
        }),
        lines({
          title: "Packets lost, by reason",
          description: "By the running kernel's own name of the reason. Class suspect: what ordinary traffic does not give.",
          unit: "pps",
          stack: true,
          targets: [
            prom(`sum by (reason) (rate(sonde_packetloss_drops_total{class="suspect", ${here}}[$__rate_interval]))`, "{{reason}}"),
          ],
        }),
        lines({
          title: "Segments sent again, by why",
          description: "syn: no answer to the beginning of a connection; rto: time-outs, which cost at least 200 ms each; fast: repaired at once; tlp: probes for a lost tail.",
          unit: "pps",
          stack: true,
          targets: [prom(`sum by (kind) (rate(sonde_tcpretrans_segments_total{${here}}[$__rate_interval]))`, "{{kind}}")],
        }),
        lines({
          title: "Resets, by type",
          description: "nosock: nobody listened; process: a socket did not accept a segment; active: this side gave up; receive: the other side did.",
          unit: "cps",
          stack: true,
          targets: [prom(`sum by (type) (rate(sonde_tcpreset_resets_total{${here}}[$__rate_interval]))`, "{{type}}")],
        }),
        lines({
          title: "Attempts to connect, by outcome",
          description: "What came of the connections that pods asked for.",
          unit: "cps",
          stack: true,
          targets: [prom(`sum by (result) (rate(sonde_connect_attempts_total{${here}}[$__rate_interval]))`, "{{result}}")],
        }),
        table({
          title: "What changed in the cluster",
          description: "From the Kubernetes API, newest first: rollouts, restarts, deletes, readiness. Most incidents begin with one of these.",
          targets: [
            sqlTable(`select time, kind, node, namespace, pod, workload, service, before, after, detail
                      from sonde.changes where $__timeFilter(time) and ${like("namespace", "namespace", true)}
                      order by time desc limit 200`),
          ],
        }),
      ],
    },
    {
      title: "Where",
      panels: [
        table({
          title: "Pods with the most events",
          description: "The first place to look. A click on a pod or node goes there.",
          targets: [
            sqlTable(`select node, namespace, pod, workload, count(*) as events,
                      count(*) filter (where type = 'PACKETLOSS') as lost,
                      count(*) filter (where type like 'TCPRESET%') as resets,
                      count(*) filter (where type = 'TCPRETRANS') as sent_again,
                      count(*) filter (where latency_ns is not null) as slow, max(time) as last
                      from sonde.events where $__timeFilter(time) and ${place}
                      group by 1, 2, 3, 4 order by events desc limit 50`),
          ],
        }),
        table({
          title: "Pairs with the most events",
          description: "Who talked to whom when it went wrong. The other end is a pod, a service or an address.",
          targets: [
            sqlTable(`select namespace, pod, direction, ${owner("other")} as other_end, type, events, last
                      from (select namespace, pod, direction, case when direction = 'ingress' then saddr else daddr end as other,
                                   type, count(*) as events, max(time) as last
                            from sonde.events where $__timeFilter(time) and ${place}
                            group by 1, 2, 3, 4, 5 order by events desc limit 50) as pairs
                      order by events desc`),
          ],
        }),
        lines({
          title: "Nodes that lose most",
          description: "Packets lost per node, pods and host together.",
          unit: "pps",
          links: toNode,
          targets: [
            prom(`topk(10, sum by (k8s_node) (rate(sonde_packetloss_drops_total{class="suspect", ${nodes}}[$__rate_interval])))`, "{{k8s_node}}"),
          ],
        }),
        lines({
          title: "Pods that send most again",
          description: "TCP segments sent again.",
          unit: "pps",
          links: toPod,
          targets: [
            prom(
              `topk(10, sum by (k8s_namespace, k8s_pod) (rate(sonde_tcpretrans_segments_total{k8s_pod!="", ${here}}[$__rate_interval])))`,
              "{{k8s_namespace}}/{{k8s_pod}}",
            ),
          ],
        }),
        lines({
          title: "Pods whose listening sockets overflow",
          description: "Connections that a full accept queue refused: the process accepts too slowly, or its backlog is too small.",
          unit: "cps",
          links: toPod,
          targets: [
            prom(
              `topk(10, sum by (k8s_namespace, k8s_pod) (rate(sonde_tcpext_listen_overflows_total{k8s_pod!="", ${here}}[$__rate_interval])))`,
              "{{k8s_namespace}}/{{k8s_pod}}",
            ),
          ],
        }),
        lines({
          title: "Connection tracking, how full",
          description: "Of the fullest table of each node. At 100 % new connections are dropped.",
          unit: "percentunit",
          max: 1,
          thresholds: limits({ yellow: 0.8, red: 0.95 }),
          links: toNode,
          targets: [
            prom(`topk(10, max by (k8s_node) (sonde_conntrack_entries{${nodes}} / (sonde_conntrack_entries_limit{${nodes}} > 0)))`, "{{k8s_node}}"),
          ],
        }),
      ],
    },
  ],
});
