// One uPlot chart: lines of one unit, the gaps as shaded spans, the events as ticks on top. All charts of a page share the time cursor.

import { useEffect, useMemo, useRef, useState } from "react";
import uPlot from "uplot";

import type { Gap } from "./api";
import { formatClock, formatDate, formatDateTime, formatValue, type Zone } from "./format";
import { useShared, useTheme } from "./hooks";
import { aligned, peak, type Panel } from "./rates";

const HEIGHT = 150;
const SYNC = "sonde";
const COLOURS = 8;
/** Powers of two, so that an axis of bytes has round numbers. */
const BYTE_STEPS = Array.from({ length: 60 }, (_, i) => 2 ** (i - 4));

interface Props {
  probe: string;
  panel: Panel;
  /** Unix ms. */
  bounds: [number, number];
  gaps: readonly Gap[];
  marks: readonly number[];
  onZoom: (from: number, to: number) => void;
}

/** What is drawn behind and above the lines; read by uPlot's hooks when they draw. */
interface Overlay {
  bounds: [number, number];
  gaps: readonly Gap[];
  marks: readonly number[];
  onZoom: (from: number, to: number) => void;
}

export function Plot({ probe, panel, bounds, gaps, marks, onZoom }: Props) {
  const { zone } = useShared();
  const theme = useTheme();
  const [off, setOff] = useState<ReadonlySet<string>>(new Set());
  const box = useRef<HTMLDivElement>(null);
  const legend = useRef<HTMLUListElement>(null);
  const chart = useRef<uPlot | null>(null);
  const data = useMemo(() => aligned(panel.lines), [panel]);
  const overlay = useRef<Overlay>({ bounds, gaps, marks, onZoom });
  const newest = useRef({ data, off });
  const [start, end] = bounds;
  const keys = panel.lines.map((line) => line.key).join("\n");
  const { unit, rate } = panel;

  useEffect(() => {
    overlay.current = { bounds: [start, end], gaps, marks, onZoom };
    newest.current = { data, off };
  });

  useEffect(() => {
    const node = box.current;
    if (!node) return;
    const names = keys.split("\n");
    const made = new uPlot(
      options({ names, unit, rate, zone, width: node.clientWidth, style: getComputedStyle(node), overlay: () => overlay.current, legend: () => legend.current }),
      newest.current.data,
      node,
    );
    names.forEach((name, i) => {
      made.setSeries(i + 1, { show: !newest.current.off.has(name) });
    });
    chart.current = made;
    const watch = new ResizeObserver(() => {
      if (node.clientWidth > 0 && node.clientWidth !== made.width) made.setSize({ width: node.clientWidth, height: HEIGHT });
    });
    watch.observe(node);
    return () => {
      watch.disconnect();
      made.destroy();
      chart.current = null;
    };
  }, [keys, unit, rate, zone, theme]);

  useEffect(() => {
    chart.current?.setData(data);
  }, [data]);

  useEffect(() => {
    chart.current?.redraw(false, true);
    chart.current?.setScale("x", { min: start / 1000, max: end / 1000 });
  }, [start, end, gaps, marks]);

  const toggle = (key: string, index: number) => {
    const next = new Set(off);
    const shown = next.delete(key);
    if (!shown) next.add(key);
    chart.current?.setSeries(index + 1, { show: shown });
    setOff(next);
  };
  const summary = panel.lines.map((line) => `${line.label} at most ${formatValue(peak(line), unit, rate)}`).join("; ");
  return (
    <div className="plot">
      <div ref={box} className="canvas" role="img" aria-label={`${probe}: ${summary}`} data-testid="plot" />
      <ul ref={legend} className="legend">
        {panel.lines.map((line, i) => (
          <li key={line.key}>
            <button
              type="button"
              aria-pressed={!off.has(line.key)}
              title={off.has(line.key) ? "Show this line" : "Hide this line"}
              onClick={() => {
                toggle(line.key, i);
              }}
            >
              <span className={`swatch c${i % COLOURS}`} aria-hidden="true" />
              {line.label}
            </button>
            <output />
          </li>
        ))}
      </ul>
      {panel.hidden > 0 && <p className="quiet">{panel.hidden} more with smaller peaks are not drawn; choose columns to see them.</p>}
    </div>
  );
}

interface Setup {
  names: string[];
  unit: string;
  rate: boolean;
  zone: Zone;
  width: number;
  style: CSSStyleDeclaration;
  overlay: () => Overlay;
  legend: () => HTMLUListElement | null;
}

function options({ names, unit, rate, zone, width, style, overlay, legend }: Setup): uPlot.Options {
  const colour = (name: string) => style.getPropertyValue(name).trim();
  const axis = { stroke: colour("--dim"), grid: { stroke: colour("--grid"), width: 1 }, ticks: { show: false }, font: "11px system-ui, sans-serif" };
  return {
    width: Math.max(width, 50),
    height: HEIGHT,
    legend: { show: false },
    padding: [8, 8, 0, 0],
    cursor: { sync: { key: SYNC, setSeries: false }, drag: { x: true, y: false, setScale: false }, points: { size: 5 } },
    ...(zone === "utc" ? { tzDate: (seconds: number) => uPlot.tzDate(new Date(seconds * 1000), "Etc/UTC") } : {}),
    scales: {
      x: { time: true, range: () => [overlay().bounds[0] / 1000, overlay().bounds[1] / 1000] },
      y: { range: (_plot, min, max) => yRange(min, max, rate) },
    },
    axes: [
      { ...axis, size: 24, values: (_plot, splits, _axis, _space, step) => splits.map((split) => tickText(split * 1000, step, zone)) },
      { ...axis, size: 64, ...(unit === "bytes" ? { incrs: BYTE_STEPS } : {}), values: (_plot, splits) => splits.map((split) => formatValue(split, unit, rate)) },
    ],
    series: [{}, ...names.map((name, i): uPlot.Series => ({ label: name, stroke: colour(`--line-${i % COLOURS}`), width: 1.5, points: { size: 4 }, spanGaps: false }))],
    hooks: {
      drawClear: [(plot) => { drawGaps(plot, overlay().gaps, colour("--gap")); }],
      draw: [(plot) => { drawMarks(plot, overlay().marks, colour("--bad")); }],
      setSelect: [
        (plot) => {
          if (plot.select.width < 4) return;
          const [a, b] = [plot.posToVal(plot.select.left, "x"), plot.posToVal(plot.select.left + plot.select.width, "x")];
          plot.setSelect({ left: 0, top: 0, width: 0, height: 0 }, false);
          overlay().onZoom(a * 1000, b * 1000);
        },
      ],
      setCursor: [(plot) => { writeLegend(plot, legend(), unit, rate, zone); }],
      setData: [(plot) => { writeLegend(plot, legend(), unit, rate, zone); }],
      ready: [(plot) => { writeLegend(plot, legend(), unit, rate, zone); }],
    },
  };
}

/** Rates stand on zero; a gauge shows its own span, as 312 to 315 sockets would be a flat line above zero. */
function yRange(min: number | null, max: number | null, rate: boolean): [number, number] {
  if (min === null || max === null) return [0, 1];
  const low = rate || min >= 0 && min < max / 2 ? 0 : min;
  if (low === max) return max === 0 ? [0, 1] : [Math.min(low, 0), max * 1.2];
  const air = (max - low) * 0.08;
  return [low === 0 ? 0 : low - air, max + air];
}

function tickText(ms: number, stepSeconds: number, zone: Zone): string {
  if (stepSeconds >= 86_400) return formatDate(ms, zone).slice(5);
  const clock = formatClock(ms, zone);
  const text = stepSeconds < 60 ? clock : clock.slice(0, 5);
  return text === "00:00" ? formatDate(ms, zone).slice(5) : text;
}

function drawGaps(plot: uPlot, gaps: readonly Gap[], colour: string): void {
  const { ctx, bbox } = plot;
  ctx.save();
  ctx.fillStyle = colour;
  for (const gap of gaps) {
    const left = Math.max(bbox.left, plot.valToPos(Date.parse(gap.from) / 1000, "x", true));
    const right = Math.min(bbox.left + bbox.width, Math.max(left + 2, plot.valToPos(Date.parse(gap.to) / 1000, "x", true)));
    if (right > bbox.left && left < bbox.left + bbox.width) ctx.fillRect(left, bbox.top, right - left, bbox.height);
  }
  ctx.restore();
}

function drawMarks(plot: uPlot, marks: readonly number[], colour: string): void {
  const { ctx, bbox } = plot;
  ctx.save();
  ctx.fillStyle = colour;
  const height = 6 * window.devicePixelRatio;
  let last = -Infinity;
  for (const mark of marks) {
    const x = Math.round(plot.valToPos(mark / 1000, "x", true));
    if (x === last || x < bbox.left || x > bbox.left + bbox.width) continue;
    ctx.fillRect(x, bbox.top, 1.5 * window.devicePixelRatio, height);
    last = x;
  }
  ctx.restore();
}

/** The values under the cursor, or the newest ones, beside the names. Written straight into the page: it runs with every move of the pointer. */
function writeLegend(plot: uPlot, list: HTMLUListElement | null, unit: string, rate: boolean, zone: Zone): void {
  if (!list) return;
  const index = plot.cursor.idx;
  list.querySelectorAll("output").forEach((output, i) => {
    const column = plot.data[i + 1];
    if (!column) return;
    const value = typeof index === "number" ? nearest(column, index) : newestValue(column);
    output.textContent = formatValue(value, unit, rate);
  });
  const time = typeof index === "number" ? plot.data[0][index] : undefined;
  list.title = time === undefined ? "newest values" : formatDateTime(time * 1000, zone);
}

/** The value at the index, or where this line has no reading there, its last one before. */
function nearest(column: ArrayLike<number | null | undefined>, index: number): number | null | undefined {
  let at = index;
  while (at > 0 && column[at] === undefined) at -= 1;
  return column[at];
}

function newestValue(column: ArrayLike<number | null | undefined>): number | null {
  for (let at = column.length - 1; at >= 0; at -= 1) {
    const value = column[at];
    if (value !== null && value !== undefined) return value;
  }
  return null;
}
