package engine

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/snapctl/snapctl/fusefs"
)

// ResumeFork mounts a fork of this repository again, which is named by its name or its
// directory: one that was unmounted, that was mounted when the machine was stopped, or
// whose server has died. What it changed is as it was. Processes that have files of a
// fork open whose server died get errors (ENOTCONN, EIO) until they open them again;
// better they are ended before, since what they still write goes around the new mount.
//
// A fork that is mounted and works is left as it is; so several may resume it at once.
// Of opts, Prefetch, Force, Fail, Warn and Serve count. It fails with ErrNoFork, with
// ErrNotFound if the snapshot was removed, and with ErrForkLost.
func (r *Repository) ResumeFork(ctx context.Context, nameOrDir string, opts *ForkOptions) (*Fork, error) {
	if opts == nil {
		opts = &ForkOptions{}
	}
	x := &forker{repo: r, opts: opts}
	f, err := x.resume(ctx, nameOrDir)
	if err != nil {
		return nil, fmt.Errorf("resuming fork %s: %w", nameOrDir, err)
	}
	return f, nil
}

func (x *forker) resume(ctx context.Context, nameOrDir string) (_ *Fork, err error) {
	if x.g, err = newForkRegistry(x.repo.stateDir()); err != nil {
		return nil, err
	}
	defer x.sweep(ctx)
	e, err := x.g.find(nameOrDir)
	if err != nil {
		return nil, err
	}
	defer e.close()
	if err := e.take(ctx); err != nil {
		return nil, err
	}
	if e.rec.Repository.ID != x.repo.cfg.ID {
		return nil, fmt.Errorf("%w: it is of the repository %s", ErrInvalid, e.rec.Repository.URL)
	}
	if e.rec.Mode == ForkRestore {
		if !e.copyThere() {
			return nil, fmt.Errorf("%w: the copy is not at %s any more", ErrForkLost, e.rec.Dir)
		}
		return e.fork(), nil
	}
	dir := string(e.rec.Dir)
	table, err := readMountTable()
	if err != nil {
		return nil, err
	}
	if e.mountedIn(table) {
		switch err := e.probe(); {
		case err == nil:
			return e.fork(), nil
		case !errors.Is(err, fusefs.ErrNoServer):
			return nil, err
		}
		if err := fusefs.UnmountAt(dir, true); err != nil {
			return nil, err
		}
	}
	if err := e.layerThere(table); err != nil {
		return nil, err
	}
	e.finished() // from here on it is as it is
	// The directory may have been on a tmpfs.
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	if _, err := mountPoint(dir, x.opts.Force); err != nil {
		return nil, err
	}
	if err := x.hidesNothing(dir); err != nil {
		return nil, err
	}
	if p, err := ParsePrefetch(e.rec.Prefetch); err == nil && x.opts.Prefetch == 0 {
		opts := *x.opts
		opts.Prefetch = p
		x.opts = &opts
	}
	err = x.overLower(ctx, e.rec.lower(), func(lower string, _ *Snapshot) error {
		e.rec.Mounted, e.rec.Works = placeHere(), e.rec.Works.next(e.layer())
		if err := e.write(); err != nil {
			return err
		}
		return e.mount(ctx, lower)
	})
	if errors.Is(err, ErrNotFound) {
		err = fmt.Errorf("%w: it was removed; what the fork changed is in %s", err, e.upper())
	}
	if err != nil {
		return nil, err
	}
	return e.fork(), nil
}

// layerThere reports whether what the fork changed is there.
func (e *forkEntry) layerThere(t mountTable) error {
	if e.rec.Ephemeral && e.rec.Layer == "" && t[e.layer()] == nil {
		return fmt.Errorf("%w: it was in memory", ErrForkLost)
	}
	if info, err := os.Lstat(e.upper()); err != nil || !info.IsDir() {
		return fmt.Errorf("%w: there is no %s", ErrForkLost, e.upper())
	}
	if e.rec.Layer == "" {
		return nil
	}
	if l, err := readLayer(e.layer()); err != nil || l.Fork != e.rec.ID || l.Snapshot != e.rec.Snapshot.ID {
		return fmt.Errorf("%w: %s is another fork's", ErrForkLost, e.layer())
	}
	return nil
}
