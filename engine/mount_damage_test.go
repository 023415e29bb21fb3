//go:build linux

package engine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/snapctl/snapctl/chunk"
	"github.com/snapctl/snapctl/engine/internal/repo"
	"github.com/snapctl/snapctl/remote"
	"github.com/snapctl/snapctl/remote/remotetest"
	"golang.org/x/sys/unix"
)

// TestMountCacheDamage: the disk cache is damaged in every way, beneath a mount
// that readers are at: each of them gets what the snapshot holds, and no error.
func TestMountCacheDamage(t *testing.T) {
	w := newWobbly(t)
	files := map[string][]byte{}
	for i := range 12 {
		files[fmt.Sprintf("dir/%d", i)] = random(uint64(i), 700_000)
	}
	for i := range 3000 { // so that the tree takes several pages
		files[fmt.Sprintf("many/%s-%d", strings.Repeat("n", 50), i)] = []byte(fmt.Sprint(i))
	}
	id := w.snapshotOf(files)
	opts := w.options()
	disk := w.path("disk")
	mount(t, disk, "size=100m")
	opts.CacheDir = disk + "/cache"
	r := w.openWith(opts)
	m := mountAt(t, r, id, w.path("mnt"), &MountOptions{Memory: 1 << 20})
	eventually(t, "hydration", func() bool { s := m.Stats(); return s.PacksHere == s.Packs })

	packs := opts.CacheDir + "/packs"
	each := func(f func(path string, size int64) error) error {
		return filepath.WalkDir(packs, func(path string, d fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			if err != nil || !d.Type().IsRegular() {
				return err
			}
			info, err := d.Info()
			if err == nil {
				err = f(path, info.Size())
			}
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			return err
		})
	}
	overwrite := func(path string, off, n int64, with func([]byte)) error {
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			return err
		}
		defer f.Close()
		b := make([]byte, n)
		if n, err := f.ReadAt(b, off); err != nil {
			b = b[:n]
		}
		with(b)
		_, err = f.WriteAt(b, off)
		return err
	}
	for _, damage := range []struct {
		name string
		do   func() error
	}{
		{"truncated", func() error { return each(func(p string, n int64) error { return os.Truncate(p, n/2) }) }},
		{"cut to nothing", func() error { return each(func(p string, n int64) error { return os.Truncate(p, 0) }) }},
		{"flipped", func() error {
			return each(func(p string, n int64) error {
				for off := int64(0); off < n; off += 50_001 {
					if err := overwrite(p, off, 1, func(b []byte) {
						for i := range b {
							b[i] ^= 4
						}
					}); err != nil {
						return err
					}
				}
				return nil
			})
		}},
		{"zeroed", func() error {
			return each(func(p string, n int64) error { return overwrite(p, 0, n, func(b []byte) { clear(b) }) })
		}},
		{"zeroed behind the header", func() error {
			return each(func(p string, n int64) error { return overwrite(p, min(n, 1<<20), n, func(b []byte) { clear(b) }) })
		}},
		{"deleted", func() error { return each(func(p string, n int64) error { return os.Remove(p) }) }},
		{"folder of packs deleted", func() error { return os.RemoveAll(packs) }},
		{"cache deleted", func() error { return os.RemoveAll(opts.CacheDir) }},
		{"folder of packs a file", func() error { return errors.Join(os.RemoveAll(packs), os.WriteFile(packs, nil, 0o600)) }},
		{"a folder again", func() error { return os.Remove(packs) }},
		{"permissions taken away", func() error { return unix.Mount("", disk, "", unix.MS_REMOUNT|unix.MS_RDONLY, "") }},
		{"and given back", func() error { return unix.Mount("", disk, "", unix.MS_REMOUNT, "") }},
	} {
		stop := make(chan struct{})
		started := make(chan struct{})
		go func() {
			defer close(stop)
			<-started
			// Again and again, while it is being filled again.
			for range times(5, 50) {
				err := damage.do()
				if errors.Is(err, unix.EBUSY) { // somebody writes: not read-only at this moment
					err = nil
				}
				if err != nil && !errors.Is(err, fs.ErrNotExist) {
					t.Errorf("%s: %v", damage.name, err)
				}
				if _, err := readPast(m.Dir+"/dir/3", 0, make([]byte, 700_000)); err != nil {
					t.Errorf("%s: %v", damage.name, err)
				}
			}
		}()
		close(started)
		randomReads(t, stop, 8, 0, m.Dir, files)
		if t.Failed() {
			t.Fatalf("%s", damage.name)
		}
	}
	if n := m.Stats().Errors; n != 0 {
		t.Errorf("%d requests failed", n)
	}
	// And a new mount, of what is left of the cache.
	other := mountAt(t, w.openWith(opts), id, w.path("mnt2"), nil)
	compare(t, scan(t, w.path("src")), scan(t, other.Dir))
}

// TestMountFullCache: the disk of the cache is full: the mount goes on without, and
// with what there is room for.
func TestMountFullCache(t *testing.T) {
	w := newWobbly(t)
	id, content := w.snapshot()
	disk := w.path("disk")
	mount(t, disk, "size=5m")
	for i, free := range []int64{0, 64 << 10, 2 << 20} {
		opts := w.options()
		opts.CacheDir = fmt.Sprintf("%s/cache-%d", disk, i)
		makeRoom := fill(t, disk, free)
		r := w.openWith(opts)
		m := mountAt(t, r, id, w.path(fmt.Sprint("mnt-", i)), &MountOptions{Memory: 1 << 20})
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				for name, want := range content {
					buf := make([]byte, len(want))
					if n, err := readPast(m.Dir+"/"+name, 0, buf); err != nil || !bytes.Equal(buf[:n], want[:n]) || n == 0 {
						t.Errorf("with %d bytes free: %s: %d bytes, %v", free, name, n, err)
					}
					sameFile(t, m.Dir+"/"+name, want)
				}
			})
		}
		wg.Wait()
		if s := m.Stats(); s.Errors != 0 || s.Fetched == 0 {
			t.Errorf("with %d bytes free: %+v", free, s)
		}
		must(t, m.Unmount(false))
		must(t, r.Close())
		makeRoom()
		must(t, os.RemoveAll(opts.CacheDir))
	}
}

// skewed is a store that gives the bytes of another range than was asked for.
type skewed struct {
	*remotetest.Memory
	on atomic.Pointer[string] // of objects with that prefix
}

// of gives a store in which the object's beginning is at its end.
func (s *skewed) of(ctx context.Context, name string) (remote.Store, error) {
	on := s.on.Load()
	if on == nil || !strings.HasPrefix(name, *on) {
		return s.Memory, nil
	}
	all, err := s.Memory.Get(ctx, name)
	if err != nil {
		return nil, err
	}
	m := &remotetest.Memory{}
	n := min(4096, len(all)/2)
	return m, m.Put(ctx, name, append(bytes.Clone(all[n:]), all[:n]...))
}

func (s *skewed) ReadAt(ctx context.Context, name string, offset int64, p []byte) error {
	m, err := s.of(ctx, name)
	if err != nil {
		return err
	}
	return m.ReadAt(ctx, name, offset, p)
}

func (s *skewed) ReadRange(ctx context.Context, name string, offset int64, p []byte, arrived func(n int)) (int, error) {
	m, err := s.of(ctx, name)
	if err != nil {
		return 0, err
	}
	return remote.ReadRange(ctx, m, name, offset, p, arrived)
}

// TestMountDamagedPack: a pack that is not there, too short, or not what it was,
// costs the files that lie in it EIO, and never a wrong byte nor a missing name; the
// others are as before, and so is all when the pack is back.
func TestMountDamagedPack(t *testing.T) {
	w := newWobbly(t)
	files := map[string][]byte{}
	for i := range 4 {
		files[fmt.Sprintf("dir/%d", i)] = random(uint64(i), 900_000)
	}
	for i := range 3000 {
		files[fmt.Sprintf("many/%s-%d", strings.Repeat("n", 50), i)] = []byte(fmt.Sprint(i))
	}
	first := w.snapshotOf(files)
	r := w.open()
	later := map[string][]byte{}
	for i := range 4 {
		name := fmt.Sprintf("later/%d", i)
		later[name] = random(uint64(100+i), 900_000)
		writeFile(t, w.path("src", name), later[name])
	}
	id := complete(t, r, w.path("src"), nil).ID
	old := packsOf(t, r, first, chunk.DataPack)
	if len(old) != 1 || len(packsOf(t, r, id, chunk.DataPack)) != 2 {
		t.Fatal("that is no test")
	}
	damaged := repo.PackName(old[0])
	skew := &skewed{Memory: w.mem}
	isDamaged := func(prefix string, f remotetest.Fault) func() {
		return func() {
			w.fail(func(op remote.Op, name string) remotetest.Fault {
				if strings.HasPrefix(name, prefix) {
					return f
				}
				return remotetest.Fault{}
			})
		}
	}
	for name, fault := range map[string]remotetest.Fault{
		"404":         {Err: remote.ErrNotExist},
		"short":       {Short: true},
		"refused":     {Err: remote.ErrAccess},
		"flipped":     {Corrupt: true},
		"wrong range": {},
	} {
		t.Run(name, func(t *testing.T) {
			opts := w.options()
			opts.Store = remotetest.NewFaulty(skew, func(op remote.Op, name string) remotetest.Fault {
				if f := w.hook.Load(); f != nil {
					return (*f)(op, name)
				}
				return remotetest.Fault{}
			})
			begin := func(prefix string) {
				isDamaged(prefix, fault)()
				if name == "wrong range" {
					skew.on.Store(&prefix)
				}
			}
			end := func() { w.heal(); skew.on.Store(nil) }
			defer end()

			// Pages of the tree, and all else.
			begin("packs/")
			m := mountAt(t, w.openWith(opts), id, filepath.Join(t.TempDir(), "mnt"), &MountOptions{Prefetch: PrefetchNone, Memory: 1 << 20})
			name := fmt.Sprintf("%s/many/%s-", m.Dir, strings.Repeat("n", 50))
			eio := 0
			for i := range 40 {
				_, err := os.Lstat(fmt.Sprint(name, i*70))
				if errors.Is(err, unix.EIO) {
					eio++
				} else if err != nil {
					t.Errorf("with the tree damaged: %v", err)
				}
			}
			if _, err := os.ReadDir(m.Dir + "/many"); err != nil && !errors.Is(err, unix.EIO) {
				t.Error(err)
			}
			if n := m.Stats().Errors; eio == 0 && fault.Corrupt == false || n < int64(eio) {
				t.Errorf("%d times EIO, %d errors", eio, n)
			}
			end()
			for i := range 40 {
				if _, err := os.Lstat(fmt.Sprint(name, i*70)); err != nil {
					t.Errorf("with the tree mended: %v", err)
				}
			}

			// One pack of two.
			begin(damaged)
			before := m.Stats().Errors
			eio = 0
			buf := make([]byte, 50_000)
			for file, want := range files {
				if len(want) < len(buf) {
					continue
				}
				for off := 0; off < len(want); off += 130_000 {
					n, err := readPast(m.Dir+"/"+file, int64(off), buf)
					if !bytes.HasPrefix(want[off:], buf[:n]) {
						t.Errorf("%s: wrong bytes at %d", file, off)
					}
					if errors.Is(err, unix.EIO) {
						eio++
					} else if err != nil {
						t.Errorf("%s: %v", file, err)
					}
				}
			}
			if n := m.Stats().Errors - before; eio == 0 || n < int64(eio) {
				t.Errorf("%d times EIO, %d errors", eio, n)
			}
			before = m.Stats().Errors
			for file, want := range later {
				sameFile(t, m.Dir+"/"+file, want)
			}
			if n := m.Stats().Errors - before; n != 0 {
				t.Errorf("%d errors of files in another pack", n)
			}
			end()
			for file, want := range files {
				sameFile(t, m.Dir+"/"+file, want)
			}
		})
	}
}
