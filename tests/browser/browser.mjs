// Starts the installed Chromium and watches what a page complains about.

import { existsSync, readFileSync } from "node:fs";
import { createRequire } from "node:module";

import { chromium } from "playwright-core";

const CANDIDATES = [process.env.SONDE_CHROMIUM, "/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"];

export function chromiumPath() {
  return CANDIDATES.find((path) => path && existsSync(path)) ?? null;
}

/** A fresh profile in a directory of its own, which goes with the browser. */
export async function launch() {
  const executablePath = chromiumPath();
  if (executablePath === null) throw new Error("no chromium: install it, or name it in SONDE_CHROMIUM");
  return chromium.launch({
    executablePath,
    headless: true,
    args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"],
  });
}

/** A page and the list of what went wrong in it: exceptions, console errors, refused content, requests to elsewhere. */
export async function openPage(browser, url, { width = 1280, height = 800, scheme = "light" } = {}) {
  const context = await browser.newContext({ viewport: { width, height }, colorScheme: scheme, timezoneId: "Europe/Berlin", locale: "en-GB" });
  const page = await context.newPage();
  const complaints = [];
  const home = new URL(url).origin;
  page.on("pageerror", (error) => complaints.push(`exception: ${error.message}`));
  page.on("console", (message) => {
    if (message.type() === "error" || message.type() === "warning") complaints.push(`${message.type()}: ${message.text()}`);
  });
  page.on("request", (request) => {
    if (new URL(request.url()).origin !== home) complaints.push(`request to ${request.url()}`);
  });
  await page.goto(url);
  return { page, complaints, close: () => context.close() };
}

const AXE = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");

/** What a reader with other senses or tools would stumble over: WCAG 2.2 A and AA, as far as a program can see it. */
export async function accessibilityFaults(page) {
  await page.evaluate(AXE);
  const { violations } = await page.evaluate(() =>
    globalThis.axe.run(document, { runOnly: ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"] }),
  );
  return violations.map(({ id, help, nodes }) => `${id}: ${help}: ${nodes.map((node) => node.html.slice(0, 160)).join(" | ")}`);
}

/** How much of the page is wider than the window, in pixels. */
export function overflow(page) {
  return page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
}

/** The lines of a chart whose colours are unlike its text and grid. */
export const COLOURFUL = [0, 1, 2, 3, 4, 5, 6];

/** Pixels of a chart that have the colour of one of these lines, or near it; the first line alone unless asked. */
export function linePixels(plot, lines = [0]) {
  return plot.locator("canvas").first().evaluate((canvas, lines) => {
    const colours = lines.map((line) => {
      const style = getComputedStyle(canvas).getPropertyValue(`--line-${line}`).trim();
      return [1, 3, 5].map((at) => parseInt(style.slice(at, at + 2), 16));
    });
    // On a copy: reading from the page's own canvas makes Chromium complain about how it was made.
    const copy = Object.assign(document.createElement("canvas"), { width: canvas.width, height: canvas.height });
    const context = copy.getContext("2d", { willReadFrequently: true });
    context.drawImage(canvas, 0, 0);
    const { data } = context.getImageData(0, 0, copy.width, copy.height);
    let count = 0;
    for (let i = 0; i < data.length; i += 4) {
      const near = (wanted) => wanted.every((value, at) => Math.abs(data[i + at] - value) < 24);
      if (data[i + 3] > 128 && colours.some(near)) count += 1;
    }
    return count;
  }, lines);
}
