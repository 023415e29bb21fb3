package engine

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/snapctl/snapctl/engine/internal/fsys"
	"github.com/snapctl/snapctl/engine/internal/repo"
	"github.com/snapctl/snapctl/engine/snapshot"
	"github.com/snapctl/snapctl/fusefs"
	"github.com/snapctl/snapctl/manifest"
	"golang.org/x/sys/unix"
)

func (e *forkEntry) fork() *Fork {
	f := &Fork{
		Name: e.rec.Name, Dir: e.where(), Snapshot: e.rec.Snapshot, Repository: e.rec.Repository.URL,
		Mode: e.rec.Mode, Ephemeral: e.rec.Ephemeral, Created: e.rec.Created, state: e.g.state,
	}
	if f.Mode != ForkRestore {
		f.Upper = e.upper()
	}
	return f
}

// Unmount unmounts the fork and keeps what was changed. It fails with
// fusefs.ErrBusy if somebody uses it, unless detach is set.
func (f *Fork) Unmount(ctx context.Context, detach bool) error {
	err := Unmount(ctx, f.state, f.Dir, &UnmountOptions{Detach: detach})
	if errors.Is(err, fusefs.ErrNotMounted) {
		return nil
	}
	return err
}

// Remove unmounts the fork and removes what was changed: see RemoveFork.
func (f *Fork) Remove(ctx context.Context, opts *RemoveForkOptions) (kept string, err error) {
	return RemoveFork(ctx, f.state, f.Name, opts)
}

// errNoFUSE and errNoOverlay say that a mode of forks does not work here.
var (
	errNoFUSE    = errors.New("FUSE cannot be used here")
	errNoOverlay = errors.New("no overlay can be mounted here")
)

// Fork makes a writable directory of a snapshot, at once: overlayfs over the one
// mount of the snapshot that all forks of it on this machine share. dir is an empty
// directory, or is made. What the fork changes goes to a folder of its own.
//
// It needs Options.StateDir. Forks of one snapshot can be made in parallel, by any
// number of processes. Once the snapshot is mounted, to fork it by its id takes no
// request.
//
// It fails with ErrExists for a name or a directory that a fork has, for a directory
// that holds something, unless Force is set, and for an Upper that holds anything
// else than Fork may use; and with ErrNotFound and ErrExpired.
//
// Nothing keeps the snapshot while none of its forks is mounted: when it is removed
// then, the fork cannot be resumed. What it changed is still there.
func (r *Repository) Fork(ctx context.Context, ref, dir string, opts *ForkOptions) (*Fork, error) {
	if opts == nil {
		opts = &ForkOptions{}
	}
	x := &forker{repo: r, opts: opts}
	f, err := x.fork(ctx, ref, dir)
	if err != nil {
		return nil, fmt.Errorf("forking to %s: %w", dir, err)
	}
	return f, nil
}

// stateDir is Options.StateDir, made absolute; "" for none.
func (r *Repository) stateDir() string {
	if r.registry == nil {
		return ""
	}
	return filepath.Dir(r.registry.dir)
}

// A forker is one run of Fork or ResumeFork.
type forker struct {
	repo *Repository
	opts *ForkOptions
	g    *forkRegistry
}

func (x *forker) fork(ctx context.Context, ref, dir string) (_ *Fork, err error) {
	if x.g, err = newForkRegistry(x.repo.stateDir()); err != nil {
		return nil, err
	}
	if err := x.check(); err != nil {
		return nil, err
	}
	x.sweep(ctx)
	id, ok := repo.IdOf(ref)
	if !ok {
		s, err := x.repo.Get(ctx, ref)
		if err != nil {
			return nil, err
		}
		id = s.ID
	}
	if dir == "" {
		return nil, fmt.Errorf("%w: no directory", snapshot.ErrInvalid)
	}
	path, err := fusefs.Resolve(dir)
	if err != nil {
		return nil, err
	}
	keys, err := x.g.keys()
	if err != nil {
		return nil, err
	}
	for _, key := range keys { // which is looked at again when it counts
		if name, ok := strings.CutSuffix(key, forkKeyOf(path)); ok {
			return nil, fmt.Errorf("%w: fork %s is there", snapshot.ErrExists, name)
		}
	}
	_, err = os.Lstat(path)
	made := errors.Is(err, fs.ErrNotExist) // or to be made, once that is written down
	var bare *bareDir
	if !made {
		if path, err = mountPoint(path, x.opts.Force); err != nil {
			return nil, err
		}
		if bare, err = x.g.bareFor(path, ""); err != nil {
			return nil, err
		}
	}
	if err := x.hidesNothing(path); err != nil {
		return nil, err
	}
	rec := &forkRecord{
		Version: forkVersion, ID: strings.ToLower(rand.Text()[:16]), Name: x.opts.Name,
		Repository: recordRepository{URL: x.repo.recordURL(), ID: x.repo.repo.Cfg.ID},
		Dir:        rawPath(path), MadeDir: made, Bare: bare, Ephemeral: x.opts.Ephemeral, Prefetch: x.opts.Prefetch.String(),
		Created: x.repo.repo.Now().UTC(), Mounted: placeHere(),
	}
	var f *Fork
	if x.opts.Mode != ForkRestore {
		rec.Snapshot.ID = id
		f, err = x.mountNew(ctx, rec)
		plain := x.opts.Mode == "" && x.opts.Upper == "" && !x.opts.Ephemeral && !x.opts.Force
		if !plain || !fsys.IsAny(err, errNoFUSE, errNoOverlay) {
			return f, err
		}
		x.warn(fmt.Errorf("the whole snapshot is copied to %s: %w", path, err))
	}
	return x.copyOut(ctx, rec, id)
}

// hidesNothing fails with ErrOwn where a fork would lie over what is snapctl's own.
func (x *forker) hidesNothing(path string) error {
	if !x.opts.Force {
		return nil // the directory is empty
	}
	if own := x.repo.protected().hiddenBy(path); own != "" {
		return fmt.Errorf("%w: %s would be hidden", snapshot.ErrOwn, own)
	}
	return nil
}

func (x *forker) warn(err error) {
	if x.opts.Warn != nil {
		x.opts.Warn(err)
	}
}

// sweep sweeps the state directory. What is left doctor says: this is about a fork.
func (x *forker) sweep(ctx context.Context) {
	swept, err := x.g.sweep(ctx)
	if len(swept) > 0 || err != nil {
		x.repo.repo.Logger.Info("swept", "what", swept, "err", err)
	}
}

// check checks the options.
func (x *forker) check() error {
	o := x.opts
	if o.Name != "" {
		if err := checkForkName(o.Name); err != nil {
			return err
		}
	}
	if o.Mode != "" {
		if _, err := ParseForkMode(string(o.Mode)); err != nil {
			return err
		}
	}
	switch {
	case o.Ephemeral && o.Upper != "":
		return fmt.Errorf("%w: an upper folder, and changes in memory", snapshot.ErrInvalid)
	case o.Mode == ForkRestore && (o.Ephemeral || o.Upper != "" || o.Force):
		return fmt.Errorf("%w: a copy has no upper folder, and hides nothing", snapshot.ErrInvalid)
	}
	return nil
}

// overLower calls do with a directory at which the snapshot is mounted, and stays as
// long as do takes. Whoever comes first mounts it.
func (x *forker) overLower(ctx context.Context, k lowerKey, do func(lower string, s *snapshot.Snapshot) error) error {
	for how := unix.LOCK_SH; ; how = unix.LOCK_EX {
		lock, err := x.g.lockLower(ctx, k, how)
		if err != nil {
			return fmt.Errorf("state folder: %w", err)
		}
		s, err := x.lowerThere(k)
		if s == nil && err == nil && how == unix.LOCK_SH {
			lock.Close()
			continue
		}
		if s == nil && err == nil {
			s, err = x.mountLower(ctx, k)
		}
		if err == nil {
			if err = x.repo.repo.CheckLive(ctx, s); err != nil {
				err = fmt.Errorf("snapshot %v: %w", k.id, err)
			}
		}
		if err == nil {
			err = do(x.g.lower(k), s)
		}
		lock.Close()
		if err != nil && how == unix.LOCK_EX {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), serverPatience)
			defer cancel()
			err = errors.Join(err, x.g.releaseLower(ctx, k, true))
		}
		return err
	}
}

// lowerThere gives the snapshot, if it is mounted where forks lie over it; else nil.
func (x *forker) lowerThere(k lowerKey) (*snapshot.Snapshot, error) {
	points, err := fusefs.Points()
	if err != nil {
		return nil, err
	}
	lower := x.g.lower(k)
	at := slices.IndexFunc(points, func(p fusefs.Point) bool { return p.Dir == lower && !p.Covered })
	if at < 0 {
		return nil, nil
	}
	// The server may have died, or be stopped, which the mount of an overlay would
	// wait for. One that has little of a busy machine is given time.
	switch err := fusefs.Probe(lower, pointPatience); {
	case errors.Is(err, fusefs.ErrNoServer):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("snapshot %v: %w", k.id, err)
	}
	entries, damaged := x.repo.registry.scan(k.id.String()+".", points)
	defer closeAll(entries)
	for _, e := range entries {
		here := slices.ContainsFunc(e.points, func(p fusefs.Point) bool { return p.Dir == lower && p.Whole && !p.Covered })
		if here && e.live && e.rec.Repository.ID == x.repo.repo.Cfg.ID {
			return &e.rec.Snapshot, nil
		}
	}
	return nil, damaged
}

// mountLower mounts the snapshot where forks lie over it.
func (x *forker) mountLower(ctx context.Context, k lowerKey) (*snapshot.Snapshot, error) {
	if err := TryMount(x.g.state); err != nil {
		return nil, fmt.Errorf("%w: %w", errNoFUSE, err)
	}
	lower := x.g.lower(k)
	// Of a dead one even mkdir may fail.
	if err := os.Mkdir(lower, 0o700); err != nil && !fsys.IsAny(err, fs.ErrExist, unix.ENOTCONN, unix.ECONNABORTED) {
		return nil, fmt.Errorf("state folder: %w", err)
	}
	mo := &MountOptions{Prefetch: x.opts.Prefetch, Share: true, Fail: x.opts.Fail, Warn: x.opts.Warn, byOthers: x.opts.Serve != nil}
	m, err := x.repo.Mount(ctx, k.id.String(), lower, mo)
	if err == nil {
		return &m.Snapshot, nil
	}
	if !errors.Is(err, errNoServer) {
		return nil, err
	}
	// What cannot be served is better known before.
	s, err := x.repo.Get(ctx, k.id.String())
	if err != nil {
		return nil, err
	}
	if err := x.opts.Serve(ctx, k.id, lower, x.opts.Prefetch); err != nil {
		return nil, err
	}
	if there, err := x.lowerThere(k); err != nil || there == nil {
		return nil, errors.Join(fmt.Errorf("snapshot %v: another process was to mount it, and has not", k.id), err)
	}
	return s, nil
}

// mountNew makes an entry and mounts the fork over the snapshot that the record names, in
// the first mode that can be had.
func (x *forker) mountNew(ctx context.Context, rec *forkRecord) (_ *Fork, err error) {
	layer, err := x.openLayer(rec)
	if err != nil {
		return nil, err
	}
	defer layer.close()
	modes := forkModes[:3]
	if layer.kept != nil {
		modes = []ForkMode{layer.kept.Mode}
	}
	if x.opts.Mode != "" {
		if layer.kept != nil && layer.kept.Mode != x.opts.Mode {
			return nil, fmt.Errorf("%w: %s is of a fork in mode %s", snapshot.ErrExists, x.opts.Upper, layer.kept.Mode)
		}
		modes = []ForkMode{x.opts.Mode}
	}
	var why []string
	for _, mode := range modes {
		if err := x.possible(mode); err != nil {
			why = append(why, fmt.Sprintf("%s: %v", mode, err))
			continue
		}
		rec.Mode = mode
		var f *Fork
		err := x.overLower(ctx, rec.lower(), func(lower string, s *snapshot.Snapshot) error {
			rec.Snapshot = *s
			var err error
			f, err = x.mountAs(ctx, rec, layer, lower)
			return err
		})
		if err == nil {
			return f, nil
		}
		if !errors.Is(err, errNoOverlay) {
			return nil, err
		}
		why = append(why, fmt.Sprintf("%s: %v", mode, err))
	}
	return nil, fmt.Errorf("%w: %s", errNoOverlay, strings.Join(why, "; "))
}

// mountAs is mountNew in one mode. It leaves nothing if it fails.
func (x *forker) mountAs(ctx context.Context, rec *forkRecord, layer *forkLayer, lower string) (_ *Fork, err error) {
	asked := *rec
	if rec.Ephemeral && rec.Mode == ForkFuse {
		// Who may not mount has to find a tmpfs.
		rec.Layer, rec.MadeLayer = rawPath(filepath.Join(sharedMemory, "snapctl-fork-"+rec.ID)), true
	}
	rec.Works, rec.Took = layer.works().next(layer.dir), layer.kept
	e, err := x.g.make(ctx, rec)
	if err != nil {
		return nil, err
	}
	defer e.close()
	defer func() {
		if err != nil {
			err = errors.Join(err, e.undo(context.WithoutCancel(ctx)))
			*rec = asked
		}
	}()
	if err := e.makeDirs(layer); err != nil {
		return nil, err
	}
	if rec.Ephemeral && rec.Mode != ForkFuse {
		if err := e.mountMemory(); err != nil {
			return nil, err
		}
	}
	if layer.kept != nil { // whose layer.json stays as it is while somebody has it
		if err := e.free(ctx, false); err != nil {
			return nil, layer.inUse(err)
		}
	}
	if rec.Layer != "" {
		if err := e.mark(); err != nil {
			return nil, err
		}
	}
	if layer.kept == nil {
		if err := makeUpper(lower, e.upper(), rec.Mode.format()); err != nil {
			return nil, err
		}
	}
	if err := e.mount(ctx, lower, nil); err != nil {
		return nil, err
	}
	e.finished()
	return e.fork(), nil
}

// makeDirs makes the directories of the fork that are to be made, now that its record
// says so. What its own is comes into the record.
func (e *forkEntry) makeDirs(layer *forkLayer) error {
	if e.rec.MadeDir {
		err := os.Mkdir(string(e.rec.Dir), 0o755)
		if err != nil {
			e.rec.MadeDir = false
			return err
		}
		if e.rec.Bare, err = bareAt(string(e.rec.Dir)); err != nil {
			return err
		}
		if err := e.write(); err != nil {
			return err
		}
	}
	if !e.rec.MadeLayer || e.rec.TookLayer {
		return nil
	}
	if err := os.Mkdir(string(e.rec.Layer), 0o700); err != nil {
		e.rec.MadeLayer = false
		return err
	}
	if layer.dir == "" { // of an ephemeral one
		return nil
	}
	return layer.take()
}

// copyOut restores the snapshot instead.
func (x *forker) copyOut(ctx context.Context, rec *forkRecord, id manifest.ID) (_ *Fork, err error) {
	s, err := x.repo.Get(ctx, id.String())
	if err != nil {
		return nil, err
	}
	rec.Snapshot, rec.Mode, rec.Copy, rec.Bare = *s, ForkRestore, &forkCopy{}, nil
	e, err := x.g.make(ctx, rec)
	if err != nil {
		return nil, err
	}
	defer e.close()
	defer func() {
		if err != nil {
			err = errors.Join(err, e.undo(context.WithoutCancel(ctx)))
		}
	}()
	receipt, err := x.repo.Restore(ctx, id.String(), string(rec.Dir), &RestoreOptions{Progress: x.opts.Progress})
	if err != nil {
		return nil, err
	}
	for _, p := range receipt.Problems {
		x.warn(p)
	}
	if rec.Copy, err = copyAt(string(rec.Dir)); err != nil {
		return nil, err
	}
	if err := e.write(); err != nil {
		return nil, err
	}
	e.finished()
	return e.fork(), nil
}

// copyAt identifies a directory.
func copyAt(dir string) (*forkCopy, error) {
	return identify(unix.AT_FDCWD, dir, unix.AT_SYMLINK_NOFOLLOW)
}

func identify(at int, dir string, flags int) (*forkCopy, error) {
	var st unix.Statx_t
	err := unix.Statx(at, dir, flags, unix.STATX_INO|unix.STATX_BTIME|unix.STATX_TYPE, &st)
	if err != nil {
		return nil, &os.PathError{Op: "statx", Path: dir, Err: err}
	}
	c := &forkCopy{Inode: st.Ino}
	if st.Mask&unix.STATX_BTIME != 0 {
		c.Born = st.Btime.Sec*1e9 + int64(st.Btime.Nsec)
	}
	return c, nil
}

// copyThere reports whether the copy is where it was made.
func (e *forkEntry) copyThere() bool {
	c, err := copyAt(string(e.rec.Dir))
	return err == nil && e.rec.Copy.Inode != 0 && *c == *e.rec.Copy
}

// A mountedFork is what is known of a fork by the directory at which it is mounted.
type mountedFork struct {
	Snapshot manifest.ID
	Upper    string
	Mode     ForkMode
}

// forkAt gives the fork that is mounted at a path without symbolic links; nil if none
// of this state folder's is.
func (r *Repository) forkAt(path string) *mountedFork {
	g, err := newForkRegistry(r.stateDir())
	if err != nil {
		return nil
	}
	e, err := g.at(path)
	if err != nil {
		r.repo.Logger.Info("looking for a fork", "path", path, "err", err)
	}
	if e == nil {
		return nil
	}
	defer e.close()
	return &mountedFork{e.rec.Snapshot.ID, e.upper(), e.rec.Mode}
}
