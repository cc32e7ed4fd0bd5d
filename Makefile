# Lifeboat. `make test` and `make demo` need root on Debian 12 with Go; they install the rest.

SHELL := /bin/sh
.SHELLFLAGS := -euc
.DEFAULT_GOAL := build

GO ?= go
TIMEOUT ?= 60m   # of one package's tests
FUZZTIME ?= 10s  # of one fuzz target
SOAK ?= 20       # rounds of everything
COUNT ?= 6       # times each benchmark of a hot path runs
# Packages whose tests run at the same time. Those of the laboratory have engines and databases running.
PARALLEL ?= 2

.PHONY: build deps lint test demo bench bench-deps hotpaths fuzz soak clean

# One static binary.
build:
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags='-s -w' -o lifeboat ./cmd/lifeboat

# What laboratory, demo and race detector need from Debian; does nothing when it is there.
deps:
	sh lab/deps.sh

lint:
	@unformatted=$$($(GO) tool gofumpt -l bench cmd e2e internal lab); \
	if [ -n "$$unformatted" ]; then echo "make lint: not formatted; run: go tool gofumpt -w" $$unformatted >&2; exit 1; fi
	$(GO) vet ./...
	$(GO) tool staticcheck ./...

# Everything. Results are never taken from the cache: much of it depends on kernel and engines.
test: deps lint build
	$(GO) test -race -count=1 -timeout $(strip $(TIMEOUT)) -p $(strip $(PARALLEL)) ./...

# Two sites and a WAN on this machine: protect, lose the main site, fail over, fail back.
demo: deps build
	$(GO) run ./lab/cmd/demo

# Lifeboat and other tools side by side, and the figures of the paper, to bench/results. Some 40 minutes;
# for a quick look: make bench BENCH='-scale 0.05 -rounds 1'.
bench: deps bench-deps
	PATH="$(CURDIR)/.cache/bin:$$PATH" $(GO) run ./bench $(BENCH)
	$(GO) run ./bench -paper $(BENCH)

# The tools that Lifeboat is compared with; does nothing when they are there. restic is older in Debian and
# kopia is not there: both are built from the versions that bench/peers/go.mod pins.
bench-deps: .cache/bin/kopia
	@if ! { command -v rclone && command -v borg; } > /dev/null; then \
	  apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends rclone borgbackup; fi

.cache/bin/kopia: bench/peers/go.mod
	@cd bench/peers && CGO_ENABLED=0 $(GO) build -trimpath -tags nohtmlui -ldflags='-s -w' \
	  -o ../../.cache/bin/ github.com/kopia/kopia github.com/restic/restic/cmd/restic

# The hot paths one by one, for benchstat: make hotpaths > old; change; make hotpaths > new; benchstat old new.
hotpaths:
	@$(GO) test -run '^$$' -bench . -benchmem -count $(strip $(COUNT)) -timeout $(strip $(TIMEOUT)) -p 1 \
	  ./internal/cut ./internal/seal ./internal/pack ./internal/catalog ./internal/layer ./internal/repo ./internal/repo/idxcache ./internal/tree

# Every fuzz target for a short while.
fuzz:
	@grep -rl --include='*_test.go' '^func Fuzz' cmd internal lab | xargs -n 1 dirname | sort -u | while read -r dir; do \
	  for target in $$(sed -n 's/^func \(Fuzz[A-Za-z0-9_]*\).*/\1/p' "$$dir"/*_test.go); do \
	    echo "== $$dir $$target"; \
	    $(GO) test -run '^$$' -fuzz "^$$target\$$" -fuzzminimizetime 5x -fuzztime $(strip $(FUZZTIME)) "./$$dir"; \
	  done; \
	done

# Hours: everything again and again with new seeds, every case of the tests that otherwise take some of
# them (internal/casetest), properties with many more cases, fuzzing for longer.
soak: deps build
	$(GO) test -race -timeout 24h -p 1 -count=$(strip $(SOAK)) ./...
	LIFEBOAT_TEST_ALL=1 $(GO) test -race -timeout 24h -p 1 -count=1 $$(grep -rl --include='*_test.go' 'lifeboat/internal/casetest' internal | xargs -n 1 dirname | sort -u | sed 's,^,./,')
	$(GO) test -timeout 24h -p 1 -count=1 $$(grep -rl --include='*_test.go' 'pgregory.net/rapid' cmd internal lab | xargs -n 1 dirname | sort -u | grep -v '^internal/modeltest$$' | sed 's,^,./,') -rapid.checks=20000
	$(GO) test -timeout 24h -count=1 ./internal/modeltest -rapid.checks=2000 -rapid.steps=100
	$(MAKE) fuzz FUZZTIME=5m

clean:
	rm -f lifeboat
