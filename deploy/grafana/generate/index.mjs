// Writes ../dashboards/*.json. `node deploy/grafana/generate/index.mjs --check` only says whether they are up to date.
import { readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const here = dirname(fileURLToPath(import.meta.url));
const folder = join(here, "../dashboards");
const names = readdirSync(here)
  .filter((name) => name.endsWith(".mjs") && !["index.mjs", "kit.mjs"].includes(name))
  .map((name) => name.replace(/\.mjs$/, ""));

const wanted = new Map();
for (const name of names) {
  const { default: dashboard } = await import(`./${name}.mjs`);
  wanted.set(`${name}.json`, `${JSON.stringify(dashboard, null, 2)}\n`);
}

const read = (file) => {
  try {
    return readFileSync(join(folder, file), "utf8");
  } catch {
    return undefined;
  }
};
const stale = readdirSync(folder).filter((file) => !wanted.has(file));
const changed = [...wanted].filter(([file, text]) => read(file) !== text);
if (process.argv.includes("--check")) {
  for (const file of [...stale, ...changed.map(([file]) => file)]) {
    console.error(`deploy/grafana/dashboards/${file} is not what deploy/grafana/generate makes: run \`make docs\``);
    process.exitCode = 1;
  }
} else {
  stale.forEach((file) => rmSync(join(folder, file)));
  changed.forEach(([file, text]) => writeFileSync(join(folder, file), text));
}
