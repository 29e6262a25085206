// Pods, nodes and their charts.

import assert from "node:assert/strict";
import { after, afterEach, before, describe, it } from "node:test";

import { launch, linePixels, openPage } from "./browser.mjs";
import { busyScenario, eventAt } from "./fixture-data.mjs";
import { startFixture } from "./fixture-server.mjs";

let browser;
before(async () => {
  browser = await launch();
});
after(() => browser?.close());

let fixture, view;

async function open(path, change = {}) {
  fixture = await startFixture({ ...busyScenario(), ...change });
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

const POD = "/pods/node-a/demo/server";
const card = (page, probe) => page.getByTestId(`probe-${probe}`);

describe("the list of pods", () => {
  it("has the live ones, found by any of their words, and the ended ones on request", async () => {
    const page = await open("/pods");
    const rows = page.getByTestId("pods").locator("tbody tr");
    await rows.first().waitFor();
    assert.equal(await rows.count(), 3);
    await page.getByLabel("text").fill("shop 10.1.1");
    await page.waitForURL(/q=/);
    assert.equal(await rows.count(), 1);
    await page.getByLabel("text").fill("");
    await page.getByLabel("ended ones too").check();
    await rows.nth(3).waitFor();
    await page.getByLabel("namespace").selectOption("shop");
    await page.waitForURL(/namespace=shop/);
    assert.equal(await rows.count(), 1);
    await rows.first().getByRole("link", { name: "shop/checkout" }).click();
    await page.waitForURL(/\/pods\/node-b\/shop\/checkout/);
  });
});

describe("the page of a pod", () => {
  it("tells what changed in the cluster, in words", async () => {
    const page = await open(POD);
    const changes = page.getByTestId("changes");
    await changes.getByText("1 change of the cluster in this range").click();
    await changes.getByRole("cell", { name: "ready → not ready" }).waitFor();
    await page.goto(`${fixture.url}/nodes/node-a`);
    await changes.getByText("2 changes of the cluster in this range").click();
    await changes.getByText("or up to 30s before").waitFor();
  });

  it("says what the pod is, what happened to it, and shows a chart for each probe with rows", async () => {
    const page = await open(POD);
    await page.getByRole("heading", { level: 1, name: "demo/server" }).waitFor();
    for (const text of ["10.1.0.2", "Deployment/server", "4026532800"]) await page.getByText(text, { exact: true }).first().waitFor();
    await page.getByText("1 other pod of this name").waitFor();
    assert.equal(await page.getByTestId("event").count(), 12);
    for (const probe of ["netdev", "packetloss", "tcp", "sock"]) {
      const plot = card(page, probe).getByTestId("plot").first();
      await plot.locator("canvas").waitFor();
      assert.ok((await linePixels(plot)) > 20, `${probe} draws no line`);
    }
    await card(page, "softnet").getByText("No rows in this range.").waitFor();
  });

  it("draws what moves, and by choice whatever there is, and keeps the choice in the address", async () => {
    const page = await open(POD);
    const tcp = card(page, "tcp");
    await tcp.getByText("30 more columns did not move.").waitFor();
    assert.equal(await tcp.locator(".legend li").count(), 3);
    await tcp.locator(".picker summary").click();
    await tcp.getByRole("checkbox", { name: "still_counter_3 segments/s" }).check();
    await page.waitForURL(/show\.tcp=/);
    await tcp.locator(".legend").getByText("still_counter_3").waitFor();
    await page.reload();
    await tcp.locator(".legend").getByText("still_counter_3").waitFor();
    await tcp.locator(".picker summary").click();
    await tcp.getByRole("button", { name: "those that move" }).click();
    await page.waitForURL((url) => !url.search.includes("show"));
  });

  it("shows the values at one time in all charts, and hides a line on request", async () => {
    const page = await open(POD);
    const value = (probe) => card(page, probe).locator(".legend output").first();
    const plot = card(page, "sock").getByTestId("plot").first();
    await plot.locator("canvas").waitFor();
    await card(page, "tcp").getByTestId("plot").last().locator("canvas").waitFor();
    await plot.scrollIntoViewIfNeeded();
    const newest = await value("tcp").innerText();
    const box = await plot.boundingBox();
    await page.mouse.move(box.x + box.width * 0.65, box.y + 60);
    await page.waitForFunction(([selector, text]) => document.querySelector(selector).textContent !== text, ["[data-testid=probe-tcp] .legend output", newest]);
    const line = card(page, "sock").locator(".legend button").first();
    const before = await linePixels(plot);
    await line.click();
    assert.equal(await line.getAttribute("aria-pressed"), "false");
    assert.ok((await linePixels(plot)) < before / 4);
  });

  it("looks closer where it is dragged, in all charts and in the list", async () => {
    const page = await open(POD);
    const plot = card(page, "netdev").getByTestId("plot").first();
    await plot.locator("canvas").waitFor();
    await plot.scrollIntoViewIfNeeded();
    const box = await plot.boundingBox();
    await page.mouse.move(box.x + box.width * 0.5, box.y + 60);
    await page.mouse.down();
    await page.mouse.move(box.x + box.width * 0.8, box.y + 60, { steps: 4 });
    await page.mouse.up();
    await page.waitForURL(/from=.*to=/);
    await page.getByTestId("feed-state").filter({ hasText: "fixed range" }).waitFor();
  });

  it("of a pod that nobody knows says so", async () => {
    const page = await open("/pods/node-a/demo/nobody", { rows: () => [] });
    await page.getByText("No pod of this name is known on node-a.").waitFor();
    await page.getByTestId("empty").getByText("No events").waitFor();
  });

  it("shows of a failed chart why, and the other charts", async () => {
    const page = await open(POD, { fail: { "/api/v1/probes/tcp/rows": { status: 503, title: "unavailable", detail: "too slow" } } });
    await card(page, "tcp").getByText("too slow").waitFor();
    await card(page, "netdev").getByTestId("plot").first().locator("canvas").waitFor();
  });

  it("lives through values that are all absent", async () => {
    const rows = ({ probe, subject, from, to }) => [
      { ...subject, labels: {}, columns: Object.fromEntries(probe.columns.map((one) => [one.name, [[from, null], [to - 1000, null]]])) },
      { ...subject, labels: { device: "x" }, columns: {} },
    ];
    const page = await open(POD, { rows });
    await card(page, "netdev").getByText("No rows in this range.").waitFor();
  });

  it("shows a drop that happens while it is open", async () => {
    const page = await open(POD);
    await page.getByTestId("feed-state").filter({ hasText: "live" }).waitFor();
    fixture.emit(eventAt(9101, 0, { node: "node-a", namespace: "demo", pod: "server", reason: "XFRM_POLICY" }));
    await page.getByTestId("event").first().filter({ hasText: "XFRM_POLICY" }).waitFor();
  });
});

describe("nodes", () => {
  it("that are not connected come first", async () => {
    const page = await open("/nodes");
    const first = page.getByTestId("nodes").locator("tbody tr").first();
    await first.getByText("not connected").waitFor();
    assert.match(await first.innerText(), /node-c/);
    await page.getByRole("link", { name: "node-b", exact: true }).click();
    await page.getByRole("heading", { level: 1, name: "node-b" }).waitFor();
  });

  it("have charts of their own", async () => {
    const page = await open("/nodes/node-b");
    await card(page, "softnet").getByTestId("plot").first().locator("canvas").waitFor();
    const asked = fixture.state.requests.find((request) => request.startsWith("/api/v1/probes/softnet/rows"));
    const query = new URL(asked, "http://x").searchParams;
    assert.deepEqual([query.get("namespace"), query.get("pod")], ["", ""]);
  });

  it("with dots in their names have a page that can be loaded again", async () => {
    const page = await open("/nodes/ip-10-0-0-1.example.internal");
    await page.getByText("No node of this name has ever connected.").waitFor();
  });
});
