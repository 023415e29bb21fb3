//go:build linux

package engine

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/snapctl/snapctl/chunk"
	"github.com/snapctl/snapctl/engine/internal/access"
	"github.com/snapctl/snapctl/engine/internal/check"
	"github.com/snapctl/snapctl/engine/internal/gc"
	"github.com/snapctl/snapctl/engine/internal/repo"
	"github.com/snapctl/snapctl/engine/internal/retain"
	"github.com/snapctl/snapctl/engine/internal/write"
	"github.com/snapctl/snapctl/engine/snapshot"
	"github.com/snapctl/snapctl/engine/view"
	"github.com/snapctl/snapctl/manifest"
	"github.com/snapctl/snapctl/remote/remotetest"
)

// A damagedRepository is a repository in memory with an object of each kind, of which
// one is damaged, and what it held before.
type damagedRepository struct {
	*place
	kind   string
	object string
	store  *remotetest.Memory
	src    string
	want   tree
	id     manifest.ID // of the snapshot that may be hit
	other  manifest.ID // of one that is not
	opened *Repository
}

// An operation meets the damage. It tells what it could not do, and fails the test if
// what it did is wrong.
type operation struct {
	name string
	do   func(d *damagedRepository, r *Repository) error
}

// verdict is how an operation has to end.
type verdict int

const (
	works  verdict = iota // as if nothing were damaged
	fails                 // with ErrIntegrity, which names the object
	either                // of both: it depends on what it reads
	gone                  // with ErrNotFound
)

// matrix says how operations end by the kind of the object that is damaged, if not
// well. Where it is deleted, or replaced by another one of its kind, see expect.
var matrix = map[string]map[string]verdict{
	"data pack": {"restore": fails, "cat": fails, "dump": fails, "mount": fails},
	"tree pack": {
		"restore": fails, "ls": either, "cat": either, "find": fails, "dump": fails, "diff": fails, "mount": either,
		"create": fails, "verify dir": fails, // of a parent that it was told to take
	},
	"segment": {},
	"manifest": {
		"list": fails, "show": fails, "restore": fails, "ls": fails, "cat": fails, "find": fails, "dump": fails, "diff": fails, "mount": fails,
		"create": fails, "verify dir": fails, "stats": fails, "gc": fails,
	},
	"lease":     {"gc": fails},
	"profile":   {},
	"tombstone": {"create": fails, "stats": fails, "gc": fails},
	// What opens a snapshot by its id asks for notes if it has expired without them.
	"note": {"list": fails, "show": fails, "stats": fails, "gc": fails, "create": fails, "verify dir": either},
}

// expect is the verdict for an operation.
func expect(kind, damage, op string) verdict {
	v := matrix[kind][op]
	switch {
	case v == works:
	case damage == "deleted" && kind == "manifest" && slices.Contains([]string{"list", "stats", "gc"}, op):
		return works // it looks as if it had been removed
	case damage == "deleted" && kind == "manifest":
		return gone
	case damage == "deleted" && slices.Contains([]string{"lease", "tombstone", "note"}, kind):
		return works
	case damage == "replaced" && kind == "tombstone":
		return works // nobody can tell
	}
	if damage == "deleted" && strings.HasSuffix(kind, "pack") && op == "gc" {
		return fails // it does not go by what is not whole
	}
	return v
}

// detected reports whether verify has to find it, with the data read or not.
func detected(kind, damage string, data bool) bool {
	switch {
	case damage == "deleted":
		return strings.HasSuffix(kind, "pack")
	case damage == "replaced":
		return kind != "tombstone" && kind != "config" // of a pack, the size is another
	case kind == "data pack":
		return data || damage == "truncated"
	}
	return true
}

var operations = []operation{
	{"list", func(d *damagedRepository, r *Repository) error {
		all, err := r.List(d.Context(), nil)
		if !slices.ContainsFunc(all, func(s *snapshot.Snapshot) bool { return s.ID == d.other }) {
			d.Errorf("the other snapshot is not in the list")
		}
		return err
	}},
	{"show", func(d *damagedRepository, r *Repository) error {
		_, err := r.Get(d.Context(), d.id.String())
		return err
	}},
	{"restore", func(d *damagedRepository, r *Repository) error {
		out := d.path("out")
		defer os.RemoveAll(out)
		_, err := r.Restore(d.Context(), d.id.String(), out, nil)
		if err == nil {
			compare(d, d.want, scan(d, out))
		} else if _, serr := os.Lstat(out); serr == nil {
			d.Errorf("restore failed, and left a target")
		}
		return err
	}},
	{"ls", func(d *damagedRepository, r *Repository) error { return d.list(r, "d", false) }},
	{"find", func(d *damagedRepository, r *Repository) error { return d.list(r, "", true) }},
	{"cat", func(d *damagedRepository, r *Repository) error {
		s, err := view.Open(d.Context(), r.repo, d.id.String())
		if err != nil {
			return err
		}
		var all []error
		for path, n := range d.want {
			if n.Sum == "" {
				continue
			}
			got, err := s.ReadFile(path)
			want, rerr := os.ReadFile(d.src + "/" + path)
			must(d, rerr)
			if err == nil && !bytes.Equal(got, want) {
				d.Errorf("%s: wrong bytes", path)
			}
			if err != nil && !strings.Contains(err.Error(), path) {
				d.Errorf("%s: the error does not say so: %v", path, err)
			}
			if err != nil {
				all = append(all, err)
			}
		}
		return errors.Join(all...)
	}},
	{"dump", func(d *damagedRepository, r *Repository) error {
		s, err := view.Open(d.Context(), r.repo, d.id.String())
		if err != nil {
			return err
		}
		pr, pw := io.Pipe()
		go func() { pw.CloseWithError(s.Dump(pw, "")) }()
		defer pr.Close()
		for tr := tar.NewReader(pr); ; {
			h, err := tr.Next()
			if err == io.EOF {
				return nil
			}
			if err != nil {
				return err
			}
			got, err := io.ReadAll(tr)
			if h.Typeflag == tar.TypeReg {
				want, rerr := os.ReadFile(d.src + "/" + strings.TrimPrefix(h.Name, "./"))
				must(d, rerr)
				if !bytes.HasPrefix(want, got) || err == nil && len(got) != len(want) {
					d.Errorf("%s: wrong bytes", h.Name)
				}
			}
			if err != nil {
				return err
			}
		}
	}},
	{"diff", func(d *damagedRepository, r *Repository) error {
		n := 0
		err := view.Diff(d.Context(), r.repo, d.other.String(), d.id.String(), "", nil, func(*view.Change) error { n++; return nil })
		if err == nil && n != len(d.want)-1 { // all but the root
			d.Errorf("%d differences, %d expected", n, len(d.want)-1)
		}
		return err
	}},
	{"mount", func(d *damagedRepository, r *Repository) error {
		dir := d.path("mnt")
		must(d, os.MkdirAll(dir, 0o755))
		var failed error
		m, err := r.Mount(d.Context(), d.id.String(), dir, &MountOptions{Fail: func(_, _ string, err error) { failed = err }})
		if err != nil {
			return err
		}
		for path, n := range d.want {
			if n.Sum == "" {
				continue
			}
			got, err := os.ReadFile(dir + "/" + path)
			want, rerr := os.ReadFile(d.src + "/" + path)
			must(d, rerr)
			if err == nil && !bytes.Equal(got, want) || errors.Is(err, os.ErrNotExist) {
				d.Errorf("mounted %s: %v, %d bytes", path, err, len(got))
			}
		}
		must(d, m.Unmount(false))
		return failed
	}},
	{"create", func(d *damagedRepository, r *Repository) error {
		res, err := r.Create(d.Context(), d.src, &CreateOptions{Parent: d.id.String()})
		if err != nil {
			return err
		}
		// It restores, unless it took what nobody had read.
		rec, err := d.open().Restore(d.Context(), res.ID.String(), d.path("again"), nil)
		switch {
		case err == nil:
			compare(d, d.want, scan(d, rec.Target))
			must(d, os.RemoveAll(rec.Target))
		case d.kind != "data pack" || !errors.Is(err, snapshot.ErrIntegrity):
			d.Errorf("a new snapshot: %v", err)
		}
		_, err = retain.Remove(d.Context(), r.repo, res.ID.String())
		must(d, err)
		return nil
	}},
	{"verify dir", func(d *damagedRepository, r *Repository) error {
		_, err := r.VerifyDir(d.Context(), d.id.String(), d.src, nil, func(c *view.Change) error {
			d.Errorf("%+v", c)
			return nil
		})
		return err
	}},
	{"stats", func(d *damagedRepository, r *Repository) error {
		_, err := check.Usage(d.Context(), r.repo)
		return err
	}},
	{"gc", func(d *damagedRepository, r *Repository) error {
		_, err := gc.Run(d.Context(), r.repo, &snapshot.GCOptions{DryRun: true})
		return err
	}},
}

// list lists a directory, or looks for everything.
func (d *damagedRepository) list(r *Repository, dir string, find bool) error {
	s, err := view.Open(d.Context(), r.repo, d.id.String())
	if err != nil {
		return err
	}
	got := map[string]bool{}
	if find {
		err = s.Find([]string{"*"}, func(i *view.FileInfo) error { got[i.Path()] = true; return nil })
	} else {
		entries, lerr := s.ReadDir(dir)
		err = lerr
		for _, e := range entries {
			got[dir+"/"+e.Name()] = true
		}
	}
	for path := range d.want {
		if err == nil && path != "" && (find || strings.HasPrefix(path, dir+"/")) && !got[path] {
			d.Errorf("%s is not listed", path)
		}
	}
	return err
}

// open opens the repository with an empty cache.
func (d *damagedRepository) open() *Repository {
	d.Helper()
	cache, err := os.MkdirTemp(d.dir, "cache-")
	must(d, err)
	r, err := Open(d.Context(), "", &Options{patience: calm(), CacheDir: cache, Store: d.store})
	must(d, err)
	d.Cleanup(func() { r.Close() })
	return r
}

// TestDamageMatrix: every kind of object, damaged in every way, and everything that
// meets it: what is damaged is named, what is not works, and no byte is wrong.
func TestDamageMatrix(t *testing.T) {
	whole := newDamagedRepository(t)
	objects := everyObject(t, whole.opened)
	for kind, object := range whole.objects() {
		for damage, f := range map[string]func([]byte) []byte{
			"truncated": func(b []byte) []byte { return b[:len(b)/2] },
			"flipped":   func(b []byte) []byte { b[len(b)/2] ^= 0x20; return b },
			"zeroed":    func(b []byte) []byte { clear(b); return b },
			"replaced":  func([]byte) []byte { return []byte(whole.another(kind)) },
			"deleted":   func([]byte) []byte { return nil },
		} {
			t.Run(kind+" "+damage, func(t *testing.T) {
				d := *whole
				d.place = newPlace(t)
				d.kind, d.object, d.store = kind, object, remotetest.NewMemory()
				for name, b := range objects {
					data := []byte(b)
					if name == object {
						data = f(data)
					}
					if data != nil {
						must(t, d.store.Put(t.Context(), name, data))
					}
				}
				d.check(t, damage)
			})
		}
	}
}

func (d *damagedRepository) check(t *testing.T, damage string) {
	if d.kind == "config" && damage != "replaced" {
		if _, err := Open(t.Context(), "", &Options{patience: calm(), CacheDir: d.cache, Store: d.store}); !errors.Is(err, snapshot.ErrIntegrity) || !strings.Contains(err.Error(), "config") {
			t.Errorf("open: %v", err)
		}
		return
	}
	for _, op := range operations {
		want := expect(d.kind, damage, op.name)
		// What does not meet it is tried with one of the damages.
		if !*long && damage != "flipped" && (op.name == "mount" && damage != "deleted" || matrix[d.kind][op.name] == works) {
			continue
		}
		err := op.do(d, d.open())
		named := err != nil && strings.Contains(err.Error(), d.object[strings.LastIndexByte(d.object, '/')+1:])
		switch {
		case want == works && err == nil, want == either && err == nil:
		case want == gone && errors.Is(err, snapshot.ErrNotFound):
		case (want == fails || want == either) && errors.Is(err, snapshot.ErrIntegrity) && named:
		default:
			t.Errorf("%s: %v", op.name, err)
		}
	}
	for _, data := range []bool{false, true} {
		opts := &snapshot.VerifyOptions{}
		if data {
			opts.ReadData = 1
		}
		rep := verify(t, d.open(), opts)
		i := slices.IndexFunc(rep.Findings, func(f snapshot.Finding) bool { return f.Object == d.object && !f.Note })
		if want := detected(d.kind, damage, data); (i >= 0) != want || !want && rep.Damaged() > 0 {
			t.Errorf("verify, data read: %v: %+v", data, rep.Findings)
		}
		if hit := i >= 0 && len(rep.Findings[i].Affected) > 0; hit != (i >= 0 && (strings.HasSuffix(d.kind, "pack") || d.kind == "manifest")) {
			t.Errorf("verify, data read: %v: affected: %+v", data, rep.Findings)
		}
	}
}

// newDamagedRepository makes a repository with an object of each kind.
func newDamagedRepository(t *testing.T) *damagedRepository {
	t.Helper()
	d := &damagedRepository{place: newPlace(t), store: remotetest.NewMemory()}
	r, err := Init(t.Context(), "", nil, &Options{patience: calm(), CacheDir: d.cache, Store: d.store})
	must(t, err)
	t.Cleanup(func() { r.Close() })
	d.opened = r
	d.other = complete(t, r, d.files("other", map[string]string{}), nil).ID
	files := map[string]string{}
	for i := range 600 {
		files[fmt.Sprintf("d/%s-%d", strings.Repeat("name", 20), i)] = fmt.Sprint("content of ", i)
	}
	for i := range 3 {
		files[fmt.Sprintf("large/%d", i)] = string(random(uint64(i), 700_000))
	}
	d.src = d.files("src", files)
	d.want = scan(t, d.src)
	d.id = complete(t, r, d.src, nil).ID
	// Two of each: one to damage, another of its kind to replace it with.
	removed := complete(t, r, d.files("removed", map[string]string{"f": "of a mount"}), nil).ID
	leased := complete(t, r, d.files("leased", map[string]string{"f": "of another mount"}), nil).ID
	for i, id := range []manifest.ID{removed, leased} {
		_, encoded, err := r.repo.EncodedManifest(t.Context(), id)
		must(t, err)
		object, err := (&manifest.Lease{Hold: write.LeaseHold, Manifest: encoded}).Encode()
		must(t, err)
		must(t, d.store.Put(t.Context(), fmt.Sprintf("%s%v/01a20950-ee91-776f-9786-6056b138ef0%d", write.LeasePrefix, id, i), object))
		_, err = retain.Remove(t.Context(), r.repo, id.String())
		must(t, err)
		p := &access.Profile{Snapshot: id, Frames: []access.Frame{{Pack: packsOf(t, r, d.id, chunk.DataPack)[0], Offset: uint32(16 + i), Stored: 5}}, Bundle: nil}
		if i == 0 {
			p.Snapshot = d.id
		}
		b := access.Encode(d.opened.repo, p)
		sum := chunk.SumPack(b)
		must(t, d.store.Put(t.Context(), access.Prefix(p.Snapshot)+sum.String(), b))
		changed(t, r, []manifest.ID{d.id, d.other}[i].String(), renamed(fmt.Sprint("name ", i)))
		stone := &repo.Tombstone{Packs: []repo.DoomedPack{{Id: chunk.PackID{byte(i)}, Size: 5}}}
		must(t, d.store.Put(t.Context(), fmt.Sprintf("%s01a20950-ee91-776f-9786-6056b138ef0%d", repo.GcPrefix, i), stone.Encode()))
	}
	return d
}

// objects gives an object of each kind, which the snapshot needs if that can be.
func (d *damagedRepository) objects() map[string]string {
	one := func(prefix string) string {
		names := slices.Sorted(maps.Keys(everyObject(d, d.opened)))
		for _, name := range names {
			if strings.HasPrefix(name, prefix) {
				return name
			}
		}
		d.Fatalf("no %s", prefix)
		return ""
	}
	return map[string]string{
		"config":    repo.ConfigName,
		"data pack": repo.PackName(packsOf(d, d.opened, d.id, chunk.DataPack)[0]),
		"tree pack": repo.PackName(packsOf(d, d.opened, d.id, chunk.TreePack)[0]),
		"segment":   one(repo.SegmentPrefix),
		"manifest":  d.id.ObjectName(),
		"note":      one(d.id.NotesOf()),
		"lease":     one(write.LeasePrefix),
		"profile":   one(repo.ProfilePrefix),
		"tombstone": one(repo.GcPrefix),
	}
}

// another gives the bytes of another valid object of a kind.
func (d *damagedRepository) another(kind string) string {
	all := everyObject(d, d.opened)
	not := d.objects()[kind]
	prefix := not[:strings.IndexByte(not+"/", '/')] + "/"
	if kind == "config" {
		c, err := repo.NewConfig(nil)
		must(d, err)
		return string(c.Encode())
	}
	for name, b := range all {
		same := !strings.HasSuffix(kind, "pack") || b[9] == all[not][9]
		if strings.HasPrefix(name, prefix) && name != not && same {
			return b
		}
	}
	// There is but one tree pack: the same pages in another order of bytes.
	up := chunk.NewPackBuilder(chunk.TreePack, nil)
	page := []byte("no page at all, but a chunk")
	up.Add(page, []chunk.SizedID{{ID: d.opened.repo.Hasher.Sum(page), Length: uint32(len(page))}})
	_, b, _ := up.Finish(d.opened.repo.Codec)
	return string(b)
}
