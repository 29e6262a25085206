// The list of events in memory: newest first, each once, bounded. Pure.

import type { SondeEvent } from "./api";

/** Newest first; RFC 3339 of one shape (UTC, microseconds) sorts as text. */
export function compareEvents(a: SondeEvent, b: SondeEvent): number {
  if (a.time !== b.time) return a.time < b.time ? 1 : -1;
  return b.id - a.id;
}

/** Both lists as one, each event once; an event that is sent again (repaired by late knowledge) replaces the older one. */
export function mergeEvents(list: readonly SondeEvent[], more: readonly SondeEvent[]): SondeEvent[] {
  if (more.length === 0) return [...list];
  const byId = new Map(list.map((event) => [event.id, event]));
  for (const event of more) byId.set(event.id, event);
  return [...byId.values()].sort(compareEvents);
}

/** Whether the newest page joins on to the list without a hole: they share an event, the list is empty, or nothing lies below the page. */
export function joins(list: readonly SondeEvent[], page: readonly SondeEvent[], nextCursor: string | null): boolean {
  if (list.length === 0 || nextCursor === null) return true;
  const ids = new Set(list.map((event) => event.id));
  return page.some((event) => ids.has(event.id));
}

/** The events that the range still holds; the start of a relative range moves on. */
export function within(list: readonly SondeEvent[], fromMs: number): readonly SondeEvent[] {
  const last = list[list.length - 1];
  if (last === undefined || Date.parse(last.time) >= fromMs) return list;
  return list.filter((event) => Date.parse(event.time) >= fromMs);
}
