package engine

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/snapctl/snapctl/manifest"
	"golang.org/x/sys/unix"
)

// Patterns are those of gitignore(5), for --exclude, --include and .gitignore
// files alike: one syntax to know. The matching is glob's; here are only gitignore's
// own rules around it.

// A pattern is one line of a .gitignore file.
type pattern struct {
	glob    glob
	negate  bool // '!': takes back an earlier match
	dirOnly bool // a slash at the end
	whole   bool // a slash elsewhere: matched against the path, not the name
}

// parsePattern parses one pattern; false for a comment, an empty line, and what is
// malformed. It is an error also where a pattern can hardly mean anything.
func parsePattern(line string) (p pattern, ok bool, err error) {
	s := trimSpaces(strings.TrimSuffix(line, "\r"))
	if s == "" || s[0] == '#' {
		return p, false, nil
	}
	if s[0] == '!' {
		p.negate, s = true, s[1:]
	}
	if strings.HasSuffix(s, "/") {
		p.dirOnly, s = true, strings.TrimSuffix(s, "/")
	}
	if strings.Contains(s, "//") || strings.HasSuffix(s, "/") && s != "/" {
		err = fmt.Errorf("%w: pattern %q has two slashes in a row", ErrInvalid, line)
	}
	if i := strings.IndexByte(s, '/'); i >= 0 {
		p.whole = true
		s = strings.TrimPrefix(s, "/")
	}
	if s == "" {
		return p, false, err
	}
	if p.glob, ok = newGlob(s); !ok {
		return p, false, fmt.Errorf("%w: pattern %q is malformed", ErrInvalid, line)
	}
	return p, true, err
}

// trimSpaces removes spaces at the end that have no backslash before them.
func trimSpaces(s string) string {
	end := 0
	for i := 0; i < len(s); i++ {
		switch s[i] {
		case ' ':
			continue
		case '\\':
			i++
		}
		end = min(i+1, len(s))
	}
	return s[:end]
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
	return p.glob.match(subject)
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
		if p, ok, _ := parsePattern(lines.Text()); ok {
			all = append(all, p)
		}
	}
	return all, lines.Err()
}

// match reports whether an entry of the directory dir is left out. The last
// pattern that matches decides, and the deepest file is the last. What it says when
// the context has ended means nothing.
func (x *excludes) match(ctx context.Context, rules *ignoreRules, dir, name string, isDir bool) bool {
	if len(x.command) == 0 && !x.gitignore {
		return false
	}
	path := manifest.Join(dir, name)
	if hit, negated := lastMatch(ctx, x.command, path, name, isDir); hit {
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
		if hit, negated := lastMatch(ctx, r.patterns, rel, name, isDir); hit {
			return !negated
		}
	}
	return false
}

// lastMatch finds the last pattern that matches. Of a stranger's there may be hundreds of
// thousands: it gives up when the context ends, and what it says then means nothing.
func lastMatch(ctx context.Context, patterns []pattern, path, name string, isDir bool) (hit, negated bool) {
	for i := len(patterns) - 1; i >= 0 && ctx.Err() == nil; i-- {
		if patterns[i].match(path, name, isDir) {
			return true, patterns[i].negate
		}
	}
	return false, false
}
