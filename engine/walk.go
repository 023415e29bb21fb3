package engine

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/snapctl/snapctl/engine/internal/fsys"
	"github.com/snapctl/snapctl/engine/internal/ignore"
	"github.com/snapctl/snapctl/manifest"
	"golang.org/x/sys/unix"
)

// A walker lists the directories below a root in the order of a tree: a
// directory's entries by name, then its subdirectories, each in turn. Listing
// and stat are done ahead by several goroutines; visiting is sequential.
type walker struct {
	root    int // file descriptor
	dev     uint64
	exclude *ignore.Rules
	oneFS   bool
	skip    map[fsys.Inode]string // directories and symbolic links that are left out, and what they are
	upper   *upperFormat          // the root is the upper directory of a fork; nil if it is not

	ctx   context.Context // of walk
	mu    sync.Mutex
	cond  *sync.Cond
	stack []*dirNode // to be listed, the next one last
	ahead int        // entries listed but not visited
	stop  bool
}

// maxAhead bounds the entries that are listed but not visited yet, about 150
// bytes each.
const maxAhead = 32 << 10

// dirNode is a directory of the walk.
type dirNode struct {
	path    string
	ignore  *ignore.State // of the directory above; set to its own while listed
	listed  chan struct{}
	taken   bool // under walker.mu: somebody lists it
	mounted bool // another file system, not to be listed
	entries []fsys.Dirent
	subdirs []*dirNode // in the order of entries
	err     error
	failed  []error // entries that could not be looked at
	sockets int
	own     []string // names that walker.skip leaves out

	// Of the upper directory of a fork: what it says of itself, the names that are
	// not to show whatever the snapshot has, those of users' that fuse-overlayfs takes
	// for such marks, and what it shows, once that is known.
	marks  dirMarks
	hidden []string
	posing []string
	fork   *overlayDir
}

// keep gives what was found of a directory, to be used when its visit is over. The
// rest of the node belongs to the goroutines that list.
func (n *dirNode) keep() *dirNode {
	return &dirNode{path: n.path, entries: n.entries, marks: n.marks, hidden: n.hidden, fork: n.fork}
}

// walk calls visit for each directory in order. root is a file descriptor of
// the root directory.
func (w *walker) walk(ctx context.Context, workers int, visit func(*dirNode) error) error {
	w.ctx, w.cond = ctx, sync.NewCond(&w.mu)
	stopOnCancel := context.AfterFunc(ctx, w.halt)
	defer stopOnCancel()
	var wg sync.WaitGroup
	for range workers {
		wg.Go(w.work)
	}
	defer wg.Wait()
	defer w.halt()

	todo := []*dirNode{{listed: make(chan struct{})}}
	for len(todo) > 0 {
		n := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		w.ensureListed(n)
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := visit(n); err != nil {
			return err
		}
		w.mu.Lock()
		w.ahead -= len(n.entries)
		w.cond.Broadcast()
		w.mu.Unlock()
		for _, sub := range slices.Backward(n.subdirs) {
			todo = append(todo, sub)
		}
		n.entries, n.subdirs = nil, nil
	}
	return nil
}

// ensureListed waits for a directory, or lists it here and now when nobody has
// begun: so the bound on what is listed ahead can never block the walk.
func (w *walker) ensureListed(n *dirNode) {
	w.mu.Lock()
	mine := !n.taken
	n.taken = true
	w.mu.Unlock()
	if mine {
		w.list(n)
		return
	}
	<-n.listed
}

func (w *walker) halt() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.stop = true
	w.cond.Broadcast()
}

// work lists directories ahead of the visit.
func (w *walker) work() {
	for {
		w.mu.Lock()
		for !w.stop && (len(w.stack) == 0 || w.ahead > maxAhead) {
			w.cond.Wait()
		}
		if w.stop {
			w.mu.Unlock()
			return
		}
		n := w.stack[len(w.stack)-1]
		w.stack = w.stack[:len(w.stack)-1]
		mine := !n.taken
		n.taken = true
		w.mu.Unlock()
		if mine {
			w.list(n)
		}
	}
}

// list lists one directory, and queues its subdirectories.
func (w *walker) list(n *dirNode) {
	if !n.mounted {
		n.err = w.read(n)
	}
	w.mu.Lock()
	w.ahead += len(n.entries)
	for _, sub := range slices.Backward(n.subdirs) {
		w.stack = append(w.stack, sub)
	}
	w.cond.Broadcast()
	w.mu.Unlock()
	close(n.listed)
}

func (w *walker) read(n *dirNode) error {
	fd, err := fsys.OpenBelow(w.root, n.path, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return fmt.Errorf("opening directory %q: %w", n.path, err)
	}
	defer unix.Close(fd)
	names, err := fsys.ReadNames(fd)
	if err != nil {
		return fmt.Errorf("listing directory %q: %w", n.path, err)
	}
	slices.Sort(names)
	if n.ignore, err = w.exclude.Enter(n.ignore, fd, n.path, names); err != nil {
		n.failed = append(n.failed, fmt.Errorf("%w: nothing is left out because of it", err))
	}
	if w.upper != nil {
		if n.marks, err = w.upper.marks(fd); err != nil {
			return fmt.Errorf("directory %q: %w", n.path, err)
		}
	}
	n.entries = make([]fsys.Dirent, 0, len(names))
	var st unix.Stat_t
	for _, name := range names {
		if err := w.ctx.Err(); err != nil {
			return err
		}
		path := manifest.Join(n.path, name)
		err := fsys.StatAt(fd, name, &st)
		if err != nil {
			n.hidden = append(n.hidden, name)
		}
		switch {
		case errors.Is(err, unix.ENOENT):
			continue // removed since it was listed: it was never there
		case err != nil:
			n.failed = append(n.failed, fmt.Errorf("looking at %q: %w", path, err))
			continue
		}
		d := fsys.DirentOf(name, &st)
		if w.upper != nil && n.hide(*w.upper, &d, names) {
			continue
		}
		if w.upper != nil {
			switch gone, err := w.upper.whiteout(fd, &d); {
			case err != nil:
				n.failed = append(n.failed, fmt.Errorf("looking at %q: %w", path, err))
				fallthrough
			case gone:
				n.hidden = append(n.hidden, name)
				continue
			}
		}
		out, ignore := w.exclude.Match(w.ctx, n.ignore, n.path, name, d.IsDir())
		if out {
			continue
		}
		if d.Kind() == unix.S_IFSOCK {
			n.sockets++
			n.hidden = append(n.hidden, name)
			continue
		}
		if (d.IsDir() || d.Kind() == unix.S_IFLNK) && w.skip[fsys.Inode{Dev: d.Dev, Ino: d.Ino}] != "" {
			n.own = append(n.own, name)
			continue
		}
		if d.IsDir() {
			if len(path) > manifest.MaxPath {
				n.failed = append(n.failed, fmt.Errorf("directory %q: path of %d bytes, the most is %d", path, len(path), manifest.MaxPath))
				n.hidden = append(n.hidden, name)
				continue
			}
			n.subdirs = append(n.subdirs, &dirNode{
				path: path, ignore: ignore, listed: make(chan struct{}),
				mounted: w.oneFS && d.Dev != w.dev,
			})
		}
		n.entries = append(n.entries, d)
	}
	return nil
}

// hide takes note of a name that fuse-overlayfs gives to what is no file, and reports
// whether it is one. What has such a name and is something else is a user's; and what
// names says, all that there is, is not removed.
func (n *dirNode) hide(f upperFormat, d *fsys.Dirent, names []string) bool {
	gone, ok := strings.CutPrefix(d.Name, fuseWhiteout)
	if f != upperFuse || !ok {
		return false
	}
	_, there := slices.BinarySearch(names, gone)
	mark := isFuseMark(d)
	switch {
	case mark && d.Name == fuseOpaque:
		n.marks.opaque = true
	case mark && !there:
		n.hidden = append(n.hidden, gone)
	default:
		n.posing = append(n.posing, d.Name)
	}
	return mark
}
