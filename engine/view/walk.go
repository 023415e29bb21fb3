package view

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/snapctl/snapctl/engine/internal/ignore"
	"github.com/snapctl/snapctl/engine/internal/repo"
	"github.com/snapctl/snapctl/engine/snapshot"
	"github.com/snapctl/snapctl/manifest"
)

// Walk calls yield for everything below a directory, which is named as for
// OpenPath: the entries of the directory sorted by name, then those of each
// directory in it in turn. Symbolic links are not followed but in name itself.
// It stops at yield's first error, and returns it.
func (s *FS) Walk(name string, yield func(*FileInfo) error) error {
	p, err := CleanPath(name)
	if err != nil {
		return pathError("walk", name, err)
	}
	dir, err := s.find(p, true)
	if err == nil && !dir.IsDir() {
		err = errNotDir
	}
	if err != nil {
		return pathError("walk", name, err)
	}
	return s.scan(dir.path, nil, yield)
}

// Find calls yield for what matches any of the patterns, in the order of Walk,
// and stops at yield's first error. Patterns are those of gitignore(5), as for
// RestoreOptions.Include, but that one matches only what it names, and not what
// is below: without a slash it is matched against the last element of a path,
// with one against all of it, "**" crosses directories, a slash at the end
// means directories only, and a '!' at the beginning takes back what an earlier
// pattern matched. What cannot match is not read.
func (s *FS) Find(patterns []string, yield func(*FileInfo) error) error {
	f, err := newFinder(patterns)
	if err != nil {
		return err
	}
	return s.search(f, yield)
}

func (s *FS) search(f *finder, yield func(*FileInfo) error) error {
	for _, root := range f.roots {
		if err := s.scan(root, f, yield); err != nil {
			return err
		}
	}
	return nil
}

// FindAll is engine.Repository.FindAll.
func FindAll(ctx context.Context, r *repo.Repo, patterns []string, yield func(*snapshot.Snapshot, *FileInfo) error) error {
	f, err := newFinder(patterns)
	if err != nil {
		return err
	}
	all, listed := r.List(ctx, nil)
	if listed != nil && !errors.Is(listed, snapshot.ErrIntegrity) {
		return listed
	}
	c := newSource(ctx, r)
	problems := []error{listed}
	for _, snap := range all {
		err := c.searchIn(ctx, snap, f, yield)
		switch {
		case errors.Is(err, snapshot.ErrIntegrity):
			problems = append(problems, fmt.Errorf("snapshot %v: %w", snap.ID, err))
		case err != nil && !errors.Is(err, snapshot.ErrNotFound): // removed since it was listed
			return err
		}
	}
	return errors.Join(problems...)
}

func (c *source) searchIn(ctx context.Context, snap *snapshot.Snapshot, f *finder, yield func(*snapshot.Snapshot, *FileInfo) error) error {
	m, err := c.chunks.Repo.Manifest(ctx, snap.ID)
	if err != nil {
		return err
	}
	s, err := c.fs(ctx, m)
	if err != nil {
		return err
	}
	return s.search(f, func(i *FileInfo) error { return yield(snap, i) })
}

// scan calls yield for what is below a directory and matches; nil matches
// everything.
func (s *FS) scan(dir string, f *finder, yield func(*FileInfo) error) error {
	if dir == "" {
		s.source.whole.Store(true)
	}
	c, err := s.tree.Seek(s.ctx, manifest.Key{Dir: dir})
	if err != nil {
		return pathError("walk", dir, err)
	}
	var e manifest.Entry
	known := false // that there may be something in the directory at
	at := ""
	for {
		rank := c.Rank()
		more, err := c.Next(s.ctx, &e)
		if err != nil {
			return pathError("walk", dir, err)
		}
		if !more || !manifest.Within(e.Dir, dir) {
			return nil
		}
		if f != nil && (!known || e.Dir != at) {
			known, at = true, e.Dir
			here, below := f.reach(at)
			if !here {
				// Directories are in the order of paths, and no name holds a NUL:
				// what follows a directory's own entries is below dir/, and what
				// follows all that is below it begins behind dir\x00.
				next := at + "\x00"
				if below && at != "" {
					next = at + "/"
				}
				if at == "" && !below {
					return nil
				}
				if c, err = s.tree.Seek(s.ctx, manifest.Key{Dir: next}); err != nil {
					return pathError("walk", dir, err)
				}
				continue
			}
		}
		if e.Name == "" || f != nil && !f.matches(&e) {
			continue
		}
		info, err := s.Info(rank, &e)
		if err != nil {
			return pathError("walk", e.Path(), err)
		}
		if err := yield(info); err != nil {
			return err
		}
	}
}

// finder is the patterns of a search.
type finder struct {
	patterns []ignore.Pattern
	paths    []pathGlob // of those that have slashes
	anywhere bool       // some have none
	roots    []string   // directories below which all lies that can match
}

// pathGlob is a pattern with slashes, element by element.
type pathGlob struct {
	parts []string
	globs []*ignore.Glob // nil for "**"
}

func newFinder(lines []string) (*finder, error) {
	f := &finder{}
	var roots []string
	for _, line := range lines {
		p, ok, err := ignore.ParsePattern(line)
		if err != nil {
			return nil, err
		}
		if !ok {
			return nil, fmt.Errorf("%w: pattern %q matches nothing", snapshot.ErrInvalid, line)
		}
		f.patterns = append(f.patterns, p)
		switch {
		case p.Negate:
		case !p.Whole:
			f.anywhere = true
			roots = append(roots, "")
		default:
			g := pathGlobOf(p.Glob.Text)
			f.paths = append(f.paths, g)
			roots = append(roots, g.root())
		}
	}
	slices.SortFunc(roots, manifest.ComparePaths)
	for _, r := range roots {
		if n := len(f.roots); n == 0 || !manifest.Within(r, f.roots[n-1]) {
			f.roots = append(f.roots, r)
		}
	}
	return f, nil
}

func pathGlobOf(text string) pathGlob {
	var g pathGlob
	for part := range strings.SplitSeq(text, "/") {
		// An element that is no pattern by itself, as a class with a slash in it would
		// be, is taken for one that may be anything.
		element, ok := ignore.NewGlob(part)
		if !ok || len(part) > 1 && strings.Trim(part, "*") == "" {
			g.parts, g.globs = append(g.parts, "**"), append(g.globs, nil)
			continue
		}
		g.parts, g.globs = append(g.parts, part), append(g.globs, &element)
	}
	return g
}

// root is the longest path that everything which matches is below.
func (g *pathGlob) root() string {
	n := 0
	for n < len(g.parts)-1 && !strings.ContainsAny(g.parts[n], ignore.GlobSpecial) {
		n++
	}
	return strings.Join(g.parts[:n], "/")
}

// reach tells whether an entry of the directory, and of some directory below
// it, can match.
func (f *finder) reach(dir string) (here, below bool) {
	if f.anywhere {
		return true, true
	}
	for i := range f.paths {
		h, b := f.paths[i].reach(dir)
		here, below = here || h, below || b
	}
	return here, below
}

func (g *pathGlob) reach(dir string) (here, below bool) {
	n := 0
	if dir != "" {
		for part := range strings.SplitSeq(dir, "/") {
			switch {
			case n == len(g.parts)-1 && g.globs[n] != nil:
				return false, false // the pattern ends above
			case g.globs[n] == nil:
				return true, true
			case !g.globs[n].Match(part):
				return false, false
			}
			n++
		}
	}
	if g.globs[n] == nil {
		return true, true
	}
	last := n == len(g.parts)-1
	// "a/**/b" is also a/b.
	return last || g.globs[n+1] == nil, !last
}

// matches reports whether an entry is one that is looked for.
func (f *finder) matches(e *manifest.Entry) bool {
	hit, negated := ignore.LastMatch(context.Background(), f.patterns, e.Path(), e.Name, e.Type == manifest.Dir)
	return hit && !negated
}
