#!/usr/bin/env bash
# Formatting and lints: warnings are errors.
. "$(dirname "$0")/lib.sh"
say "formatting"
as_builder cargo fmt --all --check
as_builder cargo fmt --manifest-path collector-ebpf/Cargo.toml --check
as_builder cargo fmt --manifest-path fuzz/Cargo.toml --check
# A workspace of its own: nothing that is tested builds it, so only `make fuzz` would find its lock stale.
say "lock of the fuzz targets"
as_builder cargo metadata --locked --format-version 1 --manifest-path fuzz/Cargo.toml >/dev/null ||
  die "fuzz/Cargo.lock does not fit the workspace: cargo update --workspace --manifest-path fuzz/Cargo.toml"
say "clippy"
as_builder cargo clippy --release --locked --workspace --all-targets --keep-going -- -D warnings
say "types and lints of the web pages"
as_builder sh -c 'cd aggregator/ui && npm run --silent check'
say "dashboards are what their generator makes"
as_builder node deploy/grafana/generate/index.mjs --check
