#!/usr/bin/env bash
# Formatting and lints: warnings are errors.
. "$(dirname "$0")/lib.sh"
say "formatting"
as_builder cargo fmt --all --check
as_builder cargo fmt --manifest-path collector-ebpf/Cargo.toml --check
as_builder cargo fmt --manifest-path fuzz/Cargo.toml --check
say "clippy"
as_builder cargo clippy --release --locked --workspace --all-targets --keep-going -- -D warnings
say "types and lints of the web pages"
as_builder sh -c 'cd aggregator/ui && npm run --silent check'
say "dashboards are what their generator makes"
as_builder node deploy/grafana/generate/index.mjs --check
