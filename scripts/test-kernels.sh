#!/usr/bin/env bash
# Every kernel of the matrix in a virtual machine; writes docs/kernels.md. `scripts/test-kernels.sh 6.1 7.3`: these alone,
# and only prints.
. "$(dirname "$0")/lib.sh"
say "building the programs"
as_builder cargo build --release --locked -p sonde-collector -p sonde-kernels
if [ $# = 0 ]; then
  set -- --write docs/kernels.md
fi
as_builder "$ROOT/target/release/sonde-kernels" "$@"
