// Counts over time. Pure.

import type { EventStats, Gap } from "./api";

const STEPS_S = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10_800, 21_600, 43_200, 86_400];

/** The finest step, in seconds, that needs no more than `max` bars for the span. */
export function stepFor(spanMs: number, max: number): number {
  return STEPS_S.find((step) => spanMs / (step * 1000) <= max) ?? Math.ceil(spanMs / 1000 / max / 86_400) * 86_400;
}

export interface Bar {
  /** Unix ms. */
  from: number;
  to: number;
  count: number;
}

/** Bars over the whole range; a bucket that the answer leaves out is empty. Ends are cut to the range. */
export function bars(stats: Pick<EventStats, "buckets" | "step_s">, from: number, to: number): Bar[] {
  const step = stats.step_s * 1000;
  if (!(step > 0) || to <= from) return [];
  const counts = new Map<number, number>();
  let offset = 0;
  for (const bucket of stats.buckets) {
    const start = Date.parse(bucket.time);
    if (Number.isNaN(start)) continue;
    offset = start % step;
    counts.set(start, (counts.get(start) ?? 0) + bucket.count);
  }
  const out: Bar[] = [];
  for (let start = Math.floor((from - offset) / step) * step + offset; start < to; start += step) {
    out.push({ from: start, to: start + step, count: counts.get(start) ?? 0 });
  }
  return out;
}

/** Where a gap lies in the range, as shares of it from 0 to 1; null when it lies outside. */
export function placeGap(gap: Pick<Gap, "from" | "to">, from: number, to: number): [number, number] | null {
  const start = Date.parse(gap.from);
  const end = Math.max(start, Date.parse(gap.to));
  if (Number.isNaN(start) || Number.isNaN(end) || end < from || start > to || to <= from) return null;
  const share = (time: number) => Math.min(1, Math.max(0, (time - from) / (to - from)));
  return [share(start), share(end)];
}

/** Round instants for an axis, at most `max` of them. */
export function ticks(from: number, to: number, max: number): number[] {
  const step = stepFor(to - from, max) * 1000;
  const out: number[] = [];
  for (let tick = Math.ceil(from / step) * step; tick <= to; tick += step) out.push(tick);
  return out;
}
