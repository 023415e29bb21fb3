package main

import (
	"context"
	"os"
)

// borg, without encryption, so that nothing is derived, and with zstd at its
// fastest level; its default is lz4, which stores more.
type borg struct{}

func (borg) Name() string       { return "borg" }
func (borg) Programs() []string { return []string{"borg"} }
func (borg) Version() command   { return command{Args: []string{"borg", "--version"}} }
func (borg) Whole() bool        { return false }

func (borg) Open(ctx context.Context, p place) (vault, error) {
	v := borgVault{p}
	_, err := v.run(ctx, v.borg("", "init", "--encryption", "none", v.store("repo")))
	return v, err
}

type borgVault struct{ place }

func (v borgVault) borg(dir string, args ...string) command {
	return command{
		Args: append([]string{"borg"}, args...),
		Dir:  dir,
		Env: []string{
			"BORG_BASE_DIR=" + v.local(),
			"BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK=yes",
			"BORG_RELOCATED_REPO_ACCESS_IS_OK=yes",
		},
	}
}

func (v borgVault) OpenOnly(ctx context.Context) (usage, error) {
	return v.run(ctx, v.borg("", "list", v.store("repo")))
}

func (v borgVault) Create(ctx context.Context, name, tree string) (usage, error) {
	return v.run(ctx, v.borg(tree, "create", "--compression", "zstd,1", v.store("repo")+"::"+name, "."))
}

func (v borgVault) Restore(ctx context.Context, name, target string) (usage, error) {
	if err := os.Mkdir(target, 0o755); err != nil {
		return usage{}, err
	}
	return v.run(ctx, v.borg(target, "extract", v.store("repo")+"::"+name))
}
