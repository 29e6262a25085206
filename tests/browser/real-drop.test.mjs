// A real drop, in a real system, seen on the page. Started by real-drop.sh, which makes the pod and says how to send to it:
// SONDE_URL, SONDE_EXPECT_{NAMESPACE,POD,SADDR,DADDR,DPORT}, and SONDE_SEND, a shell command whose packets are dropped.

import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { after, before, it } from "node:test";
import { setTimeout as wait } from "node:timers/promises";
import { promisify } from "node:util";

import { accessibilityFaults, COLOURFUL, launch, linePixels, openPage } from "./browser.mjs";

function given(name) {
  const value = process.env[name];
  assert.ok(value, `${name} is not set: start this with real-drop.sh`);
  return value;
}

const url = given("SONDE_URL").replace(/\/$/, "");
const want = Object.fromEntries(["NAMESPACE", "POD", "SADDR", "DADDR", "DPORT"].map((name) => [name.toLowerCase(), given(`SONDE_EXPECT_${name}`)]));
const send = () => promisify(execFile)("sh", ["-c", given("SONDE_SEND")]);

/** Nothing here is timed: this only ends a wait for what will never come. */
const PATIENCE = 60_000;

async function podIsKnown() {
  const query = new URLSearchParams({ namespace: want.namespace, pod: want.pod });
  const end = Date.now() + PATIENCE;
  while (Date.now() < end) {
    const answer = await fetch(`${url}/api/v1/pods?${query}`);
    assert.equal(answer.status, 200, await answer.clone().text());
    const { pods } = await answer.json();
    if (pods.length > 0) return pods[0];
    await wait(200);
  }
  return assert.fail(`the pod ${want.namespace}/${want.pod} did not become known`);
}

let browser;
before(async () => {
  browser = await launch();
});
after(() => browser?.close());

it("a drop appears on the page as it happens, with all that is known of it, and on the page of its pod", async () => {
  const pod = await podIsKnown();
  const { page, complaints } = await openPage(browser, `${url}/`);
  page.setDefaultTimeout(PATIENCE);
  await page.getByTestId("feed-state").filter({ hasText: "live" }).waitFor();
  await page.getByTestId("nodes-connected").filter({ hasText: /[1-9]\d* of \d+ nodes? connected/ }).waitFor();
  await page.evaluate(() => {
    globalThis.neverReloaded = true;
  });
  const rows = page.getByTestId("event").filter({ hasText: `${want.namespace}/${want.pod}` }).filter({ hasText: "NETFILTER_DROP" });
  assert.equal(await rows.count(), 0, "nothing was sent yet");

  await send();
  const row = rows.first();
  await row.waitFor();
  assert.equal(await page.evaluate(() => globalThis.neverReloaded), true);
  const line = await row.locator(".line").innerText();
  for (const part of ["PACKETLOSS", "UDP", `${want.saddr}:`, `${want.daddr}:${want.dport}`, pod.node]) assert.ok(line.includes(part), `${part} in ${line}`);

  await row.locator(".fold").click();
  const fact = (name) => row.locator(".detail tr", { has: page.getByRole("rowheader", { name, exact: true }) }).locator("td");
  for (const [name, value] of [
    ["reason", "NETFILTER_DROP"],
    ["namespace", want.namespace],
    ["pod", want.pod],
    ["protocol", "UDP"],
    ["source address", want.saddr],
    ["destination address", want.daddr],
    ["destination port", want.dport],
    ["interface", "eth0"],
  ]) {
    assert.match(await fact(name).innerText(), new RegExp(`^${value.replaceAll(".", "\\.")}\\b`), name);
  }
  const stack = await row.locator(".stack li").allInnerTexts();
  assert.ok(
    stack.some((frame) => frame.startsWith("nf_hook_slow")),
    `the stack names who dropped it: ${stack.join(" ")}`,
  );

  await row.getByRole("link", { name: "pod page" }).click();
  await page.getByRole("heading", { level: 1, name: `${want.namespace}/${want.pod}` }).waitFor();
  await page.locator(".facts-list").getByText(want.daddr, { exact: true }).waitFor();
  await page.getByTestId("event").filter({ hasText: "NETFILTER_DROP" }).first().waitFor();

  // A rate needs two readings: packets go on being lost until the charts have theirs.
  let sending = true;
  const sender = (async () => {
    while (sending) {
      await send();
      await wait(500);
    }
  })();
  try {
    for (const probe of ["packetloss", "netdev", "ip"]) {
      const card = page.getByTestId(`probe-${probe}`);
      await card.getByTestId("plot").first().locator("canvas").waitFor();
      const end = Date.now() + PATIENCE;
      let pixels = 0;
      while (pixels < 10 && Date.now() < end) {
        // Drops and segments are the same number here: one line lies on the other.
        pixels = await linePixels(card.getByTestId("plot").first(), COLOURFUL);
        await wait(200);
      }
      assert.ok(pixels >= 10, `${probe} draws a line`);
    }
  } finally {
    sending = false;
    await sender;
  }
  await page.getByTestId("probe-packetloss").locator(".legend").getByText("reason=NETFILTER_DROP").first().waitFor();

  assert.deepEqual(await accessibilityFaults(page), []);
  assert.deepEqual(complaints, []);
});
