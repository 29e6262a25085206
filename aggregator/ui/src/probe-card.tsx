// One probe of one subject: its rows as charts, and which columns are drawn.

import { useEffect, useMemo } from "react";

import { api, type Column, type Gap, type Probe } from "./api";
import { rangeParams, type Filters } from "./filters";
import { plural } from "./format";
import { useResource } from "./hooks";
import { Plot } from "./plot";
import { columnLines, moves, panels, readTimes, type Line } from "./rates";
import type { Subject } from "./subject-page";
import { ErrorNote } from "./ui";

const MAX_POINTS = 300;
/** More lines in one panel cannot be told apart. */
const MAX_LINES = 8;

interface Props {
  probe: Probe;
  subject: Subject;
  range: Pick<Filters, "from" | "to">;
  /** Unix ms. */
  bounds: [number, number];
  everyMs: number;
  gaps: readonly Gap[];
  /** Times of the subject's events, Unix ms. */
  marks: readonly number[];
  /** When anything of the subject was read, as all cards know it together. */
  read: readonly number[];
  onRead: (probe: string, times: number[]) => void;
  /** Columns the reader chose; null: those that move. */
  picked: string[] | null;
  onPick: (columns: string[] | null) => void;
  onZoom: (from: number, to: number) => void;
}

export function ProbeCard({ probe, subject, range, bounds, everyMs, gaps, marks, read, onRead, picked, onPick, onZoom }: Props) {
  const query: [string, string][] = [
    ["node", subject.node],
    ["namespace", subject.namespace],
    ["pod", subject.pod],
    ...rangeParams(range),
    ["max_points", String(MAX_POINTS)],
  ];
  const rows = useResource(`rows ${probe.name} ${JSON.stringify(query)}`, (signal) => api.rows(probe.name, query, signal), everyMs);
  const lines = useMemo(() => {
    const byColumn = new Map<string, Line[]>();
    for (const column of probe.columns) byColumn.set(column.name, columnLines(column, rows.data?.series ?? [], read));
    return byColumn;
  }, [probe, rows.data, read]);
  useEffect(() => {
    onRead(probe.name, readTimes(rows.data?.series ?? []));
  }, [probe.name, rows.data, onRead]);
  const moving = useMemo(() => probe.columns.filter((column) => lines.get(column.name)?.some(moves)).map((column) => column.name), [probe, lines]);
  const drawn = useMemo(() => {
    const names = picked ?? moving;
    const all = names.flatMap((name) => lines.get(name) ?? []);
    return panels(picked === null ? all.filter(moves) : all, MAX_LINES);
  }, [picked, moving, lines]);
  const ownGaps = useMemo(() => gaps.filter((gap) => gap.probe === probe.name || gap.probe === ""), [gaps, probe]);
  const empty = rows.data !== null && [...lines.values()].every((all) => all.length === 0);
  const quiet = probe.columns.length - moving.length;
  return (
    <article className={`card ${rows.data !== null && drawn.length === 0 ? "small" : ""} ${empty ? "empty" : ""}`} aria-labelledby={`h-${probe.name}`} data-testid={`probe-${probe.name}`}>
      <header>
        <h3 id={`h-${probe.name}`}>{probe.name}</h3>
        <p title={probe.help}>{probe.help}</p>
        {!empty && <Picker probe={probe} moving={moving} picked={picked} onPick={onPick} />}
      </header>
      {rows.error !== null && <ErrorNote error={rows.error} onRetry={rows.reload} />}
      {rows.data === null && rows.error === null && <p className="loading">Loading …</p>}
      {empty && <p className="quiet">No rows in this range.</p>}
      {!empty && rows.data !== null && drawn.length === 0 && (
        <p className="quiet">{picked === null ? `Nothing moved in this range (${plural(quiet, "column")}).` : "The chosen columns have no rows in this range."}</p>
      )}
      {drawn.map((panel) => (
        <Plot key={`${panel.unit}|${panel.rate}`} probe={probe.name} panel={panel} bounds={bounds} gaps={ownGaps} marks={marks} onZoom={onZoom} />
      ))}
      {picked === null && drawn.length > 0 && quiet > 0 && <p className="quiet">{plural(quiet, "more column")} did not move.</p>}
    </article>
  );
}

function Picker({ probe, moving, picked, onPick }: { probe: Probe; moving: string[]; picked: string[] | null; onPick: (columns: string[] | null) => void }) {
  const chosen = new Set(picked ?? moving);
  return (
    <details className="picker">
      <summary>
        {picked === null ? "columns: moving" : `columns: ${picked.length}`}
        <span className="hidden"> of {probe.name}</span>
      </summary>
      <div className="menu">
        <div>
          <button
            type="button"
            aria-pressed={picked === null}
            onClick={() => {
              onPick(null);
            }}
          >
            those that move
          </button>
          <button
            type="button"
            onClick={() => {
              onPick(probe.columns.map((column) => column.name));
            }}
          >
            all
          </button>
          <button
            type="button"
            onClick={() => {
              onPick([]);
            }}
          >
            none
          </button>
        </div>
        <ul>
          {probe.columns.map((column) => (
            <li key={column.name}>
              <label title={column.help}>
                <input
                  type="checkbox"
                  checked={chosen.has(column.name)}
                  onChange={(event) => {
                    const next = new Set(chosen);
                    if (event.target.checked) next.add(column.name);
                    else next.delete(column.name);
                    onPick(probe.columns.filter((one) => next.has(one.name)).map((one) => one.name));
                  }}
                />
                <span className={moving.includes(column.name) ? "" : "still"}>{column.name}</span> <small>{kindName(column)}</small>
              </label>
            </li>
          ))}
        </ul>
      </div>
    </details>
  );
}

function kindName(column: Column): string {
  return column.kind === "gauge" ? column.unit : column.kind === "histogram" ? "observations/s" : `${column.unit}/s`;
}
