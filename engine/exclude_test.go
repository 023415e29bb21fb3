//go:build linux

package engine

import (
	"bytes"
	"errors"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/snapctl/snapctl/engine/internal/ignore"
	"github.com/snapctl/snapctl/engine/internal/retain"
	"github.com/snapctl/snapctl/engine/snapshot"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

// kept gives the paths of files and links in a snapshot of dir.
func kept(t testing.TB, r *Repository, dir string, opts *CreateOptions) []string {
	t.Helper()
	res := complete(t, r, dir, opts)
	var all []string
	for _, e := range entriesOf(t, r, res.ID) {
		path, rest, _ := strings.Cut(e[1:], `" `)
		if !strings.HasPrefix(rest, "directory") {
			all = append(all, path)
		}
	}
	slices.Sort(all)
	return all
}

// noGitConfig has the machine's configuration of git not matter.
func noGitConfig(t *testing.T) {
	home := t.TempDir()
	t.Setenv("HOME", home)
	t.Setenv("XDG_CONFIG_HOME", home+"/xdg")
	t.Setenv("GIT_CONFIG_SYSTEM", os.DevNull)
}

// TestExclude: the rules of gitignore(5), as --exclude and as .gitignore.
func TestExclude(t *testing.T) {
	noGitConfig(t)
	p := newPlace(t)
	r := p.init()
	files := []string{
		"a.o", "b.c", "foo/a.o", "foo/bar/a.o", "foo/bar/b.c", "doc/frotz/x", "a/doc/frotz/x", "frotz", "abc", "a/b/c/d", "a/x/b/y",
		"#hash", "!bang", "sp ace", "trail ", "back\\slash", "{brace}", "UPPER", "é", ".hidden/f", "logs/keep/f", "logs/drop/f", "log",
	}
	for i, c := range []struct {
		patterns string
		out      []string
	}{
		{"", nil},
		{"# comment\n\n   \n", nil},
		{"*.o", []string{"a.o", "foo/a.o", "foo/bar/a.o"}},
		{"/*.o", []string{"a.o"}},
		{"*.o\n!foo/*.o", []string{"a.o", "foo/bar/a.o"}},
		{"doc/frotz", []string{"doc/frotz/x"}},
		{"doc/frotz/", []string{"doc/frotz/x"}},
		{"/doc/frotz", []string{"doc/frotz/x"}},
		{"frotz/", []string{"doc/frotz/x", "a/doc/frotz/x"}},
		{"frotz", []string{"doc/frotz/x", "a/doc/frotz/x", "frotz"}},
		{"foo/*", []string{"foo/a.o", "foo/bar/a.o", "foo/bar/b.c"}},
		{"foo/*\n!foo/bar", []string{"foo/a.o"}},
		{"foo\n!foo/bar/b.c", []string{"foo/a.o", "foo/bar/a.o", "foo/bar/b.c"}}, // what is below an excluded directory stays out
		{"**/bar", []string{"foo/bar/a.o", "foo/bar/b.c"}},
		{"**/foo/bar/a.o", []string{"foo/bar/a.o"}},
		{"a/**/b/*", []string{"a/b/c/d", "a/x/b/y"}},
		{"a/**", []string{"a/doc/frotz/x", "a/b/c/d", "a/x/b/y"}},
		{"a/**\n!a/b", []string{"a/doc/frotz/x", "a/x/b/y", "a/b/c/d"}},
		{"a/**\n!a/b/\n!a/b/**", []string{"a/doc/frotz/x", "a/x/b/y"}},
		{"logs/**\n!logs/keep\n!logs/keep/**", []string{"logs/drop/f"}},
		{"**/*.c", []string{"b.c", "foo/bar/b.c"}},
		{"**", files},
		{"*", files},
		{"*\n!*/\n!*.c", slices.DeleteFunc(slices.Clone(files), func(f string) bool { return strings.HasSuffix(f, ".c") })},
		{"?bc", []string{"abc"}},
		{"[ab].[oc]", []string{"a.o", "b.c", "foo/a.o", "foo/bar/a.o", "foo/bar/b.c"}},
		{"[!a].?", []string{"b.c", "foo/bar/b.c"}},
		{"[^a].?", []string{"b.c", "foo/bar/b.c"}},
		{"[[:upper:]]*", []string{"UPPER"}},
		{"\\#hash", []string{"#hash"}},
		{"#hash", nil},
		{"\\!bang", []string{"!bang"}},
		{"sp ace", []string{"sp ace"}},
		{"abc   ", []string{"abc"}},
		{"trail\\ ", []string{"trail "}},
		{"trail ", nil},
		{"back\\\\slash", []string{"back\\slash"}},
		{"{brace}", []string{"{brace}"}},
		{"{abc,log}", nil},
		{"abc\r", []string{"abc"}},
		{"upper", nil},
		{".hidden", []string{".hidden/f"}},
		{"/", nil},
		{"//", nil},
		{"abc/", nil},
		{"*b*", []string{"abc", "b.c", "foo/bar/b.c", "foo/bar/a.o", "a/b/c/d", "a/x/b/y", "!bang", "back\\slash", "{brace}"}},
		{"log", []string{"log"}},
		{"foo/bar/", []string{"foo/bar/a.o", "foo/bar/b.c"}},
		{"foo/b", nil},
		{"/foo/bar/../bar", nil},
		{"é", []string{"é"}},
	} {
		content := map[string]string{}
		for _, f := range files {
			content[f] = "1"
		}
		must(t, os.RemoveAll(p.path("src")))
		src := p.files("src", content)
		var want []string
		for _, f := range files {
			if !slices.Contains(c.out, f) {
				want = append(want, strings.Trim(strings.ReplaceAll(f, `\`, `\\`), `"`))
			}
		}
		slices.Sort(want)
		if got := kept(t, r, src, &CreateOptions{Excludes: strings.Split(c.patterns, "\n")}); !slices.Equal(want, got) {
			t.Errorf("%d: --exclude %q leaves %q out, not %q", i, c.patterns, minus(want, got, files), c.out)
		}
		writeFile(t, src+"/.gitignore", []byte(c.patterns+"\n"))
		got := slices.DeleteFunc(kept(t, r, src, &CreateOptions{Gitignore: true}), func(s string) bool { return s == ".gitignore" })
		if !slices.Equal(want, got) {
			t.Errorf("%d: .gitignore of %q leaves %q out, not %q", i, c.patterns, minus(want, got, files), c.out)
		}
	}
}

// minus gives the files that were left out, for a message.
func minus(_, got, files []string) (out []string) {
	for _, f := range files {
		if !slices.Contains(got, strings.ReplaceAll(f, `\`, `\\`)) {
			out = append(out, f)
		}
	}
	return out
}

// TestExcludePrecedence: command line, deeper files, .git.
func TestExcludePrecedence(t *testing.T) {
	noGitConfig(t)
	p := newPlace(t)
	r := p.init()
	src := p.files("src", map[string]string{
		".gitignore": "*.log\n/build\n", "a.log": "1", "build/x": "1", "sub/build/x": "1", "sub/.gitignore": "!keep.log\n*.tmp", "sub/keep.log": "1",
		"sub/a.log": "1", "sub/a.tmp": "1", "a.tmp": "1", ".git/config": "1", "sub/.git/config": "1", "sub/deep/keep.log": "1",
	})
	for _, c := range []struct {
		opts CreateOptions
		want []string
	}{
		{CreateOptions{Gitignore: true}, []string{".git/config", ".gitignore", "a.tmp", "sub/.git/config", "sub/.gitignore", "sub/build/x", "sub/deep/keep.log", "sub/keep.log"}},
		{CreateOptions{Gitignore: true, Excludes: []string{".git"}}, []string{".gitignore", "a.tmp", "sub/.gitignore", "sub/build/x", "sub/deep/keep.log", "sub/keep.log"}},
		{CreateOptions{Gitignore: true, Excludes: []string{"!a.log", "keep.log"}}, []string{
			".git/config", ".gitignore", "a.log", "a.tmp", "sub/.git/config", "sub/.gitignore", "sub/a.log", "sub/build/x"}},
		{CreateOptions{Excludes: []string{"*.log", "!a.log", "/sub/deep"}}, []string{
			".git/config", ".gitignore", "a.log", "a.tmp", "build/x", "sub/.git/config", "sub/.gitignore", "sub/a.log", "sub/a.tmp", "sub/build/x"}},
	} {
		if got := kept(t, r, src, &c.opts); !slices.Equal(c.want, got) {
			t.Errorf("%+v keeps %q, want %q", c.opts, got, c.want)
		}
	}
	// What was left out once is read when it is wanted again.
	all := complete(t, r, src, nil)
	p.check(all.ID, scan(t, src))
	// A .gitignore that is a link, a directory or a FIFO is none.
	must(t, os.Remove(src+"/.gitignore"))
	must(t, os.Symlink("sub/.gitignore", src+"/.gitignore"))
	must(t, os.Remove(src+"/sub/.gitignore"))
	must(t, unix.Mkfifo(src+"/sub/.gitignore", 0o644))
	must(t, os.Mkdir(src+"/sub/deep/.gitignore", 0o755))
	if got := kept(t, r, src, &CreateOptions{Gitignore: true}); !slices.Contains(got, "sub/a.tmp") || !slices.Contains(got, "a.log") {
		t.Errorf("%q", got)
	}
}

// TestLikeGit compares what a snapshot leaves out with what git ignores, in random
// trees with random .gitignore files.
func TestLikeGit(t *testing.T) {
	git, err := exec.LookPath("git")
	if err != nil {
		t.Skip("no git here")
	}
	noGitConfig(t)
	p := newPlace(t)
	r := p.init()
	names := rapid.SampledFrom([]string{"a", "b", "ab", "a.b", "foo", "foo.o", "x y", "[a]", "a*", ".h", "é"})
	pieces := rapid.SampledFrom([]string{
		"a", "b", "ab", "foo", "foo.o", ".h", "*", "**", "?", "a*", "*.o", "*b", "[ab]", "[!a]", "[^b]", "[a-c]", "[a]", "\\[a\\]", "\\*", "a\\*",
		"x y", "f?o", "**a", "*a*b*", "[]a]", "{a,b}", "x\\ y", "", "é", "??", "[é]", "***", "[[:alpha:]]*",
	})
	pattern := rapid.Custom(func(t *rapid.T) string {
		s := strings.Join(rapid.SliceOfN(pieces, 1, 3).Draw(t, "pieces"), "/")
		return rapid.SampledFrom([]string{"", "", "", "!", "/", "!/"}).Draw(t, "prefix") + s + rapid.SampledFrom([]string{"", "", "", "/", " ", "/**", "\r"}).Draw(t, "suffix")
	})
	round := 0
	rapid.Check(t, func(rt *rapid.T) {
		round++
		src := p.path("git")
		defer func() { must(t, os.RemoveAll(src)) }()
		must(t, os.MkdirAll(src, 0o755))
		content := map[string]string{}
		for range rapid.IntRange(3, 12).Draw(rt, "files") {
			path := filepath.Join(rapid.SliceOfN(names, 1, 3).Draw(rt, "path")...)
			content[path] = "1"
		}
		for range rapid.IntRange(1, 3).Draw(rt, "ignore files") {
			dir := filepath.Join(rapid.SliceOfN(names, 0, 2).Draw(rt, "ignored in")...)
			if rapid.Bool().Draw(rt, "at the top") {
				dir = ""
			}
			content[filepath.Join(dir, ".gitignore")] = strings.Join(rapid.SliceOfN(pattern, 1, 4).Draw(rt, "patterns"), "\n") + "\n"
		}
		for _, path := range slices.Sorted(maps.Keys(content)) {
			// A name may be a file's and a directory's: the first wins.
			if os.MkdirAll(filepath.Dir(filepath.Join(src, path)), 0o755) == nil {
				_ = os.WriteFile(filepath.Join(src, path), []byte(content[path]), 0o644)
			}
		}
		run := func(args ...string) []byte {
			out, err := exec.Command(git, append([]string{"-C", src}, args...)...).Output()
			if err != nil {
				t.Fatal(err)
			}
			return out
		}
		run("init", "-q")
		must(t, os.RemoveAll(src+"/.git/info"))
		tracked := rapid.SliceOf(rapid.SampledFrom(slices.Sorted(maps.Keys(content)))).Draw(rt, "tracked")
		for _, path := range tracked {
			if info, err := os.Lstat(filepath.Join(src, path)); err == nil && info.Mode().IsRegular() {
				run("add", "-f", "--", path)
			}
		}
		var want []string
		for name := range bytes.SplitSeq(run("ls-files", "-z", "--cached", "--others", "--exclude-standard"), []byte{0}) {
			if len(name) > 0 {
				want = append(want, string(name))
			}
		}
		slices.Sort(want)
		res, err := r.Create(t.Context(), src, &CreateOptions{Gitignore: true, Excludes: []string{".git"}})
		if err != nil || res.Incomplete {
			rt.Fatalf("%v, %+v", err, res)
		}
		out := p.path("out")
		defer func() { must(t, os.RemoveAll(out)) }()
		if _, err := r.Restore(t.Context(), res.ID.String(), out, nil); err != nil {
			rt.Fatal(err)
		}
		var got []string
		for _, f := range filesBelow(t, out) {
			got = append(got, strings.TrimPrefix(f, out+"/"))
		}
		slices.Sort(got)
		if !slices.Equal(want, got) {
			rt.Fatalf("git has\n%q\nthe snapshot has\n%q\nof %q", want, got, content)
		}
		_, err = retain.Remove(t.Context(), r.repo, res.ID.String())
		must(t, err)
	})
}

// TestPatternErrors: what is malformed is refused on the command line, and
// matches nothing in a file.
func TestPatternErrors(t *testing.T) {
	for _, s := range []string{"[", "a[", "[a", "a\\"} {
		if _, err := ignore.ParsePatterns([]string{s}); !errors.Is(err, snapshot.ErrInvalid) {
			t.Errorf("%q: %v", s, err)
		}
	}
}
