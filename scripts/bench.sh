#!/usr/bin/env bash
# Measures and writes docs/performance.md. `scripts/bench.sh kernel|packets|events|sockets|round|page|ingest|scale|queries|federate` measures one part and prints it.
. "$(dirname "$0")/lib.sh"
as_builder cargo build --release --locked -p sonde-bench
exec "$ROOT/target/release/sonde-bench" "$@"
