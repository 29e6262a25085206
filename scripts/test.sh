#!/usr/bin/env bash
# Every test that CI runs. What could not run is printed as `SKIPPED: why` and counted; as root in CI that is a failure.
# Ends with one line: N passed, N failed, N skipped.
. "$(dirname "$0")/lib.sh"
LOG=$(mktemp)
trap 'rm -f "$LOG"' EXIT
FAILED_STEPS=()

step() { # step NAME COMMAND...: goes on after a failure, so that one run shows all of them
  local name=$1 start=$SECONDS
  shift
  say "$name"
  if "$@" > >(tee -a "$LOG") 2>&1; then
    say "$name: passed in $((SECONDS - start)) s"
  else
    say "$name: FAILED after $((SECONDS - start)) s"
    FAILED_STEPS+=("$name")
  fi
}

node_tests() { as_builder sh -c "cd '$1' && npm test --silent"; }

mountpoint -q /sys/kernel/tracing || as_root mount -t tracefs nodev /sys/kernel/tracing 2>/dev/null || true

step "lints" scripts/lint.sh
step "build" scripts/build.sh
step "Rust tests, unit to whole system" cargo test --release --locked --workspace --no-fail-fast -- --show-output
step "web pages, unit tests" node_tests aggregator/ui
step "web pages in a real browser" node_tests tests/browser
if [ "$(id -u)" = 0 ]; then
  step "a real drop appears on the page" tests/browser/with-system.sh
else
  echo "SKIPPED: a real drop on the page: network namespaces need root" | tee -a "$LOG"
fi

# What the runners say: cargo "test result: ok. 4 passed; 0 failed;", node "# pass 4", vitest "Tests  1 failed | 4 passed".
plain=$(sed 's/\x1b\[[0-9;]*m//g' "$LOG") && printf '%s\n' "$plain" >"$LOG"
count() { # count LINES NUMBER: sums the number in NUMBER over the lines that match LINES
  { grep -E "$1" "$LOG" || true; } | { grep -oE "$2" || true; } | { grep -oE '[0-9]+' || true; } | awk '{n += $1} END {print n + 0}'
}
PASSED=$(($(count '^test result: ' '[0-9]+ passed') + $(count '^(#|ℹ) pass [0-9]+$' '[0-9]+$') + $(count '^ *Tests  ' '[0-9]+ passed')))
FAILED=$(($(count '^test result: ' '[0-9]+ failed') + $(count '^(#|ℹ) fail [0-9]+$' '[0-9]+$') + $(count '^ *Tests  ' '[0-9]+ failed')))
SKIPPED=$(grep -c '^SKIPPED: ' "$LOG" || true)
if [ "${#FAILED_STEPS[@]}" -gt 0 ] && [ "$FAILED" = 0 ]; then FAILED=${#FAILED_STEPS[@]}; fi
# What failed says so once more at the end, where it is found: cargo's "failures:" with what each printed, node's "not ok".
awk '/^failures:$/ {on = 1; lines = 0} /^test result: / {on = 0} on && lines++ < 80 {print} /^ *not ok / {print}' "$LOG" >&2
for name in "${FAILED_STEPS[@]}"; do say "failed: $name"; done
grep '^SKIPPED: ' "$LOG" | sort | uniq -c >&2 || true
if [ "${CI:-}" = true ] && [ "$(id -u)" = 0 ] && [ "$SKIPPED" -gt 0 ]; then
  say "skipped tests are failures here: this machine has every right they need"
  FAILED=$((FAILED + SKIPPED))
fi
echo "$PASSED passed, $FAILED failed, $SKIPPED skipped"
[ "$FAILED" = 0 ] && [ "${#FAILED_STEPS[@]}" = 0 ]
