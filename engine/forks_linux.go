package engine

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"github.com/snapctl/snapctl/fusefs"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// Forks gives all forks of a state folder, in the order in which they were made. It
// waits a second at most for servers that do not answer. What it can read it gives
// together with the error about what it cannot.
func Forks(ctx context.Context, stateDir string) ([]*ForkStatus, error) {
	g, err := newForkRegistry(stateDir)
	if err != nil {
		return nil, err
	}
	entries, damaged := g.all()
	defer func() {
		for _, e := range entries {
			e.close()
		}
	}()
	table, err := readMountTable()
	if err != nil {
		return nil, err
	}
	foreign, err := foreignMounts(isFork)
	if err != nil {
		return nil, err
	}
	all := make([]*ForkStatus, len(entries))
	var asking sync.WaitGroup
	var counting errgroup.Group
	counting.SetLimit(4)
	for i, e := range entries {
		e.mountedIn(table)
		s := &ForkStatus{Fork: *e.fork(), Changed: -1}
		all[i] = s
		asking.Go(func() { s.State = e.state(table, foreign) })
		if e.rec.Mode != ForkRestore {
			counting.Go(func() error {
				s.Changed, s.ChangedMore = diskUsage(ctx, e.upper(), maxCounted)
				return nil
			})
		}
	}
	asking.Wait()
	counting.Wait()
	return all, errors.Join(damaged, ctx.Err())
}

// stateNow is state, as the mounts are now.
func (e *forkEntry) stateNow() (ForkState, error) {
	table, err := readMountTable()
	if err != nil {
		return "", err
	}
	foreign, err := foreignMounts(isFork)
	if err != nil {
		return "", err
	}
	return e.state(table, foreign), nil
}

// state looks what has become of a fork.
func (e *forkEntry) state(t *mountTable, foreign []seenMount) ForkState {
	m := e.rec.Mounted
	switch {
	case e.rec.Mode == ForkRestore:
		if e.copyThere() {
			return ForkMounted
		}
		return ForkLost
	case e.mountedIn(t):
		switch err := e.probe(statusPatience); {
		case errors.Is(err, fusefs.ErrNoServer):
			return ForkDead
		case errors.Is(err, fusefs.ErrNoAnswer):
			return ForkSilent
		case errors.Is(err, fusefs.ErrBusy):
			return ForkCovered
		}
		return ForkMounted
	case e.elsewhere(foreign) != nil:
		return ForkElsewhere
	case e.layerThere(t) != nil:
		return ForkLost
	case e.rec.Mode != ForkFuse && (m == nil || m.isHere()): // somebody else unmounted it
		return ForkDetached
	case m != nil && m.Boot != bootID():
		return ForkLost
	}
	// It may be mounted in a namespace that does not show in /proc.
	switch held, err := e.held(); {
	case held || err != nil && m != nil && !m.isHere():
		return ForkElsewhere
	case m == nil || m.isHere():
		return ForkDetached
	}
	return ForkLost
}

// maxCounted is how many files of a fork are counted: a listing is not to take
// seconds.
const maxCounted = 50_000

// diskUsage is how many bytes on disk a tree takes; more says that it is not all.
func diskUsage(ctx context.Context, dir string, most int) (bytes int64, more bool) {
	seen := map[[2]uint64]bool{}
	n := 0
	filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			if os.IsNotExist(err) {
				return nil // somebody works there
			}
			more = true
			return nil
		}
		if n++; n > most || ctx.Err() != nil {
			more = true
			return fs.SkipAll
		}
		var st unix.Stat_t
		if unix.Lstat(path, &st) != nil {
			return nil
		}
		if st.Nlink > 1 && !d.IsDir() {
			key := [2]uint64{st.Dev, st.Ino}
			if seen[key] {
				return nil
			}
			seen[key] = true
		}
		if path != dir { // which there is before anything is changed
			bytes += st.Blocks * 512
		}
		return nil
	})
	return bytes, more
}
