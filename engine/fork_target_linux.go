package engine

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/snapctl/snapctl/engine/internal/fsys"
	"github.com/snapctl/snapctl/engine/snapshot"
	"github.com/snapctl/snapctl/fusefs"
)

// forkLayers are the folders, outside of the state folder, that forks keep in what they
// change.
func forkLayers(stateDir string) (dirs []string) {
	g, err := newForkRegistry(stateDir)
	if err != nil {
		return nil
	}
	entries, _ := g.all()
	for _, e := range entries {
		if e.rec.Layer != "" {
			dirs = append(dirs, string(e.rec.Layer))
		}
		e.close()
	}
	return dirs
}

// A targetFork is a fork of this machine whose directory is the target of a restore.
type targetFork struct {
	name    string
	there   bool // its files can be written to: it is mounted, or a copy
	changed bool // since it was made
}

// forkFor gives the fork that is registered at a path without symbolic links, mounted
// or not; nil if there is none.
func (r *Repository) forkFor(path string) (*targetFork, error) {
	if r.repo.State == "" {
		return nil, nil
	}
	g, err := newForkRegistry(r.repo.State)
	if err != nil {
		return nil, err
	}
	e, err := g.registered(path)
	if e == nil || err != nil {
		return nil, err
	}
	defer e.close()
	f := &targetFork{name: e.rec.Name}
	state, err := e.stateNow()
	if err != nil {
		return nil, err
	}
	if e.where() != path {
		return nil, nil // a directory above it was renamed
	}
	switch state {
	case ForkMounted:
		f.there = true
	case ForkCovered:
		return nil, nil // the path leads to something else
	case ForkDead:
		return nil, fmt.Errorf("%w: the server of the fork there has died; bring it back with snapctl fork --resume %s, or remove it with snapctl unfork %s", snapshot.ErrExists, f.name, f.name)
	case ForkSilent:
		return nil, fmt.Errorf("%w: the fork there: %w", snapshot.ErrExists, fusefs.ErrNoAnswer)
	case ForkLost:
		if e.rec.Mode == ForkRestore {
			return nil, nil // something else is there by now
		}
	}
	if e.rec.Mode == ForkRestore {
		f.changed = true // what is recorded of the restore says more
		return f, nil
	}
	empty, err := fsys.IsEmptyDir(e.upper())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	f.changed = err == nil && !empty
	return f, nil
}

// registered loads the fork of a directory; nil for none.
func (g *forkRegistry) registered(path string) (*forkEntry, error) {
	if _, err := os.Lstat(g.dir); err != nil {
		return nil, nil
	}
	e, err := g.find(path)
	if errors.Is(err, snapshot.ErrNoFork) || errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return e, err
}

// replaceFork removes a fork that is not mounted, for a restore to take its place.
func (r *Repository) replaceFork(ctx context.Context, f *targetFork) error {
	_, err := RemoveFork(ctx, r.repo.State, f.name, nil)
	if errors.Is(err, snapshot.ErrNoFork) {
		return nil
	}
	return err
}
