package diskcache

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

type objectKey struct{ repo, name string }

// object is what this process knows of an object: the open file, and the
// fetches that are under way. There is at most one of an object at a time.
type object struct {
	cache *Cache
	key   objectKey
	refs  int // guarded by cache.mu

	mu      sync.Mutex
	file    *mirror // nil: not opened
	flights []*flight
	size    int64 // of the object; 0: not known
	touched time.Time
}

// object gives an object's state; release gives it back. It is nil after Close.
func (c *Cache) object(repo, name string) *object {
	key := objectKey{repo, name}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil
	}
	obj, ok := c.objects.Get(key)
	if !ok {
		obj = &object{cache: c, key: key}
		c.objects.Add(key, obj)
	}
	obj.refs++
	if !ok {
		c.closeOldest()
	}
	return obj
}

// closeOldest keeps the number of open files within its bound, apart from
// those that are in use, which count as used just now.
func (c *Cache) closeOldest() {
	for range c.objects.Len() {
		if c.objects.Len() <= c.opts.OpenFiles {
			return
		}
		key, obj, _ := c.objects.GetOldest()
		if obj.refs > 0 {
			c.objects.Get(key)
			continue
		}
		obj.drop(nil)
		c.objects.Remove(key)
	}
}

func (obj *object) retain() {
	obj.cache.mu.Lock()
	obj.refs++
	obj.cache.mu.Unlock()
}

func (obj *object) release() {
	c := obj.cache
	c.mu.Lock()
	defer c.mu.Unlock()
	obj.refs--
	if c.closed && obj.refs == 0 {
		obj.drop(nil)
	}
}

func (obj *object) path() string {
	return filepath.Join(obj.cache.dir, obj.key.repo, obj.key.name)
}

// open gives the object's file, or nil if there is none that can be used. The
// caller holds obj.mu, and releases the file.
func (obj *object) open() *mirror {
	if obj.file == nil {
		f, err := openMirror(obj.path(), obj.key.name)
		if err != nil {
			obj.openFailed(err)
			return nil
		}
		obj.file = f
	}
	obj.file.refs.Add(1)
	return obj.file
}

func (obj *object) openFailed(err error) {
	switch {
	case errors.Is(err, errGone):
		obj.cache.discard(obj.path())
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENOTDIR):
	default:
		obj.cache.trouble(troubleRead, err)
	}
}

// openToFill is open for what will be written: it makes the file if there is
// none, and gives nil when nothing can be stored.
func (obj *object) openToFill() *mirror {
	c := obj.cache
	if !c.storing() {
		return nil
	}
	obj.mu.Lock()
	defer obj.mu.Unlock()
	f := obj.open()
	if f != nil && !f.linked() { // evicted, or somebody deleted the folder
		obj.dropLocked(f)
		f.release()
		f = obj.open()
	}
	if f == nil {
		var err error
		f, err = createMirror(filepath.Join(c.dir, tmpDir), obj.path(), obj.key.name)
		if err != nil {
			if !errors.Is(err, errGone) {
				c.trouble(troubleStore, err)
			}
			return nil
		}
		obj.file = f
		f.refs.Add(1)
	}
	if !f.writable {
		f.release()
		c.trouble(troubleStore, obj.writeError(unix.EROFS))
		return nil
	}
	return f
}

// drop forgets the open file f, or any if f is nil.
func (obj *object) drop(f *mirror) {
	obj.mu.Lock()
	defer obj.mu.Unlock()
	obj.dropLocked(f)
}

func (obj *object) dropLocked(f *mirror) {
	if obj.file != nil && (f == nil || f == obj.file) {
		obj.file.release()
		obj.file = nil
	}
}

func (obj *object) writeError(err error) error {
	return &fs.PathError{Op: "write", Path: obj.path(), Err: err}
}

// read fills p from the front with what the disk has.
func (obj *object) read(p []byte, offset int64) int {
	c := obj.cache
	for range 2 {
		obj.mu.Lock()
		f := obj.open()
		touch := f != nil && f.writable && c.now().Sub(obj.touched) >= touchInterval
		if touch {
			obj.touched = c.now()
		}
		obj.mu.Unlock()
		if f == nil {
			return 0
		}
		n, err := f.read(p, offset)
		if touch && n > 0 {
			_ = os.Chtimes(obj.path(), time.Time{}, c.now())
		}
		switch {
		case err == errDamaged:
			c.stats.damaged.Add(f.scrub())
		case err == errGone:
			obj.drop(f)
		case err != nil:
			c.trouble(troubleRead, &fs.PathError{Op: "read", Path: obj.path(), Err: err})
		}
		f.release()
		if n > 0 || err != errGone {
			return n
		}
	}
	return 0
}
