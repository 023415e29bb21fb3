package fusefs

import (
	"context"
	"hash/maphash"
	"math"
	"sync"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/snapctl/snapctl/chunk"
	"github.com/snapctl/snapctl/chunk/lru"
	"github.com/snapctl/snapctl/manifest"
)

// ahead reads on for whoever reads in order. All of it is guesswork from the
// order of requests, and costs some work in vain at most.
//
// Small files: tar, cp, grep or a bundler goes through a directory. A small file
// costs such a reader two wake-ups, of us and of itself, which is more than its
// bytes do. So when files of a directory are read in order, those that follow
// are put into the kernel's page cache before they are asked for
// (FUSE_NOTIFY_STORE). The kernel does not tell what was read of that; but one
// file behind those that were put there is left out, and a reader who keeps
// going asks for it: that is when the next ones follow. Reading all of app-v1
// with tar takes 24 thousand READs instead of 115 thousand, and 0.6 of the time.
//
// Frames: the one behind that of a small file, and those of the next megabytes
// of a large file, are brought and decoded while the reader is busy with what it
// has.
type ahead struct {
	fs    *snapshotFS
	ctx   context.Context // ends with the mount
	store func(inode uint64, offset int64, data []byte) fuse.Status
	seed  maphash.Seed

	// Work that finds no slot is not done.
	pushes, fetches slots

	mu   sync.Mutex
	busy int       // goroutines
	idle sync.Cond // there are none
	// runs are the directories in which small files were read lately, by the
	// hash of their path. Nested ones are read in turns.
	runs *lru.Cache[uint64, *run]
	// streak is how well guesses of the next file came true lately.
	streak int
	// frames are those whose successors were brought lately.
	frames *lru.Cache[frame, struct{}]
	// files are large files that were read lately, by rank.
	files *lru.Cache[uint64, *progress]
}

// run is a directory that is being read.
type run struct {
	next  uint64 // rank of the file that is expected
	files int    // how many were put into the page cache the last time
	busy  bool   // they are on their way there
}

// progress is where a reader of a large file is.
type progress struct {
	next    uint64 // behind what was read
	brought uint64 // behind what was brought
}

// frame says where a frame begins.
type frame struct {
	pack   chunk.PackID
	offset uint32
}

func frameOf(x *manifest.Extent) frame { return frame{x.Pack, x.Frame.Offset} }

const (
	maxRuns    = 256
	maxFrames  = 64
	maxFiles   = 64
	maxPushes  = 2
	maxFetches = 2

	smallFile  = 128 << 10 // larger ones the kernel reads ahead by itself
	maxScan    = 512       // entries that are looked at for the next file, or the next frame
	slack      = 8         // entries that a reader in order may pass over: directories, links, large files
	maxStreak  = 8
	sure       = 4 // the streak from which on a new directory is believed to be read through
	firstPush  = 16
	lastPush   = 256     // files of a push, which doubles each time
	pushBytes  = 1 << 20 // of a push
	aheadBytes = 4 << 20 // of a large file
	nearBytes  = 1 << 20 // the kernel asks for so much out of order
	wholeDir   = math.MaxUint64
)

func newAhead(ctx context.Context, f *snapshotFS, store func(uint64, int64, []byte) fuse.Status) *ahead {
	a := &ahead{
		fs: f, ctx: ctx, store: store, seed: maphash.MakeSeed(),
		pushes: make(slots, maxPushes), fetches: make(slots, maxFetches),
		runs: lru.New[uint64, *run](maxRuns), frames: lru.New[frame, struct{}](maxFrames), files: lru.New[uint64, *progress](maxFiles),
	}
	a.idle.L = &a.mu
	return a
}

// start does work in the background. The caller holds a.mu.
func (a *ahead) start(work func()) {
	a.busy++
	go func() {
		work()
		a.mu.Lock()
		defer a.mu.Unlock()
		if a.busy--; a.busy == 0 {
			a.idle.Broadcast()
		}
	}()
}

// wait waits until nothing is done in the background.
func (a *ahead) wait() {
	a.mu.Lock()
	defer a.mu.Unlock()
	for a.busy > 0 {
		a.idle.Wait()
	}
}

// small tells whether an entry is a file that is put into the page cache whole.
func small(e *manifest.Entry) bool {
	return e.Type == manifest.File && e.Size <= smallFile && len(e.Extents) == 1 && uint64(e.Extents[0].Length) == e.Size
}

// read is told of what readers ask for, and does not wait.
func (a *ahead) read(rank uint64, e *manifest.Entry, off, end uint64) {
	switch {
	case e.Size > smallFile:
		a.readLarge(rank, e.Size, off, end)
	case off == 0 && small(e):
		a.readSmall(rank, e)
	}
}

func (a *ahead) readSmall(rank uint64, e *manifest.Entry) {
	dir := maphash.String(a.seed, e.Dir)
	a.mu.Lock()
	defer a.mu.Unlock()
	r, known := a.runs.Get(dir)
	switch {
	case !known:
		r = &run{next: rank + 1}
		a.runs.Add(dir, r)
		if a.streak < sure {
			return
		}
	case r.busy: // the reader was faster
		return
	case rank < r.next: // the kernel has dropped it
		*r = run{next: rank + 1}
		return
	case rank > r.next: // in no order, unless there is no small file in between
		if rank-r.next > slack {
			a.streak = max(0, a.streak-2)
		}
		*r = run{next: rank + 1}
		return
	default:
		a.streak = min(a.streak+1, maxStreak)
	}
	r.next = rank + 1
	if a.streak > 1 {
		a.frameBehind(rank+1, frameOf(&e.Extents[0]))
	}
	if !a.pushes.take() {
		return
	}
	r.busy = true
	r.files = max(firstPush, min(2*r.files, lastPush))
	files, path := r.files, e.Dir
	a.start(func() {
		defer a.pushes.give()
		next := rank + 1
		if known || a.first(rank, path) {
			next = a.push(rank+1, path, files)
		}
		a.mu.Lock()
		defer a.mu.Unlock()
		r.next, r.busy = next, false
	})
}

// first tells whether a small file is the first one of its directory, as far as
// the entry before tells. Who reads another one first does not go through the
// directory.
func (a *ahead) first(rank uint64, dir string) bool {
	var before manifest.Entry
	if err := a.fs.tree.At(a.ctx, rank-1, &before); err != nil {
		return false
	}
	if before.Dir != dir || !small(&before) {
		return true
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.streak = max(0, a.streak-2)
	return false
}

// push puts small files of a directory, from a rank on, into the page cache. It
// gives the rank of the one behind those.
func (a *ahead) push(rank uint64, dir string, files int) (next uint64) {
	c, err := a.fs.tree.SeekRank(a.ctx, rank)
	if err != nil {
		return rank
	}
	var e manifest.Entry
	bytes := uint64(0)
	for range maxScan {
		rank = c.Rank()
		switch more, err := c.Next(a.ctx, &e); {
		case err != nil:
			return rank
		case !more || e.Dir != dir:
			return wholeDir
		case !small(&e):
			continue
		}
		if bytes += e.Size; files == 0 || bytes > pushBytes {
			return rank
		}
		files--
		data, err := a.fs.src.Chunk(a.ctx, &e.Extents[0])
		if err != nil {
			return rank // whoever reads it is told why
		}
		if a.store(rank+1, 0, data) != fuse.OK {
			return rank // the kernel does not know the file, or the mount is gone
		}
		a.mu.Lock()
		a.frameBehind(rank+1, frameOf(&e.Extents[0]))
		a.mu.Unlock()
	}
	return rank
}

// frameBehind brings the frame that follows f, in the order of entries from a
// rank on, if it was not brought lately. The caller holds a.mu.
func (a *ahead) frameBehind(rank uint64, f frame) {
	if a.frames.Contains(f) || !a.fetches.take() {
		return
	}
	a.frames.Add(f, struct{}{})
	a.start(func() {
		defer a.fetches.give()
		c, err := a.fs.tree.SeekRank(a.ctx, rank)
		if err != nil {
			return
		}
		var e manifest.Entry
		for range maxScan {
			if more, err := c.Next(a.ctx, &e); !more || err != nil {
				return
			}
			for i := range e.Extents {
				if x := &e.Extents[i]; frameOf(x) != f {
					_, _ = a.fs.src.Chunk(a.ctx, x) // whoever reads it is told of errors
					return
				}
			}
		}
	})
}

func (a *ahead) readLarge(rank, size, off, to uint64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	p, known := a.files.Get(rank)
	if !known || off > p.next+nearBytes || off+nearBytes < p.next {
		a.files.Add(rank, &progress{next: to, brought: to})
		return
	}
	p.next = max(p.next, to)
	from, until := max(p.brought, p.next), min(p.next+aheadBytes, size)
	if from >= until || until-from < aheadBytes/4 && until < size || !a.fetches.take() {
		return
	}
	p.brought = until
	a.start(func() {
		defer a.fetches.give()
		var e manifest.Entry
		if a.fs.entry(a.ctx, rank+1, &e) != nil {
			return
		}
		_ = a.fs.tree.ExtentsFrom(a.ctx, &e, from, func(at uint64, x *manifest.Extent) error {
			if at >= until {
				return errDone
			}
			_, err := a.fs.src.Chunk(a.ctx, x)
			return err
		})
	})
}

// slots bound what is done at once.
type slots chan struct{}

// take takes a slot if there is one.
func (s slots) take() bool {
	select {
	case s <- struct{}{}:
		return true
	default:
		return false
	}
}

func (s slots) give() { <-s }
