// Starts the installed Chromium and watches what a page complains about.

import { existsSync } from "node:fs";

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
