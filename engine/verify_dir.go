package engine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"

	"github.com/snapctl/snapctl/engine/internal/flow"
	"github.com/snapctl/snapctl/engine/internal/fsys"
	"github.com/snapctl/snapctl/engine/internal/ignore"
	"github.com/snapctl/snapctl/engine/internal/progress"
	"github.com/snapctl/snapctl/engine/internal/repo"
	"github.com/snapctl/snapctl/engine/snapshot"
	"github.com/snapctl/snapctl/engine/view"
	"github.com/snapctl/snapctl/manifest"
	"github.com/snapctl/snapctl/remote"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// VerifyDirOptions are how a directory is compared with a snapshot. nil will do.
type VerifyDirOptions struct {
	NoOwner  bool // users and groups do not count
	NoTimes  bool // times of modification do not count
	Progress snapshot.Progress
}

// A DirReport is what VerifyDir looked at.
type DirReport struct {
	Snapshot *snapshot.Snapshot
	Files    int64 // entries of the directory, directories included
	Bytes    int64 // of files that were read
	// Problems names each file that could not be compared.
	Problems []error
}

// VerifyDir calls yield for what differs from a snapshot to the directory dir, in the
// order of Diff: the Old of a Change is the snapshot's file, the New the directory's.
// It stops at yield's first error, and returns it.
//
// Every file of the snapshot's size is read and compared byte for byte; a hole is the
// same as zeros. Type, mode, owner, time of modification, extended attributes,
// targets of symbolic links and numbers of devices are compared too, and which names
// are hard links of one file. Links out of the directory, and sockets, do not count.
// Nothing of what the snapshot's files hold is fetched, but its tree.
func (r *Repository) VerifyDir(ctx context.Context, ref, dir string, opts *VerifyDirOptions, yield func(*view.Change) error) (*DirReport, error) {
	if opts == nil {
		opts = &VerifyDirOptions{}
	}
	m, err := r.repo.ManifestOf(ctx, ref)
	if err != nil {
		return nil, err
	}
	s, err := view.OpenWhole(ctx, r.repo, m)
	if err != nil {
		return nil, err
	}
	v := &dirVerifier{repo: r, opts: opts, snapshot: s, meter: progress.New(opts.Progress), links: map[fsys.Inode]*linkGroup{}, skip: r.ownDirs().byInode}
	v.meter.Start(snapshot.PhaseVerifying)
	defer v.meter.Stop()
	v.meter.TotalFiles.Store(int64(m.Entries))
	v.meter.TotalBytes.Store(int64(m.Bytes))
	if err := v.openRoot(dir); err != nil {
		return nil, fmt.Errorf("comparing %s: %w", dir, err)
	}
	defer unix.Close(v.root)
	if err := v.run(ctx, yield); err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return nil, fmt.Errorf("comparing %s with snapshot %v: %w", dir, m.ID, repo.Integrity(err))
	}
	return &DirReport{Snapshot: &s.Snapshot, Files: v.meter.Files.Load(), Bytes: v.meter.Bytes.Load(), Problems: v.problems}, nil
}

// dirVerifier goes through a directory and a snapshot's tree side by side: the walk of
// a directory is in the order of trees. Files are compared ahead of yield, several at
// once.
type dirVerifier struct {
	repo     *Repository
	opts     *VerifyDirOptions
	snapshot *view.FS
	root     int // file descriptor; -1 for a directory that is not there
	rootDir  fsys.Dirent
	chosen   *ignore.Selection     // of the snapshot; nil for everything
	skip     map[fsys.Inode]string // directories that are not looked at
	byStat   bool                  // of files of the same size and time the contents are the same
	unread   bool                  // attributes that may not be read are other ones, and no problem
	meter    *progress.Meter

	// Of the walk.
	cursor *manifest.Cursor
	old    manifest.Entry // the snapshot's next entry
	rank   uint64
	more   bool
	links  map[fsys.Inode]*linkGroup
	hidden []string // directories that could not be listed
	kept   []string // directories that were skipped

	work, order chan *dirJob
	problems    []error // of yield's goroutine
}

// dirJob is a path to be compared.
type dirJob struct {
	old, new *manifest.Entry // nil for none
	oldRank  uint64
	inode    uint64
	first    manifest.Key // of new, if it is another name of an earlier file

	done    chan struct{}
	change  *view.Change // nil if they are the same
	problem error        // the file cannot be looked at
	err     error        // the snapshot cannot
}

func (v *dirVerifier) openRoot(dir string) error {
	abs, err := remote.Abs(dir)
	if err != nil {
		return err
	}
	v.root, err = unix.Open(abs, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOTDIR) {
		return fmt.Errorf("%w: it is not a directory", snapshot.ErrInvalid)
	}
	if err != nil {
		return &os.PathError{Op: "open", Path: abs, Err: err}
	}
	var st unix.Stat_t
	if err := unix.Fstat(v.root, &st); err != nil {
		unix.Close(v.root)
		return &os.PathError{Op: "stat", Path: abs, Err: err}
	}
	v.rootDir = fsys.DirentOf("", &st)
	return nil
}

func (v *dirVerifier) run(ctx context.Context, yield func(*view.Change) error) error {
	workers := runtime.GOMAXPROCS(0)
	v.work, v.order = make(chan *dirJob, 4*workers), make(chan *dirJob, 64*workers)
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		defer close(v.order)
		defer close(v.work)
		return v.walk(gctx, workers)
	})
	for range max(4, 2*workers) {
		g.Go(func() error {
			rd := &reader{root: v.root}
			dir := &openDir{root: v.root}
			defer dir.close()
			var buf []byte
			for job := range v.work {
				v.compare(gctx, job, rd, dir, &buf)
				close(job.done)
			}
			return nil
		})
	}
	g.Go(func() error {
		for job := range v.order {
			select {
			case <-job.done:
			case <-gctx.Done():
				return gctx.Err()
			}
			switch {
			case job.err != nil:
				return job.err
			case job.problem != nil:
				v.report(job.problem)
			case job.change != nil:
				if err := yield(job.change); err != nil {
					return err
				}
			}
		}
		return nil
	})
	return g.Wait()
}

func (v *dirVerifier) report(err error) {
	v.problems = append(v.problems, err)
	v.repo.repo.Logger.Warn("verify", "err", err)
	if v.opts.Progress != nil {
		v.opts.Progress.Warn(err)
	}
}

// walk makes a job of each path that the directory or the snapshot has.
func (v *dirVerifier) walk(ctx context.Context, workers int) error {
	var err error
	if v.cursor, err = v.snapshot.Tree().Seek(ctx, manifest.Key{}); err != nil {
		return err
	}
	if err := v.next(ctx); err != nil {
		return err
	}
	if v.root < 0 {
		return v.removedBefore(ctx, nil)
	}
	if err := v.add(ctx, "", &v.rootDir); err != nil {
		return err
	}
	w := &walker{root: v.root, dev: v.rootDir.Dev, exclude: &ignore.Rules{}, skip: v.skip}
	err = w.walk(ctx, workers+1, func(n *dirNode) error {
		for _, err := range append(slices.Clone(n.failed), n.err) {
			if err == nil || isGone(err) {
				continue
			}
			if err := v.send(ctx, &dirJob{problem: err}); err != nil {
				return err
			}
		}
		if n.err != nil {
			v.hidden = append(v.hidden, n.path)
		}
		for _, name := range n.own {
			v.kept = append(v.kept, manifest.Join(n.path, name))
		}
		for i := range n.entries {
			if err := v.add(ctx, n.path, &n.entries[i]); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	return v.removedBefore(ctx, nil)
}

// next reads the snapshot's next entry.
func (v *dirVerifier) next(ctx context.Context) (err error) {
	for {
		v.rank = v.cursor.Rank()
		v.more, err = v.cursor.Next(ctx, &v.old)
		if err != nil || !v.more {
			return err
		}
		if v.chosen.Has(&v.old) {
			return nil
		}
		if err := ctx.Err(); err != nil {
			return err
		}
	}
}

// removedBefore makes jobs of the snapshot's entries before a key, nil for all that
// are left: the directory does not have them.
func (v *dirVerifier) removedBefore(ctx context.Context, k *manifest.Key) error {
	for v.more && (k == nil || v.old.Key().Compare(*k) < 0) {
		hidden := slices.ContainsFunc(v.hidden, func(dir string) bool { return manifest.Within(v.old.Dir, dir) }) ||
			slices.ContainsFunc(v.kept, func(dir string) bool { return manifest.Within(v.old.Path(), dir) })
		if !hidden {
			if err := v.send(ctx, &dirJob{old: v.old.Clone(), oldRank: v.rank}); err != nil {
				return err
			}
		}
		if err := v.next(ctx); err != nil {
			return err
		}
	}
	return nil
}

// add makes a job of an entry of the directory.
func (v *dirVerifier) add(ctx context.Context, dir string, d *fsys.Dirent) error {
	v.meter.AddFile()
	e := entryOf(dir, d)
	k := e.Key()
	if err := v.removedBefore(ctx, &k); err != nil {
		return err
	}
	job := &dirJob{new: &e, inode: d.Ino}
	if d.Nlink > 1 && !d.IsDir() {
		at := fsys.Inode{Dev: d.Dev, Ino: d.Ino}
		if g := v.links[at]; g == nil {
			v.links[at] = &linkGroup{k, d.Nlink - 1}
		} else {
			job.first = g.first
		}
	}
	if v.more && v.old.Key() == k {
		job.old, job.oldRank = v.old.Clone(), v.rank
		if err := v.next(ctx); err != nil {
			return err
		}
	}
	return v.send(ctx, job)
}

func (v *dirVerifier) send(ctx context.Context, job *dirJob) error {
	job.done = make(chan struct{})
	if !flow.Send(ctx, v.order, job) || !flow.Send(ctx, v.work, job) {
		return ctx.Err()
	}
	return nil
}

// compare settles a job.
func (v *dirVerifier) compare(ctx context.Context, job *dirJob, rd *reader, dir *openDir, buf *[]byte) {
	if job.problem != nil {
		return
	}
	c := &view.Change{Kind: view.Modified}
	if job.old == nil {
		c.Kind = view.Added
	} else {
		c.Path = job.old.Path()
		if c.Old, job.err = v.snapshot.Info(job.oldRank, job.old); job.err != nil {
			return
		}
	}
	if job.new == nil {
		c.Kind = view.Removed
		job.change = c
		return
	}
	c.Path = job.new.Path()
	it := item{entry: *job.new}
	err := rd.readMeta(dir, &it)
	unread := v.unread && errors.Is(err, unix.EACCES)
	if err != nil && !unread {
		if !isGone(err) || job.old == nil {
			job.problem = fmt.Errorf("%q: %w", c.Path, err)
			return
		}
		c.Kind = view.Removed // since it was listed
		job.change = c
		return
	}
	e := &it.entry
	c.New = view.NewFileInfo(c.Path, job.first.Path(), job.inode, e)
	if c.Kind == view.Modified {
		c.What, job.problem, job.err = v.changes(ctx, job, e, dir, buf)
		if unread {
			c.What |= manifest.ChangedXattrs
		}
	}
	if c.Kind == view.Added || c.What != 0 {
		job.change = c
	}
}

// changes compares two files.
func (v *dirVerifier) changes(ctx context.Context, job *dirJob, new *manifest.Entry, dir *openDir, buf *[]byte) (what manifest.Changes, problem, err error) {
	old := job.old
	if old.Type == manifest.Link || job.first != (manifest.Key{}) {
		if old.Type == manifest.Link && old.First == job.first {
			return 0, nil, nil // compared under its first name
		}
		what = manifest.ChangedLinks
		// By a copy: the cursor's entry would be read into.
		old = old.Clone()
		if _, err := v.snapshot.Tree().Resolve(ctx, job.oldRank, old); err != nil {
			return 0, nil, err
		}
	}
	if old.Type != new.Type {
		return manifest.ChangedType, nil, nil
	}
	what |= manifest.MetaChanges(old, new)
	if v.opts.NoOwner {
		what &^= manifest.ChangedOwner
	}
	if v.opts.NoTimes {
		what &^= manifest.ChangedTimes
	}
	same := old.Size == new.Size && old.Target == new.Target && old.Device == new.Device
	if v.byStat && old.Type == manifest.File && old.Mtime != new.Mtime {
		same = false // as restore takes it
	}
	if same && old.Type == manifest.File && !v.byStat {
		var errno unix.Errno
		switch err := v.contents(ctx, old, new, dir, buf); {
		case errors.Is(err, errDiffers):
			same = false
		case errors.As(err, &errno): // of the file
			return 0, fmt.Errorf("%q: %w", new.Path(), err), nil
		case err != nil: // of a page of its extents
			return 0, nil, err
		}
	}
	if !same {
		what |= manifest.ChangedContent
	}
	return what, nil, nil
}

// contents compares what files of one size hold.
func (v *dirVerifier) contents(ctx context.Context, old, new *manifest.Entry, dir *openDir, buf *[]byte) error {
	parent, err := dir.get(new.Dir)
	if err != nil {
		return err
	}
	fd, err := openFile(parent, new.Name)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	err = holdsContents(ctx, v.repo.repo.Hasher, v.snapshot.Tree(), old, fd, buf)
	v.meter.AddBytes(int64(new.Size))
	return err
}
