//go:build linux

package engine

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/snapctl/snapctl/chunk"
	"github.com/snapctl/snapctl/engine/internal/ignore"
	"github.com/snapctl/snapctl/engine/internal/repo"
	"github.com/snapctl/snapctl/engine/snapshot"
	"github.com/snapctl/snapctl/engine/view"
)

// untar has GNU tar extract an archive.
func untar(t testing.TB, archive []byte, dir string) error {
	t.Helper()
	if _, err := exec.LookPath("tar"); err != nil {
		t.Skip("no tar here")
	}
	must(t, os.MkdirAll(dir, 0o755))
	cmd := exec.Command("tar", "-x", "-p", "--numeric-owner", "--xattrs", "--xattrs-include=*", "-C", dir)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	cmd.Stdin = bytes.NewReader(archive)
	out, err := cmd.CombinedOutput()
	t.Logf("tar: %.2000s", out)
	return err
}

func dump(t testing.TB, s *view.FS, name string) []byte {
	t.Helper()
	var b bytes.Buffer
	must(t, s.Dump(&b, name))
	return b.Bytes()
}

// members reads an archive.
func members(t testing.TB, archive []byte) (all []*tar.Header, contents map[string]string) {
	t.Helper()
	contents = map[string]string{}
	for r := tar.NewReader(bytes.NewReader(archive)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return all, contents
		}
		must(t, err)
		b, err := io.ReadAll(r)
		must(t, err)
		contents[h.Name] = string(b)
		all = append(all, h)
	}
}

// TestDump: what tar extracts is what a restore makes.
func TestDump(t *testing.T) {
	needRoot(t)
	p := newPlace(t)
	r := p.init()
	src := p.path("src")
	plant(t, src)
	// What tar does not extract: paths longer than it opens, and 100 GB of zeros;
	// and what it sets anew by itself.
	id := create(t, r, src, &CreateOptions{Excludes: []string{"/deep-*", "/hard-from-deep-*", "/holes-100GB"}}).ID.String()
	s := snapshotFS(t, r, id)
	archive := dump(t, s, "")
	if !bytes.Equal(archive, dump(t, snapshotFS(t, r, id), "/")) {
		t.Error("a second archive is another")
	}
	must(t, untar(t, archive, p.path("tar")))
	restore(t, r, id, p.path("restored"), nil)
	want, got := scan(t, p.path("restored")), scan(t, p.path("tar"))
	for _, all := range []tree{want, got} {
		for path, n := range all {
			n.Data = "" // where holes are
			all[path] = n
		}
	}
	compare(t, want, got)
}

// TestDumpPart: a part of a tree is complete by itself.
func TestDumpPart(t *testing.T) {
	p := newPlace(t)
	r := p.init()
	src := p.files("src", map[string]string{
		"a/first": "linked", "d/file": "file", "d/sub/deep/x": "x", "d/sub.d/y": "y", "d/-": "dash", "d.x": "no", "d-": "no", "e": "e",
	})
	must(t, os.Mkdir(src+"/d/sub/empty", 0o755))
	must(t, os.Symlink("../d", src+"/a/to-d"))
	for _, name := range []string{"d/hard-1", "d/sub/hard-2", "e-hard"} {
		must(t, os.Link(src+"/a/first", src+"/"+name))
	}
	must(t, os.Link(src+"/d/file", src+"/d/sub/inside"))
	s := snapshotFS(t, r, complete(t, r, src, nil).ID.String())
	for _, c := range []struct {
		path string
		want string
	}{
		{"d", "./ ./- ./file ./hard-1 ./sub/ ./sub/hard-2=./hard-1 ./sub/inside=./file ./sub/deep/ ./sub/deep/x ./sub/empty/ ./sub.d/ ./sub.d/y"},
		{"a/to-d/sub", "./ ./hard-2 ./inside ./deep/ ./deep/x ./empty/"},
		{"d/sub/hard-2", "./hard-2"},
		{"e", "./e"},
		{"d/sub/empty", "./"},
		{"a", "./ ./first ./to-d=../d"},
	} {
		all, contents := members(t, dump(t, s, c.path))
		var got []string
		for _, h := range all {
			name := h.Name
			if h.Linkname != "" {
				name += "=" + h.Linkname
			}
			got = append(got, name)
		}
		if g := strings.Join(got, " "); g != c.want {
			t.Errorf("%s:\n\twant %s\n\thave %s", c.path, c.want, g)
		}
		for name, want := range map[string]string{"./hard-1": "linked", "./hard-2": "linked", "./sub/deep/x": "x", "./inside": "file"} {
			if got, ok := contents[name]; ok && got != want {
				t.Errorf("%s: %s holds %q", c.path, name, got)
			}
		}
	}
	if err := s.Dump(io.Discard, "none"); err == nil {
		t.Error("what is not there was dumped")
	}
}

// failAfter is a writer that fails.
type failAfter struct{ left int }

func (f *failAfter) Write(p []byte) (int, error) {
	if f.left -= len(p); f.left < 0 {
		return 0, errors.New("full")
	}
	return len(p), nil
}

// TestDumpFails: an archive that could not be finished has no end, and what it
// holds is right.
func TestDumpFails(t *testing.T) {
	p := newPlace(t)
	r := p.init()
	src := manyFiles(p, "src")
	id := complete(t, r, src, nil).ID
	s := snapshotFS(t, r, id.String())
	whole := dump(t, s, "")
	if err := s.Dump(&failAfter{len(whole) / 2}, ""); err == nil || err.Error() != "full" {
		t.Error(err)
	}
	packs := packsOf(t, r, id, chunk.DataPack)
	packs = append(packs, packsOf(t, r, id, chunk.TreePack)...)
	for _, pack := range packs {
		for name, damage := range damages {
			path := p.repo + "/" + repo.PackName(pack)
			good, err := os.ReadFile(path)
			must(t, err)
			must(t, damage(path))
			var out bytes.Buffer
			err = snapshotFS(t, r, id.String()).Dump(&out, "")
			if err == nil {
				// In the pack's own index, which is not read.
				if !bytes.Equal(out.Bytes(), whole) {
					t.Errorf("%s: no error, and another archive", name)
				}
			} else {
				n := len(out.Bytes())
				if i := bytes.Index(out.Bytes(), []byte(view.NoHeader)); i >= 0 {
					n = i
				}
				if !errors.Is(err, snapshot.ErrIntegrity) || !bytes.HasPrefix(whole, out.Bytes()[:n]) {
					t.Errorf("%s: %v", name, err)
				}
				if untar(t, out.Bytes(), p.path("out")) == nil {
					t.Errorf("%s: tar takes what was written before: %v", name, err)
				}
				must(t, os.RemoveAll(p.path("out")))
			}
			must(t, os.RemoveAll(path))
			must(t, os.WriteFile(path, good, 0o400))
		}
	}
}

// TestFind: what is found is what a look at every entry finds.
func TestFind(t *testing.T) {
	p := newPlace(t)
	r := p.init()
	src := p.files("src", map[string]string{
		"a.js": "1", "src/a.js": "1", "src/b.ts": "1", "src/lib/a.js": "1", "src/lib/deep/c.js": "1", "src.d/a.js": "1", "src-x/a.js": "1",
		"node_modules/x/a.js": "1", "node_modules/x/lib/package.json": "1", "node_modules/y/package.json": "1", "package.json": "1",
		"odd/[x]": "1", "odd/\xff.js": "1", "lib/src/lib/z": "1",
	})
	must(t, os.Link(src+"/a.js", src+"/src/hard.js"))
	s := snapshotFS(t, r, complete(t, r, src, nil).ID.String())
	for _, patterns := range [][]string{
		{"*.js"}, {"/*.js"}, {"src/*.js"}, {"src/**/*.js"}, {"**/a.js"}, {"src/**"}, {"**"}, {"*"}, {"/**"}, {"src/lib"}, {"/src"}, {"src/"},
		{"lib/"}, {"node_modules/*/package.json"}, {"node_modules/**/package.json"}, {"*/lib/*"}, {"**/lib/**"}, {"src/**/deep/*"}, {"*/*/*/*"},
		{`odd/\[x\]`}, {"s*/a.js"}, {"src/lib/deep/c.js", "src/lib", "/a.js"}, {"*.js", "!src/**"}, {"**/*.js", "!a.js", "src/a.js"},
		{"none/**"}, {"src/a.js/x"}, {"?.js"}, {"[!a].*"}, {"src/b.ts/"}, {"src/**/**/c.js"}, {"**/deep"}, {"!*"},
	} {
		parsed, err := ignore.ParsePatterns(patterns)
		must(t, err)
		var want, got []string
		must(t, s.Walk("", func(i *view.FileInfo) error {
			if hit, not := ignore.LastMatch(t.Context(), parsed, i.Path(), i.Name(), i.IsDir()); hit && !not {
				want = append(want, i.Path())
			}
			return nil
		}))
		must(t, s.Find(patterns, func(i *view.FileInfo) error { got = append(got, i.Path()); return nil }))
		if !slices.Equal(want, got) {
			t.Errorf("%q:\n\twant %q\n\thave %q", patterns, want, got)
		}
		if len(want) == 0 && !slices.Contains([]string{"none/**", "src/a.js/x", "src/b.ts/", "!*"}, patterns[0]) {
			t.Errorf("%q finds nothing", patterns)
		}
	}
	for _, bad := range []string{"", "#x", "a//b", "[", "/"} {
		if err := s.Find([]string{bad}, func(*view.FileInfo) error { return nil }); !errors.Is(err, snapshot.ErrInvalid) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

// TestFindAll: all snapshots are looked at, the newest first, damaged ones too.
func TestFindAll(t *testing.T) {
	p := newPlace(t)
	r := p.init()
	src := p.files("src", map[string]string{"a": "1", "b/c": "2"})
	first := complete(t, r, src, nil).ID
	writeFile(t, src+"/b/a", []byte("3"))
	second := complete(t, r, src, nil).ID
	writeFile(t, src+"/d", []byte("4"))
	bad := complete(t, r, src, nil).ID
	must(t, damages["flipped"](p.repo+"/"+bad.ObjectName()))
	var got []string
	err := view.FindAll(t.Context(), p.open("other").repo, []string{"a"}, func(s *snapshot.Snapshot, i *view.FileInfo) error {
		got = append(got, s.ID.String()+":"+i.Path())
		return nil
	})
	want := []string{second.String() + ":a", second.String() + ":b/a", first.String() + ":a"}
	if !slices.Equal(got, want) || !errors.Is(err, snapshot.ErrIntegrity) || !strings.Contains(err.Error(), bad.String()) {
		t.Errorf("%q, %v", got, err)
	}
}
