package ignore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"

	"github.com/go-git/gcfg/v2"
	"github.com/go-git/go-git/v5/plumbing/filemode"
	gitindex "github.com/go-git/go-git/v5/plumbing/format/index"
	"golang.org/x/sys/unix"
)

// gitRepo is a git repository with a work tree, as far as it says what git ignores. It is
// read and never written, and git itself is not needed.
type gitRepo struct {
	top    string // the work tree's root, absolute
	gitDir string // with the index; of a further work tree or a submodule not top/.git
	common string // with the config and info/exclude

	read  sync.Once // the index
	files *trackedFiles
	err   error
	told  sync.Once // that it cannot be read
}

// openGitRepo opens the repository that .git in a directory is, or leads to; nil for none.
func openGitRepo(top string) *gitRepo {
	dotGit := filepath.Join(top, ".git")
	info, err := os.Stat(dotGit)
	if err != nil {
		return nil
	}
	g := &gitRepo{top: top, gitDir: dotGit}
	if !info.IsDir() {
		text, err := readSmall(dotGit)
		to, ok := strings.CutPrefix(string(text), "gitdir: ")
		if err != nil || !ok {
			return nil
		}
		g.gitDir = absoluteFrom(top, strings.TrimRight(to, "\r\n"))
	}
	g.common = g.gitDir
	if to, err := readSmall(filepath.Join(g.gitDir, "commondir")); err == nil {
		g.common = absoluteFrom(g.gitDir, strings.TrimRight(string(to), "\r\n"))
	}
	if _, err := os.Lstat(filepath.Join(g.gitDir, "HEAD")); err != nil || !isDir(filepath.Join(g.common, "objects")) || !isDir(filepath.Join(g.common, "refs")) {
		return nil
	}
	return g
}

func isDir(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}

func absoluteFrom(dir, path string) string {
	if filepath.IsAbs(path) {
		return filepath.Clean(path)
	}
	return filepath.Join(dir, path)
}

// gitRepoAbove finds the work tree that a directory, absolute and without symbolic links,
// lies in. As git does, it looks on no other file system, and not at what belongs to
// somebody else, who could otherwise say what is left out of the snapshot.
func gitRepoAbove(dir string) *gitRepo {
	var start unix.Stat_t
	if unix.Stat(dir, &start) != nil {
		return nil
	}
	for at := dir; at != filepath.Dir(at); {
		at = filepath.Dir(at)
		var st unix.Stat_t
		if unix.Stat(at, &st) != nil || st.Dev != start.Dev {
			return nil
		}
		if g := openGitRepo(at); g != nil {
			var dot unix.Stat_t
			mine := func(s *unix.Stat_t) bool { return s.Uid == start.Uid || int(s.Uid) == os.Geteuid() }
			if unix.Stat(g.gitDir, &dot) != nil || !mine(&st) || !mine(&dot) {
				return nil
			}
			return g
		}
	}
	return nil
}

// trackedFiles are the paths in the index of a repository, sorted.
type trackedFiles struct {
	paths   []string
	modules map[string]bool // submodules
}

// has reports whether a file is tracked, or anything below a directory.
func (t *trackedFiles) has(path string, dir bool) bool {
	if !dir {
		_, ok := slices.BinarySearch(t.paths, path)
		return ok
	}
	if t.modules[path] {
		return true
	}
	i, _ := slices.BinarySearch(t.paths, path+"/")
	return i < len(t.paths) && strings.HasPrefix(t.paths[i], path+"/")
}

// tracked gives what the repository tracks. It reads the index once.
func (g *gitRepo) tracked(ctx context.Context) (*trackedFiles, error) {
	g.read.Do(func() { g.files, g.err = g.readIndex(ctx) })
	return g.files, g.err
}

// maxGitIndex bounds an index in bytes, which has 100 or so for each file.
const maxGitIndex = 256 << 20

func (g *gitRepo) readIndex(ctx context.Context) (*trackedFiles, error) {
	t := &trackedFiles{modules: map[string]bool{}}
	name := filepath.Join(g.gitDir, "index")
	split, err := t.add(ctx, name)
	if err == nil && split {
		// What it does not hold itself is in another file. All that may be there is taken:
		// a file too many is only one that stays in the snapshot.
		var shared []string
		shared, err = filepath.Glob(filepath.Join(escapeGlob(g.gitDir), "sharedindex.*"))
		for _, s := range shared {
			if _, serr := t.add(ctx, s); err == nil {
				err = serr
			}
		}
	}
	if err != nil {
		return nil, fmt.Errorf("git's index %s: %w", name, err)
	}
	slices.Sort(t.paths)
	return t, nil
}

var globEscapes = strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`)

func escapeGlob(path string) string { return globEscapes.Replace(path) }

// add adds the entries of an index. It reports whether there may be others elsewhere.
func (t *trackedFiles) add(ctx context.Context, name string) (split bool, err error) {
	data, err := readRegular(name, maxGitIndex)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	var idx gitindex.Index
	err = strangers(func() error {
		return gitindex.NewDecoder(&endingReader{ctx, bytes.NewReader(data)}).Decode(&idx)
	})
	// With index.skipHash there is no checksum.
	if errors.Is(err, gitindex.ErrInvalidChecksum) && bytes.HasSuffix(data, make([]byte, 20)) {
		err = nil
	}
	// Extensions that must be known are those of an index that is split, and of one with
	// directories as entries.
	if errors.Is(err, gitindex.ErrUnknownExtension) {
		split, err = true, nil
	}
	for _, e := range idx.Entries {
		t.paths = append(t.paths, e.Name)
		if e.Mode == filemode.Submodule {
			t.modules[e.Name] = true
		}
	}
	return split, err
}

// strangers calls a library that decodes what may be anybody's: a panic is an error.
func strangers(decode func() error) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("it cannot be read: %v", r)
		}
	}()
	return decode()
}

// endingReader is a reader that ends with a context.
type endingReader struct {
	ctx context.Context
	r   io.Reader
}

func (r *endingReader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.r.Read(p)
}

// excludeFiles are the files with patterns that hold everywhere in the work tree, the
// least first, and what is wrong with the configuration that says so.
func (g *gitRepo) excludeFiles() ([]string, error) {
	var c gitConfig
	c.readUsers()
	c.read(filepath.Join(g.common, "config"))
	if c.worktree {
		c.read(filepath.Join(g.gitDir, "config.worktree"))
	}
	files := c.excludesFiles(g.top)
	return append(files, filepath.Join(g.common, "info", "exclude")), errors.Join(c.problems...)
}

// gitConfig is what matters here of git's configuration.
type gitConfig struct {
	excludes *string // core.excludesFile
	worktree bool    // extensions.worktreeConfig
	includes int
	problems []error
}

// readUsers reads the configuration of the machine and the user.
func (c *gitConfig) readUsers() {
	system, global := os.Getenv("GIT_CONFIG_SYSTEM"), os.Getenv("GIT_CONFIG_GLOBAL")
	if system == "" {
		system = "/etc/gitconfig"
	}
	if os.Getenv("GIT_CONFIG_NOSYSTEM") == "" {
		c.read(system)
	}
	if global != "" {
		c.read(global)
		return
	}
	c.read(gitUserFile("config"))
	if home, err := os.UserHomeDir(); err == nil {
		c.read(filepath.Join(home, ".gitconfig"))
	}
}

// gitUserFile is a file in the user's configuration of git.
func gitUserFile(name string) string {
	base := os.Getenv("XDG_CONFIG_HOME")
	if base == "" {
		home, err := os.UserHomeDir()
		if err != nil {
			return ""
		}
		base = filepath.Join(home, ".config")
	}
	return filepath.Join(base, "git", name)
}

// Bounds of a file of configuration in bytes, and of files that are included in all: they
// may include one another.
const (
	maxGitConfig = 1 << 20
	maxIncludes  = 50
)

// read reads a file, if there is one, and those that it includes.
func (c *gitConfig) read(name string) {
	data, err := readRegular(name, maxGitConfig)
	if err == nil {
		err = strangers(func() error { return gcfg.ReadWithCallback(bytes.NewReader(data), c.option(name)) })
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) && name != "" {
		c.problems = append(c.problems, fmt.Errorf("git's configuration %s: %w", name, err))
	}
}

// option takes an option of a file.
func (c *gitConfig) option(name string) func(section, sub, key, value string, blank bool) error {
	return func(section, sub, key, value string, _ bool) error {
		if sub != "" {
			return nil // core.x.excludesFile is another option
		}
		switch strings.ToLower(section + "." + key) {
		case "core.excludesfile":
			c.excludes = &value
		case "extensions.worktreeconfig":
			c.worktree = strings.EqualFold(value, "true")
		case "include.path":
			if c.includes++; c.includes <= maxIncludes {
				c.read(absoluteFrom(filepath.Dir(name), expandHome(value)))
			}
		}
		return nil
	}
}

// excludesFiles gives the file that core.excludesFile names, or that git takes without.
func (c *gitConfig) excludesFiles(top string) []string {
	switch {
	case len(c.problems) > 0:
		return nil // git refuses such a configuration, and so it is not known what it ignores
	case c.excludes == nil:
		return []string{gitUserFile("ignore")}
	case *c.excludes == "":
		return nil
	}
	return []string{absoluteFrom(top, expandHome(*c.excludes))}
}

// expandHome replaces ~/ and ~user/ at the beginning of a path.
func expandHome(path string) string {
	name, rest, ok := strings.Cut(path, "/")
	if !ok || !strings.HasPrefix(name, "~") {
		return path
	}
	home, err := os.UserHomeDir()
	if name != "~" {
		u, uerr := user.Lookup(name[1:])
		if err = uerr; err == nil {
			home = u.HomeDir
		}
	}
	if err != nil {
		return path
	}
	return filepath.Join(home, rest)
}

// readSmall reads one of git's files of a line.
func readSmall(name string) ([]byte, error) { return readRegular(name, 64<<10) }

// readRegular reads a file that a stranger may have named. What is no regular file, such as
// /dev/null, does not exist; more bytes than limit are an error.
func readRegular(name string, limit int64) ([]byte, error) {
	f, err := os.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if errors.Is(err, syscall.ENOTDIR) {
		err = fs.ErrNotExist
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	switch {
	case err != nil:
		return nil, err
	case !info.Mode().IsRegular():
		return nil, fmt.Errorf("%w: it is not a regular file", fs.ErrNotExist)
	case info.Size() > limit:
		return nil, fmt.Errorf("it has %d bytes, the most is %d", info.Size(), limit)
	}
	return io.ReadAll(io.LimitReader(f, limit))
}
