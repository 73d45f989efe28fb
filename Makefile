# Everything that a developer or a newcomer types. CI calls the same targets.

CARGO ?= cargo
# What `make demo` and `make bench` hand on: make demo ARGS="--seconds 30 --rate 1000"
ARGS ?=

.PHONY: help build check servers operations examples packaging deb test soak torture torture-matrix fuzz mutants bench instructions deny demo

help:
	@echo "make demo     a whole pipeline on servers of its own, for ten seconds   [ARGS=\"--seconds 30\"]"
	@echo "make test     all tests, on servers that they start"
	@echo "make soak     the relay between models of both servers, under faults drawn by seed   [SEED=1 COUNT=20000]"
	@echo "make torture  two minutes of faults, drawn by a seed   [MINUTES=10] [SEED=1] [POSTGRES=16] [NATS=2.10]"
	@echo "make torture-matrix   the same on pairs of versions, a minute each   [MINUTES=1]"
	@echo "make fuzz     decoder, answers and positions on arbitrary bytes   [SECONDS=20]"
	@echo "make mutants  which changes of the delivery rules no unit test notices; takes hours   [ARGS=\"--file src/delivery/window.rs\"]"
	@echo "make bench    the relay beside its floors and its rivals; writes benches/RESULTS.md   [QUICK=1] [ARGS=\"--rounds 3\"]"
	@echo "make instructions   of decoder, mapping, headers and answers, against those committed   [ACCEPT=1]"
	@echo "make deny     licences and origins of what is in the tree, and that it has one TLS provider"
	@echo "make check    formatting, clippy and docs, in seconds"
	@echo "make build    the release binary"
	@echo "make deb      the Debian package, of a release build"
	@echo "make servers  the servers of all versions that the tests need, into .servers/"
	@echo "make operations   Prometheus and Chromium of Debian, which tests/operations.rs needs"
	@echo "make packaging    what tests/packaging needs; apt-get brings what is missing"
	@echo "make examples what the tests of examples/ need; apt-get brings what is missing"

build:
	$(CARGO) build --release --locked

deb:
	$(CARGO) deb --version >/dev/null 2>&1 || $(CARGO) install --locked cargo-deb
	scripts/deb.sh

check:
	$(CARGO) fmt --check
	$(CARGO) clippy --locked --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --no-deps

servers:
	scripts/servers.sh all

operations:
	scripts/operations.sh

examples:
	scripts/examples.sh

packaging:
	scripts/packaging.sh

test: servers operations examples packaging
	$(CARGO) test --locked

# One seed with everything that happens in it: make soak SEED=17 COUNT=1 SIMULATION_TRACE=1
soak: SEED ?= $(shell date +%s)
soak: COUNT ?= 20000
soak:
	SIMULATION_SEED=$(SEED) SIMULATION_COUNT=$(COUNT) \
		$(CARGO) test --locked --release --lib under_any_mix -- --nocapture

# NATS is a version, cluster, or cluster-2.12.
torture:
	scripts/servers.sh $(if $(filter 2.9%,$(NATS)),torture,all)
	TORTURE_MINUTES=$(MINUTES) TORTURE_SEED=$(SEED) TORTURE_POSTGRES=$(POSTGRES) \
		TORTURE_NATS=$(NATS) $(CARGO) test --locked --test torture -- --nocapture

torture-matrix:
	scripts/servers.sh torture
	$(CARGO) test --locked --test torture --no-run
	CARGO="$(CARGO)" scripts/torture-matrix.sh $(MINUTES)

FUZZ_TARGETS = pgoutput puback position
fuzz: SECONDS ?= 20
fuzz:
	$(CARGO) fuzz --version >/dev/null 2>&1 || $(CARGO) install --locked cargo-fuzz
	python3 fuzz/seeds.py
	for target in $(FUZZ_TARGETS); do \
		$(CARGO) fuzz run -s none $$target -- -max_total_time=$(SECONDS) -rss_limit_mb=2048 -verbosity=0 \
			-print_final_stats=1 || exit 1; \
	done

mutants:
	$(CARGO) mutants --version >/dev/null 2>&1 || $(CARGO) install --locked cargo-mutants
	$(CARGO) mutants $(ARGS)

bench:
	scripts/servers.sh
	$(if $(QUICK),,benches/rivals/install.sh)
	$(CARGO) bench --locked --bench side_by_side -- $(if $(QUICK),--quick) $(ARGS)

instructions:
	$(CARGO) bench --locked --bench micro -- instructions $(if $(ACCEPT),--accept)

# Advisories need a database from the network: cargo deny check advisories, where it can be had.
deny:
	$(CARGO) deny --version >/dev/null 2>&1 || $(CARGO) install --locked cargo-deny
	$(CARGO) deny --offline check bans licenses sources

demo:
	scripts/servers.sh
	$(CARGO) build --release --locked
	@$(CARGO) run --release --locked --quiet -- demo $(ARGS)
