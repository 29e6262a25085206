# make run    set up, build, run the whole system of this host in the foreground
# make test   set up, then every test that CI runs
# make test-kernels   set up, then every kernel of the matrix in a virtual machine
# make test-chaos   set up, then kill, fill and cut everything, 50 times each
# make help   the rest

.PHONY: help setup setup-test setup-fuzz build ui run test test-kernels test-chaos fuzz lint fmt bench docs clean
.DEFAULT_GOAL := help

help:
	@echo 'make run     install what is missing, build, run `sonde up` (arguments: ARGS="--http 127.0.0.1:9640")'
	@echo 'make test    install what is missing, build, run all tests'
	@echo 'make test-kernels   every kernel of the matrix in a virtual machine, print, and write docs/kernels.md'
	@echo 'make test-chaos   kill, fill and cut everything under load, 50 times each, and compare (EACH=5 SEED=1)'
	@echo 'make build   target/release/{sonde,sonde-collector,sonde-aggregator}'
	@echo 'make lint    formatting and lints only'
	@echo 'make fuzz    every fuzz target for some seconds under libFuzzer (TARGETS="btf query" SECONDS_EACH=60)'
	@echo 'make bench   measure, print, and write docs/performance.md'
	@echo 'make setup   only install what is missing'

setup:
	@scripts/setup.sh run

setup-test:
	@scripts/setup.sh test

build: setup
	@scripts/build.sh

ui: setup
	@cd aggregator/ui && npm run build

run: build
	@scripts/run.sh $(ARGS)

test: setup-test
	@scripts/test.sh

setup-fuzz:
	@scripts/setup.sh fuzz

fuzz: setup-fuzz
	@scripts/fuzz.sh $(TARGETS)

test-kernels: setup-test
	@scripts/test-kernels.sh

test-chaos: setup-test
	@scripts/test-chaos.sh

lint: setup-test
	@scripts/lint.sh

docs:
	@node deploy/grafana/generate/index.mjs
	@SONDE_WRITE_DOCS=1 cargo test --release --locked -p sonde-common --test config_doc
	@SONDE_WRITE_DOCS=1 cargo test --release --locked -p sonde-collector --test probe_docs

fmt:
	@cargo fmt --all

bench: build
	@scripts/bench.sh

clean:
	@cargo clean
	@rm -rf collector-ebpf/target fuzz/target aggregator/ui/dist
