import { describe, expect, it } from "vitest";

import { filterSearch, instantMs, parseFilters, pinned, rangeMs, rangeParams, splitBox, valueParams, withValue, withValues, type Filters } from "./filters";

const NOW = Date.parse("2026-11-22T12:00:00Z");

function parse(search: string): Filters {
  return parseFilters(new URLSearchParams(search));
}

describe("filters in the address", () => {
  it("are the parameters of the API and come back the same", () => {
    const search = "?type=PACKETLOSS&type=TCPRETRANS&reason=%21NO_SOCKET&pod=a+b&workload=w&q=x%2Cy&from=-15m";
    const filters = parse(search);
    expect(filters.values).toEqual({ type: ["PACKETLOSS", "TCPRETRANS"], reason: ["!NO_SOCKET"], pod: ["a b"], workload: ["w"], q: ["x,y"] });
    expect(parse(filterSearch(filters))).toEqual(filters);
    expect(valueParams(filters)).toContainEqual(["q", "x,y"]);
  });

  it("are the last hour of everything where nothing is said", () => {
    expect(parse("")).toEqual({ from: "-1h", to: null, values: {} });
    expect(filterSearch(parse(""))).toBe("");
    expect(rangeParams(parse(""))).toEqual([["from", "-1h"]]);
  });

  it("keep an empty namespace and pod, which is the node itself", () => {
    const filters = parse("?namespace=&pod=");
    expect(valueParams(filters)).toEqual([
      ["namespace", ""],
      ["pod", ""],
    ]);
    expect(filterSearch(filters)).toBe("?namespace=&pod=");
  });

  it("drop an empty value where the API knows none", () => {
    expect(parse("?q=&ip=&port=&min_latency=&reason=").values).toEqual({ reason: [""] });
  });

  it("leave alone what is no filter", () => {
    expect(parse("?utm=1&limit=5").values).toEqual({});
  });

  it("end now for `now` and for nothing", () => {
    expect(parse("?to=now").to).toBeNull();
    expect(parse("?to=").to).toBeNull();
    expect(parse("?to=-5m").to).toBe("-5m");
  });
});

describe("changing a filter", () => {
  it("takes the opposite out", () => {
    const filters = withValue(parse("?type=A&type=B"), "type", "!A");
    expect(filters.values.type).toEqual(["B", "!A"]);
    expect(withValue(filters, "type", "A").values.type).toEqual(["B", "A"]);
  });

  it("does not repeat a value", () => {
    expect(withValue(parse("?ip=10.0.0.1"), "ip", "10.0.0.1").values.ip).toEqual(["10.0.0.1"]);
  });

  it("removes the key with its last value", () => {
    expect(withValues(parse("?type=A"), "type", []).values).toEqual({});
  });

  it("parts the values in a box by commas and blanks", () => {
    expect(splitBox(" A, !B  A,,! ")).toEqual(["A", "!B"]);
    expect(splitBox("  ")).toEqual([]);
  });
});

describe("times", () => {
  it("are absolute or back from now", () => {
    expect(instantMs("-15m", NOW)).toBe(NOW - 900_000);
    expect(instantMs("-250ms", NOW)).toBe(NOW - 250);
    expect(instantMs("2026-11-22T14:00:00+02:00", NOW)).toBe(NOW);
    for (const bad of ["-15", "-1w", "yesterday", ""]) expect(instantMs(bad, NOW), bad).toBeNull();
  });

  it("count as the default where they mean nothing, as the API says what is wrong", () => {
    expect(rangeMs({ from: "soon", to: "later" }, NOW)).toEqual([NOW - 3_600_000, NOW]);
  });

  it("never run backwards", () => {
    const [from, to] = rangeMs({ from: "-1m", to: "-5m" }, NOW);
    expect(from).toBeLessThanOrEqual(to);
  });

  it("are pinned for a link that shows the same tomorrow", () => {
    expect(pinned(parse("?from=-15m&type=A"), NOW)).toEqual({ from: "2026-11-22T11:45:00.000Z", to: "2026-11-22T12:00:00.000Z", values: { type: ["A"] } });
  });
});
