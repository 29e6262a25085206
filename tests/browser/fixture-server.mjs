// A small stand-in for the aggregator's HTTP side, with data made by hand: for the layout tests, and for work on the pages
// (`npm run fixture -- --port 9640`). It takes no shortcut for the pages: unknown parameters are refused, as there.

import { createReadStream } from "node:fs";
import { stat } from "node:fs/promises";
import { createServer } from "node:http";
import { extname, join, normalize } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";

import { quietScenario, busyScenario } from "./fixture-data.mjs";

const DIST = fileURLToPath(new URL("../../aggregator/ui/dist", import.meta.url));
const TYPES = { ".html": "text/html; charset=utf-8", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml" };

const FILTERS = ["probe", "type", "reason", "node", "namespace", "pod", "workload", "ip", "port", "protocol", "min_latency", "q"];
const KNOWN = {
  "/api/v1/events": ["from", "to", ...FILTERS, "order", "limit", "cursor"],
  "/api/v1/events/stream": ["from", ...FILTERS],
  "/api/v1/events/stats": ["from", "to", ...FILTERS, "by", "step", "limit"],
  "/api/v1/pods": ["node", "namespace", "pod", "workload", "at", "from", "to", "all", "limit", "cursor"],
  "/api/v1/nodes": [],
  "/api/v1/probes": [],
  "/api/v1/changes": ["from", "to", "kind", "node", "namespace", "pod", "workload", "service", "limit", "cursor"],
  "/api/v1/gaps": ["from", "to", "node", "probe", "cause", "limit"],
  rows: ["node", "namespace", "pod", "from", "to", "column", "max_points"],
};

class Problem extends Error {
  constructor(status, title, detail) {
    super(detail);
    Object.assign(this, { status, title });
  }
}

const UNITS = { ms: 1, s: 1000, m: 60_000, h: 3_600_000, d: 86_400_000 };

function span(text) {
  const match = /^(\d+)(ms|s|m|h|d)$/.exec(text);
  if (!match) throw new Problem(400, "bad parameter", `\`${text}\` is not a duration: expected a number with a unit, such as \`15m\``);
  return Number(match[1]) * UNITS[match[2]];
}

function instant(text, name) {
  if (text.startsWith("-")) return Date.now() - span(text.slice(1));
  if (/^\d{4}-\d\d-\d\dT[\d:.]+(Z|[+-]\d\d:\d\d)$/.test(text)) return Date.parse(text);
  throw new Problem(400, "bad parameter", `${name}: \`${text}\` is not a time: expected RFC 3339 or a span back from now such as \`-15m\``);
}

function range(query) {
  const from = instant(query.get("from") ?? "-1h", "from");
  const to = query.has("to") ? instant(query.get("to"), "to") : Date.now();
  if (from >= to) throw new Problem(400, "bad parameter", "`from` is not before `to`");
  return [from, to];
}

/** Where an empty value means nothing. */
const NEVER_EMPTY = ["ip", "port", "min_latency", "q"];

/** What one filter looks at in an event: a list of texts. */
const LOOK = {
  ip: (event) => [event.saddr, event.daddr],
  port: (event) => [event.sport, event.dport],
  q: (event) => [event.reason, event.comm, ...(event.stack ?? []), JSON.stringify(event.attributes)],
};

function matches(event, query) {
  return FILTERS.every((key) => {
    const wanted = query.getAll(key);
    if (wanted.length === 0) return true;
    if (key === "min_latency") return (event.latency_ns ?? 0) >= Number(wanted[0].replace("ms", "000000"));
    const values = (LOOK[key]?.(event) ?? [event[key] ?? ""]).filter((value) => value !== undefined).map(String);
    const is = (value) => (key === "q" ? values.some((one) => one.includes(value)) : values.includes(value));
    const yes = wanted.filter((value) => !value.startsWith("!"));
    const no = wanted.filter((value) => value.startsWith("!")).map((value) => value.slice(1));
    return (yes.length === 0 || yes.some(is)) && !no.some(is);
  });
}

function check(query, known) {
  for (const key of NEVER_EMPTY) {
    if (query.getAll(key).includes("")) throw new Problem(400, "Bad Request", `\`${key}\`: expected a value`);
  }
  for (const key of query.keys()) {
    if (!known.includes(key)) throw new Problem(400, "unknown parameter", `\`${key}\` is not a parameter here: expected ${known.join(", ") || "none"}`);
  }
}

/** One page of what was found. A cursor is refused with another question than the one it came with. */
function paged(found, query, most) {
  const limit = Number(query.get("limit") ?? 100);
  if (!(limit >= 1 && limit <= most)) throw new Problem(400, "Bad Request", `limit: expected 1 to ${most}`);
  const question = [...query].filter(([key]) => key !== "cursor" && key !== "limit").sort().toString();
  const [start, of] = query.has("cursor") ? JSON.parse(atob(query.get("cursor"))) : [0, question];
  if (of !== question) throw new Problem(400, "Bad Request", "this cursor belongs to another question");
  const end = start + limit;
  return [found.slice(start, end), end < found.length ? btoa(JSON.stringify([end, question])) : null];
}

function eventsAnswer(state, query) {
  const [from, to] = range(query);
  const found = state.events.filter((event) => Date.parse(event.time) >= from && Date.parse(event.time) < to && matches(event, query));
  const [events, next_cursor] = paged(found, query, 1000);
  return { events, next_cursor };
}

function statsAnswer(state, query) {
  const [from, to] = range(query);
  const step = query.has("step") ? span(query.get("step")) : 60_000;
  const by = query.get("by") ?? "type";
  const buckets = new Map();
  for (let time = Math.floor(from / step) * step; time < to; time += step) buckets.set(time, 0);
  const top = new Map();
  let total = 0;
  for (const event of state.events) {
    const time = Date.parse(event.time);
    if (time < from || time > to || !matches(event, query)) continue;
    const start = Math.floor(time / step) * step;
    buckets.set(start, (buckets.get(start) ?? 0) + 1);
    top.set(event[by] ?? null, (top.get(event[by] ?? null) ?? 0) + 1);
    total += 1;
  }
  return {
    from: new Date(from).toISOString(),
    to: new Date(to).toISOString(),
    step_s: step / 1000,
    buckets: [...buckets].sort(([a], [b]) => a - b).map(([time, count]) => ({ time: new Date(time).toISOString(), count })),
    top: [...top].sort(([, a], [, b]) => b - a).map(([value, count]) => ({ value, count })),
    total,
  };
}

function podsAnswer(state, query) {
  const is = (pod, key) => !query.has(key) || query.getAll(key).includes(pod[key]);
  const found = state.pods.filter((pod) => (query.get("all") === "true" || pod.valid_to === null) && ["node", "namespace", "pod"].every((key) => is(pod, key)));
  const [pods, next_cursor] = paged(found, query, 10_000);
  return { pods, next_cursor };
}

function gapsAnswer(state, query) {
  const [from, to] = range(query);
  const is = (gap, key) => !query.has(key) || query.getAll(key).includes(gap[key]);
  const gaps = state.gaps.filter((gap) => Date.parse(gap.to) >= from && Date.parse(gap.from) <= to && is(gap, "node") && is(gap, "probe"));
  return { gaps, truncated: false };
}

function changesAnswer(state, query) {
  const [from, to] = range(query);
  const is = (change, key) => !query.has(key) || query.getAll(key).includes(change[key]);
  const keys = ["kind", "node", "namespace", "pod"];
  const found = (state.changes ?? []).filter((change) => Date.parse(change.time) >= from && Date.parse(change.time) < to && keys.every((key) => is(change, key)));
  const [changes, next_cursor] = paged(found, query, 1000);
  return { changes, next_cursor };
}

function rowsAnswer(state, name, query) {
  const [from, to] = range(query);
  const probe = state.probes.find((one) => one.name === name);
  if (!probe) throw new Problem(404, "unknown probe", `no probe \`${name}\`: expected ${state.probes.map((one) => one.name).join(", ")}`);
  const columns = query.getAll("column");
  const unknown = columns.find((column) => !probe.columns.some((one) => one.name === column));
  if (unknown !== undefined) throw new Problem(400, "unknown column", `\`${unknown}\` is not a column of ${name}`);
  const subject = { node: query.get("node") ?? "", namespace: query.get("namespace") ?? "", pod: query.get("pod") ?? "" };
  const series = state.rows({ probe, subject, from, to, maxPoints: Number(query.get("max_points") ?? 300) });
  for (const one of series) {
    if (columns.length > 0) one.columns = Object.fromEntries(Object.entries(one.columns).filter(([column]) => columns.includes(column)));
  }
  return { probe: name, from: new Date(from).toISOString(), to: new Date(to).toISOString(), series };
}

/**
 * Starts the stand-in on a free port of loopback. Its state may be changed while it runs:
 * `state.fail[path] = {status, title, detail}` breaks an endpoint, `emit(event)` stores an event and sends it to the streams,
 * `state.streams = false` makes the stream answer 404, `dropStreams()` cuts all of them.
 */
export async function startFixture(scenario = busyScenario(), port = 0) {
  const state = { fail: {}, streams: true, requests: [], ...scenario };
  const clients = new Set();

  async function answer(request, response) {
    const url = new URL(request.url, "http://fixture");
    const { pathname: path, searchParams: query } = url;
    state.requests.push(path + url.search);
    const failure = Object.entries(state.fail).find(([prefix]) => path.startsWith(prefix))?.[1];
    if (failure) throw new Problem(failure.status, failure.title, failure.detail);
    const rows = /^\/api\/v1\/probes\/([^/]+)\/rows$/.exec(path);
    if (path.startsWith("/api/")) {
      const known = rows ? KNOWN.rows : KNOWN[path];
      if (!known) throw new Problem(404, "not found", `no such endpoint: ${path}`);
      check(query, known);
    }
    if (rows) return rowsAnswer(state, decodeURIComponent(rows[1]), query);
    switch (path) {
      case "/api/v1/events":
        return eventsAnswer(state, query);
      case "/api/v1/events/stats":
        return statsAnswer(state, query);
      case "/api/v1/pods":
        return podsAnswer(state, query);
      case "/api/v1/nodes":
        return { nodes: state.nodes };
      case "/api/v1/probes":
        return { probes: state.probes };
      case "/api/v1/gaps":
        return gapsAnswer(state, query);
      case "/api/v1/changes":
        return changesAnswer(state, query);
      case "/api/v1/events/stream": {
        if (!state.streams) throw new Problem(404, "not found", "no stream here");
        response.writeHead(200, { "content-type": "text/event-stream", "cache-control": "no-store" });
        response.write(": hello\n\n");
        const client = { response, query };
        clients.add(client);
        request.on("close", () => clients.delete(client));
        return null;
      }
      default:
        await sendFile(path, response);
        return null;
    }
  }

  const server = createServer((request, response) => {
    answer(request, response)
      .then((body) => {
        if (body !== null) response.writeHead(200, { "content-type": "application/json" }).end(JSON.stringify(body));
      })
      .catch((error) => {
        const { status = 500, title = "internal error" } = error;
        response.writeHead(status, { "content-type": "application/problem+json" });
        response.end(JSON.stringify({ type: "about:blank", title, status, detail: error.message }));
      });
  });
  await new Promise((resolve) => server.listen(port, "127.0.0.1", resolve));

  return {
    url: `http://127.0.0.1:${server.address().port}`,
    state,
    emit(event) {
      state.events.unshift(event);
      for (const { response, query } of clients) {
        if (matches(event, query)) response.write(`event: event\nid: ${event.id}\ndata: ${JSON.stringify(event)}\n\n`);
      }
    },
    streamCount: () => clients.size,
    dropStreams() {
      for (const { response } of clients) response.destroy();
    },
    async stop() {
      server.closeAllConnections();
      await new Promise((resolve) => server.close(resolve));
    },
  };
}

/** The built pages; every path that is no file is the one page, as the aggregator does it. */
async function sendFile(path, response) {
  const file = join(DIST, normalize(path));
  const found = file.startsWith(DIST) && (await stat(file).catch(() => null))?.isFile();
  const sent = found ? file : join(DIST, "index.html");
  response.writeHead(200, {
    "content-type": TYPES[extname(sent)] ?? "application/octet-stream",
    "content-security-policy": "default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'self'",
    "x-content-type-options": "nosniff",
  });
  createReadStream(sent).pipe(response);
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const { values } = parseArgs({ options: { port: { type: "string", default: "9640" }, scenario: { type: "string", default: "busy" } } });
  const fixture = await startFixture(values.scenario === "quiet" ? quietScenario() : busyScenario(), Number(values.port));
  process.stdout.write(`${fixture.url}\n`);
  let id = 1_000_000;
  if (values.scenario === "busy") {
    setInterval(() => {
      id += 1;
      fixture.emit({ ...fixture.state.events[id % 50], id, time: `${new Date().toISOString().slice(0, -1)}000Z` });
    }, 1000);
  }
}
