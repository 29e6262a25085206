import { describe, expect, it } from "vitest";

import type { Column, Point, RowSeries } from "./api";
import { aligned, columnLines, moves, panels, rates, usualStep, withHoles, type Line } from "./rates";

const TIMES = [0, 10_000, 20_000, 30_000, 40_000];

function column(name: string, kind: Column["kind"], unit = ""): Column {
  return { name, kind, unit, metric: name, help: "" };
}

function rowsOf(columns: Record<string, Point[]>, labels: Record<string, string> = {}): RowSeries {
  return { node: "n", namespace: "ns", pod: "p", labels, columns };
}

function line(key: string, values: (number | null)[], change: Partial<Line> = {}): Line {
  return { key, label: key, unit: "", rate: true, times: TIMES.slice(0, values.length), values, ...change };
}

describe("the rate of a counter", () => {
  it("is the increase for each second since the reading before", () => {
    expect(rates(TIMES, [5, 15, 15, 45, 46])).toEqual([null, 1, 0, 3, 0.1]);
  });

  it("counts from zero after a reset", () => {
    expect(rates(TIMES, [100, 200, 20, 40, 40])).toEqual([null, 10, 2, 2, 0]);
  });

  it("is absent at an absent reading and at the one after it", () => {
    expect(rates(TIMES, [0, 10, null, 30, 40])).toEqual([null, 1, null, null, 1]);
  });

  it("is absent after a hole, as what happened in it is not known to be even", () => {
    expect(rates([0, 10_000, 20_000, 30_000, 90_000, 100_000], [0, 10, 20, 30, 9000, 9010])).toEqual([null, 1, 1, 1, null, 1]);
  });

  it("does not divide by nothing", () => {
    expect(rates([0, 0, 10_000], [1, 2, 3])).toEqual([null, null, 0.1]);
    expect(rates([], [])).toEqual([]);
    expect(rates([1], [1])).toEqual([null]);
  });
});

describe("holes", () => {
  it("get an absent point in their middle", () => {
    expect(withHoles([0, 10, 20, 60, 70], [1, 2, 3, 4, 5])).toEqual([
      [0, 10, 20, 40, 60, 70],
      [1, 2, 3, null, 4, 5],
    ]);
  });

  it("are measured by the usual step", () => {
    expect(usualStep([0, 10, 20, 500])).toBe(10);
    expect(usualStep([7])).toBe(0);
  });
});

describe("lines of a column", () => {
  it("are one for each label set that has a reading", () => {
    const lines = columnLines(column("drops", "counter", "packets"), [
      rowsOf({ drops: [[0, 0], [10_000, 20]] }, { reason: "A" }),
      rowsOf({ drops: [[0, null], [10_000, null]] }, { reason: "B" }),
      rowsOf({}, { reason: "C" }),
    ]);
    expect(lines).toEqual([{ key: "drops|reason=A", label: "drops reason=A", unit: "packets", rate: true, times: [0, 10_000], values: [null, 2] }]);
  });

  it("count a reason that turns up from zero, if the subject was read just before", () => {
    const points: Point[] = [[20_000, 30], [30_000, 30]];
    const [born] = columnLines(column("drops", "counter"), [rowsOf({ drops: points }, { reason: "A" })], [0, 10_000, 20_000, 30_000]);
    expect(born?.values).toEqual([3, 0]);
    const [unlabelled] = columnLines(column("drops", "counter"), [rowsOf({ drops: points })], [0, 10_000, 20_000, 30_000]);
    expect(unlabelled?.values).toEqual([null, 0]);
  });

  it.each([
    ["the range begins there", [20_000, 30_000]],
    ["another probe was read a moment before", [19_990, 29_990, 39_990]],
    ["nothing was read for long before", [-80_000, -70_000, -60_000, 20_000, 30_000]],
    ["nothing was ever read", []],
  ])("make nothing up where %s", (_why, read) => {
    const [line] = columnLines(column("drops", "counter"), [rowsOf({ drops: [[20_000, 30], [30_000, 40]] }, { reason: "A" })], read);
    expect(line?.values).toEqual([null, 1]);
  });

  it("show a gauge as it is", () => {
    const [only] = columnLines(column("inuse", "gauge", "sockets"), [rowsOf({ inuse: [[0, 3], [10_000, null], [20_000, 1]] })]);
    expect(only).toMatchObject({ label: "inuse", rate: false, values: [3, null, 1] });
  });

  it("show of a histogram how often and how long", () => {
    const points: Point[] = [
      [0, [1, 0, 0, 0.5]],
      [10_000, [3, 2, 0, 2.5]],
      [20_000, [3, 2, 0, 2.5]],
    ];
    const [mean, often] = columnLines(column("latency_seconds", "histogram", "seconds"), [rowsOf({ latency_seconds: points })]);
    expect(mean).toMatchObject({ label: "latency_seconds mean", unit: "seconds", rate: false, values: [null, 0.5, null] });
    expect(often).toMatchObject({ label: "latency_seconds observations", unit: "", rate: true, values: [null, 0.4, 0] });
  });
});

describe("what is drawn", () => {
  it("is what moves", () => {
    expect(moves(line("a", [null, 0, 0]))).toBe(false);
    expect(moves(line("a", [null, 0, 0.1]))).toBe(true);
    expect(moves(line("g", [5, null, 5], { rate: false }))).toBe(false);
    expect(moves(line("g", [5, 6], { rate: false }))).toBe(true);
  });

  it("is parted by unit, and keeps the lines with the largest peaks when there are too many", () => {
    const drawn = panels([line("a", [1]), line("b", [9]), line("c", [-5]), line("d", [1], { unit: "bytes" }), line("e", [1], { rate: false })], 2);
    expect(drawn.map((panel) => [panel.unit, panel.rate, panel.lines.map((one) => one.key), panel.hidden])).toEqual([
      ["", true, ["b", "c"], 1],
      ["bytes", true, ["d"], 0],
      ["", false, ["e"], 0],
    ]);
  });

  it("lies on one axis of time, where no reading is not the same as an absent one", () => {
    expect(aligned([line("a", [1, 2], { times: [0, 20_000] }), line("b", [null, 4], { times: [10_000, 20_000] })])).toEqual([
      [0, 10, 20],
      [1, undefined, 2],
      [undefined, null, 4],
    ]);
  });
});
