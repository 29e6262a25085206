// The page of a pod or of a node itself: what it is, what happened to it, one chart for each probe.

import { useCallback, useMemo, useState } from "react";

import { api, type Gap, type Node, type Pod, type Probe, type SondeEvent } from "./api";
import { ChangeNote } from "./change-list";
import { EventList, FeedStatus } from "./event-list";
import { DEFAULT_FROM, filterSearch, parseFilters, rangeMs, rangeParams, type Filters } from "./filters";
import { formatSpan, plural } from "./format";
import { GapNote } from "./gap-list";
import { useFeed, useNow, useResource, useShared } from "./hooks";
import { useListKeys } from "./keys";
import { ago, NodeState } from "./nodes-page";
import { PodTable, workloadName } from "./pods-page";
import { ProbeCard } from "./probe-card";
import { RangePicker, rangeName } from "./range-picker";
import { Link, navigate, nodePath, podPath } from "./router";
import { ErrorNote, Fact, Facts, Time } from "./ui";

export interface Subject {
  node: string;
  /** Both empty: the node itself. */
  namespace: string;
  pod: string;
}

const SLOW_MS = 10_000;
const EVENTS_SHOWN = 12;
/** Columns that the reader picked for a probe stand in the address as `show.<probe>=a,b`. */
const SHOW = "show.";

export function SubjectPage({ subject, search }: { subject: Subject; search: string }) {
  const isNode = subject.pod === "";
  const path = isNode ? nodePath(subject.node) : podPath(subject.node, subject.namespace, subject.pod);
  const params = useMemo(() => new URLSearchParams(search), [search]);
  const range = parseFilters(params);
  const go = (change: (next: URLSearchParams) => void) => {
    const next = new URLSearchParams(search);
    change(next);
    const tail = next.toString();
    navigate(tail === "" ? path : `${path}?${tail}`);
  };
  const setRange = (next: Pick<Filters, "from" | "to">) => {
    go((all) => {
      all.delete("from");
      all.delete("to");
      if (next.from !== DEFAULT_FROM) all.set("from", next.from);
      if (next.to !== null) all.set("to", next.to);
    });
  };
  const { nodes, probes } = useShared();
  const node = nodes.data?.find((one) => one.node === subject.node);
  const everyMs = range.to === null ? Math.min(60_000, Math.max(5000, (node?.interval_s ?? 15) * 1000)) : 0;
  const now = useNow(range.to === null ? everyMs : 600_000);
  const [from, to] = rangeMs(range, now);

  const values: Filters["values"] = isNode ? { node: [subject.node] } : { node: [subject.node], namespace: [subject.namespace], pod: [subject.pod] };
  const filters: Filters = { from: range.from, to: range.to, values };
  const feedValues = Object.entries(values).map(([key, [value]]): [string, string] => [key, value ?? ""]);
  const [feed, control] = useFeed({ values: feedValues, from: range.from, to: range.to });
  useListKeys(control, feed.paused);
  const gapQuery: [string, string][] = [...rangeParams(range), ["node", subject.node]];
  const gaps = useResource(`gaps ${JSON.stringify(gapQuery)}`, (signal) => api.gaps(gapQuery, signal), range.to === null ? SLOW_MS : 0);
  const ownGaps = useMemo(() => (gaps.data?.gaps ?? []).filter((gap) => concerns(gap, subject)), [gaps.data, subject]);
  const changeQuery: [string, string][] = [...rangeParams(range), ...feedValues];
  const changes = useResource(`changes ${JSON.stringify(changeQuery)}`, (signal) => api.changes(changeQuery, signal), range.to === null ? SLOW_MS : 0);
  const marks = useMemo(() => feed.events.filter((event) => !isNode || event.pod === "").map(timeOf), [feed.events, isNode]);

  return (
    <>
      <nav aria-label="Where you are" className="crumbs">
        <Link href={isNode ? "/nodes" : "/pods"}>{isNode ? "nodes" : "pods"}</Link>
        {!isNode && <Link href={nodePath(subject.node)}>{subject.node}</Link>}
        {!isNode && <Link href={`/pods?${new URLSearchParams({ namespace: subject.namespace }).toString()}`}>{subject.namespace}</Link>}
      </nav>
      <h1>{isNode ? subject.node : `${subject.namespace}/${subject.pod}`}</h1>
      {isNode ? <NodeFacts node={node} name={subject.node} now={now} known={nodes.data !== null} /> : <PodFacts subject={subject} from={from} to={to} />}
      <form
        className="filters"
        onSubmit={(event) => {
          event.preventDefault();
        }}
      >
        <RangePicker range={range} onChange={setRange} />
      </form>
      <GapNote gaps={{ ...gaps, data: gaps.data === null ? null : { ...gaps.data, gaps: ownGaps } }} />
      <ChangeNote changes={changes} />

      <section aria-labelledby="h-events">
        <div className="toolbar">
          <h2 id="h-events">{isNode ? "Events on this node, all pods" : "Events"}</h2>
          <FeedStatus feed={feed} control={control} />
          <Link href={`/${filterSearch(filters)}`}>
            {feed.events.length > EVENTS_SHOWN ? `all ${feed.hasOlder ? "" : `${feed.events.length} `}events` : "search these events"}
          </Link>
        </div>
        <EventList
          feed={feed}
          control={control}
          filters={filters}
          most={EVENTS_SHOWN}
          empty={
            <p className="quiet" data-testid="empty">
              No events {rangeName(range)}
              {node && !node.connected ? ", and the node is not connected: this says nothing about the network." : "."}
            </p>
          }
        />
      </section>

      <section aria-labelledby="h-charts">
        <h2 id="h-charts">{isNode ? "The node itself" : "Charts"}</h2>
        {probes.error !== null && <ErrorNote error={probes.error} onRetry={probes.reload} />}
        {probes.data?.length === 0 && <p className="quiet">No probe is known yet: they come with the first node that connects.</p>}
        <Charts
          probes={probes.data ?? []}
          subject={subject}
          range={range}
          bounds={[from, to]}
          everyMs={everyMs}
          gaps={ownGaps}
          marks={marks}
          picked={(probe) => {
            const text = params.get(SHOW + probe);
            return text === null ? null : text.split(",").filter((name) => name !== "");
          }}
          onPick={(probe, columns) => {
            go((all) => {
              if (columns === null) all.delete(SHOW + probe);
              else all.set(SHOW + probe, columns.join(","));
            });
          }}
          onZoom={(a, b) => {
            setRange({ from: new Date(a).toISOString(), to: new Date(Math.max(b, a + 1000)).toISOString() });
          }}
        />
      </section>
    </>
  );
}

function timeOf(event: SondeEvent): number {
  return Date.parse(event.time);
}

/** A gap of the whole node concerns each of its pods; a gap of another pod does not. One of an unknown pod may. */
function concerns(gap: Gap, subject: Subject): boolean {
  if (subject.pod === "" || gap.pod === undefined || gap.pod === "") return true;
  return gap.namespace === subject.namespace && gap.pod === subject.pod;
}

interface ChartsProps {
  probes: readonly Probe[];
  subject: Subject;
  range: Pick<Filters, "from" | "to">;
  bounds: [number, number];
  everyMs: number;
  gaps: readonly Gap[];
  marks: readonly number[];
  picked: (probe: string) => string[] | null;
  onPick: (probe: string, columns: string[] | null) => void;
  onZoom: (from: number, to: number) => void;
}

function Charts({ probes, picked, onPick, ...rest }: ChartsProps) {
  const [times, setTimes] = useState<ReadonlyMap<string, number[]>>(new Map());
  const onRead = useCallback((probe: string, read: number[]) => {
    setTimes((old) => new Map(old).set(probe, read));
  }, []);
  const read = useMemo(() => [...times.values()].reduce((most, one) => (one.length > most.length ? one : most), []), [times]);
  return (
    <div className="charts">
      {probes
        .filter((probe) => probe.columns.length > 0)
        .map((probe) => (
          <ProbeCard
            key={probe.name}
            probe={probe}
            read={read}
            onRead={onRead}
            picked={picked(probe.name)}
            onPick={(columns) => {
              onPick(probe.name, columns);
            }}
            {...rest}
          />
        ))}
    </div>
  );
}

function PodFacts({ subject, from, to }: { subject: Subject; from: number; to: number }) {
  const query = Object.entries({ node: subject.node, namespace: subject.namespace, pod: subject.pod, all: "true" });
  const pods = useResource(`pod ${JSON.stringify(query)}`, (signal) => api.pods(query, signal), SLOW_MS);
  if (pods.error !== null && pods.data === null) return <ErrorNote error={pods.error} onRetry={pods.reload} />;
  if (pods.data === null) return <p className="loading">Loading …</p>;
  const newestFirst = [...pods.data].sort((a, b) => b.valid_from.localeCompare(a.valid_from));
  const shown = newestFirst.find((pod) => Date.parse(pod.valid_from) <= to && (pod.valid_to === null || Date.parse(pod.valid_to) >= from)) ?? newestFirst[0];
  if (!shown) {
    return (
      <p className="note warn" role="status">
        No pod of this name is known on {subject.node}. Its events and rows, if there are any, are shown below.
      </p>
    );
  }
  const others = newestFirst.filter((pod) => pod !== shown);
  return (
    <>
      <PodFactList pod={shown} />
      {others.length > 0 && (
        <details>
          <summary>{plural(others.length, "other pod")} of this name</summary>
          <PodTable pods={others} />
        </details>
      )}
    </>
  );
}

function PodFactList({ pod }: { pod: Pod }) {
  const labels = Object.entries(pod.labels);
  return (
    <Facts>
      <Fact name="state">
        {pod.valid_to === null ? (
          <span className="dot good">live</span>
        ) : (
          <span className="dot bad">
            ended <Time at={pod.valid_to} short />
          </span>
        )}
      </Fact>
      <Fact name="node">
        <Link href={nodePath(pod.node)}>{pod.node}</Link>
      </Fact>
      <Fact name="addresses">
        {pod.ips.length === 0 ? null : (
          <span className="mono">
            {pod.ips.map((ip) => (
              <Link key={ip} href={`/?${new URLSearchParams({ ip }).toString()}`}>
                {ip}
              </Link>
            ))}
          </span>
        )}
      </Fact>
      <Fact name="workload">{workloadName(pod)}</Fact>
      <Fact name="uid">
        <span className="mono">{pod.uid}</span>
      </Fact>
      <Fact name="from">
        <Time at={pod.valid_from} />
      </Fact>
      <Fact name="to">{pod.valid_to === null ? null : <Time at={pod.valid_to} />}</Fact>
      <Fact name="network namespace">
        <span className="mono">{pod.netns_inode}</span>
      </Fact>
      <Fact name="sandbox">
        <span className="mono">{pod.sandbox}</span>
      </Fact>
      <Fact name="labels">{labels.length === 0 ? null : labels.map(([name, value]) => `${name}=${value}`).join(", ")}</Fact>
    </Facts>
  );
}

function NodeFacts({ node, name, now, known }: { node: Node | undefined; name: string; now: number; known: boolean }) {
  if (!node) {
    return known ? (
      <p className="note warn" role="status">
        No node of this name has ever connected. Events and rows of {name}, if there are any, are shown below.
      </p>
    ) : (
      <p className="loading">Loading …</p>
    );
  }
  return (
    <Facts>
      <Fact name="state">
        <NodeState node={node} />
      </Fact>
      <Fact name="last heard">{ago(node.last_seen, now)}</Fact>
      <Fact name="pods">
        <Link href={`/pods?${new URLSearchParams({ node: node.node }).toString()}`}>{node.pods}</Link>
      </Fact>
      <Fact name="kernel">{node.kernel}</Fact>
      <Fact name="collector">{node.version}</Fact>
      <Fact name="interval">{formatSpan(node.interval_s * 1000)}</Fact>
      <Fact name="boot id">
        <span className="mono">{node.boot_id}</span>
      </Fact>
      <Fact name="first seen">
        <Time at={node.first_seen} />
      </Fact>
      {node.ready !== undefined && <Fact name="kubernetes">{node.ready}</Fact>}
      {node.labels !== undefined && (
        <Fact name="labels">
          {Object.entries(node.labels)
            .map(([name, value]) => `${name}=${value}`)
            .join(", ")}
        </Fact>
      )}
    </Facts>
  );
}
