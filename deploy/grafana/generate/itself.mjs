import { bars, dashboard, heatmap, like, limits, lines, prom, promBuckets, sqlSeries, sqlTable, stat, table, variables } from "./kit.mjs";

const c = 'cluster=~"$cluster"';
const spans = `time <= $__timeTo() and end_time >= $__timeFrom() and ${like("node", "node")}`;

export default dashboard({
  uid: "sonde-itself",
  title: "Itself",
  description: "Whether Sonde sees, ships and stores everything: what it misses is told here first.",
  variables: [variables.cluster, variables.nodes],
  gaps: like("node", "node"),
  rows: [
    {
      title: "Now",
      panels: [
        stat({
          title: "Aggregators that can store",
          description: "Those whose database takes batches. Collectors keep everything in their spools while there is none.",
          thresholds: { mode: "absolute", steps: [{ color: "red", value: null }, { color: "green", value: 1 }] },
          targets: [prom(`sum(sonde_aggregator_database_up{${c}})`, "ready")],
        }),
        stat({
          title: "Collectors connected",
          description: "Streams of all aggregators.",
          targets: [prom(`sum(sonde_aggregator_streams{${c}})`, "connected")],
        }),
        stat({
          title: "Silent nodes",
          description: "Nodes that reported in the time range and have not for two minutes.",
          thresholds: limits({ red: 1 }),
          targets: [
            sqlTable(`select count(*) as silent from sonde.nodes
                      where last_seen >= $__timeFrom() and last_seen < now() - interval '2 minutes' and ${like("node", "node")}`),
          ],
        }),
        stat({
          title: "Fullest spool",
          description: "What a collector has on disk that no aggregator has acknowledged.",
          unit: "bytes",
          thresholds: limits({ yellow: 16777216, red: 268435456 }),
          targets: [prom(`max(sonde_collector_spool_bytes{${c}})`, "spooled")],
        }),
        stat({
          title: "Oldest in a spool",
          description: "How long ago it was gathered. More than a minute: the aggregator is away or behind.",
          unit: "s",
          thresholds: limits({ yellow: 60, red: 600 }),
          targets: [prom(`max(sonde_collector_spool_oldest_seconds{${c}})`, "oldest")],
        }),
        stat({
          title: "Values stored",
          description: "Single values, histogram buckets included.",
          unit: "cps",
          targets: [prom(`sum(rate(sonde_aggregator_samples_total{${c}}[$__rate_interval]))`, "values")],
        }),
        stat({
          title: "Events stored",
          description: "By all aggregators.",
          unit: "cps",
          targets: [prom(`sum(rate(sonde_aggregator_events_total{${c}}[$__rate_interval]))`, "events")],
        }),
        stat({
          title: "CPU of the kernel side",
          description: "Of the node that pays most, as a share of all its CPUs. The governor holds it below kernel.cpu_budget_percent.",
          unit: "percentunit",
          decimals: 2,
          thresholds: limits({ yellow: 0.01, red: 0.03 }),
          targets: [prom(`max(sum by (instance) (sonde_collector_ebpf_cpu_ratio{${c}}))`, "CPU")],
        }),
      ],
    },
    {
      title: "What is missing",
      panels: [
        bars({
          title: "Gaps by cause",
          description: "Spans in which something could not be seen or had to be dropped, by when they began.",
          targets: [
            sqlSeries(`select $__timeGroupAlias(time, $__interval), cause as metric, count(*) as value
                       from sonde.gaps where $__timeFilter(time) and ${like("node", "node")} group by 1, 2 order by 1`),
          ],
        }),
        table({
          title: "Gaps by node, probe and cause",
          description: "missing: events, rows or hits, where they could be counted.",
          targets: [
            sqlTable(`select node, probe, cause, count(*) as gaps, sum(count)::float8 as missing, max(end_time) as last, max(detail) as detail
                      from sonde.gaps where ${spans} group by 1, 2, 3 order by gaps desc limit 100`),
          ],
        }),
        lines({
          title: "Events held back in the kernel",
          description: "By the bucket of their pod and type (events.rate, events.burst). They are counted, and told as gaps.",
          unit: "cps",
          targets: [prom(`topk(10, sum by (instance) (rate(sonde_collector_ebpf_suppressed_events_total{${c}}[$__rate_interval])))`, "{{instance}}")],
        }),
        lines({
          title: "Lost in rings, missed by programs",
          description: "ring lost: user space was too slow; missed: the kernel skipped a program. Both should be 0.",
          unit: "cps",
          targets: [
            prom(`sum by (instance) (rate(sonde_collector_ebpf_ring_lost_total{${c}}[$__rate_interval]))`, "{{instance}} ring lost"),
            prom(`sum by (instance) (rate(sonde_collector_ebpf_missed_runs_total{${c}}[$__rate_interval]))`, "{{instance}} missed"),
          ],
        }),
      ],
    },
    {
      title: "Collectors",
      panels: [
        table({
          title: "Nodes",
          description: "Their collectors, the longest silent first.",
          targets: [
            sqlTable(`select node, version, kernel, last_seen, extract(epoch from now() - last_seen)::float8 as seconds_ago, interval_seconds
                      from sonde.nodes where ${like("node", "node")} order by last_seen`),
          ],
          overrides: [
            { matcher: { id: "byName", options: "seconds_ago" }, properties: [{ id: "unit", value: "s" }, { id: "thresholds", value: limits({ yellow: 60, red: 120 }) }, { id: "custom.cellOptions", value: { type: "color-background" } }] },
          ],
        }),
        lines({
          title: "Spools",
          description: "Bytes on disk. A curve that rises is a node whose data does not get away.",
          unit: "bytes",
          targets: [prom(`topk(10, sum by (instance) (sonde_collector_spool_bytes{${c}}))`, "{{instance}}")],
        }),
        lines({
          title: "Age of the last round",
          description: "A round is one reading of everything: this stays below collector.interval and a little.",
          unit: "s",
          targets: [prom(`topk(10, max by (instance) (sonde_collector_last_round_age_seconds{${c}}))`, "{{instance}}")],
        }),
        lines({
          title: "Time of a round",
          description: "How long the last one took.",
          unit: "s",
          targets: [prom(`topk(10, max by (instance) (sonde_collector_last_round_seconds{${c}}))`, "{{instance}}")],
        }),
        lines({
          title: "Errors of probes",
          description: "Reads that failed. One probe that fails takes no other with it.",
          unit: "cps",
          targets: [prom(`sum by (instance, probe) (rate(sonde_collector_probe_errors_total{${c}}[$__rate_interval]))`, "{{instance}} {{probe}}")],
        }),
        lines({
          title: "Memory",
          description: "Resident memory of collectors.",
          unit: "bytes",
          targets: [prom(`topk(10, max by (instance) (sonde_collector_resident_memory_bytes{${c}}))`, "{{instance}}")],
        }),
      ],
    },
    {
      title: "Aggregators",
      panels: [
        heatmap({
          title: "Time to store",
          description: "How long it took to store a group of batches and commit. Collectors are acknowledged after that.",
          targets: [promBuckets(`sum by (le) (rate(sonde_aggregator_commit_seconds_bucket{${c}}[$__rate_interval]))`)],
        }),
        lines({
          title: "What waits for the writer",
          description: "Memory of batches in flight. When it is full, streams are not read and collectors spool.",
          unit: "bytes",
          targets: [prom(`sum by (instance) (sonde_aggregator_queued_bytes{${c}})`, "{{instance}}")],
        }),
        lines({
          title: "What keeps batches from being stored",
          description: "1: that is the problem now. away, full, read_only, slow, other_schema: docs/database.md says what each means.",
          max: 1,
          targets: [prom(`max by (problem) (sonde_aggregator_database_problem{${c}})`, "{{problem}}")],
        }),
        lines({
          title: "Refused, failed, late",
          description: "refused: content that makes no sense; failed: transactions tried again; resent: batches that were there already.",
          unit: "cps",
          targets: [
            prom(`sum(rate(sonde_aggregator_refused_batches_total{${c}}[$__rate_interval])) or vector(0)`, "refused"),
            prom(`sum(rate(sonde_aggregator_failed_transactions_total{${c}}[$__rate_interval]))`, "failed transactions"),
            prom(`sum(rate(sonde_aggregator_resent_batches_total{${c}}[$__rate_interval]))`, "resent"),
            prom(`sum(rate(sonde_aggregator_expired_total{${c}}[$__rate_interval]))`, "older than what is kept"),
          ],
        }),
        lines({
          title: "Rollups behind",
          description: "How long ago the first hour was due that is not rolled up.",
          unit: "s",
          thresholds: limits({ yellow: 7200, red: 86400 }),
          targets: [prom(`max(sonde_aggregator_rollup_behind_seconds{${c}})`, "behind")],
        }),
        lines({
          title: "Requests",
          description: "Answers of the HTTP interface by status. 5xx: the database was away or too slow.",
          unit: "reqps",
          stack: true,
          targets: [prom(`sum by (status) (rate(sonde_aggregator_http_requests_total{${c}}[$__rate_interval]))`, "{{status}}")],
        }),
      ],
    },
  ],
});
