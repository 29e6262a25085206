#!/usr/bin/env bash
# `sonde up`, as root where that can be had: eBPF and other network namespaces need it.
. "$(dirname "$0")/lib.sh"
UP=("$ROOT/target/release/sonde" up "$@")
if [ "$(id -u)" = 0 ]; then
  exec "${UP[@]}"
elif command -v sudo >/dev/null 2>&1 && sudo -v; then
  exec sudo --preserve-env=NODE_NAME "${UP[@]}"
else
  say "no root: running with what this user may use"
  exec "${UP[@]}"
fi
