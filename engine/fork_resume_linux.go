package engine

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/moby/sys/mountinfo"
	"github.com/snapctl/snapctl/engine/snapshot"
	"github.com/snapctl/snapctl/fusefs"
)

// ResumeFork mounts a fork of this repository again, which is named by its name or its
// directory: one that was unmounted, that was mounted when the machine was stopped, or
// whose server has died. What it changed is as it was. Processes that have files of a
// fork open whose server died get errors (ENOTCONN, EIO, EROFS) until they open them
// again.
//
// A fork that is mounted and works is left as it is; so several may resume it at once.
// Of opts, Prefetch, Force, Fail, Warn and Serve count. It fails with ErrNoFork, with
// ErrNotFound if the snapshot was removed, and with ErrForkLost. It fails with
// fusefs.ErrBusy if the fork is mounted in another mount namespace, or if somebody can
// still write by means of an earlier mount: no two may have one upper directory.
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
	if e.rec.Repository.ID != x.repo.repo.Cfg.ID {
		return nil, fmt.Errorf("%w: it is of the repository %s", snapshot.ErrInvalid, e.rec.Repository.URL)
	}
	if e.rec.Mode == ForkRestore {
		if !e.copyThere() {
			return nil, fmt.Errorf("%w: the copy is not at %s any more", snapshot.ErrForkLost, e.rec.Dir)
		}
		return e.fork(), nil
	}
	dead, err := e.look(ctx)
	mounted := !errors.Is(err, fusefs.ErrNotMounted)
	if mounted && dead == nil {
		return e.fork(), err
	}
	table, err := readMountTable()
	if err == nil {
		err = e.layerThere(table)
	}
	if err != nil {
		return nil, err
	}
	e.finished() // from here on it is as it is
	if !mounted {
		if err := x.prepare(ctx, e); err != nil {
			return nil, err
		}
	}
	if p, err := ParsePrefetch(e.rec.Prefetch); err == nil && x.opts.Prefetch == 0 {
		opts := *x.opts
		opts.Prefetch = p
		x.opts = &opts
	}
	err = x.overLower(ctx, e.rec.lower(), func(lower string, _ *snapshot.Snapshot) error {
		return e.remount(ctx, lower, dead)
	})
	if errors.Is(err, snapshot.ErrNotFound) {
		err = fmt.Errorf("%w: it was removed; what the fork changed is in %s", err, e.upper())
	}
	if err != nil {
		return nil, err
	}
	return e.fork(), nil
}

// look gives the fork's mount in this namespace if its server has died, and nil if it
// works. It fails with fusefs.ErrNotMounted or ErrNoAnswer.
func (e *forkEntry) look(ctx context.Context) (dead *mountinfo.Info, err error) {
	for {
		table, err := readMountTable()
		if err != nil {
			return nil, err
		}
		if !e.mountedIn(table) {
			return nil, fusefs.ErrNotMounted
		}
		if err := e.probe(pointPatience); !errors.Is(err, fusefs.ErrNoServer) {
			return nil, err
		}
		dead = e.pointIn(table)
		beneath, err := mountBeneath(dead)
		if err != nil || beneath == nil || e.rec.Mode == ForkFuse || !e.isAt(beneath) {
			return dead, err
		}
		// Somebody was killed who resumed it: see replaceMount.
		if err := silence(ctx, dead); err != nil {
			return nil, err
		}
		if err := fusefs.UnmountAt(dead.Mountpoint, true); err != nil {
			return nil, err
		}
	}
}

// prepare sees to it that the fork can be mounted at its directory, where it is not.
func (x *forker) prepare(ctx context.Context, e *forkEntry) error {
	if err := e.free(ctx, false); err != nil {
		return err
	}
	// The directory may have been on a tmpfs.
	dir := e.where()
	made, err := e.makeDirAgain(x.warn)
	if err != nil {
		return err
	}
	guard, err := e.unguardToMount(nil) // which mode 0 would not let an ordinary user look into
	if err != nil {
		return err
	}
	if _, err = mountPoint(dir, x.opts.Force); err == nil {
		err = x.hidesNothing(dir)
	}
	var bare *bareDir
	if err == nil {
		bare, err = e.g.bareFor(dir, e.rec.ID)
	}
	guard()
	switch {
	case err != nil:
		return err
	case bare == nil: // somebody put something there, and it is theirs
		_, err = e.unguard(dir)
		e.rec.Bare, e.rec.MadeDir = nil, false
	case made:
		e.rec.Bare, e.rec.MadeDir = bare, true
	case e.rec.Bare == nil && e.rec.MadeDir:
	case e.rec.Bare == nil || bare.forkCopy != e.rec.Bare.forkCopy:
		e.rec.Bare, e.rec.MadeDir = bare, false // else it is guarded, and not what it was
	}
	return err
}

// makeDirAgain makes the fork's directory, if it is not there. One that was moved away is
// no more the fork's: it is what it was, or removed.
func (e *forkEntry) makeDirAgain(warn func(error)) (made bool, err error) {
	dir := e.where()
	f, err := e.bare(dir, false)
	if err != nil {
		return false, err
	}
	if f != nil {
		return false, f.Close()
	}
	if e.rec.Bare != nil && !e.sharesBare() {
		if err := e.dropMoved(warn); err != nil {
			return false, err
		}
	}
	_, err = os.Lstat(dir)
	if made = errors.Is(err, fs.ErrNotExist); made {
		// Written down before, as by makeDirs: this process may be killed in between.
		e.rec.Bare, e.rec.MadeDir = nil, true
		if err := e.write(); err != nil {
			return false, err
		}
	}
	return made, os.MkdirAll(dir, 0o755)
}

// remount mounts the fork over the lower directory, in the place of dead, if that is
// not nil, which nobody writes to from then on.
func (e *forkEntry) remount(ctx context.Context, lower string, dead *mountinfo.Info) error {
	layer, err := e.lockLayer()
	if err != nil {
		return err
	}
	defer layer.close()
	if dead != nil {
		if err := e.layDown(ctx, dead); err != nil {
			return err
		}
	}
	// Nothing is mounted that is not written down.
	was := e.rec.Mounted
	e.rec.Mounted, e.rec.Works = placeHere(), e.rec.Works.next(e.layer())
	if err := e.write(); err != nil {
		return err
	}
	if e.rec.Layer != "" {
		err = e.mark()
	}
	if err == nil {
		err = e.mount(ctx, lower, dead)
	}
	if err != nil {
		e.rec.Mounted = was
		return errors.Join(err, e.write())
	}
	return nil
}

// lockLayer locks the folder that the fork was given for upper, if it is still this
// fork's: one of another state folder, which cannot see this, may want it too.
func (e *forkEntry) lockLayer() (*forkLayer, error) {
	layer := &forkLayer{dir: string(e.rec.Layer)}
	if layer.dir == "" {
		return layer, nil
	}
	if err := layer.take(); err != nil {
		return nil, err
	}
	if err := e.layerIsOurs(); err != nil {
		layer.close()
		return nil, err
	}
	return layer, nil
}

// layDown sees to it that nobody writes to a dead mount of the fork any more.
func (e *forkEntry) layDown(ctx context.Context, dead *mountinfo.Info) error {
	if e.rec.Mode != ForkFuse {
		return silence(ctx, dead)
	}
	// fuse-overlayfs mounts over no dead mount, and if it lives, it ends with its own.
	if err := fusefs.UnmountAt(dead.Mountpoint, true); err != nil {
		return err
	}
	return e.free(ctx, false)
}

// layerThere reports whether what the fork changed is there.
func (e *forkEntry) layerThere(t *mountTable) error {
	if e.rec.Ephemeral && e.rec.Layer == "" && t.at(e.layer()) == nil {
		return fmt.Errorf("%w: it was in memory", snapshot.ErrForkLost)
	}
	if info, err := os.Lstat(e.upper()); err != nil || !info.IsDir() {
		return fmt.Errorf("%w: there is no %s", snapshot.ErrForkLost, e.upper())
	}
	if e.rec.Layer == "" {
		return nil
	}
	return e.layerIsOurs()
}

// layerIsOurs fails with ErrForkLost if layer.json says something else.
func (e *forkEntry) layerIsOurs() error {
	if l, err := readLayer(e.layer()); err != nil || l.Fork != e.rec.ID || l.Snapshot != e.rec.Snapshot.ID {
		return fmt.Errorf("%w: %s is another fork's", snapshot.ErrForkLost, e.layer())
	}
	return nil
}
