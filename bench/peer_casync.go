package main

import "context"

// casync, with its defaults: chunks of 64 KiB on average, zstd.
type casync struct{}

func (casync) Name() string       { return "casync" }
func (casync) Programs() []string { return []string{"casync"} }
func (casync) Version() command   { return command{Args: []string{"casync", "--version"}} }
func (casync) Whole() bool        { return false }

func (casync) Open(_ context.Context, p place) (vault, error) { return casyncVault{p}, nil }

type casyncVault struct{ place }

func (v casyncVault) Create(ctx context.Context, name, tree string) (usage, error) {
	return v.run(ctx, command{Args: []string{"casync", "make", "--store", v.store("store"), v.store(name + ".caidx"), tree}})
}

func (v casyncVault) Restore(ctx context.Context, name, target string) (usage, error) {
	return v.run(ctx, command{Args: []string{"casync", "extract", "--store", v.store("store"), v.store(name + ".caidx"), target}})
}
