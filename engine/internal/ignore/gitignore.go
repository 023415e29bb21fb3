package ignore

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/snapctl/snapctl/engine/internal/fsys"
	"github.com/snapctl/snapctl/manifest"
	"golang.org/x/sys/unix"
)

// What CreateOptions.Gitignore leaves out is what
//
//	git ls-files --others --ignored --exclude-standard
//
// names in the work tree that a file is in: untracked files that a pattern matches. A
// directory in which nothing is tracked goes as a whole. Of a repository in another one
// its own rules hold, once it is not left out by the other's. What is below .git is git's
// own, and follows no rules. Outside of any work tree it is as if the root of the snapshot
// had just become one.

// ruleSet are the patterns that hold in a directory: those written in it, then those
// of the directories above, then those of the whole work tree.
type ruleSet struct {
	above    *ruleSet
	dir      string // where they were written, in the work tree
	patterns []Pattern
}

// State is what is known of a directory of the walk.
type State struct {
	tree    *workTree // nil below .git, where nothing is left out
	rules   *ruleSet
	ignored bool // it is ignored itself, and so is all in it that is not tracked
}

// workTree is a work tree that is in the snapshot, or that the snapshot is in.
type workTree struct {
	repo   *gitRepo // nil for none
	top    string   // where it is in the snapshot
	prefix string   // where the snapshot is in it; one of the two is ""
}

// inside gives the path in the work tree of what is in it.
func (w *workTree) inside(path string) string {
	if w.top != "" {
		path = strings.TrimPrefix(strings.TrimPrefix(path, w.top), "/")
	}
	if path == "" {
		return w.prefix
	}
	return manifest.Join(w.prefix, path)
}

// Rules decides what is left out of a snapshot.
type Rules struct {
	Patterns  []Pattern // they override git's
	Gitignore bool
	Root      string // of the snapshot: absolute, without symbolic links
	Warn      func(error)
}

// Enter gives the rules that hold in a directory, of those above it; nil for the root.
func (x *Rules) Enter(above *State, fd int, dir string, names []string) (*State, error) {
	if !x.Gitignore {
		return nil, nil
	}
	in := above
	switch _, name := filepath.Split(dir); {
	case above == nil:
		in = x.enterRoot()
	case above.tree == nil:
		return above, nil
	case name == ".git":
		return &State{}, nil
	case slices.Contains(names, ".git"):
		if g := openGitRepo(filepath.Join(x.Root, dir)); g != nil {
			in = x.enterRepo(g, dir)
		}
	}
	if in.ignored || !slices.Contains(names, ".gitignore") {
		return in, nil
	}
	patterns, err := readGitignore(fd, ".gitignore")
	if err != nil {
		return in, fmt.Errorf("reading %q: %w", manifest.Join(dir, ".gitignore"), err)
	}
	return in.with(in.tree.inside(dir), patterns), nil
}

// with adds the patterns of a directory.
func (s *State) with(dir string, patterns []Pattern) *State {
	if len(patterns) == 0 {
		return s
	}
	return &State{tree: s.tree, rules: &ruleSet{s.rules, dir, patterns}, ignored: s.ignored}
}

// enterRepo gives the rules that hold in all of a work tree.
func (x *Rules) enterRepo(g *gitRepo, top string) *State {
	s := &State{tree: &workTree{repo: g, top: top}}
	files, err := g.excludeFiles()
	if err != nil {
		x.Warn(fmt.Errorf("%w; what it says of ignored files is not known", err))
	}
	return x.withFiles(s, files)
}

func (x *Rules) withFiles(s *State, files []string) *State {
	for _, file := range files {
		patterns, err := readPatternFile(unix.AT_FDCWD, file, 0)
		if err != nil {
			x.Warn(fmt.Errorf("reading %s: %w: nothing is left out because of it", file, err))
		}
		s = s.with("", patterns)
	}
	return s
}

// enterRoot gives the rules for the root of the snapshot.
func (x *Rules) enterRoot() *State {
	if g := openGitRepo(x.Root); g != nil {
		return x.enterRepo(g, "")
	}
	g := gitRepoAbove(x.Root)
	if g == nil {
		var c gitConfig
		c.readUsers()
		return x.withFiles(&State{tree: &workTree{}}, c.excludesFiles(x.Root))
	}
	s := x.enterRepo(g, "")
	prefix, err := filepath.Rel(g.top, x.Root)
	if err != nil {
		x.Warn(err)
		return &State{tree: &workTree{}}
	}
	s.tree.prefix = prefix
	at := ""
	for name := range strings.SplitSeq(prefix, "/") {
		patterns, err := readPatternFile(unix.AT_FDCWD, filepath.Join(g.top, at, ".gitignore"), unix.O_NOFOLLOW)
		if err != nil {
			x.Warn(fmt.Errorf("reading %s: %w: nothing is left out because of it", filepath.Join(g.top, at, ".gitignore"), err))
		}
		s = s.with(at, patterns)
		at = manifest.Join(at, name)
		if s.matches(context.Background(), at, name, true) {
			s.ignored = true
			x.Warn(fmt.Errorf("git ignores %s itself: of it only what is tracked is in the snapshot", x.Root))
			break
		}
	}
	return s
}

// Match reports whether an entry of a directory is left out, and tells what is known of
// it as a directory. The last pattern that matches decides, and the deepest file is the
// last. What it says when the context has ended means nothing.
func (x *Rules) Match(ctx context.Context, in *State, dir, name string, isDir bool) (out bool, below *State) {
	path := manifest.Join(dir, name)
	if hit, negated := LastMatch(ctx, x.Patterns, path, name, isDir); hit {
		if in != nil && in.ignored {
			in = &State{tree: in.tree, rules: in.rules} // what is asked for is whole
		}
		return !negated, in
	}
	if in == nil || in.tree == nil || name == ".git" {
		return false, in
	}
	path = in.tree.inside(path)
	if !in.ignored && !in.matches(ctx, path, name, isDir) {
		return false, in
	}
	if !x.tracks(ctx, in.tree, path, isDir) {
		return true, in
	}
	return false, &State{tree: in.tree, rules: in.rules, ignored: true}
}

// matches reports whether the patterns say that an entry of the work tree is ignored.
func (s *State) matches(ctx context.Context, path, name string, isDir bool) bool {
	for r := s.rules; r != nil; r = r.above {
		rel := path
		if r.dir != "" {
			rel = path[len(r.dir)+1:]
		}
		if hit, negated := LastMatch(ctx, r.patterns, rel, name, isDir); hit {
			return !negated
		}
	}
	return false
}

// tracks reports whether git tracks a file, or something in a directory. If that cannot
// be known nothing is left out.
func (x *Rules) tracks(ctx context.Context, w *workTree, path string, isDir bool) bool {
	if w.repo == nil {
		return false
	}
	t, err := w.repo.tracked(ctx)
	if err != nil {
		w.repo.told.Do(func() { x.Warn(fmt.Errorf("%w: nothing that git ignores is left out of %s", err, w.repo.top)) })
		return true
	}
	return t.has(path, isDir)
}

// MaxGitignore bounds a .gitignore file in bytes.
const MaxGitignore = 1 << 20

// readGitignore reads a .gitignore file of a work tree, where git follows no links.
func readGitignore(dir int, name string) ([]Pattern, error) {
	return readPatternFile(dir, name, unix.O_NOFOLLOW)
}

// readPatternFile reads a file of patterns; what is no regular file, or not there, has none.
func readPatternFile(dir int, name string, flags int) ([]Pattern, error) {
	fd, err := fsys.OpenAt(dir, name, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY|flags)
	if fsys.IsAny(err, unix.ELOOP, unix.ENOENT, unix.ENOTDIR) {
		return nil, nil
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
	if st.Size() > MaxGitignore {
		return nil, fmt.Errorf("it has %d bytes, the most is %d", st.Size(), MaxGitignore)
	}
	return parsePatternFile(f)
}
