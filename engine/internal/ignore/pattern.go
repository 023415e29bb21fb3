package ignore

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/snapctl/snapctl/engine/snapshot"
)

// Patterns are those of gitignore(5), for --exclude, --include and .gitignore
// files alike: one syntax to know. The matching is glob's; here are only gitignore's
// own rules around it.

// A Pattern is one line of a .gitignore file.
type Pattern struct {
	Glob    Glob
	Negate  bool // '!': takes back an earlier match
	DirOnly bool // a slash at the end
	Whole   bool // a slash elsewhere: matched against the path, not the name
}

// ParsePattern parses one pattern; false for a comment, an empty line, and what is
// malformed. The error is for people who type it: it may be a pattern that hardly means anything.
func ParsePattern(line string) (p Pattern, ok bool, err error) {
	s := trimSpaces(strings.TrimSuffix(line, "\r"))
	if s == "" || s[0] == '#' {
		return p, false, nil
	}
	if s[0] == '!' {
		p.Negate, s = true, s[1:]
	}
	if strings.HasSuffix(s, "/") {
		p.DirOnly, s = true, strings.TrimSuffix(s, "/")
	}
	if strings.Contains(s, "//") || strings.HasSuffix(s, "/") && s != "/" {
		err = fmt.Errorf("%w: pattern %q has two slashes in a row", snapshot.ErrInvalid, line)
	}
	if i := strings.IndexByte(s, '/'); i >= 0 {
		p.Whole = true
		s = strings.TrimPrefix(s, "/")
	}
	if s == "" {
		return p, false, err
	}
	if p.Glob, ok = NewGlob(s); !ok {
		return p, false, fmt.Errorf("%w: pattern %q is malformed", snapshot.ErrInvalid, line)
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

// ParsePatterns parses lines of gitignore(5), and leaves out those that match nothing.
func ParsePatterns(lines []string) ([]Pattern, error) {
	var all []Pattern
	for _, line := range lines {
		p, ok, err := ParsePattern(line)
		if err != nil {
			return nil, err
		}
		if ok {
			all = append(all, p)
		}
	}
	return all, nil
}

// Match matches a path relative to where the pattern was written.
func (p *Pattern) Match(file, name string, isDir bool) bool {
	if p.DirOnly && !isDir {
		return false
	}
	subject := name
	if p.Whole {
		subject = file
	}
	return p.Glob.Match(subject)
}

// parsePatternFile parses a file of patterns as git does: a malformed one matches nothing.
func parsePatternFile(r io.Reader) ([]Pattern, error) {
	data, err := io.ReadAll(io.LimitReader(r, MaxGitignore))
	var all []Pattern
	for line := range strings.SplitSeq(strings.TrimPrefix(string(data), "\ufeff"), "\n") {
		line, _, _ = strings.Cut(line, "\x00")
		if p, ok, _ := ParsePattern(line); ok {
			all = append(all, p)
		}
	}
	return all, err
}

// LastMatch finds the last pattern that matches. Of a stranger's there may be hundreds of
// thousands: it gives up when the context ends, and what it says then means nothing.
func LastMatch(ctx context.Context, patterns []Pattern, path, name string, isDir bool) (hit, negated bool) {
	for i := len(patterns) - 1; i >= 0 && ctx.Err() == nil; i-- {
		if patterns[i].Match(path, name, isDir) {
			return true, patterns[i].Negate
		}
	}
	return false, false
}
