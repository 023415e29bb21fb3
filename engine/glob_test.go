//go:build linux

package engine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/snapctl/snapctl/engine/internal/ignore"
	"golang.org/x/sys/unix"
)

// ignores reports whether a path is left out by one line of a .gitignore file beside it.
func ignores(line, path string) bool {
	p, ok, _ := ignore.ParsePattern(line)
	if !ok || p.Negate {
		return false
	}
	for i := 0; i <= len(path); i++ {
		if i == len(path) || path[i] == '/' {
			if p.Match(path[:i], filepath.Base(path[:i]), i < len(path)) {
				return true
			}
		}
	}
	return false
}

// gitIgnores asks git which of the paths each of the lines alone leaves out.
func gitIgnores(t *testing.T, lines, paths []string) []map[string]bool {
	t.Helper()
	git, err := exec.LookPath("git")
	if err != nil {
		t.Skip("no git here")
	}
	dir := t.TempDir()
	run := func(input []byte, args ...string) []byte {
		cmd := exec.Command(git, append([]string{"-C", dir, "-c", "core.excludesFile=/dev/null"}, args...)...)
		cmd.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_SYSTEM=/dev/null")
		cmd.Stdin = bytes.NewReader(input)
		out, err := cmd.Output()
		var exit *exec.ExitError
		if err != nil && !(errors.As(err, &exit) && exit.ExitCode() == 1) { // 1: nothing is ignored
			t.Fatal(err)
		}
		return out
	}
	run(nil, "init", "-q")
	var input bytes.Buffer
	for i, line := range lines {
		writeFile(t, fmt.Sprintf("%s/%d/.gitignore", dir, i), []byte(line+"\n"))
		for _, path := range paths {
			fmt.Fprintf(&input, "%d/%s\x00", i, path)
		}
	}
	all := make([]map[string]bool, len(lines))
	for i := range all {
		all[i] = map[string]bool{}
	}
	for name := range strings.SplitSeq(string(run(input.Bytes(), "check-ignore", "--no-index", "-z", "--stdin")), "\x00") {
		if n, path, ok := strings.Cut(name, "/"); ok {
			var i int
			_, err := fmt.Sscan(n, &i)
			must(t, err)
			all[i][path] = true
		}
	}
	return all
}

func likeGit(t *testing.T, lines, paths []string) {
	t.Helper()
	hits := 0
	for i, want := range gitIgnores(t, lines, paths) {
		for _, path := range paths {
			if got := ignores(lines[i], path); got != want[path] {
				t.Errorf("%q and %q: %v, git says %v", lines[i], path, got, want[path])
			}
		}
		hits += len(want)
	}
	if hits < len(lines)/10 {
		t.Errorf("%d hits of %d patterns: this compares nothing", hits, len(lines))
	}
}

// TestGlobLikeGit compares what patterns match with git: all short ones of the bytes that
// mean something, and random ones that are longer.
func TestGlobLikeGit(t *testing.T) {
	units := []string{"a", "b", "/", "*", "**", "?", "[", "]", "!", "^", "-", `\`}
	var lines []string
	var extend func(s string, n int)
	extend = func(s string, n int) {
		if s != "" {
			lines = append(lines, s)
		}
		if n > 0 {
			for _, u := range units {
				extend(s+u, n-1)
			}
		}
	}
	extend("", 3)
	r := rand.New(rand.NewPCG(1, 2))
	more := append(units, "/**/", "**/", "/**", "[ab]", "[!a]", "[a-c]", `\*`, `\[`, "[[:alpha:]]", "a", "b", "/", "***", `**\/`, " ", `\ `, "[/]", "[]-]")
	for range 2500 {
		var s strings.Builder
		for range 2 + r.IntN(9) {
			s.WriteString(more[r.IntN(len(more))])
		}
		lines = append(lines, s.String())
	}
	likeGit(t, lines, []string{
		"a", "b", "c", "-", "]", "[", "!", "^", `\`, "*", "ab", "ba", "aa", "a-b", "[a]", `a\b`, "a*", "abab", " ", "a ", `a\ `,
		"a/b", "b/a", "a/a", "a/b/a", "b/b/b", "a/b/a/b", "a/ab/b", "ab/ba/ab", "b/c/a", "c/c/c/c", "aab/abb",
	})
}

// TestGlobClassesLikeGit: classes go byte by byte, as git has them.
func TestGlobClassesLikeGit(t *testing.T) {
	var paths []string
	for c := 1; c < 256; c++ {
		if c != '/' && c != '.' {
			paths = append(paths, string([]byte{byte(c)}))
		}
	}
	paths = append(paths, "é", "日", "éa", "aé")
	var lines []string
	for _, name := range []string{"alnum", "alpha", "blank", "cntrl", "digit", "graph", "lower", "print", "punct", "space", "upper", "xdigit", "word", "", "ALPHA"} {
		lines = append(lines, "[[:"+name+":]]", "[![:"+name+":]]", "[^[:"+name+":]x]", "[[:"+name+":]-z]", "[:"+name+":]", "[[:"+name+"]", "[[:"+name+":]", "[a[:"+name+":]]")
	}
	lines = append(lines,
		"?", "??", "???", "*", "[é]", "[é]a", "é", "?a", "[!é]", "[\x80-\xff]", "[\x80-\xff][\x80-\xff]", "日", "[日]",
		"[a-f]", "[f-a]", "[a-]", "[-a]", "[a-c-e]", "[!-~]", "[]]", "[]-a]", "[!]a]", "[!]a-]", "[^]^]", `[\]]`, `[\\]`, `[\-z]`, `[a\-z]`, `[\a-\c]`, `[a-\]]`,
		"[[]", "[[a]", "[[.a.]]", "[[=a=]]", "[[:alpha:][:digit:]]", "[[:alpha:]-[:digit:]]", "[--A]", "[ --]", "[,-.]", `[\1-\3]`, "[[-`]", "[]", "[!]", "[^", "[", "[a", `[a\`, `[a-`,
		`\a`, `\?`, `\`, `a\`, `\\`, `\\\`, "[[:", "[[:]", "[[:a", "[[:alpha", "[[:alpha:", "[[:alpha:]", "[a-[:alpha:]]",
	)
	likeGit(t, lines, paths)
}

// TestGlobHostile: a pattern that others go back and forth in takes no longer than its
// length times the path's, and none panics.
func TestGlobHostile(t *testing.T) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		long := strings.Repeat("a", 255)
		deep := strings.Repeat("a/", 2000)
		for _, c := range []struct {
			line, path string
			want       bool
		}{
			{"*a*a*a*a*a*a*b", long[:60], false},
			{strings.Repeat("*a", 100) + "*b", long, false},
			{strings.Repeat("*a", 100) + "*", long, true},
			{strings.Repeat("*?", 120) + "*b", long, false},
			{strings.Repeat("[!b]*", 100) + "b", long, false},
			{strings.Repeat("**/", 500) + "b", deep + "a", false},
			{strings.Repeat("**/a/", 500) + "b", deep + "a", false},
			{strings.Repeat("**/a*a/", 300) + "**/b", deep + "a", false},
			{strings.Repeat("**/*a*/", 300) + "**/b", deep + "b", true},
			{strings.Repeat("*/", 2000) + "b", deep + "b", true},
			{"/" + strings.Repeat("*", 1<<16) + "b", deep + "b", false},
			{strings.Repeat("[", 1<<16), long, false},
			{strings.Repeat(`\`, 1<<16), long, false},
			{"[" + strings.Repeat("a-", 1<<11) + "]", "a", true},
			{"*[" + strings.Repeat("b-", ignore.MaxGlob/2-2) + "]*c", long, false},
			{"**/*[" + strings.Repeat("b-", ignore.MaxGlob/2-4) + "]c", deep, false},
			{"**/" + strings.Repeat("*", ignore.MaxGitignore) + "b/", deep, false},
			{strings.Repeat("[[:", 1<<12), long, false},
		} {
			p, ok, _ := ignore.ParsePattern(c.line)
			if got := ok && p.Match(c.path, filepath.Base(c.path), true); got != c.want {
				t.Errorf("%.40q...: %v", c.line, got)
			}
		}
	}()
	select {
	case <-done:
	case <-time.After(time.Minute): // it would be for years
		t.Fatal("a pattern is matched without end")
	}
}

// FuzzGlob: no pattern panics, and what is found is what a search of all ways finds.
func FuzzGlob(f *testing.F) {
	for _, s := range []string{"a", "*a*b", "**/a", "a/**/b", "[a-c]", `\[`, "[[:alpha:]]", "**"} {
		f.Add(s, "a/b")
	}
	f.Fuzz(func(t *testing.T, text, path string) {
		if len(text) > 12 || len(path) > 12 {
			return
		}
		g, ok := ignore.NewGlob(text)
		if !ok || text == "" {
			return
		}
		if got, want := g.Match(path), matchAllWays(text, 0, path); got != want {
			t.Errorf("%q and %q: %v", text, path, got)
		}
	})
}

// matchAllWays is glob.match by its definition: whatever a star may match is tried.
func matchAllWays(p string, i int, path string) bool {
	if i == len(p) {
		return path == ""
	}
	if p[i] != '*' {
		if path == "" {
			return false
		}
		ok, next := ignore.GlobUnit(p, i, path[0])
		return ok && matchAllWays(p, next, path[1:])
	}
	n := i + 1
	for n < len(p) && p[n] == '*' {
		n++
	}
	rest := p[n:]
	deep := n-i > 1 && (i == 0 || p[i-1] == '/') && (rest == "" || rest[0] == '/' || strings.HasPrefix(rest, `\/`))
	if deep && strings.HasPrefix(rest, "/") && matchAllWays(p, n+1, path) {
		return true
	}
	for j := 0; j <= len(path); j++ {
		if matchAllWays(p, n, path[j:]) {
			return true
		}
		if j < len(path) && path[j] == '/' && !deep {
			return false
		}
	}
	return false
}

// endsSoon is a context that ends when it has been asked so many times.
type endsSoon struct {
	context.Context
	left atomic.Int64
}

func (c *endsSoon) Err() error {
	if c.left.Add(-1) < 0 {
		return context.Canceled
	}
	return nil
}

// TestStopsInPatterns: whoever is told to stop does so between one pattern and the next,
// and between one name and the next.
func TestStopsInPatterns(t *testing.T) {
	ctx := &endsSoon{Context: t.Context()}
	ctx.left.Store(10)
	patterns, err := ignore.ParsePatterns(append([]string{"name"}, slices.Repeat([]string{"*a*b"}, 20)...))
	must(t, err)
	if hit, _ := ignore.LastMatch(ctx, patterns, "name", "name", false); hit {
		t.Error("all patterns were looked at")
	}
	content := map[string]string{}
	for i := range 20 {
		content[fmt.Sprint(i)] = ""
	}
	dir := newPlace(t).files("src", content)
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	must(t, err)
	defer unix.Close(fd)
	ctx.left.Store(10)
	w := &walker{root: fd, ctx: ctx, exclude: &ignore.Rules{}}
	if err := w.read(&dirNode{}); !errors.Is(err, context.Canceled) {
		t.Errorf("all names were looked at: %v", err)
	}
}
