package engine

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"

	"github.com/git-lfs/wildmatch/v2"
	"github.com/snapctl/snapctl/manifest"
	"golang.org/x/sys/unix"
)

// Patterns are those of gitignore(5), for --exclude, --include and .gitignore
// files alike: one syntax to know. The matching of '*', '?', '[a-z]' and '**' is
// wildmatch's; here are only gitignore's own rules around it.

// A pattern is one line of a .gitignore file.
type pattern struct {
	glob    *wildmatch.Wildmatch
	negate  bool // '!': takes back an earlier match
	dirOnly bool // a slash at the end
	whole   bool // a slash elsewhere: matched against the path, not the name
}

// parsePattern parses one pattern; false for a comment or an empty line.
func parsePattern(line string) (p pattern, ok bool, err error) {
	s := strings.TrimSuffix(line, "\r")
	for strings.HasSuffix(s, " ") && !strings.HasSuffix(s, `\ `) {
		s = s[:len(s)-1]
	}
	if s == "" || s[0] == '#' {
		return p, false, nil
	}
	if s[0] == '!' {
		p.negate, s = true, s[1:]
	}
	if strings.HasSuffix(s, "/") {
		p.dirOnly, s = true, strings.TrimSuffix(s, "/")
	}
	if strings.Contains(s, "//") || strings.HasSuffix(s, "/") && s != "/" { // to git, what no path can match
		return p, false, fmt.Errorf("%w: pattern %q has two slashes in a row", ErrInvalid, line)
	}
	if i := strings.IndexByte(s, '/'); i >= 0 {
		p.whole = true
		s = strings.TrimPrefix(s, "/")
	}
	if s == "" {
		return p, false, nil
	}
	// "a/**" is all that is in a, but not a.
	if strings.HasSuffix(s, "/**") {
		s += "/*"
	}
	if p.glob = compileGlob(s); p.glob == nil {
		return p, false, fmt.Errorf("%w: pattern %q is malformed", ErrInvalid, line)
	}
	return p, true, nil
}

// memberBracket: a ']' that comes first in a class is a member of it.
var memberBracket = strings.NewReplacer("[]", `[\]`, "[!]", `[!\]`, "[^]", `[^\]`)

// plainSpace: an escaped space is a space, which wildmatch does not know.
var plainSpace = strings.NewReplacer(`\\`, `\\`, `\ `, ` `)

// compileGlob compiles a glob, nil if it is malformed. wildmatch takes an unclosed
// class to match anything, and panics at others.
func compileGlob(s string) (w *wildmatch.Wildmatch) {
	s = memberBracket.Replace(plainSpace.Replace(s))
	if _, err := path.Match(s, ""); err != nil {
		return nil
	}
	defer func() {
		if recover() != nil {
			w = nil
		}
	}()
	w = wildmatch.NewWildmatch(s)
	w.Match("a/b") // what is malformed shows here at the latest
	return w
}

func parsePatterns(lines []string) ([]pattern, error) {
	var all []pattern
	for _, line := range lines {
		p, ok, err := parsePattern(line)
		if err != nil {
			return nil, err
		}
		if ok {
			all = append(all, p)
		}
	}
	return all, nil
}

// match matches a path relative to where the pattern was written.
func (p *pattern) match(file, name string, isDir bool) bool {
	if p.dirOnly && !isDir {
		return false
	}
	subject := name
	if p.whole {
		subject = file
	}
	return p.glob.Match(subject)
}

// ignoreRules are the patterns that hold in a directory: those written in it,
// then those of the directories above.
type ignoreRules struct {
	above    *ignoreRules
	dir      string // where they were written
	patterns []pattern
}

// excludes decides what is left out of a snapshot.
type excludes struct {
	command   []pattern // they override the files'
	gitignore bool
}

// enter gives the rules that hold in a directory.
func (x *excludes) enter(above *ignoreRules, fd int, dir string, names []string) (*ignoreRules, error) {
	if !x.gitignore {
		return above, nil
	}
	for _, name := range names {
		if name != ".gitignore" {
			continue
		}
		patterns, err := readGitignore(fd, name)
		if err != nil {
			return above, fmt.Errorf("reading %q: %w", manifest.Join(dir, name), err)
		}
		if len(patterns) > 0 {
			return &ignoreRules{above, dir, patterns}, nil
		}
	}
	return above, nil
}

// maxGitignore bounds a .gitignore file in bytes.
const maxGitignore = 1 << 20

func readGitignore(dir int, name string) ([]pattern, error) {
	fd, err := openat(dir, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK)
	if errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENOENT) {
		return nil, nil // git does not follow links here either
	}
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	st, err := f.Stat()
	if err != nil || !st.Mode().IsRegular() {
		return nil, err
	}
	if st.Size() > maxGitignore {
		return nil, fmt.Errorf("it has %d bytes, the most is %d", st.Size(), maxGitignore)
	}
	var all []pattern
	lines := bufio.NewScanner(io.LimitReader(f, maxGitignore))
	lines.Buffer(nil, maxGitignore)
	for lines.Scan() {
		// As git does, a malformed pattern matches nothing.
		if p, ok, err := parsePattern(lines.Text()); ok && err == nil {
			all = append(all, p)
		}
	}
	return all, lines.Err()
}

// match reports whether an entry of the directory dir is left out. The last
// pattern that matches decides, and the deepest file is the last.
func (x *excludes) match(rules *ignoreRules, dir, name string, isDir bool) bool {
	if len(x.command) == 0 && !x.gitignore {
		return false
	}
	path := manifest.Join(dir, name)
	if hit, negated := lastMatch(x.command, path, name, isDir); hit {
		return !negated
	}
	if x.gitignore && name == ".git" {
		return true
	}
	for r := rules; r != nil; r = r.above {
		rel := path
		if r.dir != "" {
			rel = path[len(r.dir)+1:]
		}
		if hit, negated := lastMatch(r.patterns, rel, name, isDir); hit {
			return !negated
		}
	}
	return false
}

func lastMatch(patterns []pattern, path, name string, isDir bool) (hit, negated bool) {
	for i := len(patterns) - 1; i >= 0; i-- {
		if patterns[i].match(path, name, isDir) {
			return true, patterns[i].negate
		}
	}
	return false, false
}
