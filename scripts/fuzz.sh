#!/usr/bin/env bash
# Every fuzz target for SECONDS_EACH under libFuzzer, or those that are named: scripts/fuzz.sh [TARGET...]
# What is found is left in fuzz/artifacts/TARGET/; a line says how to run it again. Inputs that found new paths stay in
# fuzz/target/corpus/ for the next time; to keep one for everybody, copy it to fuzz/corpus/TARGET/.
. "$(dirname "$0")/lib.sh"
SECONDS_EACH=${SECONDS_EACH:-10}
MOST_BYTES=16384

say "building the fuzz targets (the first time takes some minutes)"
# libFuzzer's instrumentation is an unstable flag of the compiler. Without a sanitizer: the code is safe Rust, and what
# is looked for are panics, overflows, hangs and allocations.
as_builder env RUSTC_BOOTSTRAP=1 cargo fuzz build --fuzz-dir fuzz --sanitizer none
PROGRAMS=$(find fuzz/target -path '*/release/collector' -type f -printf '%h\n' | head -n 1)

FAILED=()
for side in collector aggregator; do
  for target in $(SONDE_FUZZ_TARGET=list "$PROGRAMS/$side"); do
    if [ $# -gt 0 ] && [[ " $* " != *" $target "* ]]; then continue; fi
    say "$target: $SECONDS_EACH s"
    found=fuzz/target/corpus/$target
    seeds=$(mktemp -d)
    as_builder mkdir -p "$found" "fuzz/artifacts/$target" "fuzz/corpus/$target"
    run=(env SONDE_FUZZ_TARGET="$target" SONDE_FUZZ_SEEDS="$seeds" "$PROGRAMS/$side")
    "${run[@]}" -max_total_time="$SECONDS_EACH" -timeout=5 -rss_limit_mb=2048 -max_len=$MOST_BYTES -print_final_stats=1 \
      -artifact_prefix="fuzz/artifacts/$target/" "$found" "fuzz/corpus/$target" "$seeds" \
      >"$found.log" 2>&1 || {
        tail -n 60 "$found.log"
        say "$target: FAILED; again: SONDE_FUZZ_TARGET=$target $PROGRAMS/$side FILE"
        FAILED+=("$target")
      }
    grep -E '^(stat::number_of_executed_units|#[0-9]+.*DONE)' "$found.log" || true
    rm -rf "$seeds"
  done
done
[ ${#FAILED[@]} -eq 0 ] || die "failed: ${FAILED[*]}"
