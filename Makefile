# `make run` and `make test` do all their set-up on a fresh Debian machine; `make help` lists the rest.

# A rustup that setup.sh has just installed is not on the PATH of this shell yet.
export PATH := $(PATH):$(HOME)/.cargo/bin

.PHONY: help run test lint check-deploy audit bench bench-instructions bench-device bench-catalog bench-control drill-catalog drill-hsm drill-topology build-load load drill-load conformance release

help: ## List what there is
	@grep -E '^[a-z-]+:.*##' Makefile | sed 's/:.*## /\t/' | expand -t 16

run: ## Build and run everything embedded: prints commands to paste
	@sh scripts/setup.sh run
	cargo build --locked --bin ekm
	@target/debug/ekm dev

test: ## Build and run every test
	@sh scripts/setup.sh test
	cargo build --locked --workspace
	cargo build --locked --manifest-path tests/kryoptic-module/Cargo.toml --target-dir target
	cargo test --locked --workspace

lint: ## Formatting, clippy, and the layering rules
	cargo fmt --all --check
	cargo fmt --check --manifest-path tests/kryoptic-module/Cargo.toml
	cargo clippy --locked --workspace --all-targets -- -D warnings
	cargo deny --all-features check bans licenses sources

check-deploy: ## Terraform and proxies under deploy/, with the tools that are there (2 minutes)
	@deploy/check.sh

audit: ## Look up known vulnerabilities (needs the internet)
	cargo deny check advisories

bench: ## CPU time per request, in a release build
	@sh scripts/setup.sh test
	cargo build --locked --release --bin ekm --bin ekm-bench
	target/release/ekm-bench

bench-instructions: ## Instructions per request, counted by valgrind, in a release build (5 minutes); KEEP=directory for callgrind's files
	@sh scripts/setup.sh bench-instructions
	cargo build --locked --release --bin ekm --bin ekm-bench
	target/release/ekm-bench --instructions $(if $(KEEP),--keep $(KEEP))

bench-device: ## Throughput with an HSM that takes 1 ms for each call, in a release build
	@sh scripts/setup.sh test
	cargo build --locked --release -p ekm-server -p ekm-loadtest -p ekm-pkcs11-fault
	target/release/ekm-bench --device-ms 1 --sessions 16

bench-catalog: ## A catalog of a million keys beside one of a hundred, in a release build (5 minutes)
	@sh scripts/setup.sh test
	cargo build --locked --release --bin ekm --bin ekm-bench-catalog
	target/release/ekm-bench-catalog

bench-control: ## createKey and destroyKey with PostgreSQL and SoftHSM, as the caller sees them, in a release build
	@sh scripts/setup.sh test
	cargo build --locked --release --bin ekm --bin ekm-bench-control
	target/release/ekm-bench-control

drill-catalog: ## Break the catalog's databases under load, and see what it costs (as root, 40 minutes)
	@sh scripts/setup.sh test
	cargo build --locked --bin ekm --bin drill-catalog
	target/debug/drill-catalog

drill-hsm: ## Break HSMs under load, one of three at a time, and see what it costs (15 minutes)
	@sh scripts/setup.sh test
	cargo build --locked --workspace
	target/debug/drill-hsm

drill-topology: ## Break replicas and a site behind each reference topology, and see what it costs (as root, 25 minutes)
	@sh scripts/setup.sh test
	cargo build --locked --workspace
	target/debug/drill-topology

# What sends the load: it starts the service that lies beside it. Where its reports of all scenarios go.
EKM_LOAD = target/release/ekm-load
REPORTS = target/load

build-load:
	@sh scripts/setup.sh test
	cargo build --locked --release -p ekm-server -p ekm-loadtest -p ekm-pkcs11-fault

load: build-load ## What a service does under load: the report of one scenario, SCENARIO=overload by default, in a release build
	$(EKM_LOAD) run loadtest/scenarios/$(or $(SCENARIO),overload).toml --rig --html target/$(or $(SCENARIO),overload).html

drill-load: build-load ## Every scenario of load, RUNS=3 times and soak once: medians in target/load, figures for loadtest/RESULTS.md (an hour, and a half hour of soak; SECONDS=10 for a look at each)
	mkdir -p $(REPORTS)
	failed=; for scenario in overload slow-hsm noisy-tenant retry-storm steady frontend-loss rolling-restart hostile-clients connections soak; do \
	  runs=$(or $(RUNS),3); test $$scenario != soak || runs=1; \
	  pin=--pin; test $$scenario != hostile-clients || pin=; \
	  $(EKM_LOAD) run loadtest/scenarios/$$scenario.toml --rig $$pin --runs $$runs $(if $(SECONDS),--seconds $(SECONDS)) --html $(REPORTS)/$$scenario.html || failed="$$failed $$scenario"; \
	done; test -z "$$failed" || { echo "not passed:$$failed"; exit 1; }

conformance: ## The conformance suite against a new service for each custody: the table in docs/conformance-report.md
	@sh scripts/setup.sh test
	cargo build --locked --workspace
	target/debug/conformance

release: ## The optimised binary: target/release/ekm
	@sh scripts/setup.sh run
	cargo build --locked --release --bin ekm
