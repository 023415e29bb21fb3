package engine

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"sync/atomic"

	"github.com/snapctl/snapctl/chunk"
	"github.com/snapctl/snapctl/manifest"
	"github.com/snapctl/snapctl/remote"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// How contents are fetched: neighbouring frames of a pack in one request.
const (
	fetchSize      = 4 << 20   // stored bytes of a request
	fetchGap       = 256 << 10 // bytes that are fetched in vain rather than asking twice
	localFetchSize = 1 << 20
	remoteFetches  = 12 // requests at once
)

// fetch is a run of frames of one pack, and the chunks wanted from them.
type fetch struct {
	first, end uint32 // bytes of the pack
	wants      []want // sorted by frame and offset
}

// writeContents writes all contents: frames in the order in which they lie in
// their packs, each fetched and decoded once, files in parallel.
func (x *restorer) writeContents(ctx context.Context) error {
	fetches := x.planFetches()
	workers, slots := runtime.GOMAXPROCS(0), runtime.GOMAXPROCS(0)
	if !x.repo.local {
		slots = max(slots, remoteFetches) // they mostly wait
	}
	g, ctx := errgroup.WithContext(ctx)
	cpu := make(chan struct{}, workers) // so many decode and write at once
	var next atomic.Int64
	for range min(slots, len(fetches)) {
		g.Go(func() error {
			w := &contentWriter{restorer: x, dir: openDir{root: x.root}}
			defer w.dir.close()
			for ctx.Err() == nil {
				i := int(next.Add(1)) - 1
				if i >= len(fetches) {
					return nil
				}
				if err := w.fetch(ctx, &fetches[i], cpu); err != nil {
					return err
				}
			}
			return ctx.Err()
		})
	}
	return g.Wait()
}

// planFetches orders what is wanted by where it lies.
func (x *restorer) planFetches() []fetch {
	p := x.plan
	// Packs in the order in which the tree first names them, which is that in
	// which they were made; frames by their place in the pack.
	pack := map[chunk.PackID]int{}
	order := make([]uint64, len(p.frames))
	for i, f := range p.frames {
		n, ok := pack[f.pack]
		if !ok {
			n = len(pack)
			pack[f.pack] = n
		}
		order[i] = uint64(n)<<32 | uint64(f.frame.Offset)
	}
	slices.SortFunc(p.wants, func(a, b want) int {
		return cmp.Or(cmp.Compare(order[a.frame], order[b.frame]), cmp.Compare(a.rank, b.rank), cmp.Compare(a.at, b.at))
	})
	size, gap := uint32(fetchSize), uint32(fetchGap)
	if x.repo.local {
		size, gap = localFetchSize, 0
	}
	var all []fetch
	var last planFrame
	for i := 0; i < len(p.wants); {
		f := p.frames[p.wants[i].frame]
		j := i
		for j < len(p.wants) && p.wants[j].frame == p.wants[i].frame {
			j++
		}
		if n := len(all); n > 0 && last.pack == f.pack && f.frame.Offset >= all[n-1].end &&
			f.frame.Offset <= all[n-1].end+gap && f.frame.End() <= all[n-1].first+size {
			all[n-1].end = f.frame.End()
			// Wants are sorted, so those of neighbours are neighbours too.
			all[n-1].wants = p.wants[i-len(all[n-1].wants) : j]
		} else {
			all = append(all, fetch{f.frame.Offset, f.frame.End(), p.wants[i:j]})
		}
		last, i = f, j
	}
	return all
}

// contentWriter is one worker's memory.
type contentWriter struct {
	*restorer
	dir    openDir
	stored []byte
	raw    []byte
	entry  manifest.Entry
}

func (w *contentWriter) fetch(ctx context.Context, f *fetch, cpu chan struct{}) error {
	frames := w.plan.frames
	pack := frames[f.wants[0].frame].pack
	w.stored = slices.Grow(w.stored[:0], int(f.end-f.first))[:f.end-f.first]
	w.meter.transfer(1, 0)
	err := w.repo.store.ReadAt(ctx, packName(pack), int64(f.first), w.stored)
	w.meter.transfer(-1, int64(len(w.stored)))
	if errors.Is(err, remote.ErrNotExist) {
		return w.writeRelocated(ctx, f, pack)
	}
	if err != nil {
		return fmt.Errorf("pack %v: %w", pack, err)
	}
	w.mu.Lock()
	w.fetched += int64(len(w.stored))
	w.mu.Unlock()
	if !send(ctx, cpu, struct{}{}) {
		return ctx.Err()
	}
	defer func() { <-cpu }()
	for i := 0; i < len(f.wants); {
		at := frames[f.wants[i].frame].frame
		raw, err := w.repo.codec.Decode(w.raw, w.stored[at.Offset-f.first:at.End()-f.first], int(at.Raw))
		if err != nil {
			return fmt.Errorf("%w: pack %v at %d: %w; %s cannot be restored", ErrIntegrity, pack, at.Offset, err, w.names(ctx, f.wants[i].rank))
		}
		if at.Stored != at.Raw { // else it is the stored bytes themselves
			w.raw = raw
		}
		j := i
		for ; j < len(f.wants) && f.wants[j].frame == f.wants[i].frame; j++ {
			// Checked when the page was decoded: it lies within the frame.
			wt := &f.wants[j]
			if err := w.write(ctx, wt, raw[wt.offset:wt.offset+wt.length]); err != nil {
				return err
			}
		}
		i = j
	}
	return ctx.Err()
}

// names describes the file of a rank in a message.
func (w *contentWriter) names(ctx context.Context, rank uint64) string {
	var e manifest.Entry
	if err := w.tree.At(ctx, rank, &e); err != nil {
		return "a file"
	}
	return fmt.Sprintf("%q", e.Path())
}

// writeRelocated writes chunks whose pack has gone, from where they are now.
func (w *contentWriter) writeRelocated(ctx context.Context, f *fetch, gone chunk.PackID) error {
	for i := range f.wants {
		wt := &f.wants[i]
		x, err := w.extent(ctx, wt)
		if err != nil {
			return err
		}
		loc, err := w.repo.relocate(ctx, x.ID, gone)
		if err != nil {
			return fmt.Errorf("%w; %s cannot be restored", err, w.names(ctx, wt.rank))
		}
		stored := make([]byte, loc.Frame.Stored)
		if err := w.repo.store.ReadAt(ctx, packName(loc.Pack), int64(loc.Frame.Offset), stored); err != nil {
			return fmt.Errorf("pack %v: %w", loc.Pack, err)
		}
		data, err := w.repo.decodeChunk(x.ID, loc, stored)
		if err != nil {
			return err
		}
		if err := w.write(ctx, wt, data); err != nil {
			return err
		}
	}
	return nil
}

// errFound ends a search.
var errFound = errors.New("found")

// extent finds the extent that a want is for, and reads its file's entry.
func (w *contentWriter) extent(ctx context.Context, wt *want) (x manifest.Extent, err error) {
	rank := wt.rank
	src, elsewhere := w.plan.sources[rank]
	if elsewhere {
		rank = src
	}
	if err := w.tree.At(ctx, rank, &w.entry); err != nil {
		return x, err
	}
	found := false
	err = w.tree.ExtentsFrom(ctx, &w.entry, wt.at, func(at uint64, ext *manifest.Extent) error {
		if x, found = *ext, at == wt.at; found {
			return errFound
		}
		return nil
	})
	if err != nil && !errors.Is(err, errFound) {
		return x, err
	}
	if !found {
		return x, fmt.Errorf("%w: %q has no chunk at %d", ErrIntegrity, w.entry.Path(), wt.at)
	}
	if elsewhere {
		var e manifest.Entry
		if err := w.tree.At(ctx, wt.rank, &e); err != nil {
			return x, err
		}
		w.entry.Dir, w.entry.Name = e.Dir, e.Name
	}
	return x, nil
}

// write checks a chunk and writes it.
func (w *contentWriter) write(ctx context.Context, wt *want, data []byte) error {
	x, err := w.extent(ctx, wt)
	if err != nil {
		return err
	}
	e := &w.entry
	if w.repo.hasher.Sum(data) != x.ID {
		return fmt.Errorf("%w: pack %v at %d: chunk %v of %q is not what it was", ErrIntegrity, x.Pack, x.Frame.Offset, x.ID, e.Path())
	}
	if err := w.writePiece(wt, e, data); err != nil {
		return fmt.Errorf("file %q: %w", e.Path(), err)
	}
	w.meter.addBytes(int64(len(data)))
	return nil
}

func (w *contentWriter) writePiece(wt *want, e *manifest.Entry, data []byte) error {
	parent, err := w.dir.get(e.Dir)
	if err != nil {
		return err
	}
	part := w.plan.parted[wt.rank]
	var fd int
	if part == nil {
		fd, err = w.createFile(parent, wt.rank, e, false)
	} else {
		fd, err = openat(parent, w.workName(wt.rank, e), unix.O_WRONLY|unix.O_NOFOLLOW)
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := pwriteAll(fd, data, int64(wt.at)); err != nil {
		return err
	}
	if part != nil && atomic.AddInt64(&part.left, -1) > 0 {
		return nil
	}
	return w.finishFile(fd, parent, wt.rank, e)
}

func pwriteAll(fd int, data []byte, off int64) error {
	for len(data) > 0 {
		n, err := unix.Pwrite(fd, data, off)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return err
		}
		data, off = data[n:], off+int64(n)
	}
	return nil
}

// workName is the name under which a file is written.
func (x *restorer) workName(rank uint64, e *manifest.Entry) string {
	if x.fresh {
		return e.Name
	}
	return tempName(rank)
}

// createFile makes an empty file, which nobody but us may write to if it is
// written in pieces.
func (x *restorer) createFile(parent int, rank uint64, e *manifest.Entry, pieces bool) (int, error) {
	mode := e.Mode & 0o777
	if pieces || len(e.Xattrs) > 0 {
		mode |= 0o600
	}
	for {
		fd, err := unix.Openat(parent, x.workName(rank, e), unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, mode)
		if !errors.Is(err, unix.EINTR) {
			return fd, err
		}
	}
}

// finishFile gives a file whose contents are there its metadata and its name.
func (x *restorer) finishFile(fd, parent int, rank uint64, e *manifest.Entry) error {
	x.meter.addFile()
	made := e.Mode & 0o777
	if len(e.Xattrs) > 0 || x.plan.parted[rank] != nil {
		made = 0 // not as made
	}
	if x.owner.asMade(e, made) {
		if err := setTimes(parent, x.workName(rank, e), e.Mtime); err != nil {
			return err
		}
	} else if err := x.setMetaFD(fd, e); err != nil {
		return err
	}
	if !x.fresh {
		return x.moveInto(parent, tempName(rank), e.Name)
	}
	if e.Links > 1 {
		return nil // its ctime changes with each link
	}
	return x.noteFD(fd, rank)
}

// ownerPolicy is how owners and modes are set, and when nothing has to be done.
type ownerPolicy struct {
	set      bool // restore owners
	uid, gid uint32
	umask    uint32
}

func newOwnerPolicy(t *target, noOwner bool) (ownerPolicy, error) {
	p := ownerPolicy{set: !noOwner && os.Geteuid() == 0, uid: uint32(os.Geteuid()), gid: uint32(os.Getegid()), umask: readUmask()}
	var st unix.Stat_t
	if err := unix.Fstat(t.fd, &st); err != nil {
		return p, err
	}
	// What is made below inherits the group: then nothing is as it was made.
	if st.Mode&unix.S_ISGID != 0 || st.Gid != p.gid {
		p.umask = 0o777
	}
	return p, nil
}

// asMade reports whether an entry that was made with the permissions made needs
// no other owner, mode or extended attribute.
func (p *ownerPolicy) asMade(e *manifest.Entry, made uint32) bool {
	return len(e.Xattrs) == 0 && made == e.Mode && made&p.umask == 0 &&
		(!p.set || e.UID == p.uid && e.GID == p.gid)
}

// setMetaFD gives an open file or directory its metadata. The order matters:
// chown clears setuid and capabilities; attributes need write permission.
func (x *restorer) setMetaFD(fd int, e *manifest.Entry) error {
	if x.owner.set {
		if err := unix.Fchown(fd, int(e.UID), int(e.GID)); err != nil {
			return fmt.Errorf("changing the owner: %w", err)
		}
	}
	for _, a := range e.Xattrs {
		if err := unix.Fsetxattr(fd, a.Name, a.Value, 0); err != nil {
			if err := x.xattrProblem(e, a.Name, err); err != nil {
				return err
			}
		}
	}
	if err := unix.Fchmod(fd, e.Mode); err != nil {
		return fmt.Errorf("changing the mode: %w", err)
	}
	return setTimes(fd, "", e.Mtime)
}

// setMeta gives what is not a file or directory its metadata.
func (x *restorer) setMeta(parent int, name string, e *manifest.Entry) error {
	if x.owner.set {
		if err := unix.Fchownat(parent, name, int(e.UID), int(e.GID), unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return fmt.Errorf("changing the owner: %w", err)
		}
	}
	for _, a := range e.Xattrs {
		if err := unix.Lsetxattr(procPath(parent, name), a.Name, a.Value, 0); err != nil {
			if err := x.xattrProblem(e, a.Name, err); err != nil {
				return err
			}
		}
	}
	if e.Type != manifest.Symlink {
		// It is no link: we made it, in a directory that we opened.
		if err := unix.Fchmodat(parent, name, e.Mode, 0); err != nil {
			return fmt.Errorf("changing the mode: %w", err)
		}
	}
	return setTimes(parent, name, e.Mtime)
}

// xattrProblem tells attributes that this user or file system cannot have from
// failures.
func (x *restorer) xattrProblem(e *manifest.Entry, name string, err error) error {
	err = fmt.Errorf("setting extended attribute %q: %w", name, err)
	if errIsAny(err, unix.ENOTSUP, unix.EPERM, unix.EACCES) {
		x.problem(fmt.Errorf("restoring %q: %w", e.Path(), err))
		return nil
	}
	return err
}

// setTimes sets the modification time, of the open file itself if name is "".
func setTimes(dir int, name string, t manifest.Time) error {
	times := []unix.Timespec{{Nsec: unix.UTIME_OMIT}, {Sec: t.Sec, Nsec: int64(t.Nsec)}}
	flags := unix.AT_SYMLINK_NOFOLLOW
	if name == "" {
		flags = unix.AT_EMPTY_PATH
	}
	if err := unix.UtimesNanoAt(dir, name, times, flags); err != nil {
		return fmt.Errorf("setting the time: %w", err)
	}
	return nil
}
