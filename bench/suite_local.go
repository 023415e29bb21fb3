package main

import (
	"context"
	"os"
	"path/filepath"
	"runtime"

	"golang.org/x/sync/errgroup"
)

// repeats is how often short work is done within a round.
func (b *bench) repeats() int {
	if b.o.smoke {
		return 2
	}
	return 10
}

// suiteLocal measures each tool on a local folder.
func suiteLocal(ctx context.Context, b *bench) error {
	const suite = "local"
	r := rounds{suite, b.o.warmup, b.o.runs}
	err := do(ctx, b, r, b.tools(), func(t tool, run int, _ place) error {
		for range b.repeats() {
			u, err := b.runner.run(ctx, t.Version())
			if err != nil {
				if _, is := t.(squashfs); is { // they exit with 1 after printing their version
					return nil
				}
				return err
			}
			b.keep(sample{Suite: suite, Work: workStart, Tool: t.Name(), Run: run}, u)
		}
		return nil
	})
	if err != nil {
		return err
	}

	err = do(ctx, b, r, b.tools(), func(t tool, run int, p place) error {
		v, err := t.Open(ctx, p)
		if err != nil {
			return err
		}
		stored := func() (int64, error) { return storedBytes(p.store()) }
		return visit{bench: b, suite: suite, trees: b.trees, tool: t, run: run, place: p, vault: v, stored: stored}.do(ctx)
	})
	if err != nil {
		return err
	}

	return do(ctx, b, rounds{suite, 0, 1}, []tool{b.ours}, func(_ tool, _ int, p place) error {
		v := b.ours.vault(p, p.store("repo"), nil)
		return b.list(ctx, suite, v, v, nil)
	})
}

// storedBytes adds up the sizes of the files in a folder.
func storedBytes(dir string) (int64, error) {
	c, err := contentOf(dir)
	return c.Bytes, err
}

// list makes a repository of many snapshots of a tiny tree by way of seeding,
// and measures how long v, which is the same repository, takes to list them
// with an empty cache, and again.
func (b *bench) list(ctx context.Context, suite string, seeding, v *snapctlVault, watch func(*sample) func()) error {
	tiny := filepath.Join(b.work, "tiny")
	if err := os.Mkdir(tiny, 0o755); err != nil {
		return err
	}
	defer removeAll(tiny)
	if err := os.WriteFile(filepath.Join(tiny, "file"), []byte("tiny\n"), 0o644); err != nil {
		return err
	}
	b.logf("%s: making %d snapshots to list", suite, b.o.list)
	if err := seeding.init(ctx); err != nil {
		return err
	}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(2 * runtime.GOMAXPROCS(0))
	for range b.o.list {
		g.Go(func() error {
			_, err := seeding.run(gctx, seeding.command("create", tiny))
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}

	if err := v.forget(ctx, v); err != nil {
		return err
	}
	for i := range 1 + b.repeats() {
		s := sample{Suite: suite, Work: workListAgain, Tool: ours, Run: i - 1}
		if i == 0 {
			s.Work, s.Run = workListFirst, 0
		}
		done := func() {}
		if watch != nil {
			done = watch(&s)
		}
		u, err := v.List(ctx, b.o.list)
		if err != nil {
			return err
		}
		done()
		b.keep(s, u)
	}
	return nil
}
