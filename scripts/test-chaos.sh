#!/usr/bin/env bash
# Kills, fills and cuts everything under load, EACH (50) times each kind, then compares what went into the spools with the
# tables. SEED repeats the order and the times of an earlier run. As root it fills disks too.
. "$(dirname "$0")/lib.sh"
as_builder cargo build --release --locked -p sonde-aggregator -p sonde-chaos
exec "$ROOT/target/release/sonde-chaos" --each "${EACH:-50}" ${SEED:+--seed "$SEED"} "$@"
