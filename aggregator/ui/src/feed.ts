// The live list: loads the newest page, follows the stream, falls back to polling, loads older pages. Knows no React.

import { api, apiUrl, ApiError, asApiError, problemOf, type Params, type SondeEvent } from "./api";
import { joins, mergeEvents, within } from "./eventlist";
import { instantMs } from "./filters";
import { SseParser } from "./sse";

export type FeedState =
  /** The stream is being opened for the first time. */
  | "connecting"
  /** Events arrive as they are stored. */
  | "live"
  /** No stream, but the newest page can be asked for. */
  | "polling"
  /** No answer at all; tried again and again. */
  | "disconnected"
  /** The server refuses these filters; the error says why. */
  | "refused"
  /** The range has a fixed end: nothing new can come. */
  | "fixed";

export interface Feed {
  events: readonly SondeEvent[];
  state: FeedState;
  paused: boolean;
  /** Events that came while paused; null when there were too many to keep. */
  waiting: number | null;
  /** The newest page was loaded once. */
  loaded: boolean;
  /** Why the newest page or an older one could not be loaded. */
  error: ApiError | null;
  hasOlder: boolean;
  loadingOlder: boolean;
}

export interface FeedQuery {
  values: Params;
  from: string;
  to: string | null;
}

const PAGE = 100;
const OLDER_PAGE = 500;
/** Rows kept without asking; what the reader loads with "older" comes on top. */
const KEEP = 1000;
const KEEP_MOST = 20_000;
const HOLD_MOST = 5000;
const FLUSH_MS = 200;
const POLL_MS = 3000;
/** The server sends a comment every 15 s. */
const STALL_MS = 40_000;
const OPEN_MS = 10_000;
/** After a longer break the newest page is asked for: a replay could be endless. */
const RESUME_MS = 60_000;

/** Where the list goes on below its last row. A cursor holds only for the question it came with. */
type Older = { question: Params; cursor: string } | { before: string } | null;

export class EventFeed {
  private snapshot: Feed;
  private readonly listeners = new Set<() => void>();
  private stopped = new AbortController();
  private incoming: SondeEvent[] = [];
  private held: SondeEvent[] = [];
  private heldOverflow = false;
  private older: Older = null;
  private keep = KEEP;
  private flushTimer: ReturnType<typeof setTimeout> | undefined;
  private lastId: string | null = null;
  private lastByte = 0;

  constructor(private readonly query: FeedQuery) {
    this.snapshot = {
      events: [],
      state: query.to === null ? "connecting" : "fixed",
      paused: false,
      waiting: 0,
      loaded: false,
      error: null,
      hasOlder: false,
      loadingOlder: false,
    };
  }

  readonly subscribe = (listener: () => void): (() => void) => {
    this.listeners.add(listener);
    return () => this.listeners.delete(listener);
  };

  readonly get = (): Feed => this.snapshot;

  /** Starts, or starts again after stop(). */
  start(): void {
    this.stopped = new AbortController();
    const { signal } = this.stopped;
    void this.refresh(signal).catch(() => undefined);
    if (this.query.to === null) void this.follow(signal);
  }

  stop(): void {
    this.stopped.abort();
    clearTimeout(this.flushTimer);
    this.flushTimer = undefined;
  }

  pause(paused: boolean): void {
    if (paused === this.snapshot.paused) return;
    this.set({ paused });
    if (paused) return;
    if (this.heldOverflow) void this.refresh(this.stopped.signal).catch(() => undefined);
    else this.add(this.held);
    this.held = [];
    this.heldOverflow = false;
    this.set({ waiting: 0 });
  }

  async loadOlder(): Promise<void> {
    const { older } = this;
    if (older === null || this.snapshot.loadingOlder) return;
    this.set({ loadingOlder: true });
    try {
      const question = "cursor" in older ? older.question : this.question(older.before);
      const where: Params = "cursor" in older ? [["cursor", older.cursor]] : [];
      const page = await api.events([...question, ...where, ["limit", String(OLDER_PAGE)]], this.stopped.signal);
      this.older = page.next_cursor === null ? null : { question, cursor: page.next_cursor };
      const events = mergeEvents(this.snapshot.events, page.events);
      this.keep = Math.min(KEEP_MOST, Math.max(this.keep, events.length + PAGE));
      this.set({ events, loadingOlder: false, hasOlder: this.older !== null, error: null });
    } catch (error) {
      if (!this.stopped.signal.aborted) this.set({ loadingOlder: false, error: asApiError(error) });
    }
  }

  private set(change: Partial<Feed>): void {
    this.snapshot = { ...this.snapshot, ...change };
    for (const listener of this.listeners) listener();
  }

  /** What is asked for: the whole range, or its part up to and with an event. */
  private question(before: string | null = null): Params {
    const { values, from, to } = this.query;
    // One millisecond more, as `to` is exclusive and browsers know no microseconds; what comes twice is merged.
    const end = before === null ? to : new Date(Date.parse(before) + 1).toISOString();
    return [...values, ["from", from], ...(end === null ? [] : [["to", end] satisfies [string, string]])];
  }

  /** Loads the newest page; where it does not join on to the list, the list starts anew. Throws ApiError. */
  private async refresh(signal: AbortSignal): Promise<void> {
    try {
      const question = this.question();
      const page = await api.events([...question, ["limit", String(PAGE)]], signal);
      if (signal.aborted) return;
      if (this.snapshot.paused && this.snapshot.loaded) {
        const known = new Set(this.snapshot.events.map((event) => event.id));
        this.hold(page.events.filter((event) => !known.has(event.id)));
        return;
      }
      const { events: list, loaded } = this.snapshot;
      const onward = joins(list, page.events, page.next_cursor);
      if (!loaded || !onward || list.length === 0) {
        this.older = page.next_cursor === null ? null : { question, cursor: page.next_cursor };
        this.keep = KEEP;
      }
      this.set({ loaded: true, error: null });
      this.replace(onward ? mergeEvents(list, page.events) : page.events);
    } catch (error) {
      if (signal.aborted) return;
      const problem = asApiError(error);
      this.set({ error: problem });
      if (problem.status === 400) this.refuse();
      throw problem;
    }
  }

  private replace(events: readonly SondeEvent[]): void {
    const from = this.query.to === null ? instantMs(this.query.from, Date.now()) : null;
    let kept = from === null ? events : within(events, from);
    if (kept.length > this.keep) {
      kept = kept.slice(0, this.keep);
      const tail = kept[kept.length - 1];
      if (tail) this.older = { before: tail.time };
    }
    this.set({ events: kept, hasOlder: this.older !== null });
  }

  private add(events: readonly SondeEvent[]): void {
    if (events.length > 0) this.replace(mergeEvents(this.snapshot.events, events));
  }

  private hold(events: readonly SondeEvent[]): void {
    this.held = mergeEvents(this.held, events);
    if (this.held.length > HOLD_MOST) {
      this.heldOverflow = true;
      this.held = [];
    }
    this.set({ waiting: this.heldOverflow ? null : this.held.length });
  }

  private readonly flush = (): void => {
    this.flushTimer = undefined;
    const events = this.incoming;
    this.incoming = [];
    if (this.snapshot.paused) this.hold(events);
    else this.add(events);
  };

  private async follow(signal: AbortSignal): Promise<void> {
    let failures = 0;
    while (!signal.aborted) {
      const outcome = await this.stream(signal);
      if (isAborted(signal)) return;
      if (outcome === "refused") {
        this.refuse();
        return;
      }
      failures = outcome === "ended" ? 0 : failures + 1;
      // Polled more often than the stream is tried, so that a proxy which swallows streams does not make the list slow.
      const polls = Math.min(failures, 5) + 1;
      for (let i = 0; i < polls; i += 1) {
        try {
          await this.refresh(signal);
          this.setState("polling", signal);
        } catch {
          this.setState("disconnected", signal);
        }
        await sleep(i === 0 && failures === 0 ? 500 : POLL_MS, signal);
        if (isAborted(signal)) return;
      }
    }
  }

  /** These filters will never work: nothing more is asked. */
  private refuse(): void {
    this.set({ state: "refused" });
    this.stop();
  }

  private setState(state: FeedState, signal: AbortSignal): void {
    if (!signal.aborted && this.snapshot.state !== state) this.set({ state });
  }

  /** Follows one stream until it ends. Never throws. */
  private async stream(signal: AbortSignal): Promise<"ended" | "failed" | "refused"> {
    const connection = new AbortController();
    const end = () => {
      connection.abort();
    };
    signal.addEventListener("abort", end);
    const watch = setInterval(() => {
      if (Date.now() - this.lastByte > STALL_MS) end();
    }, 5000);
    const opening = setTimeout(end, OPEN_MS);
    try {
      const resume = this.lastId !== null && Date.now() - this.lastByte < RESUME_MS ? this.lastId : null;
      this.lastByte = Date.now();
      const response = await fetch(apiUrl("/events/stream", this.query.values), {
        headers: { accept: "text/event-stream", ...(resume === null ? {} : { "last-event-id": resume }) },
        signal: connection.signal,
      });
      clearTimeout(opening);
      if (!response.ok) throw await problemOf(response);
      if (!response.body || !(response.headers.get("content-type") ?? "").startsWith("text/event-stream")) return "failed";
      this.setState("live", signal);
      // Whatever was stored between the first page and the start of the stream.
      if (resume === null) void this.refresh(signal).catch(() => undefined);
      await this.read(response.body);
      return "ended";
    } catch (error) {
      if (error instanceof ApiError && error.status === 400) return "refused";
      return this.snapshot.state === "live" ? "ended" : "failed";
    } finally {
      clearTimeout(opening);
      clearInterval(watch);
      signal.removeEventListener("abort", end);
      end();
    }
  }

  private async read(body: ReadableStream<Uint8Array>): Promise<void> {
    const parser = new SseParser();
    const reader = body.getReader();
    const decoder = new TextDecoder();
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      this.lastByte = Date.now();
      for (const message of parser.push(decoder.decode(value, { stream: true }))) {
        if (message.id !== null) this.lastId = message.id;
        if (message.event === "event") this.incoming.push(JSON.parse(message.data) as SondeEvent);
      }
      if (this.incoming.length > 0) this.flushTimer ??= setTimeout(this.flush, FLUSH_MS);
    }
  }
}

/** A function, so that the compiler does not take an earlier answer for the present one. */
function isAborted(signal: AbortSignal): boolean {
  return signal.aborted;
}

/** Waits; ends early and quietly on abort. */
function sleep(ms: number, signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    if (signal.aborted) {
      resolve();
      return;
    }
    const done = () => {
      clearTimeout(timer);
      signal.removeEventListener("abort", done);
      resolve();
    };
    const timer = setTimeout(done, ms);
    signal.addEventListener("abort", done);
  });
}
