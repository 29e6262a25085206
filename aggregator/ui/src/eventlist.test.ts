import { describe, expect, it } from "vitest";

import type { SondeEvent } from "./api";
import { joins, mergeEvents, within } from "./eventlist";

function event(id: number, second: number, change: Partial<SondeEvent> = {}): SondeEvent {
  return { id, time: `2026-11-22T12:00:${String(second).padStart(2, "0")}.000000Z`, node: "n", probe: "p", type: "T", ...change };
}

const ids = (events: readonly SondeEvent[]) => events.map((one) => one.id);

describe("the list", () => {
  it("is newest first, each event once, whatever order they come in", () => {
    const list = mergeEvents([event(3, 30), event(1, 10)], [event(2, 20), event(3, 30), event(5, 30), event(4, 5)]);
    expect(ids(list)).toEqual([5, 3, 2, 1, 4]);
  });

  it("takes the newer form of an event", () => {
    const [only] = mergeEvents([event(1, 1)], [event(1, 1, { pod: "late" })]);
    expect(only?.pod).toBe("late");
  });

  it("joins a page that shares an event, or that has nothing below it", () => {
    const list = [event(3, 30), event(2, 20)];
    expect(joins(list, [event(9, 59), event(3, 30)], "c")).toBe(true);
    expect(joins(list, [event(9, 59), event(8, 58)], "c")).toBe(false);
    expect(joins(list, [event(9, 59)], null)).toBe(true);
    expect(joins([], [event(9, 59)], "c")).toBe(true);
  });

  it("lets go of what the range no longer holds", () => {
    const list = [event(2, 20), event(1, 10)];
    expect(ids(within(list, Date.parse("2026-11-22T12:00:15Z")))).toEqual([2]);
    expect(within(list, 0)).toBe(list);
  });
});
