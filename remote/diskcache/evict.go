package diskcache

import (
	"cmp"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/snapctl/snapctl/remote/disk"
)

const (
	// A process looks at the folder whenever it has stored 1/64 of the limit,
	// at most sweepMax, and then makes room for 1/16: so four of them can do so
	// without knowing of each other and stay within the limit.
	sweepShare = 64
	sweepMax   = 64 << 20
	roomShare  = 16

	// tempAge is how old a temporary file must be to be a dead process's.
	tempAge = time.Hour

	// idleAge is how long ago a file must have been used for a fill to evict it.
	idleAge = time.Hour
)

// sweepDue tells whether enough was stored since the last look.
func (c *Cache) sweepDue() bool {
	return c.added.Load() > min(c.limit/sweepShare, sweepMax)
}

// stored is called when so many bytes have been written. Where they come faster
// than room can be made for them, it waits.
func (c *Cache) stored(n int) {
	c.added.Add(int64(n))
	if c.sweepDue() {
		c.sweepSoon()
	}
	if c.added.Load() > c.limit/roomShare {
		c.sweep()
	}
}

// sweepSoon sweeps in the background, unless that is going to be done already.
func (c *Cache) sweepSoon() {
	if c.limit <= 0 || !c.sweeping.CompareAndSwap(false, true) {
		return
	}
	go func() {
		if !c.begin() {
			return
		}
		defer c.work.Done()
		c.sweeping.Store(false) // what is stored from now on needs another
		c.sweep()
	}()
}

// room is how many bytes can be stored without evicting what was in use lately.
func (c *Cache) room() int64 {
	if !c.measured.Load() {
		c.sweep()
	}
	return c.bound.Load() + c.idle.Load() - c.stats.used.Load() - c.added.Load()
}

type cachedFile struct {
	path string
	size int64 // in allocated blocks
	used time.Time
}

// sweep measures the folder, and removes the files that were used least
// recently when it is too large.
func (c *Cache) sweep() {
	c.sweepMu.Lock()
	defer c.sweepMu.Unlock()
	added := c.added.Load()
	files, used := c.files()
	defer c.measured.Store(true)
	limit := c.limit
	var fsys unix.Statfs_t
	if unix.Statfs(c.dir, &fsys) == nil {
		// On a disk that gets full, the cache gives way.
		limit = min(limit, used+int64(fsys.Bavail)*int64(fsys.Bsize))
	}
	c.bound.Store(limit - limit/roomShare)
	if files == nil {
		c.stats.used.Store(0)
		c.idle.Store(0)
		c.added.Add(-added)
		return
	}
	if used+min(limit/sweepShare, sweepMax) > limit {
		slices.SortFunc(files, func(a, b cachedFile) int { return cmp.Or(a.used.Compare(b.used), cmp.Compare(a.path, b.path)) })
		for i, f := range files {
			if used <= limit-limit/roomShare {
				break
			}
			if c.evict(f.path) {
				used -= f.size
				files[i].size = 0
			}
		}
	}
	var idle int64
	for _, f := range files {
		if f.size > 0 && c.now().Sub(f.used) > idleAge {
			idle += f.size
		}
	}
	c.idle.Store(min(idle, used))
	c.stats.used.Store(used)
	c.added.Add(-added)
}

// files lists what is in the folder, and removes what was left in tmp.
func (c *Cache) files() (files []cachedFile, used int64) {
	tmp := filepath.Join(c.dir, tmpDir) + "/"
	// What cannot be listed is another process's to remove, or nobody's.
	_ = filepath.WalkDir(c.dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return nil
		}
		info, err := d.Info()
		if err != nil {
			return nil
		}
		size := int64(0)
		if st, ok := info.Sys().(*syscall.Stat_t); ok {
			size = st.Blocks * 512
		}
		if filepath.Dir(path)+"/" == tmp {
			if c.now().Sub(info.ModTime()) > tempAge {
				os.Remove(path)
			}
			return nil
		}
		files = append(files, cachedFile{path, size, info.ModTime()})
		used += size
		return nil
	})
	return files, used
}

// evict removes a file, unless somebody fills it, or this process reads it.
// It tells whether it is gone. It is cut off first: that frees its space, and
// tells other processes that have it open.
func (c *Cache) evict(path string) bool {
	if c.reading(path) {
		return false
	}
	gone := c.discard(path)
	if gone {
		c.stats.evicted.Add(1)
	}
	return gone
}

// discard removes a file that nobody fills.
func (c *Cache) discard(path string) bool {
	fd, err := disk.Open(path, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NOFOLLOW|unix.O_NONBLOCK)
	if err != nil {
		return errors.Is(err, fs.ErrNotExist)
	}
	f := &mirror{fd: fd}
	f.refs.Store(1)
	defer f.release() // and with it the lock
	if !f.tryLockAll() {
		return false
	}
	if !f.linked() { // another evicted it; the path may be that of a new file
		return true
	}
	return unix.Ftruncate(fd, 0) == nil && os.Remove(path) == nil
}

// reading tells whether this process uses a file at the moment.
func (c *Cache) reading(path string) bool {
	rel, err := filepath.Rel(c.dir, path)
	if err != nil {
		return false
	}
	var key objectKey
	for i := range rel {
		if rel[i] == '/' {
			key = objectKey{rel[:i], rel[i+1:]}
			break
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	obj, ok := c.objects.Peek(key)
	return ok && obj.refs > 0
}
