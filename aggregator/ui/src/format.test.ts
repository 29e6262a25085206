import { describe, expect, it } from "vitest";

import {
  formatBytes,
  formatCount,
  formatDateTime,
  formatEndpoint,
  formatInteger,
  formatSeconds,
  formatSpan,
  formatValue,
  fraction,
  fromDateTimeBox,
  plural,
  toDateTimeBox,
  zoneName,
} from "./format";

/** Thin blanks as plain ones, so that the expectations can be read. */
function plain(text: string): string {
  return text.replaceAll("\u202f", " ");
}

describe("numbers", () => {
  it.each([
    [0, "0"],
    [0.5, "0.5"],
    [7, "7"],
    [999, "999"],
    [999.6, "1k"],
    [1000, "1k"],
    [1234, "1.23k"],
    [12_345, "12.3k"],
    [-1500, "-1.5k"],
    [2.5e6, "2.5M"],
    [0.001, "1.0e-3"],
  ])("%d is short as %s", (value, text) => {
    expect(formatCount(value)).toBe(text);
  });

  it.each([
    [0, "0 B"],
    [1023, "1023 B"],
    [1000, "1000 B"],
    [1024, "1 KiB"],
    [1536, "1.5 KiB"],
    [5 * 2 ** 30, "5 GiB"],
  ])("%d bytes are %s", (value, text) => {
    expect(plain(formatBytes(value))).toBe(text);
  });

  it.each([
    [0, "0 s"],
    [1.5e-9, "1.5 ns"],
    [0.0000421, "42.1 µs"],
    [0.1345, "135 ms"],
    [2, "2 s"],
    [3700, "1h 1m"],
  ])("%d seconds are %s", (value, text) => {
    expect(plain(formatSeconds(value))).toBe(text);
  });

  it("are parted by thousands and counted in words", () => {
    expect(plain(formatInteger(1_234_567))).toBe("1 234 567");
    expect(plural(1, "node")).toBe("1 node");
    expect(plural(0, "node")).toBe("0 nodes");
  });

  it("carry the unit of their column", () => {
    expect(plain(formatValue(2048, "bytes", true))).toBe("2 KiB/s");
    expect(formatValue(3, "packets", true)).toBe("3/s");
    expect(formatValue(3, "sockets", false)).toBe("3");
    expect(plain(formatValue(0.25, "seconds", true))).toBe("25 %");
    expect(plain(formatValue(0.25, "seconds", false))).toBe("250 ms");
    expect(formatValue(null, "bytes", true)).toBe("—");
  });
});

describe("times", () => {
  const ms = Date.parse("2026-01-02T03:04:05.678Z");

  it("are shown in the chosen zone", () => {
    expect(formatDateTime(ms, "utc")).toBe("2026-01-02 03:04:05");
    expect(fromDateTimeBox(toDateTimeBox(ms, "utc"), "utc")).toBe(ms - 678);
    expect(fromDateTimeBox(toDateTimeBox(ms, "local"), "local")).toBe(ms - 678);
    expect(fromDateTimeBox("", "utc")).toBeNull();
    expect(fromDateTimeBox("x", "utc")).toBeNull();
  });

  it("name their zone", () => {
    expect(zoneName("utc", -120)).toBe("UTC");
    expect(zoneName("local", -330)).toBe("UTC+05:30");
    expect(zoneName("local", 480)).toBe("UTC−08:00");
  });

  it("keep the digits below a second as they are", () => {
    expect(fraction("2026-01-02T03:04:05.123999Z", 3)).toBe(".123");
    expect(fraction("2026-01-02T03:04:05Z", 3)).toBe(".000");
  });

  it.each([
    [400, "0s"],
    [59_000, "59s"],
    [60_000, "1m"],
    [61_000, "1m 1s"],
    [3_600_000, "1h"],
    [86_400_000, "24h"],
    [2 * 86_400_000 + 3_600_000, "2d 1h"],
  ])("%d ms last %s", (value, text) => {
    expect(formatSpan(value)).toBe(text);
  });
});

it("an endpoint brackets an IPv6 address that has a port", () => {
  expect(formatEndpoint("10.0.0.1", 80)).toBe("10.0.0.1:80");
  expect(formatEndpoint("fd00::1", 80)).toBe("[fd00::1]:80");
  expect(formatEndpoint("fd00::1", undefined)).toBe("fd00::1");
  expect(formatEndpoint(undefined, undefined)).toBe("");
});
