package engine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/snapctl/snapctl/engine/internal/flow"
	"github.com/snapctl/snapctl/engine/internal/fsys"
	"github.com/snapctl/snapctl/engine/internal/ignore"
	"github.com/snapctl/snapctl/engine/internal/progress"
	"github.com/snapctl/snapctl/engine/internal/repo"
	"github.com/snapctl/snapctl/engine/internal/write"
	"github.com/snapctl/snapctl/engine/snapshot"
	"github.com/snapctl/snapctl/manifest"
	"github.com/snapctl/snapctl/remote"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// CreateOptions are how a snapshot is made. The zero value, and nil, will do.
type CreateOptions struct {
	Name string            // up to 256 bytes without control characters
	Tags map[string]string // keys and values up to 256 bytes
	TTL  time.Duration     // 0 keeps the snapshot until it is removed

	// Excludes are patterns as in a .gitignore file at the root of the
	// directory; a later one overrides an earlier one, '!' includes again.
	Excludes []string
	// Gitignore leaves out what git ignores: untracked files that patterns of .gitignore
	// files, .git/info/exclude or core.excludesFile match.
	Gitignore bool
	// OneFileSystem leaves out what is mounted below the directory.
	OneFileSystem bool

	// Parent is a reference to the snapshot that unchanged files are taken
	// from. The default is the newest one that this machine made of, or
	// restored to, the directory; of a fork, the newest one that it made of the fork,
	// or else the one that was forked.
	Parent string

	Progress snapshot.Progress
}

// CreateResult is what Create made.
type CreateResult struct {
	snapshot.Snapshot
	Duration time.Duration `json:"-"`
	// Problems names each file that is not in the snapshot as it should be:
	// unreadable, vanished, or changing while it was read. Empty unless
	// Incomplete.
	Problems []error `json:"-"`
	// LeftOut are the directories that are not in the snapshot since they are snapctl's
	// own: the repository, and what this machine keeps as its cache and its state.
	LeftOut []string `json:"-"`
}

// Create makes a snapshot of the directory dir. Files that cannot be read are
// left out and named in the result, which is then marked incomplete.
//
// Of a fork, an overlay over the mount of a snapshot of this repository, it reads the
// upper directory alone, unless there are patterns, another parent, or something
// mounted below dir. If the upper directory says what cannot be there is no snapshot.
//
// When Create returns without an error the snapshot is durable and whole. When
// it fails or its context ends, there is no snapshot, and what was uploaded is
// found by the next Create.
func (r *Repository) Create(ctx context.Context, dir string, opts *CreateOptions) (*CreateResult, error) {
	if opts == nil {
		opts = &CreateOptions{}
	}
	start := time.Now()
	var before *write.Guard
	asFork := true
	for try := 1; ; try++ {
		c, err := r.newCreator(dir, opts, before)
		if err != nil {
			return nil, fmt.Errorf("snapshot of %s: %w", dir, err)
		}
		res, err := c.attempt(ctx, asFork)
		switch {
		case err == nil:
			res.Duration = time.Since(start)
			return res, nil
		case ctx.Err() != nil:
		case c.fork != nil && errors.Is(repo.Integrity(err), snapshot.ErrIntegrity):
			// The snapshot below cannot be relied on: what shows of it is read instead.
			c.warn(fmt.Errorf("snapshot %v: %w; all of %s is read", c.fork.overlay.Lower, err, c.dir))
			asFork = false
			continue
		case errors.Is(err, write.ErrAnew) && try < write.AnewTries:
			r.repo.Logger.Warn("create begins anew", "dir", c.dir, "err", err)
			before = c.out.Guard
			continue
		case errors.Is(err, write.ErrAnew):
			err = fmt.Errorf("%w, %d times; the repository's grace of %v is too short for this", err, try, r.repo.Grace())
		}
		return nil, fmt.Errorf("snapshot of %s: %w", c.dir, repo.Integrity(err))
	}
}

// attempt is one run, from which nothing stays open.
func (c *creator) attempt(ctx context.Context, asFork bool) (*CreateResult, error) {
	defer c.close()
	c.findFork()
	if !asFork {
		c.fork.close()
		c.fork = nil
	}
	return c.run(ctx)
}

func (c *creator) close() {
	unix.Close(c.root)
	c.fork.close()
	c.whole.close()
}

// creator is one run of Create.
type creator struct {
	out     *write.Writer
	repo    *repo.Repo
	host    *Repository // what is mounted on this machine, and what is its own
	opts    *CreateOptions
	dir     string // absolute
	place   string // dir without symbolic links: what the stat cache goes by
	root    int    // file descriptor of dir
	rootDir fsys.Dirent
	started time.Time
	exclude *ignore.Rules

	parent *parentTree    // nil for none
	fork   *overlaySource // if dir is a fork, of parent; else nil
	byFuse *overlayInfo   // the same of a fork by fuse-overlayfs, however it is read
	whole  *wholeFork     // if all of that is read
	recent *recentFiles   // nil if it does not matter which were read

	problems struct {
		sync.Mutex
		all []error
	}
	sockets atomic.Int64
	removed atomic.Int64 // files that were gone when they were to be read
	leftOut []string
}

// newCreator makes a run; before is the guard of a run that had to begin anew, or nil.
func (r *Repository) newCreator(dir string, opts *CreateOptions, before *write.Guard) (*creator, error) {
	if err := checkLabels(opts); err != nil {
		return nil, err
	}
	patterns, err := ignore.ParsePatterns(opts.Excludes)
	if err != nil {
		return nil, err
	}
	abs, err := remote.Abs(dir)
	if err != nil {
		return nil, err
	}
	if len(abs) > manifest.MaxPath {
		return nil, fmt.Errorf("%w: path of %d bytes, the most is %d", snapshot.ErrInvalid, len(abs), manifest.MaxPath)
	}
	place, err := filepath.EvalSymlinks(abs)
	if err != nil {
		place = abs // the next line says why
	}
	fd, err := unix.Open(abs, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOTDIR) {
		return nil, fmt.Errorf("%w: it is not a directory", snapshot.ErrInvalid)
	}
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: abs, Err: err}
	}
	c := &creator{
		host: r, repo: r.repo,
		opts: opts, dir: abs, place: place, root: fd, started: time.Now(),
		exclude: &ignore.Rules{Patterns: patterns, Gitignore: opts.Gitignore, Root: place},
	}
	c.exclude.Warn = c.warn
	c.out = write.NewWriter(r.repo, before, progress.New(opts.Progress), c.warn)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		unix.Close(fd)
		return nil, &os.PathError{Op: "stat", Path: abs, Err: err}
	}
	c.rootDir = fsys.DirentOf("", &st)
	return c, nil
}

func checkLabels(o *CreateOptions) error {
	if o.Name != "" {
		if err := repo.CheckName(o.Name); err != nil {
			return err
		}
	}
	if len(o.Tags) > manifest.MaxTags {
		return fmt.Errorf("%w: %d tags, the most is %d", snapshot.ErrInvalid, len(o.Tags), manifest.MaxTags)
	}
	for k, v := range o.Tags {
		if err := repo.CheckTag(k, v); err != nil {
			return err
		}
	}
	if o.TTL < 0 {
		return fmt.Errorf("%w: time to live of %v", snapshot.ErrInvalid, o.TTL)
	}
	return nil
}

// problem notes an item that is not in the snapshot as it should be.
func (c *creator) problem(err error) {
	c.problems.Lock()
	c.problems.all = append(c.problems.all, err)
	c.problems.Unlock()
	c.warn(err)
}

func (c *creator) vanished(path string) {
	c.removed.Add(1)
	c.warn(fmt.Errorf("%q was removed while the snapshot was made, and is not in it", path))
}

func (c *creator) warn(err error) {
	c.repo.Logger.Warn("create", "err", err)
	if c.opts.Progress != nil {
		c.opts.Progress.Warn(err)
	}
}

func (c *creator) run(ctx context.Context) (*CreateResult, error) {
	c.out.Meter.Start(snapshot.PhaseReading)
	defer c.out.Meter.Stop()
	g, gctx := c.out.Begin(ctx)
	defer c.out.End()
	if err := c.findParent(ctx); err != nil {
		return nil, err
	}
	if err := c.findWhole(ctx); err != nil {
		return nil, err
	}
	if c.parent == nil && !c.repo.Local() {
		c.recent = &recentFiles{} // a parent's mounts have left better profiles
	}
	if c.fork != nil {
		var asked sync.WaitGroup
		asked.Go(func() { c.host.askForProfile(ctx, c.fork.overlay.Lower) })
		defer asked.Wait()
	}

	var asm *assembler
	g.Go(func() (err error) {
		if asm, err = c.pipeline(gctx, g); err == nil {
			err = c.out.Guard.Refresh(gctx)
		}
		return err
	})
	if err := c.out.Wait(ctx, g); err != nil {
		return nil, err
	}
	c.out.Meter.SetPhase(snapshot.PhaseCommitting)
	return c.finish(ctx, asm)
}

// pipeline runs until every entry is in the tree and all packs are on their way.
func (c *creator) pipeline(ctx context.Context, g *errgroup.Group) (*assembler, error) {
	workers := runtime.GOMAXPROCS(0)
	seq := newSequencer(c)
	walk := seq.run
	asm, err := newAssembler(ctx, c, g, workers)
	if err != nil {
		return nil, err
	}
	rd := &reader{
		root: c.root, fork: c.fork.reader(c), splitter: c.repo.Splitter, hasher: c.repo.Hasher,
		lookup: c.out.Commit.Lookup, problem: c.problem, vanished: c.vanished,
		started: c.started.Unix(), bytes: c.out.Meter.AddBytes,
		buffers: flow.NewBuffers(3*inFlight, max(partSize, 2*c.repo.Splitter.MaxChunk())),
	}

	if c.fork != nil {
		walk, rd.root = newOverlaySequencer(seq).run, c.fork.root
	}
	g.Go(func() error {
		defer close(seq.order)
		defer close(seq.work)
		return walk(ctx, workers)
	})
	// More than cores: on a disk that is cold they mostly wait.
	for range max(4, 2*workers) {
		g.Go(func() error {
			for b := range seq.work {
				rd.settle(ctx, b)
			}
			return nil
		})
	}
	return asm, asm.run(ctx, seq.order, rd)
}

// checkReplaced fails if files are gone because the directory is no longer the one at its
// path, as when a restore replaces it: what was left of the old one is no snapshot of it.
func (c *creator) checkReplaced() error {
	if c.removed.Load() == 0 {
		return nil
	}
	var st unix.Stat_t
	err := unix.Stat(c.dir, &st)
	if err == nil && uint64(st.Dev) == c.rootDir.Dev && st.Ino == c.rootDir.Ino {
		return nil
	}
	return errors.Join(fmt.Errorf("the directory was replaced while the snapshot was made, and %d files of it are gone: make the snapshot again", c.removed.Load()), err)
}

// finish commits: the index segment and the manifest, when all packs are there.
func (c *creator) finish(ctx context.Context, asm *assembler) (*CreateResult, error) {
	if err := c.checkReplaced(); err != nil {
		return nil, err
	}
	c.repo.AskTime(ctx)
	info, err := c.info(asm)
	if err != nil {
		return nil, err
	}
	m := &manifest.Manifest{Info: *info}
	m.SetTree(asm.root)
	if err := c.out.Publish(ctx, m, func() { c.saveRecent(ctx, m) }); err != nil {
		return nil, err
	}
	key := repo.DirKey(c.place)
	if c.fork != nil {
		key = memoKey(c.fork.overlay)
		err = writeMemo(c.repo.Cache, c.fork.overlay, m.ID, asm.memo)
	} else {
		err = repo.WriteStats(c.repo.Cache, c.place, m.ID, asm.prints)
	}
	if err == nil {
		err = repo.WriteTable(c.repo.Cache, key, m.ID, c.out.Guard.Sizes(m.Packs))
	}
	if err != nil {
		c.repo.Logger.Info("caching what is known of the files", "err", err)
	}
	return &CreateResult{Snapshot: *repo.SnapshotOf(&m.Info), Problems: c.problems.all, LeftOut: c.leftOut}, nil
}

func (c *creator) info(asm *assembler) (*manifest.Info, error) {
	now := c.repo.Time()
	i := &manifest.Info{
		ID: manifest.NewID(manifest.ClassFor(c.opts.TTL)), Created: now, Dir: c.dir, Name: c.opts.Name, Tags: c.opts.Tags,
		Host: repo.Label(os.Hostname()), User: userName(), Version: c.repo.Ver,
		Files: asm.files, Bytes: asm.bytes,
		NewBytes: asm.placer.NewBytes, StoredBytes: uint64(c.out.Up.StoredBytes()),
		Skipped: uint64(c.sockets.Load()), Unreadable: uint64(len(c.problems.all)),
	}
	if c.repo.Skew() != 0 {
		i.ID = i.ID.At(now) // ids sort by time, and those of other machines do not go by this clock
	}
	if c.opts.TTL > 0 {
		i.Expires = now.Add(c.opts.TTL)
	}
	if c.parent != nil {
		i.Parent = c.parent.id
	}
	if c.fork != nil && c.fork.memo != nil {
		i.Parent = c.fork.memo.snapshot
	}
	return i, nil
}

// userName avoids os/user's look-up in a directory service where it can.
func userName() string {
	if s := repo.Label(os.Getenv("USER"), nil); s != "" {
		return s
	}
	u, err := user.Current()
	if err != nil {
		return ""
	}
	return repo.Label(u.Username, nil)
}
