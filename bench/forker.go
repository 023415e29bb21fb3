package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// A forker is a way to have writable copies of a snapshot, and to save what is
// changed in them: snapctl's, or a peer's.
type forker struct {
	name     string
	programs []string // all must be on the machine
	version  command
	root     bool // only root may
	// copies says that a writable copy is a copy of everything: the second one
	// is the same work as the first, and one is enough for all changes.
	copies bool
	open   func(ctx context.Context, p place) (forkable, error)
	// openS3 keeps what is stored in a bucket; nil if it cannot.
	openS3 func(ctx context.Context, p place, b bucket) (forkable, error)
}

func (f forker) Name() string { return f.name }

func (f forker) needs() (programs []string, root bool) { return f.programs, f.root }

// A forkable is a vault whose snapshots can be had as folders to write in.
type forkable interface {
	Create(ctx context.Context, name, tree string) (usage, error)
	// Fork makes a writable copy of the snapshot of that name at dir, an empty
	// folder. At the first one nothing of the snapshot may be mounted; what it
	// mounts then serves the others.
	Fork(ctx context.Context, name, dir string) (forked, error)
	// Unfork removes the copy and what was changed in it, and with the last one
	// what was mounted for all of them. dir is left, and empty.
	Unfork(ctx context.Context, f forked) error
	// Savers are the ways to keep what was changed in a copy, if there are any.
	Savers() []saver
}

// forked is a writable copy.
type forked struct {
	dir   string
	name  string // of the snapshot
	last  string // the same, or what was last saved of the copy
	upper string // the folder with what was changed alone, where we made it
	pid   int    // of the process that serves it, 0 for the kernel
	usage usage  // of making it
}

// A saver keeps what was changed in a copy as a snapshot of that name.
type saver struct {
	tool  string // what the tables call it
	whole bool   // it costs the same whatever was changed: measured once a round
	save  func(ctx context.Context, f forked, name string) (usage, error)
	drop  func(name string) error // removes what was saved; nil if it may stay
}

// forkPeers are all forkers but snapctl, in the order of the tables.
func forkPeers() []forker {
	return []forker{overlay, forkByCopy(cp{}), forkByCopy(restic{})}
}

// forkByCopy makes a forker of a tool that writes everything out.
func forkByCopy(t tool) forker {
	return forker{name: t.Name(), programs: t.Programs(), version: t.Version(), copies: true,
		open: func(ctx context.Context, p place) (forkable, error) {
			v, err := t.Open(ctx, p)
			return copied{v, t.Name()}, err
		}}
}

// copied is a vault whose writable copies are restores.
type copied struct {
	vault
	tool string
}

func (c copied) Fork(ctx context.Context, name, dir string) (forked, error) {
	if err := os.Remove(dir); err != nil { // what Restore makes
		return forked{}, err
	}
	u, err := c.Restore(ctx, name, dir)
	return forked{dir: dir, name: name, usage: u}, err
}

func (copied) Unfork(_ context.Context, f forked) error {
	return errors.Join(removeAll(f.dir), os.Mkdir(f.dir, 0o755))
}

// A resaver is a vault that can save a changed copy of a snapshot and takes
// for unchanged what looks as it does there.
type resaver interface {
	Resave(ctx context.Context, from, name, tree string) (usage, error)
}

func (c copied) Savers() []saver {
	r, ok := c.vault.(resaver)
	if !ok {
		return nil
	}
	return []saver{{tool: c.tool, save: func(ctx context.Context, f forked, name string) (usage, error) {
		return r.Resave(ctx, f.last, name, f.dir)
	}}}
}

// forkIn makes a writable copy in a folder of its own, and returns when there
// is an entry of that name in it; the usage tells how long that took. What is
// mounted lies where [bench.unmountAll] finds it.
func (b *bench) forkIn(ctx context.Context, v forkable, name, entry string) (f forked, err error) {
	if err := os.MkdirAll(b.mountPoint(), 0o755); err != nil {
		return f, err
	}
	dir, err := os.MkdirTemp(b.mountPoint(), "")
	if err != nil {
		return f, err
	}
	if f, err = v.Fork(ctx, name, dir); err == nil {
		_, err = os.Lstat(filepath.Join(dir, entry))
	}
	if err != nil {
		f.dir = dir
		return f, errors.Join(fmt.Errorf("fork: %w", err), b.unfork(v, f))
	}
	f.last = name
	f.usage.Peak = max(f.usage.Peak, processPeak(f.pid))
	return f, nil
}

// unfork removes a copy, also when the run was interrupted.
func (b *bench) unfork(v forkable, f forked) error {
	if err := v.Unfork(context.Background(), f); err != nil {
		return fmt.Errorf("unfork: %w", err)
	}
	return os.Remove(f.dir)
}
