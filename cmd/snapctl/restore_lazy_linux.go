package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/snapctl/snapctl/cmd/snapctl/internal/ui"
	"github.com/snapctl/snapctl/engine"
	"github.com/snapctl/snapctl/fusefs"
)

// restoreLazily makes a fork in the place of a restore.
func restoreLazily(ctx context.Context, a *app, ref, dir string, lazy engine.ForkOptions, opts engine.RestoreOptions) error {
	repo, err := a.repos.openFor(ctx, ref)
	if err != nil {
		return about(ref, err)
	}
	defer a.repos.close(repo)
	if dir == "" {
		s, err := repo.Get(ctx, ref)
		if err != nil {
			return err
		}
		ref, dir = s.ID.String(), s.Dir
	}
	if opts.DryRun {
		return previewFork(ctx, a, repo, ref, dir, lazy, opts.Delete)
	}
	prepareFork(a, repo, &lazy)
	f, err := repo.ForkAgain(ctx, ref, dir, &lazy, opts.Delete)
	if err != nil {
		return mountHint(a.repos, lazyHint(err, ref, dir), filepath.Dir(filepath.Clean(dir)))
	}
	return printFork(a.ui, f, "forked")
}

// previewFork says what restore --lazy would do.
func previewFork(ctx context.Context, a *app, repo *engine.Repository, ref, dir string, lazy engine.ForkOptions, replace bool) error {
	p, err := repo.PlanFork(ctx, ref, dir, &lazy, replace)
	if err != nil {
		return lazyHint(err, ref, dir)
	}
	if a.ui.JSON {
		return a.ui.PrintJSON(struct {
			*engine.ForkPlan
			DryRun bool `json:"dryRun"`
		}{p, true})
	}
	what := map[engine.ForkAction]string{
		engine.ForkMake: "would make a fork of %s at %s", engine.ForkKeep: "would leave the fork of %s at %s as it is",
		engine.ForkResume: "would mount the fork of %s at %s again", engine.ForkReplace: "would remove the fork that is there, and make one of %s at %s",
		engine.ForkHide: "would make a fork of %s at %s, over what that holds",
	}[p.Action]
	a.ui.Say(fmt.Sprintf(what, p.Snapshot.ID, ui.Quoted(p.Dir)))
	return nil
}

// lazyHint names the commands that work.
func lazyHint(err error, ref, dir string) error {
	again := func(flags string) string {
		return "snapctl restore --lazy " + flags + ui.ShellQuote(ref) + " " + ui.ShellQuote(dir)
	}
	switch {
	case errors.Is(err, fusefs.ErrBusy):
		return &hintError{err: err, hint: "end what uses the fork, and run the same command again"}
	case errors.Is(err, engine.ErrNotEmpty): // and no fork
		return &hintError{err: err, hint: "over what is there, which is hidden: " + again("--force ")}
	case errors.Is(err, engine.ErrExists):
		return &hintError{err: err, hint: "in the place of a fork that is there: " + again("--delete ") + "; over what else is there, which is hidden: " + again("--force ")}
	}
	return err
}
