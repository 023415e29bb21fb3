//go:build linux

package engine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/snapctl/snapctl/chunk"
	"github.com/snapctl/snapctl/engine/internal/access"
	"github.com/snapctl/snapctl/engine/internal/repo"
	"github.com/snapctl/snapctl/engine/snapshot"
	"github.com/snapctl/snapctl/fusefs"
	"github.com/snapctl/snapctl/manifest"
	"github.com/snapctl/snapctl/remote"
	"github.com/snapctl/snapctl/remote/remotetest"
	"golang.org/x/sys/unix"
)

// mountAt mounts a snapshot for the length of a test, which must not leave
// anybody in it.
func mountAt(t testing.TB, r *Repository, id manifest.ID, dir string, opts *MountOptions) *Mount {
	t.Helper()
	needRoot(t)
	if _, err := os.Stat("/dev/fuse"); err != nil {
		t.Skipf("no FUSE here: %v", err)
	}
	must(t, os.MkdirAll(dir, 0o755))
	m, err := r.Mount(t.Context(), id.String(), dir, opts)
	must(t, err)
	t.Cleanup(func() {
		if err := m.Unmount(false); err != nil {
			t.Error(err)
			_ = m.Unmount(true)
		}
		if source, err := fusefs.Mounted(dir); source != "" || err != nil {
			t.Errorf("left behind at %s: %s %v", dir, source, err)
		}
	})
	return m
}

// inodesOf gives the inode numbers of a directory by path.
func inodesOf(t testing.TB, dir string) map[string]uint64 {
	t.Helper()
	all := map[string]uint64{}
	must(t, filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if strings.HasPrefix(path, dir+"/deep-") {
			return fs.SkipDir // paths that are longer than a system call takes
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return fmt.Errorf("%q: %w", path, err)
		}
		all[strings.TrimPrefix(path, dir)] = st.Ino
		return nil
	}))
	return all
}

// TestMountFidelity: a mount shows everything that a Linux tree holds as it was,
// with the same inode numbers in every mount.
func TestMountFidelity(t *testing.T) {
	needRoot(t)
	p := newPlace(t)
	r := p.init()
	src := p.path("src")
	plant(t, src)
	res := complete(t, r, src, nil)
	m := mountAt(t, r, res.ID, p.path("mnt"), nil)
	want := scan(t, src)
	compare(t, want, scan(t, m.Dir))
	compare(t, want, scan(t, m.Dir)) // from the kernel's memory
	rsyncFindsNothing(t, src, m.Dir)
	other := mountAt(t, p.open("other"), res.ID, p.path("other-mnt"), nil)
	a, b := inodesOf(t, m.Dir), inodesOf(t, other.Dir)
	for path, ino := range a {
		if b[path] != ino {
			t.Errorf("%q has inode %d and %d", path, ino, b[path])
		}
	}
	if len(a) != len(b) {
		t.Errorf("%d and %d entries", len(a), len(b))
	}
	// What is mounted can be snapshotted, and is the same.
	again := complete(t, r, m.Dir, nil)
	if again.NewBytes != 0 {
		t.Errorf("a snapshot of the mount has %d new bytes", again.NewBytes)
	}
	equalEntries(t, entriesOf(t, r, res.ID), entriesOf(t, r, again.ID))
	if s := m.Stats(); s.Errors != 0 {
		t.Errorf("%+v", s)
	}
}

// TestMountReads: random reads by many at once give what the source holds, with
// a memory that holds but a few frames.
func TestMountReads(t *testing.T) {
	p := newPlace(t)
	r := p.init()
	src := p.path("src")
	var content [][]byte
	for i := range 24 {
		b := random(uint64(i), 1+i*i*i*400)
		copy(b[len(b)/2:], bytes.Repeat([]byte("text "), len(b)/20))
		content = append(content, b)
		writeFile(t, fmt.Sprintf("%s/%d/%d", src, i%5, i), b)
	}
	res := complete(t, r, src, nil)
	m := mountAt(t, r, res.ID, p.path("mnt"), &MountOptions{Memory: 3 << 20})
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			buf := make([]byte, 400_000)
			for range times(60, 2000) {
				i := rand.IntN(len(content))
				f, err := os.Open(fmt.Sprintf("%s/%d/%d", m.Dir, i%5, i))
				if err != nil {
					t.Error(err)
					return
				}
				off := rand.IntN(len(content[i]) + 1)
				n, err := f.ReadAt(buf[:rand.IntN(len(buf))+1], int64(off))
				if want := content[i][off:]; n < len(want) && err == nil && n == 0 || !bytes.HasPrefix(want, buf[:n]) {
					t.Errorf("file %d: %d bytes at %d: %v", i, n, off, err)
				}
				f.Close()
			}
		})
	}
	wg.Wait()
	m.chunks.Mu.Lock() // the kernel may still read ahead
	defer m.chunks.Mu.Unlock()
	if m.chunks.Size > m.chunks.Limit+chunk.MaxFrame {
		t.Errorf("%d bytes of frames are kept", m.chunks.Size)
	}
}

// TestMountDecodesOnce: reading all of a tree, piece by piece and by many at once,
// decodes each frame once.
func TestMountDecodesOnce(t *testing.T) {
	p := newPlace(t)
	r := p.init()
	src := p.path("src")
	writeFile(t, src+"/large", random(1, 20<<20))
	for i := range 500 {
		writeFile(t, fmt.Sprintf("%s/small/%d", src, i), random(uint64(i), 3000))
	}
	res := complete(t, r, src, nil)
	m := mountAt(t, r, res.ID, p.path("mnt"), nil)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for i := range 500 {
				if _, err := os.ReadFile(fmt.Sprintf("%s/small/%d", m.Dir, i)); err != nil {
					t.Error(err)
				}
			}
			if b, err := os.ReadFile(m.Dir + "/large"); err != nil || len(b) != 20<<20 {
				t.Error(err, len(b))
			}
		})
	}
	wg.Wait()
	frames := map[access.FrameKey]bool{}
	tree, err := manifest.NewTree(rootOf(t, r, res.ID), r.repo)
	must(t, err)
	c, err := tree.SeekRank(t.Context(), 0)
	must(t, err)
	var e manifest.Entry
	for {
		more, err := c.Next(t.Context(), &e)
		must(t, err)
		if !more {
			break
		}
		for _, x := range e.Extents {
			frames[access.FrameKey{Pack: x.Pack, Offset: x.Frame.Offset}] = true
		}
	}
	if got := m.Stats().Decoded; got != int64(len(frames)) {
		t.Errorf("%d frames were decoded %d times", len(frames), got)
	}
}

func rootOf(t testing.TB, r *Repository, id manifest.ID) []byte {
	t.Helper()
	m, err := r.repo.Manifest(t.Context(), id)
	must(t, err)
	return m.Root
}

// A wobbly place has a repository in memory whose store fails as a test wants it.
type wobbly struct {
	*place
	hook atomic.Pointer[func(remote.Op, string) remotetest.Fault]
	mem  *remotetest.Memory

	patience repo.Patience // of repositories that are opened
}

func newWobbly(t testing.TB) *wobbly {
	return &wobbly{place: newPlace(t), mem: &remotetest.Memory{}, patience: calm()}
}

func (w *wobbly) fail(f func(remote.Op, string) remotetest.Fault) { w.hook.Store(&f) }
func (w *wobbly) heal()                                           { w.hook.Store(nil) }

// options are those to open the repository with an empty cache.
func (w *wobbly) options() *Options {
	w.Helper()
	cache, err := os.MkdirTemp(w.dir, "cache-")
	must(w, err)
	return &Options{CacheDir: cache, patience: w.patience, Store: remotetest.NewFaulty(w.mem, func(op remote.Op, name string) remotetest.Fault {
		if f := w.hook.Load(); f != nil {
			return (*f)(op, name)
		}
		return remotetest.Fault{}
	})}
}

func (w *wobbly) open() *Repository {
	w.Helper()
	r, err := Open(w.Context(), "", keyed(w, w.options()))
	must(w, err)
	w.Cleanup(func() { r.Close() })
	return r
}

// snapshot makes the repository and a snapshot in it, of files that do not share
// a frame.
func (w *wobbly) snapshot() (manifest.ID, map[string][]byte) {
	w.Helper()
	r, err := Init(w.Context(), "", initOf(w), keyed(w, w.options()))
	must(w, err)
	defer r.Close()
	content := map[string][]byte{}
	for i := range 8 {
		name := fmt.Sprintf("dir/%d", i)
		content[name] = random(uint64(i), 1<<20)
		writeFile(w, w.path("src", name), content[name])
	}
	return complete(w, r, w.path("src"), nil).ID, content
}

func sameFile(t testing.TB, path string, want []byte) {
	t.Helper()
	if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%s: %d bytes, %v", path, len(got), err)
	}
}

// TestMountAway: with the store away what was not fetched is EIO, what was goes
// on, and when it is back the same mount serves all of it.
func TestMountAway(t *testing.T) {
	w := newWobbly(t)
	id, content := w.snapshot()
	var failed atomic.Int64
	m := mountAt(t, w.open(), id, w.path("mnt"), &MountOptions{Prefetch: PrefetchNone, Fail: func(_, path string, err error) {
		failed.Add(1)
		if !strings.HasPrefix(path, "dir/") || !strings.Contains(err.Error(), "away") {
			t.Errorf("%s: %v", path, err)
		}
	}})
	sameFile(t, m.Dir+"/dir/0", content["dir/0"])
	w.fail(func(remote.Op, string) remotetest.Fault { return remotetest.Fault{Err: errors.New("away")} })
	sameFile(t, m.Dir+"/dir/0", content["dir/0"])
	for range 2 {
		if _, err := os.ReadFile(m.Dir + "/dir/5"); !errors.Is(err, unix.EIO) {
			t.Errorf("away: %v", err)
		}
	}
	if failed.Load() == 0 || m.Stats().Errors == 0 {
		t.Errorf("%d were reported, and %+v", failed.Load(), m.Stats())
	}
	w.heal()
	for name, want := range content {
		sameFile(t, m.Dir+"/"+name, want)
	}
}

// TestMountWrongBytes: a wrong byte is fetched once more; if it stays wrong the
// read fails, and works when it is right again. None is ever read.
func TestMountWrongBytes(t *testing.T) {
	w := newWobbly(t)
	id, content := w.snapshot()
	m := mountAt(t, w.open(), id, w.path("mnt"), &MountOptions{Prefetch: PrefetchNone})
	var once atomic.Int64
	w.fail(func(op remote.Op, name string) remotetest.Fault {
		return remotetest.Fault{Corrupt: strings.HasPrefix(name, "packs/") && once.Add(1) == 1}
	})
	sameFile(t, m.Dir+"/dir/0", content["dir/0"])
	if once.Load() < 2 {
		t.Errorf("%d requests", once.Load())
	}
	w.heal()
	// Where two fetches of a range meet, each may bring what the other has spoiled.
	for try := 0; ; try++ {
		m = mountAt(t, w.open(), id, w.path(fmt.Sprint("mnt2-", try)), &MountOptions{Prefetch: PrefetchNone})
		w.fail(func(remote.Op, string) remotetest.Fault { return remotetest.Fault{Corrupt: true} })
		for name, want := range content {
			// The bit that is turned over is in one of the files only.
			if got, err := os.ReadFile(m.Dir + "/" + name); err == nil && !bytes.Equal(got, want) {
				t.Errorf("%s: wrong bytes were read", name)
			} else if err != nil && !errors.Is(err, unix.EIO) {
				t.Error(err)
			}
		}
		if m.Stats().Errors > 0 {
			break
		}
		if try == 20 {
			t.Fatal("no read failed")
		}
		w.heal()
	}
	w.heal()
	for name, want := range content {
		sameFile(t, m.Dir+"/"+name, want)
	}
}

// TestMountCache: what one mount fetched another process's does not fetch again,
// and a mount reads little of what nobody asked for.
func TestMountCache(t *testing.T) {
	w := newWobbly(t)
	id, content := w.snapshot()
	opts := w.options()
	open := func() *Repository {
		r, err := Open(t.Context(), "", keyed(t, opts))
		must(t, err)
		t.Cleanup(func() { r.Close() })
		return r
	}
	first := open()
	m := mountAt(t, first, id, w.path("mnt"), &MountOptions{Prefetch: PrefetchNone})
	if _, err := os.ReadDir(m.Dir + "/dir"); err != nil {
		t.Error(err)
	}
	if n := first.Requests().Ops[remote.OpReadAt].Calls; n != 0 {
		t.Errorf("%d ranges were fetched to list a directory", n)
	}
	for name, want := range content {
		sameFile(t, m.Dir+"/"+name, want)
	}
	must(t, m.Unmount(false)) // which ends what is being written to the cache
	if s := m.Stats(); s.Fetched < 8<<20 || s.CacheUsed < 8<<20 {
		t.Errorf("%+v", s)
	}
	second := open()
	m = mountAt(t, second, id, w.path("mnt2"), &MountOptions{Prefetch: PrefetchNone})
	for name, want := range content {
		sameFile(t, m.Dir+"/"+name, want)
	}
	if n := second.Requests().Ops[remote.OpReadAt].Calls; n != 0 {
		t.Errorf("%d ranges were fetched that the cache has", n)
	}
	if s := m.Stats(); s.Fetched != 0 || s.Hits == 0 {
		t.Errorf("%+v", s)
	}
}

// TestMountS3: through a real S3 server, the manifest and the tree in one request
// each, and then what is read.
func TestMountS3(t *testing.T) {
	b := newBucket(t)
	r := b.init()
	src := b.path("src")
	for i := range 300 {
		writeFile(t, fmt.Sprintf("%s/%d/%d", src, i%7, i), random(uint64(i), 100*i))
	}
	res := complete(t, r, src, nil)
	other := b.open("other", nil)
	before := other.Requests().Ops
	m := mountAt(t, other, res.ID, b.path("mnt"), &MountOptions{Prefetch: PrefetchNone})
	asked := other.Requests().Ops.Sub(before)
	// The lease is written meanwhile, and not waited for.
	if n := asked.Total().Calls - asked[remote.OpReplace].Calls; n > 2 {
		t.Errorf("mounting took %d requests", n)
	}
	compare(t, scan(t, src), scan(t, m.Dir))
}

// TestMountRelocated: what was repacked while it is mounted is found where it is
// now, and with one listing of each kind.
func TestMountRelocated(t *testing.T) {
	p := newPlace(t)
	r := p.init()
	src := p.path("src")
	for i := range 6 {
		writeFile(t, fmt.Sprintf("%s/%d", src, i), random(uint64(i), 1<<20))
	}
	first := complete(t, r, src, nil)
	old := packsOf(t, r, first.ID, chunk.DataPack)
	m := mountAt(t, r, first.ID, p.path("mnt"), nil)
	// Another machine that does not know of the packs stores all of it again.
	segments, err := filepath.Glob(p.repo + "/index/*")
	must(t, err)
	for _, s := range segments {
		must(t, os.Remove(s))
	}
	must(t, r.repo.Store.Delete(t.Context(), repo.PackName(old[0])))
	writeFile(t, src+"/7", random(7, 1<<20)) // so that it is another pack
	must(t, os.Rename(src+"/0", src+"/00"))
	must(t, unix.Rename(src+"/7", src+"/0"))
	complete(t, p.open("other"), src, nil)
	before := r.Requests().Ops
	for i := 1; i < 6; i++ {
		sameFile(t, fmt.Sprintf("%s/%d", m.Dir, i), random(uint64(i), 1<<20))
	}
	sameFile(t, m.Dir+"/0", random(0, 1<<20))
	// Of tombstones, which say what was repacked, and of segments.
	if lists := r.Requests().Ops.Sub(before)[remote.OpList].Calls; lists > 2 {
		t.Errorf("%d listings", lists)
	}
}

// TestMountPoint: where a snapshot can be mounted and where not.
func TestMountPoint(t *testing.T) {
	needRoot(t)
	p := newPlace(t)
	r := p.init()
	id := complete(t, r, p.files("src", map[string]string{"a": "1"}), nil).ID
	full := p.files("full", map[string]string{"b": "2"})
	try := func(dir string, opts *MountOptions) error {
		t.Helper()
		m, err := r.Mount(t.Context(), id.String(), dir, opts)
		if err == nil {
			must(t, m.Unmount(false))
		}
		return err
	}
	for dir, want := range map[string]error{
		full: snapshot.ErrExists, full + "/b": unix.ENOTDIR, full + "/none": fs.ErrNotExist, full + "/none/none": fs.ErrNotExist, "": snapshot.ErrInvalid,
	} {
		if err := try(dir, nil); !errors.Is(err, want) {
			t.Errorf("%q: %v", dir, err)
		}
	}
	if err := try(full, &MountOptions{Force: true}); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(full + "/b"); err != nil {
		t.Error(err)
	}
	if _, err := r.Mount(t.Context(), "none", full, &MountOptions{Force: true}); !errors.Is(err, snapshot.ErrNotFound) {
		t.Error(err)
	}
	// A mount of ours is not mounted over.
	m := mountAt(t, r, id, p.path("mnt"), nil)
	if err := try(m.Dir, nil); !errors.Is(err, snapshot.ErrExists) || !strings.Contains(err.Error(), id.String()) {
		t.Error(err)
	}
	// Through a symbolic link, and unmounted by somebody else.
	link := p.path("link")
	must(t, os.Symlink(m.Dir, link))
	must(t, m.Unmount(false))
	m, err := r.Mount(t.Context(), id.String(), link, nil)
	must(t, err)
	f, err := os.Open(link + "/a")
	must(t, err)
	if err := m.Unmount(false); !errors.Is(err, fusefs.ErrBusy) {
		t.Error(err)
	}
	f.Close()
	must(t, unix.Unmount(m.Dir, 0))
	select {
	case <-m.Ended():
	case <-time.After(tooLong):
		t.Error("it does not end")
	}
	must(t, m.Unmount(false))
}

// TestMountContext: a mount outlives the context that it was made with.
func TestMountContext(t *testing.T) {
	w := newWobbly(t)
	needRoot(t)
	id, content := w.snapshot()
	r := w.open()
	must(t, os.Mkdir(w.path("mnt"), 0o755))
	ctx, cancel := context.WithCancel(t.Context())
	m, err := r.Mount(ctx, id.String(), w.path("mnt"), nil)
	must(t, err)
	cancel()
	for name, want := range content {
		sameFile(t, m.Dir+"/"+name, want)
	}
	must(t, m.Unmount(false))
}
