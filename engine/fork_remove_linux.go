package engine

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/moby/sys/mountinfo"
	"github.com/snapctl/snapctl/engine/internal/fsys"
	"github.com/snapctl/snapctl/engine/internal/local"
	"github.com/snapctl/snapctl/engine/internal/repo"
	"github.com/snapctl/snapctl/engine/snapshot"
	"github.com/snapctl/snapctl/fusefs"
	"github.com/snapctl/snapctl/manifest"
	"golang.org/x/sys/unix"
)

// unmountForkAt is Unmount, if it is a fork that is mounted at a path, or was.
func unmountForkAt(ctx context.Context, stateDir, path string, detach bool) (is bool, err error) {
	g, err := newForkRegistry(stateDir)
	if err != nil {
		return false, nil
	}
	table, err := readMountTable()
	if err != nil {
		return false, err
	}
	e, err := g.atIn(table, path)
	if err != nil {
		return false, err
	}
	if top := table.at(path); e == nil && (top == nil || top.FSType != fusefs.FSType) {
		if e, err = g.missedAt(table, path); e != nil && top != nil && e.over == nil {
			e.close()
			e = nil
		}
	}
	if e == nil || err != nil {
		return false, err
	}
	defer e.close()
	if err := e.unmountFork(ctx, detach); !errors.Is(err, fs.ErrNotExist) {
		return true, err
	}
	return false, nil // somebody else removed it
}

// missedAt loads the fork that was mounted at a path when its record was written; nil
// for none. It may be mounted where that directory is now.
func (g *forkRegistry) missedAt(table *mountTable, path string) (*forkEntry, error) {
	keys, err := g.keys()
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(keys, func(key string) bool { return strings.HasSuffix(key, forkKeyOf(path)) })
	if i < 0 {
		return nil, nil
	}
	e, err := g.load(keys[i])
	if err != nil {
		return nil, err
	}
	if !e.mountedIn(table) && (e.rec.Mounted == nil || e.rec.Mode == ForkRestore) {
		e.close()
		return nil, nil
	}
	return e, nil
}

// unmountFork unmounts a fork, or forgets that it was mounted.
func (e *forkEntry) unmountFork(ctx context.Context, detach bool) error {
	if err := e.take(ctx); err != nil {
		return err
	}
	e.finished()
	table, err := readMountTable()
	if err != nil {
		return err
	}
	points := e.pointsIn(table)
	here := func(m *mountinfo.Info) bool { return m.Mountpoint == e.where() }
	at := slices.IndexFunc(points, func(m *mountinfo.Info) bool { return here(m) && table.covered[m] == nil })
	if i := slices.IndexFunc(points, here); at < 0 && i >= 0 {
		return fusefs.CoveredError(table.covered[points[i]])
	}
	busy := false
	if at >= 0 {
		if busy, err = e.unmountPoint(points[at], detach); err != nil {
			return err
		}
		if len(points) > 1 {
			return nil // it is mounted elsewhere in this namespace too
		}
		if e.where() != string(e.rec.Dir) { // it comes back there
			if _, err := e.unguard(e.where()); err != nil {
				return err
			}
		}
	}
	return e.unmounted(ctx, busy)
}

// unmounted writes down that the fork is not mounted here any more, and releases the
// snapshot that it lay over. busy says that somebody uses it still.
func (e *forkEntry) unmounted(ctx context.Context, busy bool) error {
	e.rec.Mounted = nil
	if err := e.write(); err != nil {
		return err
	}
	return e.g.releaseLower(ctx, e.rec.lower(), !busy)
}

// unmountPoint unmounts a mount of the fork, and what of it is beneath. The caller has
// the lock. busy says that it is in use, which only detach allows.
func (e *forkEntry) unmountPoint(m *mountinfo.Info, detach bool) (busy bool, err error) {
	for {
		err := fusefs.UnmountAt(m.Mountpoint, false)
		if detach && errors.Is(err, fusefs.ErrBusy) {
			busy, err = true, fusefs.UnmountAt(m.Mountpoint, true)
		}
		if err != nil {
			return busy, err
		}
		table, err := readMountTable()
		if err != nil {
			return busy, err
		}
		if m = table.at(m.Mountpoint); m == nil || !e.isAt(m) {
			return busy, nil
		}
		detach = true // it is dead: see coverMount
	}
}

// RemoveFork removes a fork, named by its name or its directory, and what it changed.
// With Keep that stays, and kept is the folder that it is in: ForkOptions.Upper
// of another fork of the same snapshot. A directory that Fork made is removed too.
//
// It fails with ErrNoFork, and with fusefs.ErrBusy if somebody uses the fork, or if it
// is mounted in another mount namespace too, unless Force is set. It deletes nothing
// that is not certainly the fork's. kept is also given with the error that the process
// which served the snapshot does not end.
func RemoveFork(ctx context.Context, stateDir, nameOrDir string, opts *RemoveForkOptions) (kept string, err error) {
	if opts == nil {
		opts = &RemoveForkOptions{}
	}
	g, err := newForkRegistry(stateDir)
	if err == nil {
		kept, err = g.remove(ctx, nameOrDir, opts)
		_, _ = g.sweep(ctx) // what is left doctor says: this is about a fork
	}
	if err != nil {
		return kept, fmt.Errorf("removing fork %s: %w", nameOrDir, err)
	}
	return kept, nil
}

func (g *forkRegistry) remove(ctx context.Context, nameOrDir string, opts *RemoveForkOptions) (kept string, err error) {
	e, err := g.find(nameOrDir)
	if err != nil {
		return "", err
	}
	defer e.close()
	if err := e.take(ctx); errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("%w: %s", snapshot.ErrNoFork, nameOrDir)
	} else if err != nil {
		return "", err
	}
	if e.rec.Ephemeral && opts.Keep {
		return "", fmt.Errorf("%w: what it changed is in memory; a snapshot of it can be kept", snapshot.ErrInvalid)
	}
	if e.rec.Mode == ForkRestore {
		return e.removeCopy(ctx, opts.Keep)
	}
	if !opts.Keep {
		if err := e.holdsOurs(ctx); err != nil {
			return "", err
		}
	}
	// What can fail comes first, and what cannot be undone last.
	points, err := e.removable(ctx, opts.Force)
	if err != nil {
		return "", err
	}
	if err := e.readyToEnd(opts.Keep); err != nil {
		return "", err
	}
	e.finished()
	busy := false
	for _, m := range slices.Backward(points) {
		used, err := e.unmountPoint(m, opts.Force)
		if err != nil {
			return "", err
		}
		busy = busy || used
	}
	// While nobody else can fork there.
	if err := e.dropDir(opts.Warn); err != nil {
		return "", err
	}
	if opts.Keep {
		kept, err = e.keep(ctx)
	} else {
		err = e.end(ctx)
	}
	if err != nil {
		return "", err
	}
	return kept, g.releaseLower(ctx, e.rec.lower(), !busy)
}

// holdsOurs fails with ErrOwn where a repository that this machine uses, or what another
// fork changed, lies in what the fork changed. It goes by paths: in the upper directory
// they have other inodes than in the mount, and the fork may not be mounted. What is on no
// record is found by what is in it.
func (e *forkEntry) holdsOurs(ctx context.Context) error {
	var ours []string
	for _, u := range repo.UsedRepositories(e.g.state) {
		ours = append(ours, string(u.Dir))
	}
	for _, path := range append(ours, forkLayers(e.g.state)...) {
		for _, dir := range []string{string(e.rec.Dir), e.where()} {
			rel, err := filepath.Rel(dir, path)
			if err != nil || path == "" || !filepath.IsLocal(rel) {
				continue
			}
			if _, err := os.Lstat(filepath.Join(e.upper(), rel)); err == nil {
				return wouldDelete(path)
			}
		}
	}
	fd, err := fsys.OpenDir(e.upper())
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	at, found, _, err := (&ownDirs{}).below(ctx, fd, ".")
	if found {
		return wouldDelete(filepath.Join(e.where(), at))
	}
	return err
}

func wouldDelete(path string) error {
	return fmt.Errorf("%w: %s would be deleted; move it elsewhere first, or keep what the fork changed with --keep", snapshot.ErrOwn, path)
}

// removable gives the fork's mounts in this namespace, if it can be removed: if it has
// one at most, and nobody elsewhere uses it. With force it can unless something lies over it.
func (e *forkEntry) removable(ctx context.Context, force bool) ([]*mountinfo.Info, error) {
	table, err := readMountTable()
	if err != nil {
		return nil, err
	}
	points := e.pointsIn(table)
	e.mountedIn(table)
	there := len(points) > 0 || e.layerThere(table) != nil // else there is nothing to hold
	i := slices.IndexFunc(points, func(m *mountinfo.Info) bool { return table.covered[m] != nil })
	switch m := e.rec.Mounted; {
	case i >= 0: // to unmount it would unmount that
		return nil, fusefs.CoveredError(table.covered[points[i]])
	case force:
		return points, nil
	case len(points) > 1:
		return nil, fmt.Errorf("%w: it is mounted at %s too", fusefs.ErrBusy, points[len(points)-1].Mountpoint)
	default:
		err = e.free(ctx, there)
		if err != nil && !errors.Is(err, fusefs.ErrBusy) && (m == nil || m.isHere() || m.Boot != bootID()) {
			err = nil // it is not known, and nothing speaks for it
		}
		return points, err
	}
}

// removeCopy removes a fork that is a copy.
func (e *forkEntry) removeCopy(ctx context.Context, keep bool) (kept string, err error) {
	dir := string(e.rec.Dir)
	switch {
	case !e.copyThere():
		return "", e.discard(ctx)
	case keep:
		return dir, e.discard(ctx)
	}
	if err := checkMounts(dir); err != nil {
		return "", err
	}
	if err := protectedBy(e.g.state).notIn(ctx, dir); err != nil {
		return "", err
	}
	return "", e.end(ctx)
}

// lowerPatience is how long it takes fuse-overlayfs to end, once it is unmounted, at
// the most.
const lowerPatience = 2 * time.Second

// releaseLower unmounts the snapshot that forks lay over, if none is mounted any
// more. With wait it returns when the process that served it has ended, if that was
// its last mount; who forks the snapshot does not wait for that.
func (g *forkRegistry) releaseLower(ctx context.Context, k lowerKey, wait bool) error {
	_, err := g.release(ctx, k, wait, func() (*os.File, error) { return g.lockLower(ctx, k, unix.LOCK_EX) })
	return err
}

// tryReleaseLower is releaseLower for who does not wait for the lock. It reports false
// if somebody else has it.
func (g *forkRegistry) tryReleaseLower(ctx context.Context, k lowerKey) (bool, error) {
	return g.release(ctx, k, true, func() (*os.File, error) {
		lock, err := tryLockFile(g.lower(k)+".lock", unix.LOCK_EX)
		if lock != nil && g.lowerElsewhere(k.id) {
			lock.Close()
			return nil, nil
		}
		return lock, err
	})
}

// release is releaseLower, with the lock that lock gives; it reports false if that gives
// none. fuse-overlayfs ends a moment after its mount.
func (g *forkRegistry) release(ctx context.Context, k lowerKey, wait bool, lock func() (*os.File, error)) (bool, error) {
	for began := time.Now(); ; {
		late := time.Since(began) > lowerPatience
		file, err := lock()
		if file == nil {
			return false, err
		}
		server, err := g.dropLower(ctx, k, late)
		file.Close()
		switch {
		case err == nil && wait:
			return true, server.wait(ctx)
		case !errors.Is(err, fusefs.ErrBusy) || late:
			server.giveUp()
			return true, err
		}
		select {
		case <-ctx.Done():
			return true, ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// lowerElsewhere reports whether a snapshot is served in another mount namespace, where
// to remove its mount point would unmount it.
func (g *forkRegistry) lowerElsewhere(id manifest.ID) bool {
	entries, err := (&registry{filepath.Join(g.state, local.Mounts)}).scan(id.String()+".", nil)
	defer closeAll(entries)
	if err != nil {
		return true // for all that is known
	}
	here := mountNamespace()
	return slices.ContainsFunc(entries, func(e *entryState) bool { return e.live && e.rec.Namespace != here })
}

// dropLower unmounts the snapshot that forks lay over, if none is mounted. It gives the
// server if that was its last mount. The caller has the lock exclusively.
func (g *forkRegistry) dropLower(ctx context.Context, k lowerKey, detach bool) (*endingServer, error) {
	table, err := readMountTable()
	if err != nil {
		return nil, err
	}
	if used, err := g.lowerUsed(table, k); used || err != nil {
		return nil, err
	}
	lower := g.lower(k)
	var server *endingServer
	mounts := &registry{filepath.Join(g.state, local.Mounts)}
	switch m := table.at(lower); {
	case m == nil:
		// Not mounted, but to be mounted again after a restart of the machine, as the
		// registry has it: forks see to it themselves.
		err = mounts.forget(lower)
	case m.FSType == fusefs.FSType:
		server, err = mounts.unmount(ctx, lower, detach)
	default: // over ours perhaps
		err = fusefs.CoveredError(m)
	}
	if err != nil {
		return nil, err
	}
	os.Remove(lower)
	os.Remove(lower + ".lock")
	return server, nil
}

// lowerUsed reports whether a fork is mounted over it.
func (g *forkRegistry) lowerUsed(t *mountTable, k lowerKey) (bool, error) {
	names, fuse, at := map[string]bool{}, false, map[string]bool{}
	for _, m := range t.all {
		if name, ok := strings.CutPrefix(m.Source, forkSource); ok && m.FSType == overlayType {
			name, _, _ = strings.Cut(name, "@")
			names[name] = true
		}
		if m.FSType == fuseOverlayType {
			fuse, at[forkKeyOf(m.Mountpoint)] = true, true
		}
	}
	keys, err := g.keys()
	if err != nil {
		return true, err
	}
	for _, key := range keys {
		name, word, _ := strings.Cut(key, "@")
		if !fuse && !names[name] {
			continue
		}
		e, err := g.load(key)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			continue
		case err != nil && (names[name] || at["@"+word]):
			return true, err // better a server too many
		case err != nil:
			continue // nothing says that it is mounted
		}
		used := e.rec.lower() == k && len(e.pointsIn(t)) > 0
		e.close()
		if used {
			return true, nil
		}
	}
	return false, nil
}
