// Package diskcache keeps ranges of immutable objects on this machine's disk, for all
// processes that share a directory. [Open] opens it, [Cache.Wrap] puts the cache
// before a store, and the [Store] that comes of it is read like any other; [Store.Fill]
// and [Store.Prefetch] bring what will be wanted.
//
// The files of the directory mirror objects, see file.go. A read plans which ranges come
// from the disk, which from fetches that are under way, and which are to be fetched
// (plan.go); fetches take turns by who waits for them (slots.go).
package diskcache

import (
	"context"
	"errors"
	"math"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/snapctl/snapctl/chunk/lru"
	"github.com/snapctl/snapctl/remote"
)

// Errors of [Store.Fill] and [Store.Prefetch].
var (
	// ErrNoCache: nothing can be stored at the moment.
	ErrNoCache = errors.New("the disk cache cannot store anything")
	// ErrFull: more would evict what is in use.
	ErrFull = errors.New("the disk cache is full")
)

// A Cache keeps ranges of immutable objects on this machine's disk.
// [Cache.Wrap] puts it before a [remote.Store].
//
// Any number of processes may use one folder at once, be killed at any moment,
// and evict at the same time; the folder can be deleted while they run. What
// comes from the disk is checked by a CRC, which finds truncation, zeros and
// flipped bits, and is fetched again if it is wrong. Whoever can tell that
// content is wrong for other reasons calls [Store.Invalidate].
//
// No read fails because of the cache: with a full disk, a folder that cannot be
// written, or I/O errors, content comes from the store.
type Cache struct {
	dir    string
	limit  int64
	opts   Options
	slots  slots
	stats  counters
	now    func() time.Time
	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	work   sync.WaitGroup // fetches and evictions

	// mu is taken while an object's mutex is held; the other way round only for
	// objects that nobody uses.
	mu      sync.Mutex
	closed  bool
	objects *lru.Cache[objectKey, *object] // closeOldest bounds it

	suspended atomic.Int64 // until then nothing is stored; Unix nanoseconds
	noticed   [2]atomic.Bool
	added     atomic.Int64 // bytes stored since the last sweep
	sweeping  atomic.Bool
	sweepMu   sync.Mutex // one sweep at a time
	measured  atomic.Bool
	bound     atomic.Int64 // what may be used, when the folder was last looked at
	idle      atomic.Int64 // and what was not in use lately
}

// Options are optional; nil and zero values give the defaults.
type Options struct {
	// Prefixes are what the names of cached objects begin with. Default "packs/".
	Prefixes []string
	// Window is what a miss fetches around what is wanted: so many bytes from a
	// multiple of so many, as far as they are missing. Default 1 MiB: a round
	// trip takes as long as that, or longer.
	Window int
	// Piece is the largest request in bytes. Default 4 MiB.
	Piece int
	// Parallel is how many requests are under way at once, and Background how
	// many of them may be for [Store.Prefetch] and [Store.Fill].
	// Defaults 24 and 4. Every request has its bytes in memory: up to Window for
	// a small read.
	Parallel, Background int
	// Quiet is how long after a reader had to wait Fill begins nothing. Default
	// 100 ms: longer than a program that is starting computes between two faults.
	Quiet time.Duration
	// OpenFiles is how many files are kept open. Default 256.
	OpenFiles int
	// Notify, if not nil, is told why the cache does not work: once of a failure
	// to store, and once of a failure to read. It may be called by any goroutine,
	// and must not use the cache.
	Notify func(error)
}

const (
	// suspension is how long nothing is stored after a failure to.
	suspension = time.Minute
	// touchInterval is how exactly files tell when they were used last.
	touchInterval = time.Minute
)

// Open gives the cache in a folder, which is made when there is
// something to keep. limit is how many bytes the folder may take, in allocated
// blocks; with none, reads go through, but equal ones still share a fetch. It
// never fails: see [Options.Notify].
func Open(dir string, limit int64, o *Options) *Cache {
	c := &Cache{limit: limit, now: time.Now, objects: lru.New[objectKey, *object](math.MaxInt)}
	if o != nil {
		c.opts = *o
	}
	set := func(p *int, value int) {
		if *p <= 0 {
			*p = value
		}
	}
	set(&c.opts.Window, 1<<20)
	set(&c.opts.Piece, 4<<20)
	set(&c.opts.Parallel, 24)
	set(&c.opts.Background, 4)
	set(&c.opts.OpenFiles, 256)
	if c.opts.Prefixes == nil {
		c.opts.Prefixes = []string{"packs/"}
	}
	// Whole blocks, so that every request begins and ends at a block's border.
	c.opts.Window = int(ceilBlock(int64(c.opts.Window)) * blockSize)
	c.opts.Piece = max(c.opts.Window, int(ceilBlock(int64(c.opts.Piece))*blockSize))
	// One slot at least is never for the background.
	c.opts.Parallel = max(c.opts.Parallel, c.opts.Background+1)
	if c.opts.Quiet <= 0 {
		c.opts.Quiet = 100 * time.Millisecond
	}
	c.slots.total, c.slots.background, c.slots.quiet = c.opts.Parallel, c.opts.Background, c.opts.Quiet
	c.ctx, c.cancel = context.WithCancel(context.Background())
	abs, err := remote.Abs(dir) // the program may change its own folder later
	if err != nil {
		c.limit = 0
		c.trouble(troubleStore, err)
	}
	c.dir = abs
	c.sweepSoon() // the limit may be another than the last time
	return c
}

// Close ends fetches that are under way, and waits for all work in the
// background. Reads then go to the stores.
func (c *Cache) Close() error {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.cancel()
	c.work.Wait()
	if c.limit > 0 && c.sweepDue() {
		c.sweep()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, obj := range c.objects.Values() {
		if obj.refs == 0 { // else release does it
			obj.drop(nil)
		}
	}
	return nil
}

// Wrap returns store with the cache before it. repo names the repository among
// those that share the cache: a component of an object's name, such as a UUID.
// The store should already retry.
func (c *Cache) Wrap(store remote.Store, repo string) *Store {
	s := &Store{store: store, cache: c, repo: repo}
	if err := remote.CheckName(repo); err != nil || strings.Contains(repo, "/") {
		c.trouble(troubleStore, errors.Join(err, errors.New("the repository's name cannot be that of a folder")))
		s.off = true
	}
	return s
}

// storing tells whether what is fetched can be kept.
func (c *Cache) storing() bool {
	return c.limit > 0 && (c.suspended.Load() == 0 || c.now().UnixNano() >= c.suspended.Load())
}

const (
	troubleStore = iota
	troubleRead
)

// trouble is called when the disk failed.
func (c *Cache) trouble(kind int, err error) {
	c.stats.errors.Add(1)
	if kind == troubleStore {
		c.suspended.Store(c.now().Add(suspension).UnixNano())
		c.sweepSoon() // the disk may be full
	}
	if c.noticed[kind].CompareAndSwap(false, true) && c.opts.Notify != nil {
		c.opts.Notify(err)
	}
}

// begin is called before work in the background; it tells whether there may be
// any. c.work.Done ends it.
func (c *Cache) begin() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return false
	}
	c.work.Add(1)
	return true
}
