package engine

import (
	"context"

	"github.com/snapctl/snapctl/manifest"
)

// selection is the part of a snapshot that Include chooses.
type selection struct {
	patterns []pattern
	// dirs are the directories to make: true where all that is below is chosen,
	// false where a directory is only on the way to something.
	dirs map[string]bool
}

// choosePaths finds the directories that a selection needs, in one pass.
func choosePaths(ctx context.Context, t *manifest.Tree, patterns []pattern) (*selection, error) {
	s := &selection{patterns: patterns, dirs: map[string]bool{"": false}}
	c, err := t.Seek(ctx, manifest.Key{})
	if err != nil {
		return nil, err
	}
	var e manifest.Entry
	for {
		more, err := c.Next(ctx, &e)
		if err != nil || !more {
			return s, err
		}
		if e.Name == "" || !s.matches(&e) {
			continue
		}
		if e.Type == manifest.Dir {
			s.dirs[e.Path()] = true
		}
		for dir := e.Dir; ; dir = manifest.KeyOf(dir).Dir {
			if _, ok := s.dirs[dir]; ok {
				break
			}
			s.dirs[dir] = false
		}
	}
}

// matches reports whether an entry is chosen by itself or by a directory above.
func (s *selection) matches(e *manifest.Entry) bool {
	hit, negated := lastMatch(context.Background(), s.patterns, e.Path(), e.Name, e.Type == manifest.Dir)
	if hit {
		return !negated // '!' takes back what a directory gave
	}
	return s.dirs[e.Dir]
}

// has reports whether the entry is to be made. nil chooses everything.
func (s *selection) has(e *manifest.Entry) bool {
	if s == nil || e.Name == "" {
		return true
	}
	if e.Type == manifest.Dir {
		_, ok := s.dirs[e.Path()]
		return ok
	}
	return s.matches(e)
}
