package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"os"
)

// kopia, compressing with its fastest zstd; it compresses nothing unless told.
type kopia struct{}

func (kopia) Name() string       { return "kopia" }
func (kopia) Programs() []string { return []string{"kopia"} }
func (kopia) Version() command   { return command{Args: []string{"kopia", "--version"}} }
func (kopia) Whole() bool        { return false }

func (kopia) Open(ctx context.Context, p place) (vault, error) {
	repo := p.store("repo")
	if err := os.Mkdir(repo, 0o755); err != nil {
		return nil, err
	}
	v := &kopiaVault{place: p, storage: []string{"filesystem", "--path", repo}, objects: map[string]string{}}
	return v, v.init(ctx)
}

func (kopia) OpenS3(ctx context.Context, p place, b bucket) (vault, error) {
	u, err := url.Parse(b.endpoint)
	if err != nil {
		return nil, err
	}
	v := &kopiaVault{
		place: p,
		storage: []string{"s3", "--bucket", b.name, "--prefix", b.prefix, "--endpoint", u.Host, "--disable-tls",
			"--region", b.region, "--access-key", b.access, "--secret-access-key", b.secret},
		objects: map[string]string{},
	}
	return v, v.init(ctx)
}

type kopiaVault struct {
	place
	storage []string
	objects map[string]string // name of a snapshot to its root
}

func (v *kopiaVault) kopia(args ...string) command {
	return command{
		Args: append([]string{"kopia", "--no-progress"}, args...),
		Env: []string{
			"KOPIA_PASSWORD=bench",
			"KOPIA_CHECK_FOR_UPDATES=false",
			"KOPIA_CONFIG_PATH=" + v.local("config"),
			"KOPIA_CACHE_DIRECTORY=" + v.local("cache"),
			"KOPIA_LOG_DIR=" + v.local("log"),
			"KOPIA_USE_KEYRING=false",
		},
	}
}

func (v *kopiaVault) repository(ctx context.Context, verb string) error {
	_, err := v.run(ctx, v.kopia(append([]string{"repository", verb}, v.storage...)...))
	return err
}

func (v *kopiaVault) init(ctx context.Context) error {
	if err := v.repository(ctx, "create"); err != nil {
		return err
	}
	_, err := v.run(ctx, v.kopia("policy", "set", "--global", "--compression=zstd-fastest"))
	return err
}

func (v *kopiaVault) OpenOnly(ctx context.Context) (usage, error) {
	return v.run(ctx, v.kopia("repository", "status"))
}

func (v *kopiaVault) Create(ctx context.Context, name, tree string) (usage, error) {
	u, out, err := v.output(ctx, v.kopia("snapshot", "create", "--json", tree))
	if err != nil {
		return usage{}, err
	}
	var made struct {
		RootEntry struct {
			Object string `json:"obj"`
		} `json:"rootEntry"`
	}
	if err := json.Unmarshal(out, &made); err != nil {
		return usage{}, fmt.Errorf("kopia said %q: %w", out, err)
	}
	if made.RootEntry.Object == "" {
		return usage{}, errors.New("kopia named no root")
	}
	v.objects[name] = made.RootEntry.Object
	return u, nil
}

func (v *kopiaVault) Restore(ctx context.Context, name, target string) (usage, error) {
	return v.run(ctx, v.kopia("snapshot", "restore", v.objects[name], target))
}

// Connect is what kopia needs once on each machine.
func (v *kopiaVault) Connect(ctx context.Context) error { return v.repository(ctx, "connect") }

func (v *kopiaVault) Mount(_ context.Context, name, dir string) (mounted, error) {
	m, err := v.serve(v.kopia("mount", v.objects[name], dir))
	m.root = dir
	return m, err
}
