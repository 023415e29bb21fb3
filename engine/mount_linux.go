package engine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/snapctl/snapctl/fusefs"
	"github.com/snapctl/snapctl/remote"
	"golang.org/x/sys/unix"
)

// MountOptions are how a snapshot is mounted. nil will do.
type MountOptions struct {
	// Force mounts over a directory that holds something, which is out of sight
	// while the mount lasts.
	Force bool
	// AllowOther lets other users look at the mount, as far as the permissions
	// of its files allow. Root's mounts always do.
	AllowOther bool
	// CacheSize is how many bytes of fetched packs the cache directory may hold,
	// of all repositories and mounts together; the default is 10 GiB. A local
	// repository needs none.
	CacheSize int64
	// Memory is how many bytes of decoded contents are kept; the default is
	// 64 MiB.
	Memory int
	// Fail is told of every request of a reader that failed for want of data:
	// what was asked, of which path ("" if that is not known). It must be safe
	// for parallel use.
	Fail func(op, path string, err error)
}

// Defaults of MountOptions.
const (
	DefaultCacheSize = 10 << 30
	defaultMemory    = 64 << 20
)

// A Mount is a snapshot as a read-only file system, served by this process. It
// ends with Unmount, or when somebody else unmounts it; its repository must stay
// open until then.
type Mount struct {
	Dir      string // the mount point's path, absolute and without symbolic links
	Snapshot Snapshot

	server *fusefs.Server
	chunks *chunkReader
	cache  *remote.DiskCache // nil for none
	ended  chan struct{}
}

// MountStats is what a mount did so far.
type MountStats struct {
	Errors    int64 `json:"errors"`    // requests that failed for want of data
	Decoded   int64 `json:"decoded"`   // frames
	Hits      int64 `json:"hits"`      // reads of packs that the disk cache answered
	Misses    int64 `json:"misses"`    // and those that it did not
	Fetched   int64 `json:"fetched"`   // bytes that the disk cache fetched
	CacheUsed int64 `json:"cacheUsed"` // bytes of the disk cache, as far as this process knows
}

// Mount mounts a snapshot at dir, an empty directory, and returns when it can be
// used. Nothing but the manifest and the root page is read before a reader asks
// for it; every byte is checked against the snapshot before the reader sees it.
// Readers wait while the repository cannot be reached, until retries are at
// their end; a read then fails with EIO, and the next one may succeed.
//
// It fails with ErrExists for a directory that holds something, unless Force is
// set.
func (r *Repository) Mount(ctx context.Context, ref, dir string, opts *MountOptions) (*Mount, error) {
	if opts == nil {
		opts = &MountOptions{}
	}
	path, err := mountPoint(dir, opts.Force)
	if err != nil {
		return nil, fmt.Errorf("mounting at %s: %w", dir, err)
	}
	m, err := r.open(ctx, ref)
	if err != nil {
		return nil, err
	}
	tree, err := m.Tree(r)
	if err != nil {
		return nil, fmt.Errorf("snapshot %v: %w", m.ID, integrity(err))
	}
	x := &Mount{Dir: path, Snapshot: *snapshotOf(&m.Info), ended: make(chan struct{})}
	store := r.store
	if !r.local() {
		x.cache = r.openDiskCache(opts.CacheSize)
		store = x.cache.Wrap(store, r.cfg.ID.String())
	}
	memory := opts.Memory
	if memory <= 0 {
		memory = defaultMemory
	}
	// Not the caller's context: the mount outlives the call.
	serving, stop := context.WithCancel(context.WithoutCancel(ctx))
	x.chunks = newChunkReader(serving, r, store, memory)
	x.server, err = fusefs.Mount(path, m, tree, x.chunks, &fusefs.Options{AllowOther: opts.AllowOther, Fail: opts.Fail})
	if err != nil {
		stop()
		x.closeCache(r)
		return nil, fmt.Errorf("snapshot %v: %w", m.ID, err)
	}
	go func() {
		x.server.Wait()
		stop()
		x.closeCache(r)
		close(x.ended)
	}()
	return x, nil
}

// openDiskCache opens this machine's cache of packs, which all repositories,
// processes and mounts share.
func (r *Repository) openDiskCache(size int64) *remote.DiskCache {
	if size == 0 {
		size = DefaultCacheSize
	}
	dir := filepath.Join(r.CacheDir(), "packs")
	return remote.OpenDiskCache(dir, size, &remote.DiskCacheOptions{
		Notify: func(err error) { r.log.Warn("cache of packs", "err", err) },
	})
}

// CacheDir is where this machine keeps what makes the next operation fast, of
// this repository and others.
func (r *Repository) CacheDir() string { return filepath.Dir(r.cache.dir) }

func (m *Mount) closeCache(r *Repository) {
	if m.cache == nil {
		return
	}
	if err := m.cache.Close(); err != nil {
		r.log.Info("closing the cache of packs", "err", err)
	}
}

// Unmount ends the mount, and returns when nothing of it is left. It fails if
// somebody uses it, unless detach is set: then the path is free at once, and
// the mount ends, which Wait waits for, when nobody uses it any more.
func (m *Mount) Unmount(detach bool) error {
	select {
	case <-m.ended:
		return nil
	default:
	}
	if err := m.server.Unmount(detach); err != nil {
		return err
	}
	if !detach {
		m.Wait()
	}
	return nil
}

// Wait waits until the mount has ended, whoever ended it.
func (m *Mount) Wait() { <-m.ended }

// Ended is closed when the mount has ended.
func (m *Mount) Ended() <-chan struct{} { return m.ended }

// Stats tells what the mount did so far.
func (m *Mount) Stats() MountStats {
	s := MountStats{Errors: m.server.Errors(), Decoded: m.chunks.decoded.Load()}
	if m.cache != nil {
		c := m.cache.Stats()
		s.Hits, s.Misses, s.Fetched, s.CacheUsed = c.Hits, c.Misses, c.FetchedBytes, c.Used
	}
	return s
}

// mountPoint checks a directory to mount at, and gives its path as the kernel
// has it. A mount of ours whose server was killed is cleared away.
func mountPoint(dir string, force bool) (string, error) {
	if dir == "" {
		return "", fmt.Errorf("%w: no directory", ErrInvalid)
	}
	path, err := fusefs.Resolve(dir)
	if err != nil {
		return "", err
	}
	source, err := fusefs.Mounted(path)
	if err != nil {
		return "", err
	}
	if source != "" {
		// Not stat, which the kernel answers when nobody serves any more.
		var st unix.Statfs_t
		switch err := unix.Statfs(path, &st); {
		case errors.Is(err, unix.ENOTCONN):
			if err := fusefs.Unmount(path, true); err != nil {
				return "", err
			}
		case !force:
			return "", fmt.Errorf("%w: %s is mounted there", ErrExists, source)
		}
	}
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return "", pathless(err)
	}
	defer f.Close()
	if force {
		return path, nil
	}
	if names, err := f.Readdirnames(1); len(names) > 0 {
		return "", fmt.Errorf("%w: the directory is not empty", ErrExists)
	} else if !errors.Is(err, io.EOF) {
		return "", pathless(err)
	}
	return path, nil
}

// pathless is an error without the path, which the caller names.
func pathless(err error) error {
	var p *os.PathError
	if errors.As(err, &p) {
		return p.Err
	}
	return err
}
