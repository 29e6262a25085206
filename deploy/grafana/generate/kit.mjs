// What all dashboards are made of: variables, links, annotations and the few kinds of panels. A dashboard says only what
// it shows; how that looks is said here, once.

const METRICS = { type: "prometheus", uid: "${metrics}" };
const DATABASE = { type: "grafana-postgresql-datasource", uid: "${database}" };

/** A query to Prometheus over time. `legend` may hold `{{label}}`. */
export const prom = (expr, legend) => ({
  datasource: METRICS,
  editorMode: "code",
  expr: squeeze(expr),
  legendFormat: legend ?? "__auto",
  range: true,
});

/** The same at the end of the range alone. */
export const promNow = (expr, legend) => ({ ...prom(expr, legend), range: false, instant: true });

/** Buckets of a histogram, for a heat map. */
export const promBuckets = (expr) => ({ ...prom(expr, "{{le}}"), format: "heatmap" });

/** A query to the views of schema `sonde`: columns time, metric, value. */
export const sqlSeries = (sql) => query(sql, "time_series");

/** A query to the views of schema `sonde`: a table as it comes. */
export const sqlTable = (sql) => query(sql, "table");

const query = (sql, format) => ({
  datasource: DATABASE,
  editorMode: "code",
  format,
  rawQuery: true,
  rawSql: sql.trim().replace(/\n {4,}/g, "\n"),
});

const squeeze = (text) => text.trim().replace(/\s+/g, " ");

// ---- variables --------------------------------------------------------------------------------------------------

const datasource = (name, label, type, regex = "") => ({
  type: "datasource",
  name,
  label,
  query: type,
  regex,
  hide: 0,
  refresh: 1,
});

const choice = (name, label, source, definition, more) => ({
  type: "query",
  name,
  label,
  datasource: source,
  definition,
  query: source === METRICS ? { query: definition, qryType: 1, refId: "variable" } : definition,
  // When the time range changes: pods that are gone can be chosen for the time when they were there.
  refresh: 2,
  sort: 1,
  ...more,
});

const MANY = { multi: true, includeAll: true, allValue: ".*", current: { text: ["All"], value: ["$__all"] } };
const ONE = { multi: false, includeAll: false };

/**
 * A condition: the column has one of the values chosen for a variable of several; `empty`: or none. At All the condition is
 * constant, and PostgreSQL leaves out what it would have joined for it.
 */
export const like = (column, variable, empty = false) =>
  `('\${${variable}:regex}' = '.*' or ${column} ~ '^(\${${variable}:regex}${empty ? "|" : ""})$')`;

/**
 * Whose an address is: the pod or service that had it last, else the address. For what is counted already: asked of every
 * event, it would cost more than all the rest.
 */
export const owner = (address) =>
  `coalesce((select p.namespace || '/' || p.pod from sonde.pods p where ${address} = any(p.ips)
             order by p.valid_to desc nulls first, p.valid_from desc limit 1),
            (select s.namespace || '/' || s.service from sonde.services s where ${address} = any(s.ips)
             order by s.valid_to desc nulls first limit 1), host(${address}))`;

const PODS = "from sonde.pods where (valid_to is null or valid_to >= $__timeFrom()) and valid_from <= $__timeTo()";

export const variables = {
  cluster: choice("cluster", "Cluster", METRICS, "label_values(sonde_netdev_receive_bytes_total, cluster)", MANY),
  node: choice("node", "Node", DATABASE, "select node from sonde.nodes order by 1", ONE),
  nodes: choice("node", "Node", DATABASE, "select node from sonde.nodes order by 1", MANY),
  namespace: choice("namespace", "Namespace", DATABASE, `select distinct namespace ${PODS} order by 1`, ONE),
  namespaces: choice("namespace", "Namespace", DATABASE, `select distinct namespace ${PODS} order by 1`, MANY),
  pod: choice("pod", "Pod", DATABASE, `select distinct pod ${PODS} and namespace = '$namespace' order by 1`, ONE),
  pods: choice(
    "pod",
    "Pod",
    DATABASE,
    `select distinct pod ${PODS} and ${like("namespace", "namespace")} order by 1`,
    MANY,
  ),
  types: choice("type", "Type", DATABASE, "select distinct type from sonde.events where $__timeFilter(time) order by 1", MANY),
  reasons: choice(
    "reason",
    "Reason",
    DATABASE,
    `select distinct reason from sonde.events where $__timeFilter(time) and ${like("type", "type")} and reason <> '' order by 1`,
    MANY,
  ),
  text: (name, label) => ({
    type: "textbox",
    name,
    label,
    query: "",
    current: { text: "", value: "" },
    options: [{ selected: true, text: "", value: "" }],
  }),
};

// ---- panels -----------------------------------------------------------------------------------------------------

/** Steps of colour: `limits({ yellow: 1, red: 10 })`. */
export const limits = (steps) => ({
  mode: "absolute",
  steps: [{ color: "green", value: null }, ...Object.entries(steps).map(([color, value]) => ({ color, value }))],
});

const panel = (type, { title, description, targets, w = 12, h = 8, unit, thresholds, decimals, overrides = [], custom, options, min, max, links, noValue }) => ({
  type,
  title,
  description,
  datasource: targets[0].datasource,
  targets: targets.map((target, at) => ({ refId: String.fromCharCode(65 + at), ...target })),
  size: { w, h },
  fieldConfig: {
    defaults: {
      ...(unit && { unit }),
      ...(decimals !== undefined && { decimals }),
      ...(min !== undefined && { min }),
      ...(max !== undefined && { max }),
      ...(noValue && { noValue }),
      ...(links && { links }),
      ...(thresholds && { thresholds }),
      color: { mode: type === "stat" || type === "table" ? "thresholds" : "palette-classic" },
      ...(custom && { custom }),
    },
    overrides,
  },
  options,
});

/** Lines. A hole is a time in which nothing was read: holes are shown, never bridged. */
export const lines = (spec) =>
  panel("timeseries", {
    min: 0,
    ...spec,
    custom: {
      drawStyle: spec.bars ? "bars" : "line",
      fillOpacity: spec.bars ? 80 : spec.stack ? 25 : 8,
      lineWidth: 1,
      showPoints: "never",
      spanNulls: false,
      insertNulls: false,
      stacking: { mode: spec.stack || spec.bars ? "normal" : "none", group: "A" },
      thresholdsStyle: { mode: spec.thresholds ? "line" : "off" },
    },
    options: {
      legend: { displayMode: "table", placement: "bottom", showLegend: true, calcs: ["mean", "max"] },
      tooltip: { mode: "multi", sort: "desc" },
    },
  });

/** Bars of counts, stacked. */
export const bars = (spec) => lines({ ...spec, bars: true, decimals: 0 });

/** One number. */
export const stat = (spec) =>
  panel("stat", {
    w: 3,
    h: 4,
    noValue: "none",
    thresholds: limits({}),
    ...spec,
    options: {
      colorMode: spec.thresholds ? "background" : "value",
      graphMode: spec.targets[0].range ? "area" : "none",
      justifyMode: "auto",
      reduceOptions: { calcs: ["lastNotNull"], fields: "", values: false },
      textMode: "auto",
      wideLayout: true,
    },
  });

export const table = (spec) =>
  panel("table", {
    h: 9,
    thresholds: limits({}),
    ...spec,
    custom: { align: "auto", cellOptions: { type: "auto" }, filterable: true, inspect: true },
    overrides: [...(spec.overrides ?? []), ...PLACES],
    options: { showHeader: true, cellHeight: "sm", footer: { show: false, reducer: ["sum"], fields: [] } },
  });

/** How a time is spread, on a logarithmic scale. */
export const heatmap = (spec) =>
  panel("heatmap", {
    ...spec,
    custom: { hideFrom: { legend: false, tooltip: false, viz: false }, scaleDistribution: { type: "linear" } },
    options: {
      calculate: false,
      cellGap: 1,
      color: { mode: "scheme", scheme: "Oranges", steps: 64, scale: "exponential", exponent: 0.5, reverse: false, fill: "dark-orange" },
      exemplars: { color: "rgba(255,0,255,0.7)" },
      filterValues: { le: 1e-9 },
      legend: { show: true },
      rowsFrame: { layout: "auto" },
      tooltip: { mode: "single", yHistogram: true, showColorScale: true },
      yAxis: { axisPlacement: "left", unit: "s", reverse: false },
    },
  });

/** A link of every column that names a place, so that a click goes there with the same time range. */
const to = (uid, title, params) => ({ title, url: `/d/${uid}?${params}&\${__url_time_range}&\${metrics:queryparam}&\${database:queryparam}` });
const POD = to("sonde-pod", "Pod ${__data.fields.pod}", "var-namespace=${__data.fields.namespace}&var-pod=${__data.fields.pod}");
const NODE = to("sonde-node", "Node ${__data.fields.node}", "var-node=${__data.fields.node}");
const PLACES = [
  { matcher: { id: "byName", options: "pod" }, properties: [{ id: "links", value: [POD] }] },
  { matcher: { id: "byName", options: "node" }, properties: [{ id: "links", value: [NODE] }] },
];

/** Links of series that have the labels k8s_node or k8s_pod. */
export const toPod = [to("sonde-pod", "Pod ${__field.labels.k8s_pod}", "var-namespace=${__field.labels.k8s_namespace}&var-pod=${__field.labels.k8s_pod}")];
export const toNode = [to("sonde-node", "Node ${__field.labels.k8s_node}", "var-node=${__field.labels.k8s_node}")];

// ---- dashboards ---------------------------------------------------------------------------------------------------

const annotation = (name, iconColor, sql) => ({
  name,
  enable: true,
  hide: false,
  iconColor,
  datasource: DATABASE,
  target: { refId: "Anno", editorMode: "code", format: "table", rawQuery: true, rawSql: sql },
});

/** What everybody who looks at a curve has to know: when we did not see, and when somebody changed something. */
const annotations = ({ gaps, changes }) => [
  annotation(
    "Gaps",
    "red",
    "select time, end_time as timeend, cause || case when count > 0 then ': ' || count else '' end || ' ' || detail as text, " +
      `node || ',' || probe as tags from sonde.gaps where time <= $__timeTo() and end_time >= $__timeFrom() and ${gaps} order by time limit 500`,
  ),
  annotation(
    "Changes",
    "blue",
    "select time, kind || ' ' || concat_ws('/', nullif(namespace, ''), nullif(coalesce(nullif(pod, ''), nullif(workload, ''), " +
      "nullif(service, ''), node), '')) || coalesce(': ' || before || ' -> ' || after, '') as text, kind as tags " +
      `from sonde.changes where $__timeFilter(time) and ${changes} order by time limit 500`,
  ),
];

/** Puts panels side by side from the left, 24 columns wide, a row of the page below the other. */
const laidOut = (rows) => {
  const panels = [];
  let y = 0;
  for (const row of rows) {
    panels.push({ type: "row", title: row.title, collapsed: false, gridPos: { x: 0, y, w: 24, h: 1 }, panels: [] });
    y += 1;
    let [x, height] = [0, 0];
    for (const { size, ...panel } of row.panels) {
      if (x + size.w > 24) {
        y += height;
        [x, height] = [0, 0];
      }
      panels.push({ ...panel, gridPos: { x, y, ...size } });
      x += size.w;
      height = Math.max(height, size.h);
    }
    y += height;
  }
  return panels.map((panel, at) => ({ id: at + 1, ...panel }));
};

/** `gaps` and `changes`: SQL conditions for the annotations. */
export const dashboard = ({ uid, title, description, variables, rows, gaps = "true", changes = "true", from = "now-1h", refresh = "1m" }) => ({
  uid,
  title: `Sonde / ${title}`,
  description,
  tags: ["sonde"],
  editable: true,
  graphTooltip: 1,
  schemaVersion: 39,
  timezone: "browser",
  refresh,
  time: { from, to: "now" },
  links: [
    {
      type: "dashboards",
      title: "Sonde",
      tags: ["sonde"],
      icon: "external link",
      tooltip: "",
      url: "",
      asDropdown: false,
      includeVars: true,
      keepTime: true,
      targetBlank: false,
    },
  ],
  annotations: { list: annotations({ gaps, changes }) },
  templating: {
    list: [
      datasource("metrics", "Metrics", "prometheus"),
      datasource("database", "Database", "grafana-postgresql-datasource"),
      ...variables,
    ],
  },
  panels: laidOut(rows),
});
