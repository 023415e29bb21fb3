//go:build linux

package fusefs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/moby/sys/mountinfo"
	"github.com/snapctl/snapctl/chunk"
	"github.com/snapctl/snapctl/manifest"
)

// tooLong is longer than anything takes that a test waits for, on however slow a machine.
const tooLong = 5 * time.Minute

// TestMain fails for a mount that a test left behind.
func TestMain(m *testing.M) {
	temp, err := os.MkdirTemp("/dev/shm", "snapctl-fusefs-test-")
	if err != nil {
		panic(err)
	}
	os.Setenv("TMPDIR", temp)
	code := m.Run()
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(temp))
	if err != nil || len(mounts) > 0 {
		fmt.Fprintln(os.Stderr, "mounts left behind:", len(mounts), err)
		for _, m := range mounts {
			fmt.Fprintln(os.Stderr, m.Mountpoint, unmount(m.Mountpoint, true))
		}
		code = max(code, 1)
	}
	if err := os.RemoveAll(temp); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = max(code, 1)
	}
	os.Exit(code)
}

// A world is a snapshot in memory: its pages and chunks, which fail as a test
// wants it.
type world struct {
	pages  map[chunk.ID][]byte
	refs   map[chunk.ID]manifest.PageRef
	chunks map[chunk.ID][]byte

	entries  []manifest.Entry
	manifest *manifest.Manifest // since serve
	fault    atomic.Pointer[func(context.Context) error]
	asked    atomic.Int64 // chunks
}

var hasher chunk.Hasher

func newWorld() *world {
	return &world{
		pages: map[chunk.ID][]byte{}, refs: map[chunk.ID]manifest.PageRef{}, chunks: map[chunk.ID][]byte{},
		entries: []manifest.Entry{{Type: manifest.Dir, Mode: 0o755, Links: 1}},
	}
}

// add adds an entry by its path.
func (w *world) add(path string, e manifest.Entry) {
	k := manifest.KeyOf(path)
	e.Dir, e.Name = k.Dir, k.Name
	w.entries = append(w.entries, e)
}

func (w *world) dir(path string) {
	w.add(path, manifest.Entry{Type: manifest.Dir, Mode: 0o755, Links: 1})
}

// A piece of a file: zeros that are a hole, then data that is one chunk.
type piece struct {
	hole uint64
	data string
}

// file adds a file of pieces, with a hole at its end.
func (w *world) file(path string, end uint64, pieces ...piece) {
	e := manifest.Entry{Type: manifest.File, Mode: 0o644, Links: 1, Size: end}
	for _, p := range pieces {
		id := hasher.Sum([]byte(p.data))
		w.chunks[id] = []byte(p.data)
		n := uint32(len(p.data))
		e.Extents = append(e.Extents, manifest.Extent{Hole: p.hole, ID: id, Location: chunk.Location{
			Pack: chunk.PackID{1}, Frame: chunk.Frame{Offset: chunk.PackHeaderSize, Stored: n, Raw: n}, Length: n,
		}})
		e.Size += p.hole + uint64(n)
	}
	w.add(path, e)
}

// Add, Flush and Page are manifest.PageSink.
func (w *world) Add(_ context.Context, page []byte) (chunk.ID, error) {
	id := hasher.Sum(page)
	n := uint32(len(page))
	w.pages[id] = slices.Clone(page)
	w.refs[id] = manifest.PageRef{ID: id, Pack: chunk.PackID{2}, Frame: chunk.Frame{Offset: chunk.PackHeaderSize, Stored: n, Raw: n}}
	return id, nil
}

func (w *world) Flush(context.Context) error        { return nil }
func (w *world) Page(id chunk.ID) manifest.PageRef  { return w.refs[id] }
func (w *world) fail(f func(context.Context) error) { w.fault.Store(&f) }
func (w *world) heal()                              { w.fault.Store(nil) }
func (w *world) source() pageReads                  { return pageReads{w} }

func (w *world) trouble(ctx context.Context) error {
	if f := w.fault.Load(); f != nil {
		return (*f)(ctx)
	}
	return nil
}

type pageReads struct{ *world }

// Page is manifest.PageSource.
func (w pageReads) Page(ctx context.Context, ref manifest.PageRef) ([]byte, error) {
	if err := w.trouble(ctx); err != nil {
		return nil, err
	}
	return w.pages[ref.ID], nil
}

// Chunk is Source.
func (w *world) Chunk(ctx context.Context, x *manifest.Extent) ([]byte, error) {
	w.asked.Add(1)
	if err := w.trouble(ctx); err != nil {
		return nil, err
	}
	data, ok := w.chunks[x.ID]
	if !ok {
		return nil, errors.New("no such chunk")
	}
	return data, nil
}

// mount mounts the world for the length of a test.
func (w *world) mount(t testing.TB) string {
	t.Helper()
	return w.serve(t).dir
}

// serve is mount, and gives the server.
func (w *world) serve(t testing.TB) *Server {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("only root can mount without a helper program")
	}
	if _, err := os.Stat("/dev/fuse"); err != nil {
		t.Skipf("no FUSE here: %v", err)
	}
	w.build(t)
	return w.again(t)
}

// build makes the manifest.
func (w *world) build(t testing.TB) {
	t.Helper()
	slices.SortFunc(w.entries, func(a, b manifest.Entry) int { return a.Key().Compare(b.Key()) })
	b := manifest.NewBuilder(w)
	m := &manifest.Manifest{Info: manifest.Info{ID: manifest.NewID(0)}}
	for i := range w.entries {
		e := w.entries[i]
		if err := b.Add(t.Context(), &e); err != nil {
			t.Fatalf("%q: %v", e.Path(), err)
		}
		m.Bytes += e.Size
	}
	root, err := b.Finish(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	m.SetTree(root)
	m.Xattrs, m.HardLinks = root.Xattrs, root.HardLinks
	w.manifest = m
}

// again mounts once more what serve has mounted, at another directory.
func (w *world) again(t testing.TB) *Server {
	t.Helper()
	tree, err := manifest.NewTree(w.manifest.Root, w.source())
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	s, err := Mount(dir, w.manifest, tree, w, &Options{Fail: func(op, path string, err error) {
		if strings.Contains(err.Error(), "damaged") {
			t.Errorf("%s of %q: %v", op, path, err)
		}
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		err := s.Unmount(false)
		if errors.Is(err, ErrNotMounted) { // by the test
			err = nil
		}
		if err != nil {
			t.Error(err)
			s.Unmount(true)
		}
		s.Wait()
	})
	return s
}
