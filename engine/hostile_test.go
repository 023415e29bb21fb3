//go:build linux

package engine

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/snapctl/snapctl/chunk"
	"github.com/snapctl/snapctl/engine/internal/repo"
	"github.com/snapctl/snapctl/engine/internal/retain"
	"github.com/snapctl/snapctl/engine/internal/write"
	"github.com/snapctl/snapctl/engine/snapshot"
	"github.com/snapctl/snapctl/manifest"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// forge puts a manifest into the repository whose tree holds these entries, in
// order. What the format itself refuses cannot be forged so: it has tests of
// its own.
func forge(t testing.TB, r *Repository, entries ...manifest.Entry) manifest.ID {
	t.Helper()
	ctx := t.Context()
	var g errgroup.Group
	up := write.NewUploader(r.repo.Store, &g, write.Uploads)
	up.Busy, up.OnLand = func(int, int64) {}, func(context.Context) error { return nil }
	sink := &write.TreeSink{Codec: r.repo.Codec, Hasher: r.repo.Hasher, Up: up, Pages: map[chunk.ID]manifest.PageRef{},
		Lookup: func(chunk.ID) (manifest.PageRef, bool) { return manifest.PageRef{}, false }}
	b := manifest.NewBuilder(sink)
	root := manifest.Entry{Type: manifest.Dir, Mode: 0o755, Links: 1}
	for _, e := range append([]manifest.Entry{root}, entries...) {
		if e.Links == 0 {
			e.Links = 1
		}
		if err := b.Add(ctx, &e); err != nil {
			t.Fatalf("%q cannot be forged: %v", e.Path(), err)
		}
	}
	tree, err := b.Finish(ctx)
	must(t, err)
	must(t, g.Wait())
	m := &manifest.Manifest{Info: manifest.Info{ID: manifest.NewID(0), Dir: "/forged", Created: r.repo.Now()}}
	m.SetTree(tree)
	for _, e := range entries {
		if e.Type != manifest.Dir {
			m.Files++
		}
	}
	data, err := m.Encode(r.repo.Codec)
	must(t, err)
	must(t, r.repo.Store.Put(ctx, m.ID.ObjectName(), data))
	return m.ID
}

// TestHostileManifest: whoever can write to the repository cannot write outside
// of the target.
func TestHostileManifest(t *testing.T) {
	p := newPlace(t)
	r := p.init()
	// A chunk to point at.
	src := p.files("src", map[string]string{"f": "contents of a file"})
	good := complete(t, r, src, nil)
	m, err := r.repo.Manifest(t.Context(), good.ID)
	must(t, err)
	tr, err := manifest.NewTree(m.Root, r.repo)
	must(t, err)
	var f manifest.Entry
	_, err = tr.Lookup(t.Context(), manifest.Key{Name: "f"}, &f)
	must(t, err)
	data := f.Extents[0]

	outside := p.files("outside", map[string]string{"f": "old", "sub/g": "old"})
	before := scan(t, outside)
	file := func(dir, name string) manifest.Entry {
		return manifest.Entry{Dir: dir, Name: name, Type: manifest.File, Mode: 0o644, Size: uint64(data.Length), Extents: []manifest.Extent{data}}
	}
	link := func(dir, name string, first manifest.Key) manifest.Entry {
		return manifest.Entry{Dir: dir, Name: name, Type: manifest.Link, First: first}
	}
	symlink := func(dir, name, target string) manifest.Entry {
		return manifest.Entry{Dir: dir, Name: name, Type: manifest.Symlink, Mode: 0o777, Target: target}
	}
	directory := func(dir, name string) manifest.Entry {
		return manifest.Entry{Dir: dir, Name: name, Type: manifest.Dir, Mode: 0o755}
	}
	with := func(e manifest.Entry, f func(*manifest.Entry)) manifest.Entry {
		e.Extents = append([]manifest.Extent(nil), e.Extents...)
		f(&e)
		return e
	}
	for name, c := range map[string]struct {
		entries []manifest.Entry
		fine    bool // it does no harm: the chunk is found where it is
	}{
		"file below a symlink":           {[]manifest.Entry{symlink("", "d", outside), file("d", "f")}, false},
		"file far below a symlink":       {[]manifest.Entry{symlink("", "d", outside), file("d/sub", "g")}, false},
		"file below a file":              {[]manifest.Entry{file("", "d"), file("d", "f")}, false},
		"file below nothing":             {[]manifest.Entry{file("d", "f")}, false},
		"directory below a symlink":      {[]manifest.Entry{symlink("", "d", outside), directory("d", "new")}, false},
		"symlink below a symlink":        {[]manifest.Entry{symlink("", "d", outside), symlink("d", "s", "x")}, false},
		"fifo below a symlink":           {[]manifest.Entry{symlink("", "d", outside), {Dir: "d", Name: "p", Type: manifest.Fifo}}, false},
		"hard link below a symlink":      {[]manifest.Entry{file("", "a"), symlink("", "d", outside), link("d", "new", manifest.Key{Name: "a"})}, false},
		"hard link below nothing":        {[]manifest.Entry{file("", "a"), link("d", "new", manifest.Key{Name: "a"})}, false},
		"hard link to a directory":       {[]manifest.Entry{directory("", "a"), link("", "b", manifest.Key{Name: "a"})}, false},
		"hard link to nowhere":           {[]manifest.Entry{link("", "b", manifest.Key{Name: "a"})}, false},
		"hard link through a symlink":    {[]manifest.Entry{symlink("", "a", outside), link("", "b", manifest.Key{Name: "a"}), link("b", "c", manifest.Key{Dir: "a", Name: "f"})}, false},
		"hard link to a hard link":       {[]manifest.Entry{file("", "a"), link("", "b", manifest.Key{Name: "a"}), link("", "c", manifest.Key{Name: "b"})}, false},
		"file over a hard link as a dir": {[]manifest.Entry{file("", "a"), link("", "b", manifest.Key{Name: "a"}), file("b", "c")}, false},
		"another chunk's id":             {[]manifest.Entry{with(file("", "a"), func(e *manifest.Entry) { e.Extents[0].ID[0] ^= 1 })}, false},
		"another place in the frame":     {[]manifest.Entry{with(file("", "a"), func(e *manifest.Entry) { e.Extents[0].Length--; e.Size--; e.Extents[0].Offset++ })}, false},
		"another frame":                  {[]manifest.Entry{with(file("", "a"), func(e *manifest.Entry) { e.Extents[0].Frame.Offset++ })}, false},
		"a frame behind the pack's end":  {[]manifest.Entry{with(file("", "a"), func(e *manifest.Entry) { e.Extents[0].Frame.Offset = 200 << 20 })}, false},
		"a frame of another length":      {[]manifest.Entry{with(file("", "a"), func(e *manifest.Entry) { e.Extents[0].Frame.Raw++ })}, false},
		"a pack that is not there":       {[]manifest.Entry{with(file("", "a"), func(e *manifest.Entry) { e.Extents[0].Pack[5] ^= 1 })}, true},
	} {
		t.Run(name, func(t *testing.T) {
			id := forge(t, r, c.entries...).String()
			for _, o := range []RestoreOptions{{}, {Into: true}, {Into: true, Delete: true}, {Delete: true}, {Include: []string{"*"}}} {
				dst := p.path("dst")
				must(t, os.RemoveAll(dst))
				if o.Into || o.Delete {
					// The target helps: it has the link already.
					must(t, os.Mkdir(dst, 0o755))
					must(t, os.Symlink(outside, dst+"/d"))
					must(t, os.Symlink(outside, dst+"/b"))
				}
				rec, err := r.Restore(t.Context(), id, dst, &o)
				if c.fine {
					must(t, err)
					continue
				}
				if err == nil {
					t.Errorf("%+v: restored %+v", o, scan(t, rec.Target))
				} else if !errors.Is(err, snapshot.ErrIntegrity) {
					t.Errorf("%+v: %v", o, err)
				}
				compare(t, before, scan(t, outside))
				if o.Delete && !o.Into {
					if to, err := os.Readlink(dst + "/d"); to != outside {
						t.Errorf("the target has changed: %v", err)
					}
				}
				if left := leftovers(t, p.dir); len(left) > 0 {
					t.Errorf("%s is left", left)
				}
			}
			if os.Geteuid() == 0 {
				// Nor does looking at it, though what no directory leads to is not met.
				readHostile(t, p, r, id, good.ID.String())
				compare(t, before, scan(t, outside))
			}
			// As a parent it does no harm either.
			res := create(t, p.open("parent"), src, &CreateOptions{Parent: id})
			p.check(res.ID, scan(t, src))
			_, err := retain.Remove(t.Context(), r.repo, res.ID.String())
			must(t, err)
		})
	}
}

// TestHostileParent: a parent that says of a file what is not so.
func TestHostileParent(t *testing.T) {
	p := newPlace(t)
	r := p.init()
	src := p.files("src", map[string]string{"f": "contents of a file"})
	var st unix.Stat_t
	must(t, unix.Stat(src+"/f", &st))
	for name, e := range map[string]manifest.Entry{
		"a file that is all hole": {Name: "f", Type: manifest.File, Size: uint64(st.Size)},
		"a chunk that is not there": {Name: "f", Type: manifest.File, Size: uint64(st.Size), Extents: []manifest.Extent{{
			Location: chunk.Location{Frame: chunk.Frame{Offset: 16, Stored: 18, Raw: 18}, Length: 18},
		}}},
	} {
		t.Run(name, func(t *testing.T) {
			e.Mtime = manifest.Time{Sec: st.Mtim.Sec, Nsec: uint32(st.Mtim.Nsec)}
			id := forge(t, r, e)
			// Without a word of the user it is not taken for the directory's.
			p.check(complete(t, r, src, nil).ID, scan(t, src))
			if s, err := r.Get(t.Context(), id.String()); err != nil || s.Dir != "/forged" {
				t.Errorf("%v, %v", s, err)
			}
		})
	}
}

// TestMessages: whatever a name holds, a message about it is one line.
func TestMessages(t *testing.T) {
	p := newPlace(t)
	r := p.init()
	src := p.files("src", map[string]string{"line\nfeed\x1b[31m": "1"})
	id := complete(t, r, src, nil).ID
	for _, pack := range packsOf(t, r, id, chunk.DataPack) {
		must(t, os.Remove(p.repo+"/"+repo.PackName(pack)))
	}
	_, err := r.Restore(t.Context(), id.String(), p.path("out"), nil)
	if !errors.Is(err, snapshot.ErrIntegrity) || strings.ContainsAny(err.Error(), "\n\x1b") || !strings.Contains(err.Error(), `line\nfeed`) {
		t.Errorf("%q", err)
	}
}
