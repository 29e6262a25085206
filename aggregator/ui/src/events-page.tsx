// The start page: what the network does to the pods, as it happens.

import { useEffect, useMemo, useState } from "react";

import { api, type EventStats, type SondeEvent } from "./api";
import { EventList, FeedStatus } from "./event-list";
import { filterSearch, hasFilters, rangeMs, rangeParams, valueParams, withValue, type FilterKey, type Filters } from "./filters";
import { FilterBar } from "./filter-bar";
import { formatInteger, plural } from "./format";
import { GapNote } from "./gap-list";
import { stepFor } from "./histogram";
import { HistogramView } from "./histogram-view";
import { useFeed, useResource, useShared } from "./hooks";
import { useListKeys } from "./keys";
import { rangeName } from "./range-picker";
import { Link, navigate } from "./router";
import { ErrorNote } from "./ui";

const STATS_MS = 5000;
const BARS = 90;
const BY = ["type", "reason", "node", "namespace", "pod", "workload", "protocol"] as const;

export function EventsPage({ filters }: { filters: Filters }) {
  const go = (next: Filters) => {
    navigate(`/${filterSearch(next)}`);
  };
  const values = valueParams(filters);
  const live = filters.to === null;
  const [feed, control] = useFeed({ values, from: filters.from, to: filters.to });
  const [by, setBy] = useState<(typeof BY)[number]>("type");
  const { minute } = useShared();
  const [from, to] = rangeMs(filters, minute);
  const step = stepFor(to - from, BARS);
  const range = rangeParams(filters);
  const stats = useResource(`stats ${JSON.stringify([range, values, by, step])}`, (signal) => api.eventStats([...range, ...values, ["by", by], ["step", `${step}s`]], signal), live ? STATS_MS : 0);
  const gapQuery: [string, string][] = [...range, ...values.filter(([key, value]) => (key === "node" || key === "probe") && !value.startsWith("!"))];
  const gaps = useResource(`gaps ${JSON.stringify(gapQuery)}`, (signal) => api.gaps(gapQuery, signal), live ? STATS_MS : 0);
  useListKeys(control, feed.paused);
  const seen = useSeen(feed.events);
  // The axis is that of the answer: the bars do not slide against it between two answers.
  const [start, end] = stats.data === null ? [from, to] : [Date.parse(stats.data.from), Date.parse(stats.data.to)];
  return (
    <>
      <h1 className="hidden">Events</h1>
      <FilterBar filters={filters} onChange={go} seen={seen} />
      {stats.error !== null && <ErrorNote error={stats.error} onRetry={stats.reload} />}
      <HistogramView
        stats={stats.data}
        gaps={gaps.data?.gaps ?? []}
        from={start}
        to={end}
        onZoom={(a, b) => {
          go({ ...filters, from: new Date(a).toISOString(), to: new Date(Math.max(b, a + 1000)).toISOString() });
        }}
      />
      <GapNote gaps={gaps} />
      <div className="toolbar">
        <FeedStatus feed={feed} control={control} />
        <span data-testid="match-count">{stats.data !== null && hasFilters(filters) ? `${formatInteger(stats.data.total)} match` : ""}</span>
        <Top stats={stats.data} by={by} onBy={setBy} filters={filters} />
      </div>
      <EventList feed={feed} control={control} filters={filters} empty={<Empty filters={filters} gaps={gaps.data?.gaps.length ?? 0} onClear={go} />} />
    </>
  );
}

/** The most frequent values of one field, each a link that filters by it. */
function Top(props: { stats: EventStats | null; by: (typeof BY)[number]; onBy: (by: (typeof BY)[number]) => void; filters: Filters }) {
  const { stats, by, onBy, filters } = props;
  return (
    <div className="top-values">
      <label>
        by{" "}
        <select
          value={by}
          onChange={(event) => {
            onBy(BY.find((one) => one === event.target.value) ?? "type");
          }}
        >
          {BY.map((one) => (
            <option key={one}>{one}</option>
          ))}
        </select>
      </label>
      {stats?.top.slice(0, 8).map(({ value, count }) => (
        <Link key={value} href={`/${filterSearch(withValue(filters, by, value ?? ""))}`} title={`Only ${by} ${value ?? "none"}`}>
          {value === null || value === "" ? `no ${by}` : value} <b>{formatInteger(count)}</b>
        </Link>
      ))}
    </div>
  );
}

/** What an empty list means depends on who was watching. */
function Empty({ filters, gaps, onClear }: { filters: Filters; gaps: number; onClear: (filters: Filters) => void }) {
  const { nodes } = useShared();
  const connected = nodes.data?.filter((node) => node.connected).length ?? 0;
  const range = rangeName(filters);
  return (
    <div className={`empty ${connected === 0 ? "bad" : ""}`} data-testid="empty">
      <h2>{hasFilters(filters) ? `No matching events ${range}` : `No events ${range}`}</h2>
      {nodes.data === null ? (
        <p>It is not known which nodes are connected.</p>
      ) : connected === 0 ? (
        <p>
          <b>No node is connected, so this says nothing about the network.</b>
        </p>
      ) : (
        <p>
          {plural(connected, "node")} {connected === 1 ? "is" : "are"} connected and watching
          {nodes.data.length > connected ? `, ${nodes.data.length - connected} known ${nodes.data.length - connected === 1 ? "node is" : "nodes are"} not` : ""}.
          {gaps > 0 ? ` But there ${gaps === 1 ? "is" : "are"} ${plural(gaps, "gap")} in this range: not everything was seen.` : ""}
        </p>
      )}
      {hasFilters(filters) && (
        <button
          type="button"
          onClick={() => {
            onClear({ ...filters, values: {} });
          }}
        >
          Clear filters
        </button>
      )}
    </div>
  );
}

function useSeen(events: readonly SondeEvent[]): Partial<Record<FilterKey, readonly string[]>> {
  const [seen, setSeen] = useState<{ from: readonly SondeEvent[]; type: string[]; reason: string[]; protocol: string[] }>(() => ({ from: [], type: [], reason: [], protocol: [] }));
  useEffect(() => {
    // Now and then is enough for what is only offered for completion.
    const timer = setTimeout(() => {
      const distinct = (pick: (event: SondeEvent) => string | undefined) => [...new Set(events.map(pick).filter((value) => value !== undefined))];
      setSeen({ from: events, type: distinct((e) => e.type), reason: distinct((e) => e.reason), protocol: distinct((e) => e.protocol) });
    }, 1000);
    return () => {
      clearTimeout(timer);
    };
  }, [events]);
  return useMemo(() => ({ type: seen.type, reason: seen.reason, protocol: seen.protocol }), [seen]);
}
