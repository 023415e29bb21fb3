# The targets are shorthands: every command here can be typed as it stands.

.PHONY: build test ci bench peers compare fuzz release install

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

# Archives for all platforms in dist/: make release VERSION=v1.2.3
release:
	tools/release $(VERSION)

# The binary, manual pages and completion: make install PREFIX=/usr DESTDIR=/tmp/package
PREFIX ?= /usr/local
install: build
	rm -rf dist/install
	./snapctl man dist/install >/dev/null
	install -D -m 755 snapctl $(DESTDIR)$(PREFIX)/bin/snapctl
	for s in 1 7; do \
	  install -d $(DESTDIR)$(PREFIX)/share/man/man$$s && \
	  install -m 644 dist/install/*.$$s $(DESTDIR)$(PREFIX)/share/man/man$$s || exit 1; \
	done
	install -d $(DESTDIR)$(PREFIX)/share/bash-completion/completions $(DESTDIR)$(PREFIX)/share/zsh/site-functions $(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d
	./snapctl completion bash >$(DESTDIR)$(PREFIX)/share/bash-completion/completions/snapctl
	./snapctl completion zsh >$(DESTDIR)$(PREFIX)/share/zsh/site-functions/_snapctl
	./snapctl completion fish >$(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d/snapctl.fish
	rm -rf dist/install

# Every fuzz target for a while: make fuzz FUZZTIME=1m
FUZZTIME ?= 20s
fuzz:
	@set -e; for pkg in $$(go list ./...); do \
	  for f in $$(go test -list '^Fuzz' $$pkg | grep '^Fuzz' || true); do \
	    echo "$$pkg $$f"; go test -run '^$$' -fuzz "^$$f\$$" -fuzztime $(FUZZTIME) $$pkg; \
	  done; \
	done
