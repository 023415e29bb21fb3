//go:build linux

package engine

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/snapctl/snapctl/chunk"
	"github.com/snapctl/snapctl/engine/internal/repo"
	"github.com/snapctl/snapctl/engine/internal/retain"
	"github.com/snapctl/snapctl/engine/snapshot"
	"github.com/snapctl/snapctl/manifest"
)

// damages are what can happen to a file of the cache.
var damages = map[string]func(path string) error{
	"deleted":    os.Remove,
	"emptied":    func(path string) error { return os.Truncate(path, 0) },
	"halved":     func(path string) error { return change(path, func(b []byte) []byte { return b[:len(b)/2] }) },
	"cut by one": func(path string) error { return change(path, func(b []byte) []byte { return b[:max(len(b)-1, 0)] }) },
	"longer":     func(path string) error { return change(path, func(b []byte) []byte { return append(b, 0) }) },
	"zeroed":     func(path string) error { return change(path, func(b []byte) []byte { clear(b); return b }) },
	"flipped": func(path string) error {
		return change(path, func(b []byte) []byte {
			for i := len(b) / 3; i < len(b); i += 997 {
				b[i] ^= 0x10
			}
			return b
		})
	},
	"flipped near its end": func(path string) error {
		return change(path, func(b []byte) []byte {
			if len(b) > 20 {
				b[len(b)-20] ^= 1
			}
			return b
		})
	},
}

// change rewrites a file in place, whatever its mode.
func change(path string, f func([]byte) []byte) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	b = f(b)
	// Not by its name: it may be read-only.
	if err := os.Remove(path); err != nil {
		return err
	}
	return os.WriteFile(path, b, 0o600)
}

// filesBelow lists the regular files below a directory.
func filesBelow(t testing.TB, dir string) (all []string) {
	t.Helper()
	must(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			all = append(all, path)
		}
		return err
	}))
	return all
}

// manyFiles makes a tree whose entries fill several pages, and whose contents
// fill several frames.
func manyFiles(p *place, dir string) string {
	content := map[string]string{}
	for i := range 800 {
		content[strings.Repeat("d", i%3+1)+"/"+strings.Repeat("name", i%7+1)+"-"+string(rune('a'+i%26))+chunk.ID{byte(i), byte(i >> 8)}.String()] =
			string(random(uint64(i), 100+i%50))
	}
	content["large"] = string(random(9999, 3<<20))
	return p.files(dir, content)
}

// verifyAll restores every snapshot of a place by way of a cache that knows
// nothing: none refers to a chunk that is not there, none holds a wrong byte.
func verifyAll(p *place, want map[manifest.ID]tree) {
	p.Helper()
	cache := filepath.Base(p.Name()) + "-verify"
	r := p.open(cache)
	all, err := r.List(p.Context(), nil)
	must(p, err)
	if len(all) != len(want) {
		p.Errorf("%d snapshots in the list, %d expected", len(all), len(want))
	}
	for id, tree := range want {
		out := p.path("verify")
		if rec, err := r.Restore(p.Context(), id.String(), out, nil); err != nil {
			p.Errorf("snapshot %v: %v", id, err)
		} else if diff := differences(tree, scan(p, rec.Target)); len(diff) > 0 {
			p.Errorf("snapshot %v differs: %s", id, diff[0])
		}
		must(p, os.RemoveAll(out))
	}
	r.Close()
	must(p, os.RemoveAll(p.path(cache)))
}

// cacheInUse makes a place whose cache holds something of every kind: a directory
// that was restored, changed and snapshotted again, read through the index.
func cacheInUse(t *testing.T) (p *place, src string, want map[manifest.ID]tree) {
	t.Helper()
	p = newPlace(t)
	r := p.init()
	first := manyFiles(p, "first")
	want = map[manifest.ID]tree{}
	a := complete(t, r, first, nil)
	want[a.ID] = scan(t, first)
	src = p.path("src")
	restore(t, r, a.ID.String(), src, nil)
	writeFile(t, src+"/new", random(5000, 50_000))
	b := complete(t, r, src, nil)
	want[b.ID] = scan(t, src)
	writeFile(t, src+"/newer", random(5001, 50_000))
	must(t, r.Close())
	// What is known of the files, the index, and segments that it does not have.
	for _, kind := range []string{"heads", "dirs", "segments", "index"} {
		if len(filesBelow(t, filepath.Join(p.cache, r.ID().String(), kind))) == 0 {
			t.Fatalf("the cache holds no %s", kind)
		}
	}
	return p, src, want
}

// TestCacheDamage damages each file of the cache in every way, and then makes and
// restores a snapshot with it.
func TestCacheDamage(t *testing.T) {
	p, src, want := cacheInUse(t)
	pristine := p.path("pristine")
	must(t, os.CopyFS(pristine, os.DirFS(p.cache)))
	var files []string
	for _, f := range filesBelow(t, pristine) {
		rel, err := filepath.Rel(pristine, f)
		must(t, err)
		files = append(files, rel)
	}
	before := scan(t, src)
	for name, damage := range damages {
		t.Run(name, func(t *testing.T) {
			for i, file := range append([]string{"all of them"}, files...) {
				// One in a few: each kind of file is met with several damages.
				if !*long && i > 0 && (i%4 != len(name)%4 || testing.Short() && i%8 < 4) {
					continue
				}
				q := &place{t, p.dir, p.repo, p.path("damaged")}
				must(t, os.RemoveAll(q.cache))
				must(t, os.CopyFS(q.cache, os.DirFS(pristine)))
				for _, f := range files {
					if f == file || i == 0 {
						must(t, damage(filepath.Join(q.cache, f)))
					}
				}
				r := q.open("damaged")
				res := complete(t, r, src, nil)
				if list, err := r.List(t.Context(), nil); err != nil || len(list) != len(want)+1 {
					t.Errorf("%s: %d snapshots in the list, %v", file, len(list), err)
				}
				out := p.path("out")
				restore(t, r, res.ID.String(), out, nil)
				compare(t, before, scan(t, out))
				must(t, os.RemoveAll(out))
				must(t, r.Close())
				q.check(res.ID, before)
				_, err := retain.Remove(t.Context(), q.open("damaged").repo, res.ID.String())
				must(t, err)
			}
		})
	}
	verifyAll(p, want)
}

// check restores one snapshot by way of a cache that knows nothing.
func (p *place) check(id manifest.ID, want tree) {
	p.Helper()
	r := p.open("check")
	out := p.path("checked")
	restore(p, r, id.String(), out, nil)
	compare(p, want, scan(p, out))
	must(p, os.RemoveAll(out))
	must(p, r.Close())
	must(p, os.RemoveAll(p.path("check")))
}

// TestCacheGone deletes the cache, and each part of it, between and under
// operations.
func TestCacheGone(t *testing.T) {
	p, src, want := cacheInUse(t)
	r := p.open("cache")
	dir := filepath.Join(p.cache, r.ID().String())
	for _, kind := range []string{"heads", "dirs", "segments", "index", "tree", ""} {
		writeFile(t, src+"/change", []byte(kind))
		must(t, os.RemoveAll(filepath.Join(dir, kind)))
		res := complete(t, r, src, nil)
		want[res.ID] = scan(t, src)
	}
	verifyAll(p, want)
}

// TestCacheIsAFile: the cache folder, or what is in it, cannot be used at all.
func TestCacheIsAFile(t *testing.T) {
	p, src, want := cacheInUse(t)
	pristine := p.open("cache")
	id := pristine.ID().String()
	for _, kind := range []string{"", "/" + id, "/" + id + "/index", "/" + id + "/index/0", "/" + id + "/dirs", "/" + id + "/heads", "/" + id + "/segments"} {
		must(t, os.RemoveAll(p.cache))
		writeFile(t, p.cache+kind, []byte("a file"))
		writeFile(t, src+"/change", []byte(kind))
		r := p.open("cache")
		for range 2 {
			res := complete(t, r, src, nil)
			want[res.ID] = scan(t, src)
		}
		if _, err := r.List(t.Context(), nil); err != nil {
			t.Errorf("%q is a file: %v", kind, err)
		}
		must(t, r.Close())
	}
	verifyAll(p, want)
}

// TestForeignCache: a cache of another repository under this one's id.
func TestForeignCache(t *testing.T) {
	p, src, want := cacheInUse(t)
	q, other, _ := cacheInUse(t)
	id, otherID := p.open("cache").ID().String(), q.open("cache").ID().String()
	must(t, os.RemoveAll(p.cache))
	must(t, os.MkdirAll(p.cache, 0o700))
	must(t, os.CopyFS(filepath.Join(p.cache, id), os.DirFS(filepath.Join(q.cache, otherID))))
	r := p.open("cache")
	for _, dir := range []string{src, other} {
		res := complete(t, r, dir, nil)
		want[res.ID] = scan(t, dir)
	}
	verifyAll(p, want)
}

// TestCopiedRepository: a copy of a repository has the same id, and so the same
// cache, and goes its own way.
func TestCopiedRepository(t *testing.T) {
	p, src, want := cacheInUse(t)
	q := &place{t, p.dir, p.path("copy"), p.cache}
	must(t, os.CopyFS(q.repo, os.DirFS(p.repo)))
	copied := map[manifest.ID]tree{}
	for id, tree := range want {
		copied[id] = tree
	}
	for i := range 6 {
		at, trees := p, want
		if i%2 == 1 {
			at, trees = q, copied
		}
		// What the other has is new here.
		writeFile(t, src+"/shared", random(uint64(6000+i/2), 200_000))
		writeFile(t, src+"/own", random(uint64(7000+i), 200_000))
		r := at.open("cache")
		res := complete(t, r, src, nil)
		trees[res.ID] = scan(t, src)
		must(t, r.Close())
	}
	verifyAll(p, want)
	verifyAll(q, copied)
}

// TestRolledBackRepository: the repository is an older copy of itself. What the
// cache remembers of the newer one is not there.
func TestRolledBackRepository(t *testing.T) {
	p, src, want := cacheInUse(t)
	backup := p.path("backup")
	must(t, os.CopyFS(backup, os.DirFS(p.repo)))
	r := p.open("cache")
	writeFile(t, src+"/lost", random(8000, 3<<20))
	complete(t, r, src, nil)
	writeFile(t, src+"/more", random(8001, 300))
	complete(t, r, src, nil)
	must(t, r.Close())
	must(t, exec.Command("rm", "-rf", p.repo).Run())
	must(t, os.Rename(backup, p.repo))
	r = p.open("cache")
	res := complete(t, r, src, nil)
	want[res.ID] = scan(t, src)
	verifyAll(p, want)
}

// TestDamagedParent: the snapshot that unchanged files would be taken from is
// damaged in the repository, or gone.
func TestDamagedParent(t *testing.T) {
	for name, damage := range damages {
		for _, what := range []string{"manifest", "tree"} {
			// Of a manifest, which has a checksum, a few kinds say it all.
			if what == "manifest" && strings.Contains(name, " ") || testing.Short() && len(name)%2 == 0 {
				continue
			}
			t.Run(what+" "+name, func(t *testing.T) {
				p := newPlace(t)
				r := p.init()
				dir := manyFiles(p, "first")
				first := complete(t, r, dir, nil)
				must(t, os.RemoveAll(dir))
				restore(t, r, first.ID.String(), dir, nil)
				writeFile(t, dir+"/new", []byte("new"))
				if what == "manifest" {
					must(t, damage(p.repo+"/"+first.ID.ObjectName()))
				} else {
					for _, pack := range packsOf(t, r, first.ID, chunk.TreePack) {
						must(t, damage(p.repo+"/"+repo.PackName(pack)))
					}
				}
				res := complete(t, r, dir, nil)
				p.check(res.ID, scan(t, dir))
			})
		}
	}
}

// packsOf lists the packs that a snapshot uses, of a kind.
func packsOf(t testing.TB, r *Repository, id manifest.ID, kind chunk.PackKind) (packs []chunk.PackID) {
	t.Helper()
	m, err := r.repo.Manifest(t.Context(), id)
	must(t, err)
	for _, use := range m.Packs {
		b, err := r.repo.Store.Get(t.Context(), repo.PackName(use.ID))
		must(t, err)
		if chunk.PackKind(b[9]) == kind {
			packs = append(packs, use.ID)
		}
	}
	if len(packs) == 0 {
		t.Fatalf("the snapshot has no packs of kind %d", kind)
	}
	return packs
}

// TestDamagedPack: whatever happens to a pack, Restore says so, and the target is
// as it was.
func TestDamagedPack(t *testing.T) {
	p := newPlace(t)
	r := p.init()
	src := manyFiles(p, "src")
	id := complete(t, r, src, nil).ID
	var packs []string
	for _, kind := range []chunk.PackKind{chunk.DataPack, chunk.TreePack} {
		for _, pack := range packsOf(t, r, id, kind) {
			packs = append(packs, p.repo+"/"+repo.PackName(pack))
		}
	}
	packs = append(packs, p.repo+"/"+id.ObjectName())
	dst := p.files("dst", map[string]string{"old": "tree"})
	before := scan(t, dst)
	for _, pack := range packs {
		whole, err := os.ReadFile(pack)
		must(t, err)
		for name, damage := range damages {
			if strings.Contains(pack, "packs") && (name == "longer" || name == "cut by one" || name == "flipped near its end") {
				continue // in the pack's own index, which a restore does not read
			}
			must(t, damage(pack))
			for _, opts := range []RestoreOptions{{Delete: true}, {Delete: true, Verify: true}} {
				_, err := r.Restore(t.Context(), id.String(), dst, &opts)
				gone := name == "deleted" && strings.Contains(pack, "manifests")
				if gone && !errors.Is(err, snapshot.ErrNotFound) || !gone && !errors.Is(err, snapshot.ErrIntegrity) {
					t.Errorf("%s %s: %v", filepath.Base(filepath.Dir(filepath.Dir(pack))), name, err)
				}
			}
			compare(t, before, scan(t, dst))
			if left := leftovers(t, p.dir); len(left) > 0 {
				t.Errorf("%s is left", left)
			}
			// Into changes files one by one, each to what it should be.
			into := p.path("into")
			must(t, os.Mkdir(into, 0o755))
			if _, err := r.Restore(t.Context(), id.String(), into, &RestoreOptions{Into: true}); err == nil {
				t.Errorf("%s: no error", name)
			}
			want := scan(t, src)
			for path, n := range scan(t, into) {
				if n.Sum != "" && n.Sum != want[path].Sum {
					t.Errorf("%s: %q is not what it was", name, path)
				}
			}
			must(t, os.RemoveAll(into))
			os.Remove(pack)
			must(t, os.WriteFile(pack, whole, 0o400))
		}
	}
	restore(t, r, id.String(), dst, &RestoreOptions{Delete: true, Verify: true})
	compare(t, scan(t, src), scan(t, dst))
}

// TestDamagedSegment: a segment of the repository is damaged or gone. What it
// lists is stored again.
func TestDamagedSegment(t *testing.T) {
	for name, damage := range damages {
		t.Run(name, func(t *testing.T) {
			p := newPlace(t)
			r := p.init()
			want := map[manifest.ID]tree{}
			a := p.files("a", map[string]string{"1": string(random(1, 100_000)), "2": string(random(2, 5000))})
			want[complete(t, r, a, nil).ID] = scan(t, a)
			for _, f := range filesBelow(t, p.repo+"/index") {
				must(t, damage(f))
			}
			b := p.files("b", map[string]string{"1": string(random(1, 100_000)), "3": string(random(3, 5000))})
			want[complete(t, p.open("empty"), b, nil).ID] = scan(t, b)
			want[complete(t, r, b, nil).ID] = scan(t, b)
			verifyAll(p, want)
		})
	}
}

// TestDamagedManifestInList: one damaged snapshot does not hide the others, and
// can be removed.
func TestDamagedManifestInList(t *testing.T) {
	for _, name := range []string{"emptied", "flipped", "zeroed", "halved"} {
		t.Run(name, func(t *testing.T) {
			p := newPlace(t)
			r := p.init()
			src := p.files("src", map[string]string{"f": "1"})
			bad := complete(t, r, src, &CreateOptions{Name: "bad"})
			good := complete(t, r, src, &CreateOptions{Name: "good"})
			must(t, damages[name](p.repo+"/"+bad.ID.ObjectName()))
			r = p.open("empty")
			all, err := r.List(t.Context(), nil)
			if !slices.ContainsFunc(all, func(s *snapshot.Snapshot) bool { return s.ID == good.ID }) {
				t.Errorf("list: %v, %v", all, err)
			}
			if s, err := r.Get(t.Context(), "good"); err != nil || s.ID != good.ID {
				t.Errorf("get: %v, %v", s, err)
			}
			if _, err := r.Get(t.Context(), bad.ID.String()); !errors.Is(err, snapshot.ErrIntegrity) {
				t.Errorf("get of the damaged one: %v", err)
			}
			if _, err := retain.Remove(t.Context(), r.repo, bad.ID.String()); err != nil {
				t.Errorf("remove: %v", err)
			}
			if all, err := r.List(t.Context(), nil); len(all) != 1 || err != nil {
				t.Errorf("list after it was removed: %v, %v", all, err)
			}
		})
	}
}

// TestDamagedConfig: a repository whose config is damaged is not opened, and not taken
// for a place where there is none.
func TestDamagedConfig(t *testing.T) {
	for name, damage := range damages {
		p := newPlace(t)
		complete(t, p.init(), p.files("src", map[string]string{"a": "1"}), nil)
		must(t, damage(p.repo+"/config"))
		if _, err := Open(t.Context(), p.repo, &Options{CacheDir: p.cache}); !errors.Is(err, snapshot.ErrIntegrity) || !strings.Contains(err.Error(), "config") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestLostConfig: a config that is missing is made anew only if what is there can be
// read with it.
func TestLostConfig(t *testing.T) {
	p := newPlace(t)
	snap := complete(t, p.init(), p.files("src", map[string]string{"a": "1"}), nil)
	must(t, os.Remove(p.repo+"/config"))
	keys := &snapshot.InitOptions{Keys: []*snapshot.NewKey{{Passphrase: "x", WorkFactor: 1}}}
	if _, err := Init(t.Context(), p.repo, keys, nil); !errors.Is(err, snapshot.ErrIntegrity) {
		t.Error("encrypted, over what is not:", err)
	}
	if _, err := os.Stat(p.repo + "/keys"); !os.IsNotExist(err) {
		t.Error("there are keys now:", err)
	}
	again := p.init()
	if _, err := again.Restore(t.Context(), snap.ID.String(), p.path("out"), nil); err != nil {
		t.Error("with a new config:", err)
	}
	clean(t, again, &snapshot.VerifyOptions{ReadData: 1})

	v := newVault(t)
	complete(t, v.open(), p.path("src"), nil)
	must(t, v.mem.Delete(t.Context(), repo.ConfigName))
	for name, init := range map[string]*snapshot.InitOptions{"plain": nil, "encrypted": keys} {
		if _, err := Init(t.Context(), "", init, &Options{CacheDir: v.cache, Store: v.mem}); !errors.Is(err, snapshot.ErrIntegrity) {
			t.Errorf("%s, over what is encrypted: %v", name, err)
		}
	}
	if _, err := Open(t.Context(), "", v.options()); !errors.Is(err, snapshot.ErrIntegrity) || strings.Contains(err.Error(), "init") {
		t.Error(err)
	}
}
