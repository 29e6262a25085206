import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";

import type { SondeEvent } from "./api";
import { EventFeed, type FeedQuery } from "./feed";

const NOW = Date.parse("2026-11-22T12:00:00Z");
const LIVE: FeedQuery = { values: [["type", "T"]], from: "-1h", to: null };

function event(id: number, ageSeconds = 10): SondeEvent {
  return { id, time: new Date(NOW - ageSeconds * 1000).toISOString().replace("Z", "000Z"), node: "n", probe: "p", type: "T" };
}

/** A server that the test steers: what the list answers, and the streams that are open. */
class Server {
  list: (url: URL) => Response = () => Response.json({ events: [], next_cursor: null });
  stream: () => Response = () => this.open();
  readonly requests: { url: URL; headers: Headers }[] = [];
  private readonly open_: ReadableStreamDefaultController<Uint8Array>[] = [];

  readonly fetch = (input: string, init: RequestInit = {}): Promise<Response> => {
    const url = new URL(input, "http://server");
    this.requests.push({ url, headers: new Headers(init.headers) });
    try {
      if (!url.pathname.endsWith("/stream")) return Promise.resolve(this.list(url));
      const answer = this.stream();
      const control = this.open_.at(-1);
      // As a browser does it: who gives the request up has no stream any more.
      init.signal?.addEventListener("abort", () => control?.error(new DOMException("aborted", "AbortError")));
      return Promise.resolve(answer);
    } catch (error) {
      return Promise.reject(error instanceof Error ? error : new Error(String(error)));
    }
  };

  open(): Response {
    const body = new ReadableStream<Uint8Array>({
      start: (control) => {
        this.open_.push(control);
      },
    });
    return new Response(body, { headers: { "content-type": "text/event-stream" } });
  }

  send(one: SondeEvent): void {
    this.open_.at(-1)?.enqueue(new TextEncoder().encode(`event: event\nid: ${one.id}\ndata: ${JSON.stringify(one)}\n\n`));
  }

  end(): void {
    this.open_.at(-1)?.close();
  }

  count(path: string): number {
    return this.requests.filter(({ url }) => url.pathname === path).length;
  }
}

let server: Server;
let feed: EventFeed;

function start(query: FeedQuery): void {
  feed = new EventFeed(query);
  feed.start();
}

async function pass(ms: number): Promise<void> {
  await vi.advanceTimersByTimeAsync(ms);
}

const ids = () => feed.get().events.map((one) => one.id);
const page = (events: SondeEvent[], cursor: string | null = null) => () => Response.json({ events, next_cursor: cursor });

beforeEach(() => {
  vi.useFakeTimers({ now: NOW });
  server = new Server();
  vi.stubGlobal("fetch", server.fetch);
});

afterEach(() => {
  feed.stop();
  vi.useRealTimers();
  vi.unstubAllGlobals();
});

describe("a live list", () => {
  it("shows the newest page and then what the stream sends, each once", async () => {
    server.list = page([event(2), event(1, 20)]);
    start(LIVE);
    await pass(10);
    expect(feed.get().state).toBe("live");
    expect(ids()).toEqual([2, 1]);
    server.send(event(2));
    server.send(event(3, 1));
    await pass(300);
    expect(ids()).toEqual([3, 2, 1]);
  });

  it("asks for the newest page again when the stream has opened, as events may fall between the two", async () => {
    server.list = page([event(1)]);
    start(LIVE);
    await pass(10);
    expect(server.count("/api/v1/events")).toBe(2);
  });

  it("sends the filters but no times to the stream", async () => {
    start(LIVE);
    await pass(10);
    const stream = server.requests.find(({ url }) => url.pathname.endsWith("/stream"));
    expect(stream?.url.search).toBe("?type=T");
  });

  it("holds back what comes while paused, and shows it after", async () => {
    server.list = page([event(1)]);
    start(LIVE);
    await pass(10);
    feed.pause(true);
    server.send(event(2, 1));
    await pass(300);
    expect(ids()).toEqual([1]);
    expect(feed.get().waiting).toBe(1);
    feed.pause(false);
    expect(ids()).toEqual([2, 1]);
    expect(feed.get().waiting).toBe(0);
  });

  it("lets go of events that have left the range", async () => {
    server.list = page([event(1, 3590)]);
    start(LIVE);
    await pass(10);
    expect(ids()).toEqual([1]);
    await pass(20_000);
    server.send(event(2, 0));
    await pass(300);
    expect(ids()).toEqual([2]);
  });

  it("goes on from the last event when the stream breaks", async () => {
    start(LIVE);
    await pass(10);
    server.send(event(7, 1));
    await pass(300);
    server.end();
    await pass(1000);
    const streams = server.requests.filter(({ url }) => url.pathname.endsWith("/stream"));
    expect(streams).toHaveLength(2);
    expect(streams[1]?.headers.get("last-event-id")).toBe("7");
    expect(feed.get().state).toBe("live");
  });

  it("is not taken for live when nothing comes, not even a keep-alive", async () => {
    start(LIVE);
    await pass(10);
    server.list = () => {
      throw new TypeError("unreachable");
    };
    server.stream = () => {
      throw new TypeError("unreachable");
    };
    await pass(39_000);
    expect(feed.get().state).toBe("live");
    await pass(10_000);
    expect(feed.get().state).toBe("disconnected");
  });

  it("keeps a bounded number of rows, and finds the older ones by time", async () => {
    server.list = page([event(1, 100)]);
    start(LIVE);
    await pass(10);
    for (let id = 2; id <= 1501; id += 1) server.send(event(id, 50 - id / 100));
    await pass(300);
    expect(ids()).toHaveLength(1000);
    expect(feed.get().hasOlder).toBe(true);
    const tail = feed.get().events.at(-1);
    await feed.loadOlder();
    const older = server.requests.at(-1)?.url.searchParams;
    expect(Date.parse(older?.get("to") ?? "")).toBe(Date.parse(tail?.time ?? "") + 1);
  });

  it("sends with a cursor the question that the cursor came with", async () => {
    server.list = page([event(1, 100)]);
    start(LIVE);
    await pass(10);
    for (let id = 2; id <= 1501; id += 1) server.send(event(id, 50 - id / 100));
    await pass(300);
    server.list = page([event(1, 100)], "c");
    await feed.loadOlder();
    const first = new URLSearchParams(server.requests.at(-1)?.url.searchParams);
    await feed.loadOlder();
    const second = new URLSearchParams(server.requests.at(-1)?.url.searchParams);
    expect(second.get("cursor")).toBe("c");
    second.delete("cursor");
    expect(second.toString()).toBe(first.toString());
  });
});

describe("when the stream does not work", () => {
  it("the list is polled", async () => {
    server.stream = () => Response.json({ title: "not found" }, { status: 404 });
    server.list = page([event(1)]);
    start(LIVE);
    await pass(100);
    expect(feed.get().state).toBe("polling");
    server.list = page([event(2, 1), event(1)]);
    await pass(3100);
    expect(ids()).toEqual([2, 1]);
  });

  it("and nor does the list, it says so, and comes back by itself", async () => {
    server.stream = () => {
      throw new TypeError("unreachable");
    };
    server.list = () => {
      throw new TypeError("unreachable");
    };
    start(LIVE);
    await pass(100);
    expect(feed.get().state).toBe("disconnected");
    expect(feed.get().error?.status).toBe(0);
    server.stream = () => server.open();
    server.list = page([event(1)]);
    await pass(20_000);
    expect(feed.get().state).toBe("live");
    expect(feed.get().error).toBeNull();
    expect(ids()).toEqual([1]);
  });

  it("a refused filter is not asked again and again", async () => {
    const refuse = () => Response.json({ title: "bad parameter", detail: "port: expected a number" }, { status: 400 });
    server.stream = refuse;
    server.list = refuse;
    start(LIVE);
    await pass(60_000);
    expect(feed.get().state).toBe("refused");
    expect(feed.get().error?.message).toBe("bad parameter: port: expected a number");
    expect(server.requests.length).toBeLessThan(4);
  });

  it("nor is a range that only the list refuses, and the stream is given up", async () => {
    server.list = () => Response.json({ title: "bad parameter", detail: "from" }, { status: 400 });
    start(LIVE);
    await pass(60_000);
    expect(feed.get().state).toBe("refused");
    expect(() => {
      server.send(event(1));
    }).toThrow("closed");
  });

  it("a list that has fallen behind starts anew instead of hiding a hole", async () => {
    server.list = page([event(1, 50)]);
    start(LIVE);
    await pass(10);
    server.list = page([event(301, 2), event(300, 3)], "below-300");
    server.end();
    await pass(1000);
    expect(ids()).toEqual([301, 300]);
    expect(feed.get().hasOlder).toBe(true);
  });
});

describe("older events", () => {
  it("come by the cursor until there are no more", async () => {
    server.list = (url) => (url.searchParams.get("cursor") === "c1" ? page([event(1, 30)])() : page([event(3), event(2, 20)], "c1")());
    start({ ...LIVE, to: "2026-11-22T12:00:00Z" });
    await pass(10);
    expect(feed.get().state).toBe("fixed");
    expect(feed.get().hasOlder).toBe(true);
    await feed.loadOlder();
    expect(ids()).toEqual([3, 2, 1]);
    expect(feed.get().hasOlder).toBe(false);
  });

  it("that cannot be had leave the list as it is", async () => {
    server.list = (url) => (url.searchParams.has("cursor") ? Response.json({ title: "too slow" }, { status: 504 }) : page([event(3)], "c1")());
    start({ ...LIVE, to: "2026-11-22T12:00:00Z" });
    await pass(10);
    await feed.loadOlder();
    expect(ids()).toEqual([3]);
    expect(feed.get()).toMatchObject({ hasOlder: true, loadingOlder: false });
    expect(feed.get().error?.title).toBe("too slow");
  });
});

it("a range with a fixed end opens no stream", async () => {
  start({ ...LIVE, to: "2026-11-22T12:00:00Z" });
  await pass(60_000);
  expect(server.count("/api/v1/events/stream")).toBe(0);
  expect(server.count("/api/v1/events")).toBe(1);
});
