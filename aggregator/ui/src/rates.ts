// From a counter's readings to a rate, and from rows to lines of a chart. Pure.

import type { Column, Point, RowSeries } from "./api";

/** One line of a chart: its own times (Unix ms, ascending) and values; null is a hole. */
export interface Line {
  key: string;
  label: string;
  unit: string;
  rate: boolean;
  times: number[];
  values: (number | null)[];
}

/** The step between readings that is usual in this series, in ms; 0 when there are fewer than two. */
export function usualStep(times: readonly number[]): number {
  const steps: number[] = [];
  for (let i = 1; i < times.length; i += 1) steps.push((times[i] ?? 0) - (times[i - 1] ?? 0));
  steps.sort((a, b) => a - b);
  return steps[Math.floor(steps.length / 2)] ?? 0;
}

/** A reading that comes this many usual steps after the last one has a hole before it. */
const HOLE_STEPS = 2.5;

/**
 * Per-second rate at each reading since the one before. The first reading, one after a hole and an absent one have no rate.
 * A counter that fell was reset in between and counts from zero, as Prometheus does it.
 */
export function rates(times: readonly number[], values: readonly (number | null)[]): (number | null)[] {
  const hole = usualStep(times) * HOLE_STEPS;
  return values.map((value, i) => {
    const before = i === 0 ? null : (values[i - 1] ?? null);
    const elapsed = (times[i] ?? 0) - (times[i - 1] ?? 0);
    if (value === null || before === null || elapsed <= 0 || elapsed > hole) return null;
    const increase = value < before ? value : value - before;
    return increase / (elapsed / 1000);
  });
}

/** Puts an absent point into each hole, so that a line is not drawn across it. */
export function withHoles(times: readonly number[], values: readonly (number | null)[]): [number[], (number | null)[]] {
  const hole = usualStep(times) * HOLE_STEPS;
  const outTimes: number[] = [];
  const outValues: (number | null)[] = [];
  times.forEach((time, i) => {
    const last = times[i - 1];
    if (last !== undefined && time - last > hole) {
      outTimes.push(last + (time - last) / 2);
      outValues.push(null);
    }
    outTimes.push(time);
    outValues.push(values[i] ?? null);
  });
  return [outTimes, outValues];
}

/** The times at which a probe was read: those of its longest series. */
export function readTimes(series: readonly RowSeries[]): number[] {
  const longest = series.flatMap((one) => Object.values(one.columns)).reduce<Point[]>((most, points) => (points.length > most.length ? points : most), []);
  return longest.map(([time]) => time);
}

/**
 * When a series that comes into being must still have been zero: the reading of the subject just before its first one.
 * Null where nothing was read just before, as then it may have been there for long.
 */
export function lastZero(first: number, read: readonly number[]): number | null {
  const step = usualStep(read);
  const before = read.findLast((time) => time <= first - step / 2);
  return before !== undefined && step > 0 && before >= first - step * HOLE_STEPS ? before : null;
}

function total(value: Point[1]): number | null {
  return Array.isArray(value) ? value.slice(0, -1).reduce((a, b) => a + b, 0) : value;
}

function sum(value: Point[1]): number | null {
  return Array.isArray(value) ? (value[value.length - 1] ?? null) : null;
}

/** What is drawn of a column. A histogram (buckets, and the sum as the last value) gives how often and how long. */
interface Drawn {
  suffix: string;
  unit: string;
  rate: boolean;
  values: (times: number[], points: readonly Point[], zero: number | null) => (number | null)[];
}

function drawnOf(column: Column): Drawn[] {
  const counted = (times: number[], points: readonly Point[], zero: number | null = null) => {
    const values = points.map(([, value]) => total(value));
    return zero === null ? rates(times, values) : rates([zero, ...times], [0, ...values]).slice(1);
  };
  switch (column.kind) {
    case "gauge":
      return [{ suffix: "", unit: column.unit, rate: false, values: (_times, points) => points.map(([, value]) => total(value)) }];
    case "counter":
      return [{ suffix: "", unit: column.unit, rate: true, values: counted }];
    case "histogram": {
      const mean = (times: number[], points: readonly Point[]) => {
        const summed = rates(times, points.map(([, value]) => sum(value)));
        return counted(times, points).map((count, i) => (count === null || count === 0 ? null : (summed[i] ?? 0) / count));
      };
      return [
        { suffix: " mean", unit: column.unit, rate: false, values: mean },
        { suffix: " observations", unit: "", rate: true, values: counted },
      ];
    }
  }
}

function labelText(labels: Record<string, string>): string {
  return Object.entries(labels)
    .map(([name, value]) => `${name}=${value}`)
    .join(" ");
}

/**
 * The lines of one column over all label sets of a probe's rows. `read` are the times at which anything of the subject was
 * read: a reason or device that turns up among them is counted from zero, else the first drop would show as none.
 */
export function columnLines(column: Column, series: readonly RowSeries[], read: readonly number[] = []): Line[] {
  return series.flatMap((one) => {
    const points = one.columns[column.name] ?? [];
    if (!points.some(([, value]) => value !== null)) return [];
    const raw = points.map(([time]) => time);
    const labels = labelText(one.labels);
    const zero = labels === "" ? null : lastZero(raw[0] ?? 0, read);
    return drawnOf(column).map((drawn) => {
      const [times, values] = withHoles(raw, drawn.values(raw, points, zero));
      const name = column.name + drawn.suffix;
      return { key: `${name}|${labels}`, label: labels === "" ? name : `${name} ${labels}`, unit: drawn.unit, rate: drawn.rate, times, values };
    });
  });
}

/** Whether a line has anything to see: a rate that is not zero all along, a gauge that changes. */
export function moves(line: Line): boolean {
  const present = line.values.filter((value) => value !== null);
  return line.rate ? present.some((value) => value !== 0) : present.some((value) => value !== present[0]);
}

export function peak(line: Line): number {
  return line.values.reduce<number>((max, value) => Math.max(max, Math.abs(value ?? 0)), 0);
}

/** Lines that may share an axis. */
export interface Panel {
  unit: string;
  rate: boolean;
  lines: Line[];
  /** Lines left out because the panel was full; those with the smallest peaks. */
  hidden: number;
}

/** One panel for each unit, busiest panel first, at most `max` lines in each. */
export function panels(lines: readonly Line[], max: number): Panel[] {
  const byAxis = new Map<string, Line[]>();
  for (const line of lines) {
    const axis = `${line.unit}|${line.rate}`;
    byAxis.set(axis, [...(byAxis.get(axis) ?? []), line]);
  }
  return [...byAxis.values()].flatMap((group) => {
    const first = group[0];
    if (!first) return [];
    const kept = group.length <= max ? group : [...group].sort((a, b) => peak(b) - peak(a)).slice(0, max);
    return { unit: first.unit, rate: first.rate, lines: kept, hidden: group.length - kept.length };
  });
}

/** All lines over one sorted time axis (seconds), as uPlot wants it: undefined where a line has no reading, null in its holes. */
export function aligned(lines: readonly Line[]): [number[], ...(number | null | undefined)[][]] {
  const times = [...new Set(lines.flatMap((line) => line.times))].sort((a, b) => a - b);
  const index = new Map(times.map((time, i) => [time, i]));
  const columns = lines.map((line) => {
    const column = new Array<number | null | undefined>(times.length).fill(undefined);
    line.times.forEach((time, i) => {
      column[index.get(time) ?? 0] = line.values[i] ?? null;
    });
    return column;
  });
  return [times.map((time) => time / 1000), ...columns];
}
