package main

import "context"

// cp is cp -a, the floor for whoever copies files one after another.
type cp struct{}

func (cp) Name() string       { return "cp" }
func (cp) Programs() []string { return []string{"cp"} }
func (cp) Version() command   { return command{Args: []string{"cp", "--version"}} }
func (cp) Whole() bool        { return true }

func (cp) Open(_ context.Context, p place) (vault, error) { return cpVault{p}, nil }

type cpVault struct{ place }

func (v cpVault) Create(ctx context.Context, name, tree string) (usage, error) {
	return v.run(ctx, command{Args: []string{"cp", "-a", "--reflink=never", tree, v.store(name)}})
}

func (v cpVault) Restore(ctx context.Context, name, target string) (usage, error) {
	return v.run(ctx, command{Args: []string{"cp", "-a", "--reflink=never", v.store(name), target}})
}
