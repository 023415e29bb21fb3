//go:build linux

package engine

import (
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// gitYard is a directory with repositories that git makes.
type gitYard struct {
	*place
	root string
}

func newGitYard(t *testing.T) *gitYard {
	if _, err := exec.LookPath("git"); err != nil {
		t.Skip("no git here")
	}
	noGitConfig(t)
	y := &gitYard{place: newPlace(t)}
	y.root = y.path("yard")
	must(t, os.MkdirAll(y.root, 0o755))
	return y
}

// git runs git in a directory of the yard.
func (y *gitYard) git(dir string, args ...string) string {
	y.Helper()
	cmd := exec.Command("git", append([]string{"-C", filepath.Join(y.root, dir), "-c", "user.name=x", "-c", "user.email=x@example.org", "-c", "protocol.file.allow=always"}, args...)...)
	out, err := cmd.Output()
	if err != nil {
		y.Fatalf("git %q: %v", args, err)
	}
	return string(out)
}

// fill writes files, each with its name in it.
func (y *gitYard) fill(dir string, names ...string) {
	y.Helper()
	for _, name := range names {
		writeFile(y, filepath.Join(y.root, dir, name), []byte(name))
	}
}

// rules writes a file of patterns.
func (y *gitYard) rules(path string, lines ...string) {
	y.Helper()
	writeFile(y, filepath.Join(y.root, path), []byte(strings.Join(lines, "\n")+"\n"))
}

// ignored adds what git ignores in a work tree, and in those in it that are not ignored,
// as absolute paths; of a directory, with a slash.
func (y *gitYard) ignored(top string, all map[string]bool) {
	y.Helper()
	rel, err := filepath.Rel(y.root, top)
	must(y, err)
	for name := range strings.SplitSeq(y.git(rel, "ls-files", "-z", "--others", "--ignored", "--exclude-standard"), "\x00") {
		if name != "" {
			all[top+"/"+name] = true
		}
	}
	must(y, filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() || path == top {
			return err
		}
		if all[path+"/"] || d.Name() == ".git" {
			return filepath.SkipDir
		}
		if exec.Command("git", "-C", path, "rev-parse").Run() != nil {
			return nil
		}
		if got := strings.TrimSpace(y.git(strings.TrimPrefix(path, y.root), "rev-parse", "--show-toplevel")); got != path {
			return nil
		}
		y.ignored(path, all)
		return filepath.SkipDir
	}))
}

// check compares what is in a snapshot of a directory with what git says of the work tree
// that it is in: all that it does not ignore.
func (y *gitYard) check(what, dir, top string) {
	y.Helper()
	abs := filepath.Join(y.root, dir)
	all := map[string]bool{}
	y.ignored(filepath.Join(y.root, top), all)
	var want []string
	left := 0
	must(y, filepath.WalkDir(abs, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && all[path+"/"]:
			left++
			return filepath.SkipDir
		case d.IsDir():
		case all[path]:
			left++
		default:
			want = append(want, strings.TrimPrefix(path, abs+"/"))
		}
		return nil
	}))
	slices.Sort(want)
	r := y.open("cache-" + strings.ReplaceAll(what, " ", "-"))
	var warned warnings
	got := kept(y, r, abs, &CreateOptions{Gitignore: true, Progress: &warned})
	if !slices.Equal(got, want) {
		y.Errorf("%s: the snapshot has too much %q, and lacks %q", what, without(got, want), without(want, got))
	}
	if left == 0 {
		y.Errorf("%s: git ignores nothing", what)
	}
	if !slices.ContainsFunc(got, func(s string) bool { return s == ".git" || strings.HasPrefix(s, ".git/") }) && dir == top {
		y.Errorf("%s: .git is not in it", what)
	}
	for _, w := range warned.all {
		if !strings.Contains(w, "git ignores") {
			y.Errorf("%s: %s", what, w)
		}
	}
}

func without(a, b []string) (left []string) {
	for _, s := range a {
		if !slices.Contains(b, s) {
			left = append(left, s)
		}
	}
	return left
}

// TestGitRepositories compares what a snapshot leaves out with what git ignores, in
// repositories of all kinds.
func TestGitRepositories(t *testing.T) {
	y := newGitYard(t)
	r := y.init()
	defer r.Close()
	y.git("", "init", "-q", "repo")
	y.rules("repo/.gitignore", "*.log", "/build/", "!keep.log", "node_modules", "*.pack", "HEAD", "logs", "objects/", "ignored-repo", "ignored-module", "\xc3\xa9*", "links")
	y.rules("repo/src/.gitignore", "*.tmp", "!build/", "/gen")
	y.rules("repo/build/.gitignore", "!*")
	y.fill("repo", "a.log", "keep.log", "tracked.log", "src/b.log", "src/a.tmp", "src/tracked.tmp", "src/gen/x", "src/gen/tracked", "src/build/x",
		"build/out/1", "build/out/tracked", "build/keep.log", "build/other/2", "node_modules/p/index.js", "node_modules/p/tracked.js", "src/node_modules/q/i.js",
		"objects/x", "logs/y", "a.pack", "mine.swp", "src/mine.swp", "secret", "src/secret", "éa", "plain", "HEAD", "src/deep/er/a.tmp", "untracked-only/a.log")
	must(t, os.Symlink("plain", filepath.Join(y.root, "repo/links")))
	must(t, os.Mkdir(filepath.Join(y.root, "repo/empty"), 0o755))
	y.git("repo", "add", "-f", ".gitignore", "tracked.log", "src/tracked.tmp", "src/gen/tracked", "build/out/tracked", "node_modules/p/tracked.js", "plain")
	y.check("index", "repo", "repo")

	y.rules("repo/.git/info/exclude", "secret", "!src/a.tmp", "*.swp")
	y.check("info/exclude", "repo", "repo")
	home := os.Getenv("HOME")
	writeFile(t, home+"/xdg/git/ignore", []byte("mine.swp\n"))
	y.check("the user's default", "repo", "repo")
	writeFile(t, home+"/.gitconfig", []byte("[user]\n\tname = x\n[include]\n\tpath = more.inc\n"))
	writeFile(t, home+"/more.inc", []byte("[core]\n\texcludesFile = ~/ignore # a comment\n"))
	writeFile(t, home+"/ignore", []byte("\xef\xbb\xbfplain*\r\nuntracked-only\n"))
	y.fill("repo", "plainer")
	y.check("core.excludesFile of the user", "repo", "repo")
	y.check("a part", "repo/src", "repo")
	y.check("a part of what is ignored", "repo/build/out", "repo")
	y.git("repo", "config", "core.excludesFile", "rules of mine")
	y.rules("repo/rules of mine", "src/b.log", "!a.log", "empty", "u*")
	y.check("core.excludesFile of the repository", "repo", "repo")
	// With a subsection it is another option, whichever comes last.
	y.rules("repo/rules of x", "*")
	y.git("repo", "config", "core.x.excludesFile", "rules of x")
	y.check("an option that is named like it", "repo", "repo")

	// A repository in it, which is ignored or not, and one whose .git is none.
	for _, inner := range []string{"inner", "ignored-repo", "src/build/inner"} {
		y.git("repo", "init", "-q", inner)
		y.rules("repo/"+inner+"/.gitignore", "*.x", "deep/")
		y.fill("repo/"+inner, "a.x", "b.log", "tracked.x", "deep/1", "build/2", "src/a.tmp")
		y.git("repo/"+inner, "add", "-f", "tracked.x")
	}
	y.fill("repo", "no-repo/.git/config", "no-repo/a.log", "no-repo/.git/a.log", "no-repo/a")
	y.check("repositories in it", "repo", "repo")
	y.check("a part of one in it", "repo/inner/deep", "repo/inner")

	// Submodules, one of them in an ignored place; another work tree.
	y.git("", "init", "-q", "module")
	y.rules("module/.gitignore", "*.m")
	y.fill("module", "a")
	y.git("module", "add", "-A")
	y.git("module", "commit", "-qm", "one")
	y.git("repo", "submodule", "--quiet", "add", y.root+"/module", "module")
	y.git("repo", "submodule", "--quiet", "add", "-f", y.root+"/module", "ignored-module")
	for _, m := range []string{"module", "ignored-module"} {
		y.fill("repo/"+m, "b.m", "c", "b.log")
	}
	y.check("submodules", "repo", "repo")
	y.git("repo", "commit", "-qm", "all")
	y.git("repo", "worktree", "add", "-q", "../other", "-b", "other")
	y.fill("other", "a.log", "new.log", "src/a.tmp", "secret")
	y.git("other", "add", "-f", "new.log")
	// .git is a file here, and no directory.
	y.check("another work tree", "other", "other")
	y.git("repo", "worktree", "add", "-q", "tree-in-it", "-b", "in-it")
	y.fill("repo/tree-in-it", "a.log", "x")
	y.check("a work tree in it", "repo", "repo")

	// Each form of the index.
	for _, version := range []string{"2", "3", "4"} {
		y.git("repo", "update-index", "--index-version", version)
		y.check("index version "+version, "repo", "repo")
	}
	y.fill("repo", "later.log")
	y.git("repo", "add", "-N", "-f", "later.log")
	y.check("added later", "repo", "repo")
	y.git("repo", "-c", "index.skipHash=true", "update-index", "--force-write-index")
	y.check("without a checksum", "repo", "repo")
	y.git("repo", "update-index", "--split-index")
	y.fill("repo", "split.log")
	y.git("repo", "add", "-f", "split.log")
	y.check("a split index", "repo", "repo")
}

// TestGitBroken: where it is not known what git tracks nothing is left out, and that is said.
func TestGitBroken(t *testing.T) {
	for name, harm := range map[string]func(index string) error{
		"cut": func(index string) error { return os.Truncate(index, 100) },
		"nonsense": func(index string) error {
			return os.WriteFile(index, []byte("DIRC\x00\x00\x00\x02\xff\xff\xff\xff"), 0o600)
		},
		"flipped": func(index string) error { return change(index, func(b []byte) []byte { b[70] ^= 1; return b }) },
		"newer":   func(index string) error { return change(index, func(b []byte) []byte { b[7] = 9; return b }) },
	} {
		t.Run(name, func(t *testing.T) {
			y := newGitYard(t)
			y.init()
			y.git("", "init", "-q", "repo")
			y.rules("repo/.gitignore", "*.log")
			y.fill("repo", "a.log", "b.log", "c")
			y.git("repo", "add", "-f", "a.log")
			must(t, harm(y.root+"/repo/.git/index"))
			var warned warnings
			got := kept(t, y.open("cache"), y.root+"/repo", &CreateOptions{Gitignore: true, Excludes: []string{".git"}, Progress: &warned})
			if !slices.Equal(got, []string{".gitignore", "a.log", "b.log", "c"}) {
				t.Errorf("%q", got)
			}
			if !warned.about("nothing that git ignores is left out of "+y.root+"/repo") || len(warned.all) != 1 {
				t.Errorf("warnings: %q", warned.all)
			}
		})
	}
}

// TestGitBrokenConfig: git refuses to say what it ignores by a configuration that it cannot
// read; then nothing that is named in any is left out, and that is said.
func TestGitBrokenConfig(t *testing.T) {
	for name, where := range map[string]string{"repository": "repo/.git/config", "user": ".gitconfig", "included": "more.inc"} {
		t.Run(name, func(t *testing.T) {
			y := newGitYard(t)
			y.init()
			y.git("", "init", "-q", "repo")
			home := os.Getenv("HOME")
			y.rules("mine", "*.mine")
			y.rules("repo/.gitignore", "*.log")
			y.fill("repo", "a.mine", "b.log", "c")
			writeFile(t, home+"/.gitconfig", []byte("[include]\n\tpath = more.inc\n"))
			writeFile(t, home+"/more.inc", []byte("[core]\n\texcludesFile = "+y.root+"/mine\n"))
			y.check("whole", "repo", "repo")

			config := filepath.Join(home, where)
			if name == "repository" {
				config = filepath.Join(y.root, where)
			}
			must(t, change(config, func(b []byte) []byte { return append(b, "[core\n"...) }))
			if out, err := exec.Command("git", "-C", y.root+"/repo", "ls-files", "--others", "--ignored", "--exclude-standard").Output(); err == nil {
				t.Fatalf("git takes it, and ignores %q", out)
			}
			var warned warnings
			got := kept(t, y.open("cache"), y.root+"/repo", &CreateOptions{Gitignore: true, Excludes: []string{".git"}, Progress: &warned})
			if !slices.Equal(got, []string{".gitignore", "a.mine", "c"}) {
				t.Errorf("%q", got)
			}
			if !warned.about("git's configuration "+config) || len(warned.all) != 1 {
				t.Errorf("warnings: %q", warned.all)
			}
		})
	}
}

// TestGitOfOthers: a repository above the directory that belongs to somebody else does not
// say what is left out; neither does one on another file system.
func TestGitOfOthers(t *testing.T) {
	needRoot(t)
	y := newGitYard(t)
	r := y.init()
	y.git("", "init", "-q")
	y.rules(".gitignore", "*")
	y.fill("mine", "a", "b")
	if got := kept(t, r, y.root+"/mine", &CreateOptions{Gitignore: true}); len(got) != 0 {
		t.Errorf("%q, although git ignores them", got)
	}
	must(t, os.Chown(y.root+"/.git", 12345, 12345))
	if got := kept(t, r, y.root+"/mine", &CreateOptions{Gitignore: true}); len(got) != 2 {
		t.Errorf("only %q, by the rules of somebody else", got)
	}
}

// TestGitHostile: what a repository names is no way to hang or to be led astray.
func TestGitHostile(t *testing.T) {
	y := newGitYard(t)
	r := y.init()
	y.git("", "init", "-q", "repo")
	fifo := y.path("fifo")
	must(t, exec.Command("mkfifo", fifo).Run())
	config := y.root + "/repo/.git/config"
	b, err := os.ReadFile(config)
	must(t, err)
	y.fill("repo", "a", "b.log")
	for name, text := range map[string]string{
		"a FIFO":          "[core]\n\texcludesFile = " + fifo + "\n",
		"a directory":     "[core]\n\texcludesFile = /\n",
		"a device":        "[core]\n\texcludesFile = /dev/zero\n[include]\n\tpath = /dev/tty\n",
		"itself":          "[include]\n\tpath = " + config + "\n",
		"itself, a crowd": strings.Repeat("[include]\n\tpath = "+config+"\n", 10),
		"nobody's home":   "[core]\n\texcludesFile = ~nobody-of-that-name/x\n",
		"unclosed":        "[core\n",
		"no value":        "[core]\n\texcludesFile\n[include]\n\tpath\n",
	} {
		must(t, os.WriteFile(config, append(slices.Clone(b), text...), 0o600))
		if got := kept(t, r, y.root+"/repo", &CreateOptions{Gitignore: true, Excludes: []string{".git"}}); !slices.Equal(got, []string{"a", "b.log"}) {
			t.Errorf("%s: %q", name, got)
		}
	}
	must(t, os.WriteFile(config, b, 0o600))
	// .git leads in a circle.
	y.fill("repo/odd", "x")
	writeFile(t, y.root+"/repo/odd/.git", []byte("gitdir: .git\n"))
	if got := kept(t, r, y.root+"/repo/odd", &CreateOptions{Gitignore: true}); !slices.Equal(got, []string{".git", "x"}) {
		t.Errorf("%q", got)
	}
}
