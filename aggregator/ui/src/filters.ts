// What is searched for, as it stands in the page's address. The keys are those of the API, so that a link to a page
// and a call of the API differ only in their path.

import type { Params } from "./api";

/** Filters with an own box in the bar, in its order. */
export const BOX_KEYS = ["type", "reason", "node", "namespace", "pod", "ip", "port", "protocol"] as const;
/** Filters that the API knows too; shown as removable tags when the address has them. */
export const TAG_KEYS = ["probe", "workload", "min_latency"] as const;

export type FilterKey = (typeof BOX_KEYS)[number] | (typeof TAG_KEYS)[number] | "q";

export const FILTER_KEYS: readonly FilterKey[] = [...BOX_KEYS, ...TAG_KEYS, "q"];

/** Of the others, an empty value asks for events that have none there; for namespace and pod that is the node itself. */
const NEVER_EMPTY: readonly FilterKey[] = ["ip", "port", "min_latency", "q"];

export interface Filters {
  /** RFC 3339, or relative to now such as `-15m`. */
  from: string;
  /** RFC 3339; null is now, and then the list is live. */
  to: string | null;
  values: Partial<Record<FilterKey, string[]>>;
}

export const DEFAULT_FROM = "-1h";

export function parseFilters(search: URLSearchParams): Filters {
  const values: Filters["values"] = {};
  for (const key of FILTER_KEYS) {
    const given = search.getAll(key).filter((value) => value !== "" || !NEVER_EMPTY.includes(key));
    if (given.length > 0) values[key] = given;
  }
  const to = search.get("to");
  return { from: search.get("from") ?? DEFAULT_FROM, to: to === "" || to === "now" ? null : to, values };
}

/** The filters without the times, as the API takes them. */
export function valueParams(filters: Filters): Params {
  return FILTER_KEYS.flatMap((key) => (filters.values[key] ?? []).map((value): [string, string] => [key, value]));
}

/** The times as the API takes them. */
export function rangeParams(filters: Pick<Filters, "from" | "to">): Params {
  const params: Params = [["from", filters.from]];
  if (filters.to !== null) params.push(["to", filters.to]);
  return params;
}

/** The address of the same page with these filters; what is the default is left out. */
export function filterSearch(filters: Filters): string {
  const params = new URLSearchParams(valueParams(filters));
  if (filters.from !== DEFAULT_FROM) params.set("from", filters.from);
  if (filters.to !== null) params.set("to", filters.to);
  const search = params.toString();
  return search === "" ? "" : `?${search}`;
}

/** `!value` and `value` are two sides of one thing: setting one takes the other out. */
export function withValue(filters: Filters, key: FilterKey, value: string): Filters {
  const opposite = value.startsWith("!") ? value.slice(1) : `!${value}`;
  const kept = (filters.values[key] ?? []).filter((old) => old !== opposite && old !== value);
  return withValues(filters, key, [...kept, value]);
}

export function withValues(filters: Filters, key: FilterKey, given: string[]): Filters {
  const kept = Object.entries({ ...filters.values, [key]: given }).filter(([, values]) => values.length > 0);
  return { ...filters, values: Object.fromEntries(kept) };
}

/** Several values in one box are parted by commas or blanks; text search is taken as it is. */
export function splitBox(text: string): string[] {
  return [...new Set(text.split(/[\s,]+/).filter((value) => value !== "" && value !== "!"))];
}

export function hasFilters(filters: Filters): boolean {
  return FILTER_KEYS.some((key) => (filters.values[key] ?? []).length > 0);
}

const UNIT_MS: Record<string, number> = { ms: 1, s: 1000, m: 60_000, h: 3_600_000, d: 86_400_000 };

/** Milliseconds of a span such as `15m`; null when it is none. */
export function spanMs(text: string): number | null {
  const match = /^(\d+)(ms|s|m|h|d)$/.exec(text);
  if (!match) return null;
  return Number(match[1]) * (UNIT_MS[match[2] ?? ""] ?? NaN);
}

/** The instant an RFC 3339 text or a `-15m` means, in Unix milliseconds; null when it means none. */
export function instantMs(text: string, now: number): number | null {
  if (text.startsWith("-")) {
    const span = spanMs(text.slice(1));
    return span === null ? null : now - span;
  }
  const parsed = Date.parse(text);
  return Number.isNaN(parsed) ? null : parsed;
}

/** From and to in Unix milliseconds; a text that means nothing counts as its default, the API says what is wrong with it. */
export function rangeMs(filters: Pick<Filters, "from" | "to">, now: number): [number, number] {
  const to = filters.to === null ? now : (instantMs(filters.to, now) ?? now);
  const from = instantMs(filters.from, now) ?? to - 3_600_000;
  return [Math.min(from, to), to];
}

/** A list is live when its end is now. */
export function isLive(filters: Pick<Filters, "to">): boolean {
  return filters.to === null;
}

/** The same range with both ends fixed, so that a link shows the same tomorrow. */
export function pinned(filters: Filters, now: number): Filters {
  const [from, to] = rangeMs(filters, now);
  return { ...filters, from: new Date(from).toISOString(), to: new Date(to).toISOString() };
}
