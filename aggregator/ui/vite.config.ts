import react from "@vitejs/plugin-react";
import { defineConfig } from "vite";

export default defineConfig({
  plugins: [react()],
  build: {
    // The pages are sent with `default-src 'self'`: no asset may become a data: URI.
    assetsInlineLimit: 0,
    modulePreload: { polyfill: false },
    target: "es2022",
  },
  // `npm run dev` shows the pages in front of a running aggregator (or tests/browser/fixture-server.mjs --port 9640).
  server: {
    host: "127.0.0.1",
    proxy: Object.fromEntries(
      ["/api", "/metrics", "/openapi.json", "/-/"].map((path) => [path, "http://127.0.0.1:9640"]),
    ),
  },
});
