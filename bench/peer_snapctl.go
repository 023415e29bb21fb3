package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"path/filepath"
)

// snapctl is our side: the command itself, built once, as a user runs it.
type snapctl struct {
	name    string
	program string
}

const ours = "snapctl"

func (s snapctl) Name() string       { return s.name }
func (s snapctl) Programs() []string { return []string{s.program} }
func (s snapctl) Version() command   { return command{Args: []string{s.program, "version"}} }
func (snapctl) Whole() bool          { return false }

func (s snapctl) Open(ctx context.Context, p place) (vault, error) {
	v := s.vault(p, p.store("repo"), nil)
	return v, v.init(ctx)
}

func (s snapctl) OpenS3(ctx context.Context, p place, b bucket) (vault, error) {
	v := s.vault(p, b.snapctlURL(), b.credentials())
	return v, v.init(ctx)
}

func (s snapctl) vault(p place, repo string, env []string) *snapctlVault {
	return &snapctlVault{snapctl: s, place: p, repo: repo, env: env, ids: map[string]string{}}
}

type snapctlVault struct {
	snapctl
	place
	repo string
	env  []string
	ids  map[string]string // by our name for the snapshot

	prefetch string // what mount --prefetch is given, "" for nothing
}

func (v *snapctlVault) command(args ...string) command {
	return command{
		Args: append([]string{v.program, "--repo", v.repo, "--quiet"}, args...),
		Env:  append(v.env[:len(v.env):len(v.env)], "SNAPCTL_CACHE_DIR="+v.local("cache")),
	}
}

func (v *snapctlVault) init(ctx context.Context) error {
	_, err := v.run(ctx, v.command("init"))
	return err
}

func (v *snapctlVault) OpenOnly(ctx context.Context) (usage, error) { return v.List(ctx, 0) }

func (v *snapctlVault) Create(ctx context.Context, name, tree string) (usage, error) {
	u, out, err := v.output(ctx, v.command("create", "--json", tree))
	if err != nil {
		return usage{}, err
	}
	var made struct {
		ID         string `json:"id"`
		Incomplete bool   `json:"incomplete"`
	}
	if err := json.Unmarshal(out, &made); err != nil {
		return usage{}, fmt.Errorf("snapctl said %q: %w", out, err)
	}
	if made.ID == "" || made.Incomplete {
		return usage{}, errors.New("snapctl made no complete snapshot")
	}
	v.ids[name] = made.ID
	return u, nil
}

func (v *snapctlVault) Restore(ctx context.Context, name, target string) (usage, error) {
	return v.run(ctx, v.command("restore", v.ids[name], target))
}

// Mount leaves a process behind, which ends when the mount is gone.
func (v *snapctlVault) Mount(ctx context.Context, name, dir string) (mounted, error) {
	args := []string{"mount", "--json"}
	if v.prefetch != "" {
		args = append(args, "--prefetch", v.prefetch)
	}
	u, out, err := v.output(ctx, v.command(append(args, v.ids[name], dir)...))
	if err != nil {
		return mounted{}, err
	}
	var made struct {
		Pid int `json:"pid"`
	}
	if err := json.Unmarshal(out, &made); err != nil || made.Pid <= 0 {
		return mounted{}, fmt.Errorf("snapctl mount said %q: %w", out, err)
	}
	return mounted{root: dir, pid: made.Pid, usage: u}, nil
}

// List lists all snapshots, and fails unless there are that many.
func (v *snapctlVault) List(ctx context.Context, want int) (usage, error) {
	u, out, err := v.output(ctx, v.command("list", "--json"))
	if err != nil {
		return usage{}, err
	}
	n, err := countJSON(out)
	if err == nil && n != want {
		err = fmt.Errorf("snapctl listed %d snapshots of %d", n, want)
	}
	return u, err
}

// countJSON counts the members of an array, or the values that follow one
// another.
func countJSON(b []byte) (int, error) {
	var list []json.RawMessage
	if json.Unmarshal(b, &list) == nil {
		return len(list), nil
	}
	n := 0
	dec := json.NewDecoder(bytes.NewReader(b))
	for dec.More() {
		var v json.RawMessage
		if err := dec.Decode(&v); err != nil {
			return 0, fmt.Errorf("snapctl list --json: %w", err)
		}
		n++
	}
	return n, nil
}

func (b bucket) snapctlURL() string {
	q := url.Values{"endpoint": {b.endpoint}, "region": {b.region}}
	return "s3://" + b.name + "/" + filepath.Clean(b.prefix) + "?" + q.Encode()
}
