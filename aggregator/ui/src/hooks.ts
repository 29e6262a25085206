// What the pages share: data that is asked for again and again, the zone times are shown in, the live list.

import { createContext, useCallback, useContext, useEffect, useMemo, useRef, useState, useSyncExternalStore } from "react";

import { asApiError, type ApiError, type Node, type Probe } from "./api";
import { EventFeed, type Feed, type FeedQuery } from "./feed";
import type { Zone } from "./format";

export interface Resource<T> {
  /** The newest answer; stays while it is asked for again, also when that fails. */
  data: T | null;
  error: ApiError | null;
  reload: () => void;
}

/** Loads what `key` names, again every `everyMs` (0: once) while the page is visible. A null key asks for nothing. */
export function useResource<T>(key: string | null, load: (signal: AbortSignal) => Promise<T>, everyMs = 0): Resource<T> {
  const [held, setHeld] = useState<{ key: string | null; data: T | null; error: ApiError | null }>({ key: null, data: null, error: null });
  const latest = useRef(load);
  const reloadRef = useRef<() => void>(() => undefined);
  useEffect(() => {
    latest.current = load;
  });
  useEffect(() => {
    if (key === null) return;
    const control = new AbortController();
    let timer: ReturnType<typeof setTimeout> | undefined;
    let busy = false;
    const run = async () => {
      if (busy) return;
      clearTimeout(timer);
      busy = true;
      try {
        const data = await latest.current(control.signal);
        if (!control.signal.aborted) setHeld({ key, data, error: null });
      } catch (thrown) {
        const error = asApiError(thrown);
        if (!control.signal.aborted) setHeld((old) => ({ key, data: old.key === key ? old.data : null, error }));
      }
      busy = false;
      if (everyMs > 0 && !control.signal.aborted && !document.hidden) timer = setTimeout(() => void run(), everyMs);
    };
    const shown = () => {
      if (!document.hidden && everyMs > 0) void run();
    };
    reloadRef.current = () => void run();
    document.addEventListener("visibilitychange", shown);
    void run();
    return () => {
      control.abort();
      clearTimeout(timer);
      document.removeEventListener("visibilitychange", shown);
    };
  }, [key, everyMs]);
  const reload = useCallback(() => {
    reloadRef.current();
  }, []);
  return held.key === key ? { data: held.data, error: held.error, reload } : { data: null, error: null, reload };
}

export interface Shared {
  nodes: Resource<Node[]>;
  probes: Resource<Probe[]>;
  zone: Zone;
  setZone: (zone: Zone) => void;
  /** Unix ms, to the minute: for what day it is and what counts as long ago. */
  minute: number;
}

export const SharedContext = createContext<Shared | null>(null);

export function useShared(): Shared {
  const shared = useContext(SharedContext);
  if (shared === null) throw new Error("used outside of the app");
  return shared;
}

const ZONE_KEY = "sonde.zone";

/** The zone the reader chose, kept in this browser. */
export function useZone(): [Zone, (zone: Zone) => void] {
  const [zone, set] = useState<Zone>(() => {
    try {
      return window.localStorage.getItem(ZONE_KEY) === "utc" ? "utc" : "local";
    } catch {
      return "local"; // Storage is forbidden here.
    }
  });
  const choose = useCallback((next: Zone) => {
    set(next);
    try {
      window.localStorage.setItem(ZONE_KEY, next);
    } catch {
      // Then it holds until the page is loaded again.
    }
  }, []);
  return [zone, choose];
}

/** A hidden page gives its stream back after this: browsers allow six connections to one server in all tabs together. */
const HIDDEN_MS = 30_000;

export function useFeed(query: FeedQuery): [Feed, EventFeed] {
  const key = JSON.stringify(query);
  const feed = useMemo(() => new EventFeed(JSON.parse(key) as FeedQuery), [key]);
  useEffect(() => {
    let running = true;
    let timer: ReturnType<typeof setTimeout> | undefined;
    const turned = () => {
      clearTimeout(timer);
      if (document.hidden) {
        timer = setTimeout(() => {
          feed.stop();
          running = false;
        }, HIDDEN_MS);
      } else if (!running) {
        feed.start();
        running = true;
      }
    };
    feed.start();
    document.addEventListener("visibilitychange", turned);
    return () => {
      clearTimeout(timer);
      document.removeEventListener("visibilitychange", turned);
      feed.stop();
    };
  }, [feed]);
  return [useSyncExternalStore(feed.subscribe, feed.get), feed];
}

/** The present time, moving on every `everyMs`. */
export function useNow(everyMs: number): number {
  const [now, setNow] = useState(() => Date.now());
  useEffect(() => {
    const timer = setInterval(() => {
      setNow(Date.now());
    }, everyMs);
    return () => {
      clearInterval(timer);
    };
  }, [everyMs]);
  return now;
}

/** Counts up when the colours of the page change (light, dark). */
export function useTheme(): string {
  return useSyncExternalStore(
    (listener) => {
      const media = window.matchMedia("(prefers-color-scheme: dark)");
      media.addEventListener("change", listener);
      return () => {
        media.removeEventListener("change", listener);
      };
    },
    () => (window.matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light"),
  );
}
