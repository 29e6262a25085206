import { describe, expect, it } from "vitest";

import { SseParser, type Message } from "./sse";

const STREAM = ': keep-alive\n\nevent: event\nid: 7\ndata: {"id":7}\n\ndata: a\ndata:b\n\n';
const MESSAGES: Message[] = [
  { event: "event", data: '{"id":7}', id: "7" },
  { event: "message", data: "a\nb", id: "7" },
];

describe("the stream", () => {
  it.each([1, 2, 3, 5, 100])("reads the same in pieces of %d", (size) => {
    const parser = new SseParser();
    const out: Message[] = [];
    for (let i = 0; i < STREAM.length; i += size) out.push(...parser.push(STREAM.slice(i, i + size)));
    expect(out).toEqual(MESSAGES);
  });

  it.each(["\r\n", "\r"])("takes %j for the end of a line, also cut in two", (end) => {
    const parser = new SseParser();
    const out = Array.from(STREAM.replaceAll("\n", end)).flatMap((one) => parser.push(one));
    // What ends in a bare CR stays open until it is known that no LF follows.
    out.push(...parser.push(":\n"));
    expect(out).toEqual(MESSAGES);
  });

  it("sends nothing for a message without data", () => {
    expect(new SseParser().push("event: event\nid: 1\n\n")).toEqual([]);
  });
});
