//go:build linux

package engine

import (
	"archive/tar"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/metrics"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/snapctl/snapctl/chunk"
	"github.com/snapctl/snapctl/engine/internal/repo"
	"github.com/snapctl/snapctl/engine/internal/write"
	"github.com/snapctl/snapctl/engine/snapshot"
	"github.com/snapctl/snapctl/engine/view"
	"github.com/snapctl/snapctl/manifest"
	"github.com/zeebo/blake3"
)

// forgeBytes is forge that puts other bytes into the tree, as many: so what the format
// refuses gets past the encoder. The layout is that of manifest/manifest.go.
func forgeBytes(t testing.TB, r *Repository, old, new string, entries ...manifest.Entry) manifest.ID {
	t.Helper()
	ctx := t.Context()
	if len(old) != len(new) {
		t.Fatalf("%q and %q differ in length", old, new)
	}
	const header, sum = 32, 32
	var id manifest.ID
	var b, tree []byte
	var treeAt int
	// Names of packs are random and may hold the same bytes: then it is forged again.
	for tries := 0; ; tries++ {
		id = forge(t, r, entries...)
		var err error
		b, err = r.repo.Store.Get(ctx, id.ObjectName())
		must(t, err)
		must(t, r.repo.Store.Delete(ctx, id.ObjectName()))
		length := func(i int) int { return int(binary.LittleEndian.Uint32(b[16+4*i:])) }
		treeAt = header + length(0) + sum
		tree, err = r.repo.Codec.Decode(nil, b[treeAt:treeAt+length(2)], length(3))
		must(t, err)
		n := bytes.Count(tree, []byte(old))
		if n == 0 || tries == 100 {
			t.Fatalf("%q stands %d times in the tree", old, n)
		}
		if n == 1 {
			break
		}
	}
	tree = bytes.Replace(tree, []byte(old), []byte(new), 1)
	stored := r.repo.Codec.Encode(nil, tree)
	b = b[:treeAt:treeAt]
	binary.LittleEndian.PutUint32(b[16+4*2:], uint32(len(stored)))
	head := blake3.Sum256(b[:treeAt-sum])
	copy(b[treeAt-sum:], head[:])
	b = append(b, stored...)
	all := blake3.Sum256(b)
	must(t, r.repo.Store.Put(ctx, id.ObjectName(), append(b, all[:]...)))
	return id
}

// readHostile does with a snapshot all that there is to do but restore it, which
// other tests do. It gives what failed of it, by what was done.
func readHostile(t *testing.T, p *place, r *Repository, id, good string) map[string]error {
	t.Helper()
	ctx := t.Context()
	failed := map[string]error{}
	fsys, err := view.Open(ctx, r.repo, id)
	failed["fs"] = err
	if err == nil {
		failed["fs"] = fs.WalkDir(fsys, ".", func(path string, d fs.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() {
				return err
			}
			_, err = fsys.ReadFile(path)
			return err
		})
		var out bytes.Buffer
		failed["dump"] = fsys.Dump(&out, ".")
		checkArchive(t, &out)
	} else {
		failed["dump"] = err
	}
	for i, refs := range [][2]string{{id, good}, {good, id}} {
		failed[fmt.Sprint("diff ", i)] = view.Diff(ctx, r.repo, refs[0], refs[1], "", nil, func(*view.Change) error { return nil })
	}
	mnt := p.path("mnt")
	must(t, os.MkdirAll(mnt, 0o755))
	m, err := r.Mount(ctx, id, mnt, nil)
	failed["mount"] = err
	if err == nil {
		failed["mount"] = filepath.WalkDir(mnt, func(path string, d fs.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() {
				return err
			}
			f, err := os.Open(path)
			if err != nil {
				return err
			}
			defer f.Close()
			_, err = io.Copy(io.Discard, io.LimitReader(f, 64<<20))
			return err
		})
		must(t, m.Unmount(false))
	}
	return failed
}

// checkArchive looks for members that tar would write somewhere else.
func checkArchive(t *testing.T, r io.Reader) {
	t.Helper()
	links := map[string]bool{}
	seen := map[string]bool{}
	tr := tar.NewReader(r)
	for {
		h, err := tr.Next()
		if err != nil {
			return // the end, or where the dump broke off
		}
		name := strings.TrimSuffix(h.Name, "/")
		if seen[name] || !filepath.IsLocal(name) && name != "." {
			t.Errorf("the archive holds %q", h.Name)
		}
		seen[name] = true
		for dir := filepath.Dir(name); dir != "."; dir = filepath.Dir(dir) {
			if links[filepath.Clean(dir)] {
				t.Errorf("the archive holds %q, below a symbolic link", h.Name)
			}
		}
		if h.Typeflag == tar.TypeSymlink {
			links[filepath.Clean(name)] = true
		}
	}
}

// TestHostileNames: names that lead elsewhere are not read by anything.
func TestHostileNames(t *testing.T) {
	needRoot(t)
	p := newPlace(t)
	r := p.init()
	good := complete(t, r, p.files("src", map[string]string{"f": "contents of a file"}), nil).ID.String()
	outside := p.files("outside", map[string]string{"f": "old"})
	before := scan(t, outside)
	directory := func(dir, name string) manifest.Entry {
		return manifest.Entry{Dir: dir, Name: name, Type: manifest.Dir, Mode: 0o755}
	}
	file := func(dir, name string) manifest.Entry {
		return manifest.Entry{Dir: dir, Name: name, Type: manifest.File, Mode: 0o644}
	}
	for name, c := range map[string]struct {
		old, new string
		entries  []manifest.Entry
	}{
		"dot dot":                  {"QQ", "..", []manifest.Entry{file("", "QQ")}},
		"dot dot, a directory":     {"QQ", "..", []manifest.Entry{directory("", "QQ")}},
		"dot":                      {"\x01Q", "\x01.", []manifest.Entry{directory("", "Q")}},
		"a slash":                  {"aQoutside", "a/outside", []manifest.Entry{file("", "aQoutside")}},
		"absolute":                 {"Qoutside", "/outside", []manifest.Entry{file("", "Qoutside")}},
		"climbs":                   {"QQQoutside", "../outside", []manifest.Entry{file("", "QQQoutside")}},
		"NUL":                      {"aQb", "a\x00b", []manifest.Entry{file("", "aQb")}},
		"twice":                    {"Qy", "Qx", []manifest.Entry{file("", "Qx"), file("", "Qy")}},
		"out of order":             {"Qy", "Qa", []manifest.Entry{file("", "Qx"), file("", "Qy")}},
		"in a directory dot dot":   {"dQQ", "d..", []manifest.Entry{directory("", "dQQ")}},
		"a path that begins at /":  {"Qetc", "/etc", []manifest.Entry{file("Qetc", "passwd")}},
		"a path through dot dot":   {"d/QQ", "d/..", []manifest.Entry{file("d/QQ", "f")}},
		"an empty part in a path":  {"d/Q/e", "d//Qe", []manifest.Entry{file("d/Q/e", "f")}},
		"a directory as its child": {"d/Q", "d/d", []manifest.Entry{directory("", "d"), file("d/Q", "f")}},
	} {
		t.Run(name, func(t *testing.T) {
			id := forgeBytes(t, r, c.old, c.new, c.entries...).String()
			harmless := name == "in a directory dot dot" // a name like any other
			for _, o := range []RestoreOptions{{}, {Into: true}, {Delete: true}} {
				dst := p.path("dst")
				must(t, os.RemoveAll(dst))
				if o.Into || o.Delete {
					must(t, os.Mkdir(dst, 0o755))
				}
				if _, err := r.Restore(t.Context(), id, dst, &o); !harmless && !errors.Is(err, snapshot.ErrIntegrity) {
					t.Errorf("restore, %+v: %v", o, err)
				}
			}
			for what, err := range readHostile(t, p, r, id, good) {
				// What no directory leads to is not met but by those who read everything.
				met := !strings.Contains(name, "path") && !strings.Contains(name, "child")
				if !harmless && met && err == nil {
					t.Errorf("%s: no error", what)
				}
			}
			compare(t, before, scan(t, outside))
			if left := leftovers(t, p.dir); len(left) > 0 {
				t.Errorf("%s is left", left)
			}
		})
	}
}

// TestHostileContents: contents that are not what the tree says, for all that reads.
func TestHostileContents(t *testing.T) {
	needRoot(t)
	p := newPlace(t)
	r := p.init()
	src := p.files("src", map[string]string{"f": "contents of a file"})
	good := complete(t, r, src, nil)
	m, err := r.repo.Manifest(t.Context(), good.ID)
	must(t, err)
	tr, err := manifest.NewTree(m.Root, r.repo)
	must(t, err)
	var f manifest.Entry
	_, err = tr.Lookup(t.Context(), manifest.Key{Name: "f"}, &f)
	must(t, err)
	x := f.Extents[0]
	with := func(change func(x *manifest.Extent)) manifest.Extent { y := x; change(&y); return y }

	// A pack whose frame says of itself that it is small, and is not.
	enc, err := zstd.NewWriter(nil)
	must(t, err)
	bomb := enc.EncodeAll(make([]byte, 512<<20), nil)
	build := chunk.NewPackBuilder(chunk.DataPack, nil)
	frame := build.Add(bomb, []chunk.SizedID{{ID: x.ID, Length: chunk.MaxFrame}})
	pack, data, _ := build.Finish(r.repo.Codec)
	must(t, r.repo.Store.Put(t.Context(), repo.PackName(pack), data))
	exploding := manifest.Extent{ID: x.ID, Location: chunk.Location{Pack: pack, Frame: frame, Length: chunk.MaxFrame}}

	for name, e := range map[string]manifest.Entry{
		"another chunk's id":        {Size: 18, Extents: []manifest.Extent{with(func(x *manifest.Extent) { x.ID[0] ^= 1 })}},
		"behind the end of a pack":  {Size: 18, Extents: []manifest.Extent{with(func(x *manifest.Extent) { x.Frame.Offset = 200 << 20 })}},
		"in the index of a pack":    {Size: 18, Extents: []manifest.Extent{with(func(x *manifest.Extent) { x.Frame.Offset += x.Frame.Stored })}},
		"a frame that is longer":    {Size: 18, Extents: []manifest.Extent{with(func(x *manifest.Extent) { x.Frame.Stored++ })}},
		"a part of a chunk":         {Size: 17, Extents: []manifest.Extent{with(func(x *manifest.Extent) { x.Length-- })}},
		"a shifted part of a chunk": {Size: 17, Extents: []manifest.Extent{with(func(x *manifest.Extent) { x.Length--; x.Offset++ })}},
		"a bomb":                    {Size: chunk.MaxFrame, Extents: []manifest.Extent{exploding}},
	} {
		t.Run(name, func(t *testing.T) {
			e.Name, e.Type, e.Mode = "f", manifest.File, 0o644
			id := forge(t, r, e).String()
			before := heapAllocated()
			if _, err := r.Restore(t.Context(), id, p.path("dst"), nil); !errors.Is(err, snapshot.ErrIntegrity) {
				t.Errorf("restore: %v", err)
			}
			for what, err := range readHostile(t, p, r, id, good.ID.String()) {
				if err == nil && !strings.HasPrefix(what, "diff") { // which reads no contents
					t.Errorf("%s: no error", what)
				}
			}
			if n := heapAllocated() - before; n > 256<<20 {
				t.Errorf("%d bytes are allocated", n)
			}
		})
	}
}

func heapAllocated() uint64 {
	s := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}}
	metrics.Read(s)
	return s[0].Value.Uint64()
}

// TestHostileDepth: a path has a longest length, and so a tree a largest depth. One
// that is deep is restored and read; a million levels no page can hold.
func TestHostileDepth(t *testing.T) {
	needRoot(t)
	b := manifest.NewBuilder(&write.TreeSink{})
	must(t, b.Add(t.Context(), &manifest.Entry{Type: manifest.Dir, Mode: 0o755, Links: 1}))
	if err := b.Add(t.Context(), &manifest.Entry{Dir: strings.Repeat("a/", 1e6-1) + "a", Name: "f", Type: manifest.Fifo}); err == nil {
		t.Error("a million levels")
	}
	p := newPlace(t)
	r := p.init()
	good := complete(t, r, p.files("src", map[string]string{"f": "1"}), nil).ID.String()
	var entries []manifest.Entry
	depth := times(1500, manifest.MaxPath/2)
	path := strings.Repeat("a/", depth)
	for i := range depth {
		entries = append(entries, manifest.Entry{Dir: strings.TrimSuffix(path[:2*i], "/"), Name: "a", Type: manifest.Dir, Mode: 0o755})
	}
	id := forge(t, r, entries...).String()
	if _, err := r.Restore(t.Context(), id, p.path("dst"), nil); err != nil {
		t.Error(err)
	}
	fsys, err := view.Open(t.Context(), r.repo, id)
	must(t, err)
	if err := fsys.Dump(io.Discard, "."); err != nil {
		t.Error(err)
	}
	n := 0
	must(t, view.Diff(t.Context(), r.repo, good, id, "", nil, func(*view.Change) error { n++; return nil }))
	if n != depth+1 { // and the file that is not there
		t.Errorf("%d differences", n)
	}
}
