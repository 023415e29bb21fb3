package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/snapctl/snapctl/cmd/snapctl/internal/doctor"
	"github.com/snapctl/snapctl/cmd/snapctl/internal/ui"
)

func doctorCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "doctor",
		Short: "Try what this machine can do, and say how to allow more",
		Long: `Tries what mounts and forks need, each for real but in a place of its own, and
whether the folders and the repository can be used. Each line is ok, a warning,
or failed, and says what to do. A warning means that something goes less well:
without FUSE, say, create and restore still work. The exit code is 1 if anything
failed without which nothing works: the cache or state folder, the repository.

It also removes what commands left that were killed, as fork, unfork, umount and
resume do: mounts, half-made forks and locks.

With --json, prints an array of objects: name, state, text, hint.`,
		Example:           `  snapctl doctor`,
		Args:              takes(),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if doctor.InNamespace(a.env.getenv) {
				return a.ui.PrintJSON(doctor.TryNamespace(cmd.Context(), a.repos.state()))
			}
			return runDoctor(cmd.Context(), a)
		},
	}
}

func runDoctor(ctx context.Context, a *app) error {
	m := &doctor.Machine{
		StateDir: a.repos.state(), CacheDir: cacheFolder(a.repos), Log: a.repos.logger(),
		Repository: func(ctx context.Context) doctor.Check { return repositoryCheck(ctx, a.repos) },
	}
	checks := m.Checks(ctx)
	failed := 0
	var b strings.Builder
	for _, c := range checks {
		if c.State == doctor.Failed {
			failed++
		}
		fmt.Fprintf(&b, "%-8s%s: %s\n", c.State, c.Name, ui.Printable(c.Text))
		if c.Hint != "" {
			fmt.Fprintf(&b, "%8s%s\n", "", ui.Printable(c.Hint))
		}
	}
	var err error
	if a.ui.JSON {
		err = a.ui.PrintJSON(checks)
	} else {
		err = a.ui.Print(b.String())
	}
	if err == nil && failed > 0 {
		err = fmt.Errorf("doctor: %s failed", ui.Plural(int64(failed), "check"))
	}
	return err
}

// cacheFolder is the folder of --cache-dir, or the default.
func cacheFolder(repos *repositories) string {
	if dir := repos.options().CacheDir; dir != "" {
		return dir
	}
	if dir, err := os.UserCacheDir(); err == nil {
		return filepath.Join(dir, "snapctl")
	}
	return filepath.Join(os.TempDir(), fmt.Sprintf("snapctl-cache-%d", os.Getuid()))
}

// repositoryCheck tries to open the repository.
func repositoryCheck(ctx context.Context, repos *repositories) doctor.Check {
	c := doctor.Check{Name: "repository", State: doctor.OK}
	began := time.Now()
	repo, err := repos.open(ctx)
	switch {
	case errors.Is(err, errNothingYet):
		location, _, _ := repos.location()
		c.Text = "there is none yet; the first create makes " + location
		return c
	case err != nil:
		c.State, c.Text, c.Hint = doctor.Failed, err.Error(), hintFor(err)
		if errors.Is(err, context.DeadlineExceeded) {
			c.Text = fmt.Sprintf("no answer within %s: %v", doctor.Patience, err)
		}
		return c
	}
	defer repos.close(repo)
	c.Text = fmt.Sprintf("%s answers, in %s", repo.URL(), ui.Round(time.Since(began)))
	return c
}
