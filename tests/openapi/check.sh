#!/usr/bin/env bash
# Checks the document of a running aggregator with a linter, and the aggregator against its document with requests of every
# form that it permits or rules out. Takes a minute at most.
#   tests/openapi/check.sh http://127.0.0.1:9640
set -euo pipefail
URL=$1
cd "$(dirname "$0")"
DIR=$(mktemp -d)
trap 'rm -rf "$DIR"' EXIT
python3 -c 'import sys, urllib.request; sys.stdout.buffer.write(urllib.request.urlopen(sys.argv[1], timeout=30).read())' \
  "$URL/openapi.json" >"$DIR/openapi.json"
REDOCLY_SUPPRESS_UPDATE_NOTICE=true REDOCLY_TELEMETRY=off node_modules/.bin/redocly lint --config redocly.yaml --format=stylish "$DIR/openapi.json"
# A stream of events does not end: what it sends is tested where it is read (aggregator/tests/http/events_stream.rs).
PYTHONPATH=. PYTHONDONTWRITEBYTECODE=1 SCHEMATHESIS_HOOKS=hooks .venv/bin/schemathesis --no-color run "$URL/openapi.json" \
  --exclude-path /api/v1/events/stream --max-time "${SECONDS_AT_MOST:-30}" --max-examples 20 --request-timeout 20
