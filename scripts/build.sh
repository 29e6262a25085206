#!/usr/bin/env bash
# Web pages, then target/release/{sonde,sonde-collector,sonde-aggregator}. Cargo shows its progress.
. "$(dirname "$0")/lib.sh"

DIST=aggregator/ui/dist/index.html
if [ ! -f $DIST ] || grep -q 'pages were not built' $DIST || [ -n "$(find aggregator/ui -newer $DIST -type f -not -path '*/node_modules/*' -not -path '*/dist/*' -print -quit)" ]; then
  say "building the web pages"
  as_builder sh -c 'cd aggregator/ui && npm run --silent build'
fi
say "building the programs (the first time takes some minutes)"
as_builder cargo build --release --locked -p sonde -p sonde-collector -p sonde-aggregator
