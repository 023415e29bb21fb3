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
	keys := g.keys()
	i := slices.IndexFunc(keys, func(key string) bool { return strings.HasSuffix(key, forkKeyOf(path)) })
	if i < 0 {
		return false, nil
	}
	table, err := readMountTable()
	if err != nil {
		return false, err
	}
	e, err := g.load(keys[i])
	if err != nil {
		return false, err
	}
	defer e.close()
	if !e.mountedIn(table) && (e.rec.Mounted == nil || e.rec.Mode == ForkRestore || table[path] != nil) {
		return false, nil
	}
	if err := e.unmountFork(ctx, detach); !errors.Is(err, fs.ErrNotExist) {
		return true, err
	}
	return false, nil // somebody else removed it
}

// unmountFork unmounts a fork, or forgets that it was mounted.
func (e *forkEntry) unmountFork(ctx context.Context, detach bool) error {
	if err := e.take(ctx); err != nil {
		return err
	}
	e.finished()
	busy, err := e.unmount(detach)
	if err == nil {
		err = e.write()
	}
	if err != nil {
		return err
	}
	return e.g.releaseLower(ctx, e.rec.lower(), !busy)
}

// unmount unmounts the fork, if it is mounted. The caller has the lock, and writes
// the record.
func (e *forkEntry) unmount(detach bool) (busy bool, err error) {
	table, err := readMountTable()
	if err != nil {
		return false, err
	}
	if e.mountedIn(table) {
		err = fusefs.UnmountAt(string(e.rec.Dir), false)
		if detach && errors.Is(err, fusefs.ErrBusy) {
			busy, err = true, fusefs.UnmountAt(string(e.rec.Dir), true)
		}
		if err != nil {
			return false, err
		}
	}
	e.rec.Mounted = nil
	return busy, nil
}

// RemoveFork removes a fork, named by its name or its directory, and what it changed.
// With Keep that stays, and kept is the folder that it is in: ForkOptions.Upper
// of another fork of the same snapshot. A directory that Fork made is removed too.
//
// It fails with ErrNoFork, and with fusefs.ErrBusy if somebody uses the fork, unless
// Force is set. It deletes nothing that is not certainly the fork's.
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
		return "", fmt.Errorf("removing fork %s: %w", nameOrDir, err)
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
		return "", fmt.Errorf("%w: %s", ErrNoFork, nameOrDir)
	} else if err != nil {
		return "", err
	}
	if e.rec.Ephemeral && opts.Keep {
		return "", fmt.Errorf("%w: what it changed is in memory; a snapshot of it can be kept", ErrInvalid)
	}
	if e.rec.Mode == ForkRestore {
		return e.removeCopy(ctx, opts.Keep)
	}
	here := placeHere()
	if m := e.rec.Mounted; m != nil && m.Boot == here.Boot && m.Namespace != here.Namespace && !opts.Force {
		return "", fmt.Errorf("%w: it may be mounted in another mount namespace", fusefs.ErrBusy)
	}
	if e.rec.Layer != "" {
		if _, err := e.layerOurs(); err != nil { // better known before anything is done
			return "", err
		}
	}
	e.finished()
	busy, err := e.unmount(opts.Force)
	if err != nil {
		return "", err
	}
	// While nobody else can fork there.
	e.dropDir()
	if opts.Keep {
		kept, err = e.keep()
	} else {
		err = e.end()
	}
	if err != nil {
		return "", err
	}
	return kept, g.releaseLower(ctx, e.rec.lower(), !busy)
}

// removeCopy removes a fork that is a copy.
func (e *forkEntry) removeCopy(ctx context.Context, keep bool) (kept string, err error) {
	dir := string(e.rec.Dir)
	switch {
	case !e.copyThere():
		return "", e.discard()
	case keep:
		return dir, e.discard()
	}
	if err := checkMounts(dir); err != nil {
		return "", err
	}
	if err := protectedBy(e.g.state).notIn(ctx, dir); err != nil {
		return "", err
	}
	return "", e.end()
}

// lowerPatience is how long it takes fuse-overlayfs to end, once it is unmounted, at
// the most.
const lowerPatience = 2 * time.Second

// releaseLower unmounts the snapshot that forks lay over, if none is mounted any
// more. With wait it returns when the process that served it has ended, if that was
// its last mount.
func (g *forkRegistry) releaseLower(ctx context.Context, k lowerKey, wait bool) error {
	lock, err := g.lockLower(ctx, k, unix.LOCK_EX)
	if err != nil {
		return err
	}
	defer lock.Close()
	return g.dropLower(ctx, k, wait)
}

// tryReleaseLower is releaseLower for who does not wait for the lock. It reports false
// if somebody else has it.
func (g *forkRegistry) tryReleaseLower(ctx context.Context, k lowerKey) (bool, error) {
	lock, err := tryLockFile(g.lower(k)+".lock", unix.LOCK_EX)
	if lock == nil {
		return false, err
	}
	defer lock.Close()
	if g.lowerElsewhere(k.id) {
		return false, nil
	}
	return true, g.dropLower(ctx, k, true)
}

// lowerElsewhere reports whether a snapshot is served in another mount namespace, where
// to remove its mount point would unmount it.
func (g *forkRegistry) lowerElsewhere(id manifest.ID) bool {
	entries := (&registry{filepath.Join(g.state, mountsDir)}).scan(id.String()+".", nil)
	defer closeAll(entries)
	here := mountNamespace()
	return slices.ContainsFunc(entries, func(e *entryState) bool { return e.live && e.rec.Namespace != here })
}

// dropLower is releaseLower for who has the lock exclusively.
func (g *forkRegistry) dropLower(ctx context.Context, k lowerKey, wait bool) error {
	table, err := readMountTable()
	if err != nil {
		return err
	}
	if used, err := g.lowerUsed(table, k); used || err != nil {
		return err
	}
	lower := g.lower(k)
	if table[lower] == nil {
		// Not mounted, but to be mounted again after a restart of the machine, as the
		// registry has it: forks see to it themselves.
		err = (&registry{filepath.Join(g.state, mountsDir)}).forget(lower)
	}
	for began := time.Now(); table[lower] != nil && table[lower].FSType == fusefs.FSType; {
		late := time.Since(began) > lowerPatience
		if wait {
			err = unmountAt(ctx, g.state, lower, &UnmountOptions{Detach: late})
		} else {
			err = fusefs.UnmountAt(lower, late)
		}
		if !errors.Is(err, fusefs.ErrBusy) || late {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	if err != nil {
		return err
	}
	os.Remove(lower)
	os.Remove(lower + ".lock")
	return nil
}

// lowerUsed reports whether a fork is mounted over it.
func (g *forkRegistry) lowerUsed(t mountTable, k lowerKey) (bool, error) {
	overlays := map[string]bool{}
	for path, m := range t {
		if m.FSType == overlayType || m.FSType == fuseOverlayType {
			overlays[forkKeyOf(path)] = true
		}
	}
	for _, key := range g.keys() {
		if i := strings.Index(key, "@"); !overlays[key[i:]] {
			continue
		}
		e, err := g.load(key)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return true, err // better a server too many
		}
		used := e.rec.lower() == k && e.mountedIn(t)
		e.close()
		if used {
			return true, nil
		}
	}
	return false, nil
}
