// The start page: live list, filters, histogram, gaps, what an empty list means.

import assert from "node:assert/strict";
import { after, afterEach, before, describe, it } from "node:test";

import { launch, openPage } from "./browser.mjs";
import { busyScenario, eventAt, quietScenario } from "./fixture-data.mjs";
import { startFixture } from "./fixture-server.mjs";

let browser;
before(async () => {
  browser = await launch();
});
after(() => browser?.close());

let fixture, view;

async function open(path = "/", scenario = busyScenario()) {
  fixture = await startFixture(scenario);
  view = await openPage(browser, fixture.url + path);
  return view.page;
}

afterEach(async () => {
  await view?.close();
  await fixture?.stop();
  // Answers that a test makes fail show in the console; whatever else does is a fault.
  const complaints = (view?.complaints ?? []).filter((text) => !text.includes("Failed to load resource"));
  view = fixture = undefined;
  assert.deepEqual(complaints, []);
});

const rows = (page) => page.getByTestId("event");
const state = (page, text) => page.getByTestId("feed-state").filter({ hasText: text }).waitFor();
const search = (page) => new URL(page.url()).searchParams;

describe("the live list", () => {
  it("shows an event that happens now, without reloading", async () => {
    const page = await open();
    await state(page, "live");
    await page.evaluate(() => {
      globalThis.kept = true;
    });
    fixture.emit(eventAt(9001, 0, { type: "PACKETLOSS", reason: "XFRM_POLICY", pod: "brand-new" }));
    const row = rows(page).first().filter({ hasText: "XFRM_POLICY" });
    await row.waitFor();
    assert.match(await row.innerText(), /demo\/brand-new|shop\/brand-new|unknown pod/);
    assert.equal(await page.evaluate(() => globalThis.kept), true);
  });

  it("opens a row to everything that is known, with links that filter", async () => {
    const page = await open("/?reason=NETFILTER_DROP&pod=server");
    const row = rows(page).first();
    await row.locator(".fold").click();
    const detail = row.locator(".detail");
    await detail.getByText("Kernel stack, innermost first").waitFor();
    assert.match(await detail.locator(".stack li").first().innerText(), /kfree_skb_list_reason\+0x1a0/);
    for (const text of ["source address", "destination port", "symbol", "nf_hook_slow"]) await detail.getByText(text, { exact: true }).waitFor();
    await detail.getByRole("link", { name: "not protocol UDP" }).click();
    await page.getByTestId("empty").waitFor();
    assert.deepEqual(search(page).getAll("protocol"), ["!UDP"]);
    await page.goBack();
    await detail.getByRole("link", { name: "pod page" }).click();
    await page.getByRole("heading", { level: 1, name: "demo/server" }).waitFor();
  });

  it("holds still while paused, and counts what comes", async () => {
    const page = await open();
    await state(page, "live");
    await page.getByRole("button", { name: "Pause" }).click();
    await state(page, "paused");
    const before = await rows(page).first().getAttribute("data-id");
    fixture.emit(eventAt(9002, 0));
    await page.getByTestId("waiting").filter({ hasText: "1 new" }).waitFor();
    assert.equal(await rows(page).first().getAttribute("data-id"), before);
    await page.getByRole("button", { name: "Resume" }).click();
    await page.locator("[data-id='9002']").waitFor();
  });

  it("says that it is disconnected, and comes back by itself", async () => {
    const page = await open();
    await state(page, "live");
    fixture.state.fail["/api/v1"] = { status: 503, title: "unavailable", detail: "the database does not answer" };
    fixture.dropStreams();
    await state(page, "disconnected");
    await page.getByText("the database does not answer").first().waitFor();
    delete fixture.state.fail["/api/v1"];
    await state(page, "live");
    fixture.emit(eventAt(9003, 0));
    await page.locator("[data-id='9003']").waitFor();
  });

  it("polls where streams do not work", async () => {
    const scenario = { ...busyScenario(), streams: false };
    const page = await open("/", scenario);
    await state(page, "polling");
    fixture.emit(eventAt(9004, 0));
    await page.locator("[data-id='9004']").waitFor();
  });

  it("loads older events down to the last of ten thousand", async () => {
    const events = Array.from({ length: 10_000 }, (_, i) => eventAt(10_000 - i, i * 300 + 1000));
    const page = await open("/", { ...busyScenario(), events });
    // By its place: finding it by its name would read ten thousand rows each time.
    const older = page.locator(".end button");
    await older.waitFor();
    assert.equal(await rows(page).count(), 100);
    while (await older.isVisible()) {
      const had = await rows(page).count();
      await older.click();
      await page.waitForFunction((count) => document.querySelectorAll("[data-testid=event]").length > count, had);
    }
    await page.getByText("No older events in this range.").waitFor();
    assert.equal(await rows(page).count(), 10_000);
    assert.equal(await page.locator("[data-id='1']").count(), 1);
  });

  it("follows the keyboard", async () => {
    const page = await open();
    await rows(page).first().waitFor();
    await page.keyboard.press("j");
    await page.keyboard.press("j");
    await page.keyboard.press("Enter");
    await rows(page).nth(1).locator(".detail").waitFor();
    await page.keyboard.press("k");
    await page.keyboard.press("p");
    await state(page, "paused");
    await page.keyboard.press("/");
    await page.keyboard.type("veth_poll");
    await page.keyboard.press("Enter");
    await page.waitForURL(/q=veth_poll/);
    assert.equal(await page.getByTestId("feed-state").innerText(), "live");
  });
});

describe("filters", () => {
  it("stand in the address, several and negated ones too, and come back from it", async () => {
    const page = await open();
    const box = page.getByLabel("reason", { exact: true });
    await box.fill("NETFILTER_DROP, !NO_SOCKET");
    await box.press("Enter");
    await page.waitForURL(/reason=/);
    assert.deepEqual(search(page).getAll("reason"), ["NETFILTER_DROP", "!NO_SOCKET"]);
    await page.getByTestId("match-count").filter({ hasText: "match" }).waitFor();
    const texts = await rows(page).locator(".reason").allInnerTexts();
    assert.ok(texts.length > 0 && texts.every((text) => text === "NETFILTER_DROP"), texts.join());
    await page.reload();
    assert.equal(await box.inputValue(), "NETFILTER_DROP, !NO_SOCKET");
    await page.getByRole("button", { name: "clear filters" }).click();
    await page.waitForURL((url) => url.search === "");
    assert.equal(await box.inputValue(), "");
  });

  it("that the bar has no box for are shown, and can be removed", async () => {
    const page = await open("/?workload=client&min_latency=1ms");
    await page.getByRole("button", { name: "min_latency=1ms" }).click();
    await page.waitForURL((url) => url.search === "?workload=client");
  });

  it("that the aggregator refuses are told with its reason", async () => {
    const page = await open("/?from=yesterday");
    await page.getByText("`yesterday` is not a time").first().waitFor();
    await state(page, "not live");
  });

  it("take a value from the counts beside the list", async () => {
    const page = await open();
    await page.locator(".top-values").getByRole("link", { name: /^TCPRETRANS/ }).click();
    await page.waitForURL(/type=TCPRETRANS/);
    await page.getByLabel("by").selectOption("reason");
    await page.locator(".top-values").getByRole("link", { name: /^no reason/ }).waitFor();
  });

  it("take a time from the histogram, and let go of it", async () => {
    const page = await open();
    const box = await page.getByTestId("histogram").boundingBox();
    await page.locator(".bar").first().waitFor();
    await page.mouse.move(box.x + box.width * 0.5, box.y + 20);
    await page.mouse.down();
    await page.mouse.move(box.x + box.width * 0.75, box.y + 20);
    await page.mouse.up();
    await page.waitForURL(/from=.*to=/);
    const [from, to] = ["from", "to"].map((key) => Date.parse(search(page).get(key)));
    assert.ok(Math.abs(to - from - 900_000) < 60_000, `${to - from} ms`);
    await state(page, "fixed range");
    assert.equal(await page.getByLabel("from", { exact: true }).isVisible(), true);
    await page.getByRole("button", { name: "now", exact: true }).click();
    await state(page, "live");
  });

  it("keep both ends of the range when the times are pinned", async () => {
    const page = await open("/?from=-15m");
    await page.getByRole("button", { name: "pin times" }).click();
    await page.waitForURL(/to=/);
    const [from, to] = ["from", "to"].map((key) => Date.parse(search(page).get(key)));
    assert.equal(to - from, 900_000);
  });
});

describe("what cannot be seen is said", () => {
  it("gaps are marked over time and told in words", async () => {
    const page = await open();
    await page.locator(".gap-strip .gap").nth(2).waitFor();
    const gaps = page.getByTestId("gaps");
    await gaps.getByText("3 gaps in this range").click();
    await gaps.getByRole("cell", { name: "rate_limited" }).first().waitFor();
    await gaps.getByRole("cell", { name: "demo/server" }).waitFor();
  });

  it("nothing from connected nodes is good news", async () => {
    const page = await open("/", quietScenario());
    const empty = page.getByTestId("empty");
    await empty.getByText("No events in the last 1h").waitFor();
    await empty.getByText("1 node is connected and watching").waitFor();
    await page.getByText("No gaps in this range").waitFor();
    assert.equal(await page.getByRole("alert").count(), 0);
  });

  it("nothing from nodes that are not connected is no news at all", async () => {
    const scenario = quietScenario();
    const page = await open("/", { ...scenario, nodes: scenario.nodes.map((node) => ({ ...node, connected: false })) });
    await page.getByRole("alert").getByText("No node is connected.").waitFor();
    await page.getByTestId("empty").getByText("No node is connected, so this says nothing about the network.").waitFor();
    await page.getByTestId("nodes-connected").filter({ hasText: "0 of 1 node connected" }).waitFor();
  });

  it("a system without nodes says what to do", async () => {
    const page = await open("/", { ...quietScenario(), nodes: [], pods: [], probes: [] });
    await page.getByRole("alert").getByText("No node has ever connected.").waitFor();
  });

  it("an aggregator that does not answer is no empty list", async () => {
    const page = await open("/", { ...quietScenario(), fail: { "/api/v1/events": { status: 500, title: "internal error", detail: "see the log" } } });
    await page.getByText("internal error (500)").first().waitFor();
    await page.getByText("see the log").first().waitFor();
    assert.equal(await page.getByTestId("empty").count(), 0);
  });
});

describe("times", () => {
  it("are shown in the zone that was chosen, also after loading again", async () => {
    const page = await open();
    const shown = () => rows(page).first().locator(".time").innerText();
    await rows(page).first().waitFor();
    const local = await shown();
    await page.getByRole("button", { name: /^local/ }).click();
    const utc = await shown();
    assert.notEqual(local.slice(0, 2), utc.slice(0, 2));
    await page.reload();
    await page.getByRole("button", { name: "UTC", exact: true }).waitFor();
  });
});
