import { describe, expect, it } from "vitest";

import { bars, placeGap, stepFor, ticks } from "./histogram";

const T0 = Date.parse("2026-11-22T12:00:00Z");
const at = (seconds: number) => new Date(T0 + seconds * 1000).toISOString();

describe("bars", () => {
  it("stand over the whole range, empty where the answer has none", () => {
    const all = bars({ step_s: 60, buckets: [{ time: at(60), count: 5 }] }, T0, T0 + 180_000);
    expect(all.map((bar) => bar.count)).toEqual([0, 5, 0]);
    expect(all[0]?.from).toBe(T0);
  });

  it("keep the steps of the answer where they do not start on a round time", () => {
    const all = bars({ step_s: 60, buckets: [{ time: at(77), count: 1 }] }, T0 + 17_000, T0 + 137_000);
    expect(all.map((bar) => [(bar.from - T0) / 1000, bar.count])).toEqual([
      [17, 0],
      [77, 1],
    ]);
  });

  it("are none where the answer makes no sense", () => {
    expect(bars({ step_s: 0, buckets: [] }, T0, T0 + 1)).toEqual([]);
    expect(bars({ step_s: 60, buckets: [] }, T0, T0)).toEqual([]);
    expect(bars({ step_s: 60, buckets: [{ time: "x", count: 1 }] }, T0, T0 + 60_000).every((bar) => bar.count === 0)).toBe(true);
  });
});

it("a step is the finest that needs few enough bars", () => {
  expect(stepFor(3_600_000, 90)).toBe(60);
  expect(stepFor(300_000, 90)).toBe(5);
  expect(stepFor(30 * 86_400_000, 90)).toBe(43_200);
  expect(stepFor(3650 * 86_400_000, 90) * 90_000).toBeGreaterThanOrEqual(3650 * 86_400_000);
  expect(stepFor(0, 90)).toBe(1);
});

it("ticks are round and few", () => {
  const all = ticks(T0 + 1, T0 + 3_600_000, 6);
  expect(all.length).toBeLessThanOrEqual(6);
  expect(all.every((tick) => tick % 600_000 === 0)).toBe(true);
});

describe("a gap", () => {
  it("lies where it was, cut to the range", () => {
    expect(placeGap({ from: at(-60), to: at(60) }, T0, T0 + 120_000)).toEqual([0, 0.5]);
    expect(placeGap({ from: at(30), to: at(30) }, T0, T0 + 120_000)).toEqual([0.25, 0.25]);
  });

  it("is not there outside of the range or without times", () => {
    expect(placeGap({ from: at(-60), to: at(-30) }, T0, T0 + 120_000)).toBeNull();
    expect(placeGap({ from: at(130), to: at(140) }, T0, T0 + 120_000)).toBeNull();
    expect(placeGap({ from: "", to: "" }, T0, T0 + 120_000)).toBeNull();
  });
});
