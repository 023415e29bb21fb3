package ignore

import (
	"context"

	"github.com/snapctl/snapctl/manifest"
)

// Selection is the part of a snapshot that Include chooses.
type Selection struct {
	patterns []Pattern
	// Dirs are the directories to make: true where all that is below is chosen,
	// false where a directory is only on the way to something.
	Dirs map[string]bool
}

// Choose finds the directories that a selection needs, in one pass.
func Choose(ctx context.Context, t *manifest.Tree, patterns []Pattern) (*Selection, error) {
	s := &Selection{patterns: patterns, Dirs: map[string]bool{"": false}}
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
			s.Dirs[e.Path()] = true
		}
		for dir := e.Dir; ; dir = manifest.KeyOf(dir).Dir {
			if _, ok := s.Dirs[dir]; ok {
				break
			}
			s.Dirs[dir] = false
		}
	}
}

// matches reports whether an entry is chosen by itself or by a directory above.
func (s *Selection) matches(e *manifest.Entry) bool {
	hit, negated := LastMatch(context.Background(), s.patterns, e.Path(), e.Name, e.Type == manifest.Dir)
	if hit {
		return !negated // '!' takes back what a directory gave
	}
	return s.Dirs[e.Dir]
}

// Has reports whether the entry is to be made. nil chooses everything.
func (s *Selection) Has(e *manifest.Entry) bool {
	if s == nil || e.Name == "" {
		return true
	}
	if e.Type == manifest.Dir {
		_, ok := s.Dirs[e.Path()]
		return ok
	}
	return s.matches(e)
}
