package main

import (
	"context"
	"encoding/json"
	"fmt"
	"path/filepath"
)

// restic, with a password because it must have one: each command then spends
// about half a second to two on its key derivation, which restic calibrates
// when the repository is made and which no flag lessens.
type restic struct{}

func (restic) Name() string       { return "restic" }
func (restic) Programs() []string { return []string{"restic"} }
func (restic) Version() command   { return command{Args: []string{"restic", "version"}} }
func (restic) Whole() bool        { return false }

func (restic) Open(ctx context.Context, p place) (vault, error) {
	v := resticVault{p, []string{"RESTIC_REPOSITORY=" + p.store("repo")}}
	return v, v.init(ctx)
}

func (restic) OpenS3(ctx context.Context, p place, b bucket) (vault, error) {
	env := append(b.credentials(), "RESTIC_REPOSITORY=s3:"+b.endpoint+"/"+b.name+"/"+b.prefix+"repo")
	v := resticVault{p, env}
	return v, v.init(ctx)
}

type resticVault struct {
	place
	env []string
}

func (v resticVault) restic(dir string, args ...string) command {
	return command{
		Args: append([]string{"restic", "--quiet"}, args...),
		Dir:  dir,
		Env:  append(v.env[:len(v.env):len(v.env)], "RESTIC_PASSWORD=bench", "RESTIC_CACHE_DIR="+v.local("cache")),
	}
}

func (v resticVault) init(ctx context.Context) error {
	_, err := v.run(ctx, v.restic("", "init"))
	return err
}

func (v resticVault) OpenOnly(ctx context.Context) (usage, error) {
	return v.run(ctx, v.restic("", "cat", "config"))
}

// Create runs inside the tree, so that the snapshot holds what is in it and
// not the path to it.
func (v resticVault) Create(ctx context.Context, name, tree string) (usage, error) {
	return v.run(ctx, v.restic(tree, "backup", "--tag", name, "."))
}

// Resave tells restic to take for unchanged what has the size and time that it
// had in that snapshot: it compares inodes and times of change too, which a
// restored file has anew.
func (v resticVault) Resave(ctx context.Context, from, name, tree string) (usage, error) {
	_, out, err := v.output(ctx, v.restic("", "snapshots", "--json", "--tag", from))
	if err != nil {
		return usage{}, err
	}
	var list []struct{ ID string }
	if err := json.Unmarshal(out, &list); err != nil || len(list) != 1 {
		return usage{}, fmt.Errorf("restic said %q, where one snapshot was expected", out)
	}
	return v.run(ctx, v.restic(tree, "backup", "--parent", list[0].ID, "--ignore-inode", "--ignore-ctime", "--tag", name, "."))
}

func (v resticVault) Restore(ctx context.Context, name, target string) (usage, error) {
	return v.run(ctx, v.restic("", "restore", "latest", "--tag", name, "--target", target))
}

func (v resticVault) Mount(_ context.Context, name, dir string) (mounted, error) {
	m, err := v.serve(v.restic("", "mount", dir))
	m.root = filepath.Join(dir, "tags", name, "latest")
	return m, err
}
