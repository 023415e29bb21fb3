# The targets are shorthands: every command here can be typed as it stands.

.PHONY: build test ci bench peers fuzz

build:
	go build -trimpath -o snapctl ./cmd/snapctl

test:
	go test ./...

ci:
	.ci/run

bench:
	go run ./bench

# The programs that the benchmark puts beside ours, as Debian has them.
peers:
	apt-get install -y squashfs-tools squashfuse zstd restic borgbackup casync

# Every fuzz target for a while: make fuzz FUZZTIME=1m
FUZZTIME ?= 20s
fuzz:
	@set -e; for pkg in $$(go list ./...); do \
	  for f in $$(go test -list '^Fuzz' $$pkg | grep '^Fuzz' || true); do \
	    echo "$$pkg $$f"; go test -run '^$$' -fuzz "^$$f\$$" -fuzztime $(FUZZTIME) $$pkg; \
	  done; \
	done
