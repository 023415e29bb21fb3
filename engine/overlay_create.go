package engine

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/snapctl/snapctl/chunk"
	"github.com/snapctl/snapctl/engine/internal/fsys"
	"github.com/snapctl/snapctl/engine/internal/repo"
	"github.com/snapctl/snapctl/engine/internal/write"
	"github.com/snapctl/snapctl/engine/snapshot"
	"github.com/snapctl/snapctl/manifest"
	"golang.org/x/sys/unix"
)

// overlaySource is a fork as Create reads it: the upper directory, and the snapshot
// that is below.
type overlaySource struct {
	overlay *overlayInfo
	root    int // file descriptor of the upper directory
	rootDir fsys.Dirent
	lower   *manifest.Manifest
	memo    *overlayMemo // nil for none
}

func (f *overlaySource) close() {
	if f != nil {
		unix.Close(f.root)
	}
}

// findFork makes this the create of a fork, if that is what the directory is, and
// if reading the upper directory alone gives what reading all of it would.
func (c *creator) findFork() {
	o, ok := c.host.overlayOf(c.place)
	if o != nil && o.Format == upperFuse {
		c.byFuse = o
	}
	if !ok || len(c.exclude.Patterns) > 0 || c.exclude.Gitignore {
		return
	}
	if c.opts.Parent != "" {
		if id, ok := repo.IdOf(c.opts.Parent); !ok || id != o.Lower {
			return
		}
	}
	// What is the repository's own is left out by its inode, which is another one in
	// the upper directory.
	for _, dir := range c.host.ownDirs().paths {
		if manifest.Within(dir, c.place) {
			return
		}
	}
	fd, err := unix.Open(o.Upper, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		c.repo.Logger.Info("upper directory of a fork", "path", o.Upper, "err", err)
		return
	}
	f := &overlaySource{overlay: o, root: fd}
	if o.Format == upperFuse {
		// The kernel keeps for a while what is written by mmap.
		if err := fsys.SyncFileSystem(c.root); err != nil {
			c.repo.Logger.Info("syncing a fork", "path", c.dir, "err", err)
		}
	}
	if err := f.check(c); err != nil {
		c.repo.Logger.Info("fork is read as any directory", "path", c.dir, "err", err)
		f.close()
		return
	}
	c.fork = f
}

// check makes sure that the upper directory is what the table of mounts says: the
// root of the fork has its metadata.
func (f *overlaySource) check(c *creator) error {
	if !f.overlay.Format.sees(f.root) {
		return errors.New("its attributes cannot be read")
	}
	for attempt := 1; ; attempt++ {
		askStat(c.root)
		var upper, merged unix.Stat_t
		if err := errors.Join(unix.Fstat(c.root, &merged), unix.Fstat(f.root, &upper)); err != nil {
			return err
		}
		f.rootDir, c.rootDir = fsys.DirentOf("", &upper), fsys.DirentOf("", &merged)
		a, b := &f.rootDir, &c.rootDir
		switch {
		case a.Mode == b.Mode && a.Uid == b.Uid && a.Gid == b.Gid && a.Mtime == b.Mtime && a.Ctime == b.Ctime:
			return nil
		case attempt == readAttempts: // it may just have changed, but not so often
			return fmt.Errorf("%s is another directory", f.overlay.Upper)
		}
	}
}

// findLower opens the snapshot below the fork, and the newest of the fork. Without
// the first it is found that all of the fork has to be read.
func (c *creator) findLower(ctx context.Context) (found bool, err error) {
	f := c.fork
	f.memo = readMemo(c.repo.Cache, f.overlay)
	if f.memo != nil {
		c.out.Guard.Present(write.ByCache, repo.ReadTable(c.repo.Cache, memoKey(f.overlay), f.memo.snapshot)...)
	}
	newest := repo.Begin(func() (*manifest.Tree, error) {
		if f.memo == nil {
			return nil, snapshot.ErrNotFound
		}
		m, tree, err := c.repo.LiveTree(ctx, f.memo.snapshot)
		if err == nil {
			err = c.mayUse(m)
		}
		return tree, err
	})
	lower, tree, err := c.repo.LiveTree(ctx, f.overlay.Lower)
	if err == nil {
		err = c.mayUse(lower)
	}
	made, madeErr := newest(ctx)
	switch {
	case errors.Is(err, snapshot.ErrNotFound) || errors.Is(err, snapshot.ErrExpired) || errors.Is(err, write.ErrAnew):
		// All that shows is read.
		f.close()
		c.fork = nil
		return false, nil
	case err != nil:
		return false, fmt.Errorf("the snapshot below the fork: %w", err)
	}
	failed := func(id manifest.ID) func(error) {
		return func(err error) {
			c.out.Commit.SawDamage(err)
			c.warn(fmt.Errorf("snapshot %v: %w; what is in it is stored again", id, err))
		}
	}
	f.lower = lower
	c.parent = &parentTree{id: f.overlay.Lower, info: &lower.Info, tree: tree, failed: failed(f.overlay.Lower)}
	switch {
	case madeErr == nil:
		f.memo.tree, f.memo.failed = made, failed(f.memo.snapshot)
	case f.memo != nil:
		c.repo.Logger.Info("newest snapshot of a fork", "id", f.memo.snapshot, "err", madeErr)
		f.memo = nil
	}
	return true, nil
}

// mayUse says whether all that a snapshot refers to may be referred to, and has its
// packs asked for. What is doomed by now cannot be told from what is not, page by page.
func (c *creator) mayUse(m *manifest.Manifest) error {
	if c.out.Guard.RefusesAny(m.Packs) {
		return write.ErrAnew
	}
	c.out.Guard.Present(write.ByCache, write.PacksNamed(m)...)
	return nil
}

// pages adds the tree pages of the newest snapshot of the fork to those that the
// repository is known to have.
func (f *overlaySource) pages(ctx context.Context, known map[chunk.ID]manifest.PageRef) {
	if f.memo == nil || f.memo.bad.Load() {
		return
	}
	err := f.memo.tree.Pages(ctx, func(p manifest.PageRef) { known[p.ID] = p })
	if err != nil && ctx.Err() == nil {
		f.memo.fail(err)
	}
}

// damaged reports whether the newest snapshot of the fork cannot be read: then none of its
// pages is referred to again.
func (f *overlaySource) damaged() bool { return f != nil && f.memo != nil && f.memo.bad.Load() }

// overlayReader is what a reader must know of an upper directory.
type overlayReader struct {
	format upperFormat
	tree   *manifest.Tree // of the snapshot below
	broken func(error)    // ends the run
}

func (f *overlaySource) reader(c *creator) *overlayReader {
	if f == nil {
		return nil
	}
	return &overlayReader{f.overlay.Format, c.parent.tree, func(err error) { c.out.Commit.Fail.CompareAndSwap(nil, &err) }}
}

// fatal ends the run for an error that must not be taken for a file that cannot be
// read.
func (f *overlayReader) fatal(err error) bool {
	if !errors.Is(err, errBadUpper) && !errors.Is(repo.Integrity(err), snapshot.ErrIntegrity) {
		return false
	}
	f.broken(err)
	return true
}

// removed reports whether an item could not be read because a whiteout has taken its
// place meanwhile.
func (f *overlayReader) removed(dir *openDir, it *item) bool {
	parent, err := dir.get(it.entry.Dir)
	var st unix.Stat_t
	if err != nil || it.entry.Name == "" || fsys.StatAt(parent, it.entry.Name, &st) != nil {
		return false
	}
	return st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0
}

// lowerContents gives an open upper file that has no contents of its own those of the
// snapshot's file below it, and reports whether it is one.
func (r *reader) lowerContents(ctx context.Context, fd int, it *item) (is bool, err error) {
	if r.fork == nil {
		return false, nil
	}
	for attempt := 1; ; attempt++ {
		is, redirect, err := r.fork.format.metacopy(fd)
		if !is || err != nil {
			return false, err
		}
		path := it.entry.Path()
		e, err := r.fork.lowerFile(ctx, path, redirect, it)
		if err != nil {
			return false, err
		}
		same, err := r.restat(fd, it)
		if err != nil {
			return false, err
		}
		if !same && attempt < readAttempts {
			continue
		}
		if !same {
			r.problem(fmt.Errorf("reading file %q: %w", path, errChanging))
			it.print = 0
		}
		if uint64(it.stat.Size) != e.Size {
			return false, badUpper(path, "it has %d bytes without contents, and the snapshot's file %d", it.stat.Size, e.Size)
		}
		it.entry.Size, it.entry.Extents, it.entry.Spill = e.Size, e.Extents, e.Spill
		r.bytes(it.stat.Size)
		return true, r.fileXattrs(fd, it)
	}
}

// lowerFile finds the snapshot's file that an upper one has the contents of.
func (f *overlayReader) lowerFile(ctx context.Context, path, redirect string, it *item) (*manifest.Entry, error) {
	if f.format != upperTrusted {
		return nil, badUpper(path, "a file without contents, in a fork that cannot have any")
	}
	if redirect == "" {
		redirect = it.entry.Name
	}
	to, err := redirected(path, redirect, it.lower)
	if err != nil {
		return nil, err
	}
	k := manifest.KeyOf(to)
	for {
		e := &manifest.Entry{}
		_, err := f.tree.Lookup(ctx, k, e)
		switch {
		case errors.Is(err, manifest.ErrNotExist) || err == nil && e.Type != manifest.File && e.Type != manifest.Link:
			return nil, badUpper(path, "a file without contents, and the snapshot has no file %q", to)
		case err != nil:
			return nil, fmt.Errorf("%q: %w", path, err)
		case e.Type == manifest.File:
			return e, nil
		}
		k = e.First // which comes earlier, and so on to an end
	}
}

// overlayTree changes the tree of the snapshot below a fork.
type overlayTree struct {
	patch *manifest.Patch
	// below are directories that went away while they were read, in order: the tree
	// may still have what was in them.
	below []string
}

// patchTree makes the tree of the snapshot below the fork the one to begin with.
func (a *assembler) patchTree(ctx context.Context, sink manifest.PageSink) error {
	lower := a.creator.fork.lower
	use := make(map[chunk.PackID]uint64, len(lower.Packs))
	for _, p := range lower.Packs {
		use[p.ID] = p.Bytes
	}
	patch, err := manifest.NewPatch(ctx, a.parent.tree, use, sink)
	if err != nil {
		return err
	}
	a.files, a.bytes, a.memo = lower.Files, lower.Bytes, map[uint64]uint64{}
	patch.Dropped = func(e *manifest.Entry) {
		if e.Type != manifest.Dir {
			a.files--
		}
		if e.Type == manifest.File {
			a.bytes -= e.Size
		}
	}
	a.fork = &overlayTree{patch: patch}
	a.builder = a.fork
	return nil
}

// belowKey is where RemoveBelow stands in the order.
func belowKey(dir string) manifest.Key { return manifest.Key{Dir: dir, Name: "\x01"} }

// Add is treeBuilder's.
func (t *overlayTree) Add(ctx context.Context, e *manifest.Entry) error {
	k := e.Key()
	if err := t.removeGone(ctx, &k); err != nil {
		return err
	}
	return t.patch.Put(ctx, e)
}

// Finish is treeBuilder's.
func (t *overlayTree) Finish(ctx context.Context) (*manifest.Root, error) {
	if err := t.removeGone(ctx, nil); err != nil {
		return nil, err
	}
	return t.patch.Finish(ctx)
}

// remove removes what an item says.
func (t *overlayTree) remove(ctx context.Context, it *item) error {
	k := it.entry.Key()
	if it.op == opRemoveBelow {
		k = belowKey(it.entry.Dir)
	}
	if err := t.removeGone(ctx, &k); err != nil {
		return err
	}
	if it.op == opRemoveBelow {
		return t.patch.RemoveBelow(ctx, it.entry.Dir)
	}
	if _, err := t.patch.Remove(ctx, k); err != nil {
		return err
	}
	if it.drop && it.entry.Type == manifest.Dir {
		path := it.entry.Path()
		i, _ := slices.BinarySearchFunc(t.below, path, manifest.ComparePaths)
		t.below = slices.Insert(t.below, i, path)
	}
	return nil
}

// removeGone removes what is below the directories that went away, as far as they
// come before a key; all of them, if it is nil.
func (t *overlayTree) removeGone(ctx context.Context, k *manifest.Key) error {
	for len(t.below) > 0 && (k == nil || belowKey(t.below[0]).Compare(*k) <= 0) {
		if err := t.patch.RemoveBelow(ctx, t.below[0]); err != nil {
			return err
		}
		t.below = t.below[1:]
	}
	return nil
}
