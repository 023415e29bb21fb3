package main

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/snapctl/snapctl/cmd/snapctl/internal/keeper"
	"github.com/snapctl/snapctl/engine"
	"github.com/snapctl/snapctl/remote"
)

// isKeeperProcess tells whether this process was started to keep a mount.
func isKeeperProcess(e *env) bool { return keeper.Started(e.getenv) }

// keep is the whole of a process that keeps a mount.
func keep(e *env) int {
	if keeper.Run(e.stderr) != nil { // which it has said
		return exitFailed
	}
	return exitDone
}

// takesOver tells whether this process was started to take over a mount.
func takesOver(getenv func(string) string) bool { return keeper.TakesOver(getenv) }

// serverArgs are the arguments of a server that takes over: those of a mount
// command that would mount the same. Its working directory is another.
func serverArgs(a *app, repo *engine.Repository, m *engine.Mount) ([]string, error) {
	location, _, err := a.repos.location()
	if err != nil {
		return nil, err
	}
	url, err := remote.ParseURL(location)
	if err != nil {
		return nil, err
	}
	cache, err := remote.Abs(repo.CacheDir())
	if err != nil {
		return nil, err
	}
	state, err := remote.Abs(a.repos.state())
	if err != nil {
		return nil, err
	}
	args := []string{"mount", "--repo", url.String(), "--cache-dir", cache, "--state-dir", state}
	if a.repos.cacheSize > 0 {
		args = append(args, "--cache-size", strconv.FormatInt(a.repos.cacheSize, 10))
	}
	if a.ui.Quiet {
		args = append(args, "--quiet")
	}
	if a.repos.verbose > 0 {
		args = append(args, "-"+strings.Repeat("v", a.repos.verbose))
	}
	return append(args, "--", m.Snapshot.ID.String(), m.Dir), nil
}

// takeOver serves what a server has served that died.
func takeOver(ctx context.Context, a *app, handed *keeper.Handed) error {
	a.secrets.Key = handed.Key
	repo, err := a.repos.open(ctx)
	if err != nil {
		return err
	}
	defer a.repos.close(repo)
	tuneServer()
	m, err := repo.TakeOver(ctx, handed.Handover, told(a.ui, engine.MountOptions{}))
	if err != nil {
		return err
	}
	a.ui.Console.Line(fmt.Sprintf("%s process %d has taken over", time.Now().Format(time.RFC3339), os.Getpid()))
	handed.Keep(m, m.Dir, a.ui.Console.Line)
	return untilEnded(ctx, a.ui, m)
}
