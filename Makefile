# The targets are shorthands: every command here can be typed as it stands.

.PHONY: build test ci bench peers compare fuzz

build:
	go build -trimpath -o snapctl ./cmd/snapctl

test:
	go test ./...

ci:
	.ci/run

bench:
	go run ./bench

# The programs that the benchmark puts beside ours, and those that make some of
# its workloads, as Debian has them.
peers:
	apt-get install -y tar zstd squashfs-tools squashfuse e2fsprogs mount restic borgbackup casync coreutils findutils sqlite3 git

# The micro-benchmarks of two commits, in turn, by benchstat:
# make compare OLD=main [NEW=commit] [BENCH=regexp] [PKG="./chunk ./index"] [COUNT=10] [BENCHTIME=1s] [FILTER='*']
# Without NEW it is the files as they stand.
compare: export BENCH := $(BENCH)
compare: export PKG := $(PKG)
compare: export COUNT := $(COUNT)
compare: export BENCHTIME := $(BENCHTIME)
compare: export FILTER := $(FILTER)
compare:
	@tools/compare '$(OLD)' '$(NEW)'

# Every fuzz target for a while: make fuzz FUZZTIME=1m
FUZZTIME ?= 20s
fuzz:
	@set -e; for pkg in $$(go list ./...); do \
	  for f in $$(go test -list '^Fuzz' $$pkg | grep '^Fuzz' || true); do \
	    echo "$$pkg $$f"; go test -run '^$$' -fuzz "^$$f\$$" -fuzztime $(FUZZTIME) $$pkg; \
	  done; \
	done
