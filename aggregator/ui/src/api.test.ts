import { afterEach, describe, expect, it, vi } from "vitest";

import { api, apiUrl, ApiError } from "./api";

afterEach(() => {
  vi.unstubAllGlobals();
});

function answer(response: () => Response): void {
  vi.stubGlobal("fetch", () => Promise.resolve(response()));
}

describe("an answer that is no data", () => {
  it("is the problem that the aggregator names", async () => {
    answer(() => Response.json({ type: "about:blank", title: "Bad Request", status: 400, detail: "unknown parameter `x`" }, { status: 400 }));
    await expect(api.nodes()).rejects.toEqual(new ApiError(400, "Bad Request", "unknown parameter `x`"));
  });

  it("is what HTTP says where a proxy in between answers", async () => {
    answer(() => new Response("<h1>Bad gateway</h1>", { status: 502, statusText: "Bad Gateway" }));
    await expect(api.nodes()).rejects.toMatchObject({ status: 502, title: "HTTP 502 Bad Gateway", detail: "" });
  });
});

it("an address repeats keys and keeps empty values", () => {
  expect(
    apiUrl("/events", [
      ["type", "A"],
      ["type", "!B&C"],
      ["pod", ""],
    ]),
  ).toBe("/api/v1/events?type=A&type=%21B%26C&pod=");
});
