// Every page at both widths and in both colour schemes: nothing complains, nothing sticks out, nothing is unreachable.

import assert from "node:assert/strict";
import { after, before, describe, it } from "node:test";

import { accessibilityFaults, launch, openPage, overflow } from "./browser.mjs";
import { busyScenario, longNamesScenario, quietScenario } from "./fixture-data.mjs";
import { startFixture } from "./fixture-server.mjs";

const WIDE = { width: 1280, height: 800 };
const NARROW = { width: 400, height: 800 };
/** A few events are enough here: each row has the same shape. */
const BUSY = () => busyScenario(30);
const RUNS = [
  { name: "busy", scenario: BUSY, size: WIDE, scheme: "light" },
  { name: "busy", scenario: BUSY, size: WIDE, scheme: "dark" },
  { name: "busy", scenario: BUSY, size: NARROW, scheme: "light" },
  { name: "busy", scenario: BUSY, size: NARROW, scheme: "dark" },
  { name: "quiet", scenario: quietScenario, size: WIDE, scheme: "dark" },
  { name: "quiet", scenario: quietScenario, size: NARROW, scheme: "light" },
  { name: "long names", scenario: longNamesScenario, size: WIDE, scheme: "light" },
  { name: "long names", scenario: longNamesScenario, size: NARROW, scheme: "dark" },
];

/** The pages, and what must be there before they count as loaded. */
function places({ nodes, pods }) {
  const [pod] = pods;
  const node = encodeURIComponent(nodes[0].node);
  return [
    { path: "/", ready: "[data-testid=feed-state].live" },
    { path: "/?from=2026-01-01T00:00:00Z&to=2026-01-01T01:00:00Z&type=%21A&workload=w", ready: "[data-testid=empty]" },
    { path: "/pods?all=true", ready: "[data-testid=pods]" },
    { path: `/pods/${[pod.node, pod.namespace, pod.pod].map(encodeURIComponent).join("/")}`, ready: "[data-testid=plot] canvas" },
    { path: "/nodes", ready: "[data-testid=nodes]" },
    { path: `/nodes/${node}`, ready: "[data-testid=plot] canvas" },
    { path: "/nowhere", ready: "h1" },
  ];
}

describe("layout", () => {
  let browser;
  before(async () => {
    browser = await launch();
  });
  after(() => browser?.close());

  for (const { name, scenario, size, scheme } of RUNS) {
    it(`${name}, ${size.width} wide, ${scheme}`, async () => {
      const fixture = await startFixture(scenario());
      const faults = [];
      try {
        for (const { path, ready } of places(fixture.state)) {
          const { page, complaints, close } = await openPage(browser, fixture.url + path, { ...size, scheme });
          await page.locator(ready).first().waitFor({ state: "visible" });
          const fold = page.locator(".fold").first();
          if (await fold.isVisible()) await fold.click();
          const wide = await overflow(page);
          if (wide > 0) faults.push(`${path}: ${wide} px wider than the window`);
          for (const fault of [...(await accessibilityFaults(page)), ...complaints]) faults.push(`${path}: ${fault}`);
          await close();
        }
      } finally {
        await fixture.stop();
      }
      assert.deepEqual(faults, []);
    });
  }
});
