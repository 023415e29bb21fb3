package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
)

// gitWorkload is a git repository of some commits, all in one pack, and its
// work tree. After: more commits, and everything is packed anew.
var gitWorkload = workload{
	name:     "git",
	programs: []string{"git"},
	bytes:    func(o *options) int64 { return int64(gitSizes(o).files)*12<<10 + 4<<20 },
	write: func(ctx context.Context, b *bench, before, after string) error {
		s := gitSizes(b.o)
		r := gitRepo{b, before}
		if err := os.Mkdir(before, 0o755); err != nil {
			return err
		}
		if err := (treeSpec{Files: s.files, Mean: 7000}).write(ctx, before); err != nil {
			return err
		}
		if err := r.git(ctx, "init", "--quiet"); err != nil {
			return err
		}
		if err := r.commits(ctx, 0, s.commits); err != nil {
			return err
		}
		if _, err := b.runner.run(ctx, command{Args: []string{"cp", "-a", before, after}}); err != nil {
			return err
		}
		return gitRepo{b, after}.commits(ctx, s.commits, 2*s.commits)
	},
}

type gitSpec struct{ files, commits int }

func gitSizes(o *options) gitSpec {
	if o.smoke {
		return gitSpec{150, 2}
	}
	return gitSpec{8000, 40}
}

type gitRepo struct {
	*bench
	dir string
}

// git runs git with nothing of the user's or the day's in what it makes.
func (r gitRepo) git(ctx context.Context, args ...string) error {
	const date = "2026-01-01T00:00:00Z"
	_, err := r.runner.run(ctx, command{
		Args: append([]string{"git", "-c", "init.defaultBranch=main", "-c", "gc.auto=0", "-c", "pack.threads=1", "-c", "maintenance.auto=false"}, args...),
		Dir:  r.dir,
		Env: []string{"GIT_CONFIG_NOSYSTEM=1", "GIT_AUTHOR_NAME=bench", "GIT_AUTHOR_EMAIL=bench@example.com", "GIT_AUTHOR_DATE=" + date,
			"GIT_COMMITTER_NAME=bench", "GIT_COMMITTER_EMAIL=bench@example.com", "GIT_COMMITTER_DATE=" + date},
	})
	return err
}

// commits makes the commits of these numbers, each of which changes some files,
// and packs everything.
func (r gitRepo) commits(ctx context.Context, from, to int) error {
	files, err := someFiles(filepath.Join(r.dir, "node_modules"), 1<<30)
	if err != nil {
		return err
	}
	for n := from; n < to; n++ {
		rng := rand.New(rand.NewPCG(17, uint64(n)))
		for range 20 {
			path := filepath.Join(r.dir, "node_modules", files[rng.IntN(len(files))])
			text, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			at := 0
			if len(text) > 0 {
				at = rng.IntN(len(text))
			}
			text = append(appendText(text[:at:at], rng, 200), text[at:]...)
			if err := os.WriteFile(path, text, 0o644); err != nil {
				return err
			}
		}
		if err := r.git(ctx, "add", "--all"); err != nil {
			return err
		}
		if err := r.git(ctx, "commit", "--quiet", "--message", fmt.Sprintf("commit %d", n)); err != nil {
			return err
		}
	}
	return r.git(ctx, "gc", "--quiet", "--prune=now")
}
