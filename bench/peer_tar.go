package main

import (
	"context"
	"os"
)

// tarZstd is tar piped through zstd at its fastest level, on two threads.
type tarZstd struct{}

func (tarZstd) Name() string       { return "tar+zstd" }
func (tarZstd) Programs() []string { return []string{"tar", "zstd"} }
func (tarZstd) Version() command   { return command{Args: []string{"zstd", "--version"}} }
func (tarZstd) Whole() bool        { return true }

func (tarZstd) Open(_ context.Context, p place) (vault, error) { return tarVault{p}, nil }

type tarVault struct{ place }

func (v tarVault) Create(ctx context.Context, name, tree string) (usage, error) {
	return v.run(ctx,
		command{Args: []string{"tar", "-cf", "-", "-C", tree, "."}},
		command{Args: []string{"zstd", "-q", "-1", "-T2", "-o", v.store(name)}})
}

func (v tarVault) Restore(ctx context.Context, name, target string) (usage, error) {
	if err := os.Mkdir(target, 0o755); err != nil {
		return usage{}, err
	}
	return v.run(ctx,
		command{Args: []string{"zstd", "-q", "-dc", v.store(name)}},
		command{Args: []string{"tar", "-xpf", "-", "-C", target}})
}
