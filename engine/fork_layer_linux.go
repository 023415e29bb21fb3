package engine

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/snapctl/snapctl/engine/internal/fsys"
	"github.com/snapctl/snapctl/engine/internal/local"
	"github.com/snapctl/snapctl/engine/snapshot"
	"github.com/snapctl/snapctl/manifest"
	"github.com/snapctl/snapctl/remote/disk"
	"golang.org/x/sys/unix"
)

// A layerRecord says whose the upper directory beside it is, where it is not in the
// fork's entry: in layer.json. What the kernel wrote there over one snapshot means
// something else over any other.
type layerRecord struct {
	Version    int              `json:"version"`
	Repository recordRepository `json:"repository"`
	Snapshot   manifest.ID      `json:"snapshot"`
	Mode       ForkMode         `json:"mode"`
	Works      workDirs         `json:"works,omitempty"` // as in forkRecord
	Fork       string           `json:"fork,omitempty"`  // ID of the fork that has it
	State      rawPath          `json:"state,omitempty"` // and the state folder of that
	Key        string           `json:"key,omitempty"`   // and its entry there
}

// layerTemp is what layer.json is written as first, by the fork of that ID.
func layerTemp(dir, id string) string { return filepath.Join(dir, layerFileName+"."+id) }

func (l *layerRecord) write(dir, id string) error {
	b, err := json.MarshalIndent(l, "", "  ")
	if err != nil {
		return err
	}
	temp := layerTemp(dir, id)
	f, err := os.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(append(b, '\n'))
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(temp, filepath.Join(dir, layerFileName))
	}
	if err != nil {
		os.Remove(temp)
	}
	if err == nil {
		err = disk.SyncDir(dir)
	}
	return err
}

func readLayer(dir string) (*layerRecord, error) {
	b, err := readRecord(filepath.Join(dir, layerFileName))
	if err != nil {
		return nil, err
	}
	l := &layerRecord{}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(l); err != nil {
		return nil, err
	}
	switch {
	case l.Version > forkVersion:
		return nil, errNewer
	case l.Version < 1 || l.Snapshot.IsZero() || !l.Works.valid():
		return nil, errors.New("incomplete")
	}
	return l, nil
}

// workDirs are the names of work folders that we made, in the order in which they were
// made. No other folder is taken for one, whatever its name: beside upper there may be
// somebody's own. A new one is made for each mount of a fork: the last may still be in
// use, by an overlay that is detached. Its name is written down before it is made.
type workDirs []string

var workDirNames = regexp.MustCompile(`^` + workName + `-[0-9a-z]{16}$`)

func (w workDirs) valid() bool {
	return !slices.ContainsFunc(w, func(name string) bool { return !workDirNames.MatchString(name) })
}

// next gives those that are still in dir, and one to be made.
func (w workDirs) next(dir string) workDirs {
	left := slices.DeleteFunc(slices.Clone(w), func(name string) bool {
		_, err := os.Lstat(filepath.Join(dir, name))
		return errors.Is(err, fs.ErrNotExist)
	})
	return append(left, workName+"-"+strings.ToLower(rand.Text()[:16]))
}

// inUse reports whether a fork has the layer, of whatever state folder.
func (l *layerRecord) inUse() bool {
	if l.Fork == "" || l.Key != filepath.Base(l.Key) {
		return false
	}
	b, err := readRecord(filepath.Join(string(l.State), local.Forks, l.Key, forkFileName))
	if err != nil {
		return !errors.Is(err, fs.ErrNotExist)
	}
	rec, err := decodeForkRecord(b)
	return err != nil || rec.ID == l.Fork
}

// A forkLayer is the folder that ForkOptions.Upper names, locked against others
// who would have it.
type forkLayer struct {
	dir  string // "" if none was named
	lock *os.File
	kept *layerRecord // of the fork that it was kept of; nil if it is empty
}

func (l *forkLayer) close() {
	if l.lock != nil {
		l.lock.Close()
		l.lock = nil
	}
}

// works are those of the fork that the folder was kept of.
func (l *forkLayer) works() workDirs {
	if l.kept == nil {
		return nil
	}
	return l.kept.Works
}

// inUse says of an error that it is about the folder, and whose that may be.
func (l *forkLayer) inUse(err error) error {
	if l.kept.State != "" {
		err = fmt.Errorf("%w; layer.json says that it is that of fork %s in the state directory %s", err, strings.Split(l.kept.Key, "@")[0], l.kept.State)
	}
	return fmt.Errorf("upper folder %s: %w", l.dir, err)
}

// openLayer looks at the folder that upper and work are to be in.
func (x *forker) openLayer(rec *forkRecord) (_ *forkLayer, err error) {
	l := &forkLayer{}
	if x.opts.Upper == "" {
		return l, nil
	}
	if l.dir, err = fsys.Resolve(x.opts.Upper); err != nil {
		return nil, err
	}
	if dir := string(rec.Dir); l.dir == dir || strings.HasPrefix(l.dir, dir+"/") || l.dir == "/" {
		return nil, fmt.Errorf("%w: the upper folder would be below the fork", snapshot.ErrInvalid)
	}
	rec.Layer = rawPath(l.dir)
	if _, err := os.Lstat(l.dir); errors.Is(err, fs.ErrNotExist) {
		rec.MadeLayer = true // once that is written down: see makeDirs
		return l, nil
	}
	if err := l.take(); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			l.close()
		}
	}()
	empty, err := fsys.IsEmptyDir(l.dir)
	if empty || err != nil {
		return l, err
	}
	switch l.kept, err = readLayer(l.dir); {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("%w: the upper folder %s holds something, and nothing of a fork's", snapshot.ErrExists, l.dir)
	case err != nil:
		return nil, fmt.Errorf("upper folder %s: %s: %w", l.dir, layerFileName, err)
	case l.kept.Snapshot != rec.Snapshot.ID:
		return nil, fmt.Errorf("%w: the upper folder %s is of a fork of the snapshot %v", snapshot.ErrExists, l.dir, l.kept.Snapshot)
	case l.kept.inUse():
		return nil, fmt.Errorf("%w: the upper folder %s is that of fork %s", snapshot.ErrExists, l.dir, strings.Split(l.kept.Key, "@")[0])
	}
	if info, err := os.Lstat(filepath.Join(l.dir, upperName)); err != nil || !info.IsDir() {
		return nil, fmt.Errorf("%w: there is no folder %s in %s", snapshot.ErrExists, upperName, l.dir)
	}
	rec.TookLayer = true
	// What unfork --keep made goes with the fork that had it last.
	rec.MadeLayer = x.g.keeps(l.dir)
	return l, nil
}

// keeps reports whether a directory is one that unfork --keep has made.
func (g *forkRegistry) keeps(dir string) bool {
	return filepath.Dir(dir) == filepath.Join(g.state, local.Kept)
}

// take locks the folder.
func (l *forkLayer) take() error {
	fd, err := fsys.OpenDir(l.dir)
	if err != nil {
		return fmt.Errorf("upper folder %s: %w", l.dir, err)
	}
	l.close()
	l.lock = os.NewFile(uintptr(fd), l.dir)
	if disk.Lock(fd) != nil {
		l.close()
		return fmt.Errorf("%w: another fork is about to use the upper folder %s", snapshot.ErrExists, l.dir)
	}
	return nil
}

// mark says in the folder that upper is in that it is this fork's, and which work folders
// tell whether it is in use. The caller has the lock of the folder.
func (e *forkEntry) mark() error {
	l := &layerRecord{
		Version: forkVersion, Repository: e.rec.Repository, Snapshot: e.rec.Snapshot.ID, Mode: e.rec.Mode,
		Works: e.rec.Works, Fork: e.rec.ID, State: rawPath(e.g.state), Key: e.key,
	}
	return l.write(e.layer(), e.rec.ID)
}

// removeLayer removes upper, work folders and layer.json from a folder that
// layer.json says is ours.
func removeLayer(dir string, w workDirs) error {
	for _, name := range append([]string{upperName}, w...) {
		if err := fsys.RemoveTree(filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	// Last: as long as it is there what is left can be removed too.
	err := os.Remove(filepath.Join(dir, layerFileName))
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return err
}

// keep leaves what the fork changed to another fork, and ends it.
func (e *forkEntry) keep(ctx context.Context) (kept string, err error) {
	if dir := string(e.rec.Layer); dir != "" {
		ours, err := e.layerOurs()
		if err != nil || !ours {
			return "", errors.Join(err, e.end(ctx))
		}
		if err := e.keepLayer(dir); err != nil {
			return "", err
		}
		return dir, e.end(ctx)
	}
	if err := e.keepLayer(e.folder()); err != nil {
		return "", err
	}
	if err := os.MkdirAll(filepath.Join(e.g.state, local.Kept), 0o700); err != nil {
		return "", err
	}
	// All at once, so that what was changed is never but half kept.
	kept = filepath.Join(e.g.state, local.Kept, e.rec.Name+"-"+e.rec.ID[:6])
	if err := os.Rename(e.folder(), kept); err != nil {
		return "", err
	}
	forgetEntry(kept)
	for _, name := range e.rec.Works {
		fsys.RemoveTree(filepath.Join(kept, name)) // what is left goes with the folder
	}
	return kept, disk.SyncDir(filepath.Dir(kept))
}

// forgetEntry removes what was the entry's, and not its fork's, from a directory that keep
// has made. Whoever is killed before leaves it to the fork that has the directory next.
func forgetEntry(kept string) {
	for _, name := range []string{forkFileName, lockName} {
		os.Remove(filepath.Join(kept, name))
	}
}
