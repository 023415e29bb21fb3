package engine

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/moby/sys/mountinfo"
	"github.com/snapctl/snapctl/engine/internal/fsys"
	"github.com/snapctl/snapctl/engine/internal/local"
	"github.com/snapctl/snapctl/engine/snapshot"
	"github.com/snapctl/snapctl/fusefs"
	"github.com/snapctl/snapctl/remote/disk"
	"golang.org/x/sys/unix"
)

// A forkRegistry is what forks there are, in the state folder:
//
//	forks/NAME@WORD/fork.json   what it is: forkRecord. WORD is made of its path
//	forks/NAME@WORD/lock        locked (flock) by who changes something about it
//	forks/NAME@WORD/upper       what is different from the snapshot
//	forks/NAME@WORD/work-WORD   the kernel's, while it is mounted
//	forks/NAME@WORD/memory      of an ephemeral one: the tmpfs that these two are in
//	forks/.lock                 locked for the moment in which a fork gets its name
//	forks/.making-NAME@WORD     there until the fork is mounted: see sweep
//	forks/.gone-WORD            an entry that is being removed, with all that is the fork's
//	forks/.new-WORD             an entry that is being made, or removed alone
//	kept/NAME-WORD              upper and layer.json of a fork that was removed and kept
//	lower/ID                    where the snapshot is mounted that forks lie over; of
//	                            other modes than overlay lower/ID.MODE
//	lower/ID.lock               shared by who mounts a fork over it, exclusive to who
//	                            mounts or unmounts it; likewise lower/ID.MODE.lock
//
// upper and work may be elsewhere, in a folder that ForkOptions.Upper names; there
// layer.json says whose they are. What is mounted the kernel says, as it does of
// mounts: the record says what should be.
type forkRegistry struct {
	registry        // of the folder forks
	state    string // the state folder
}

const (
	forkFileName   = "fork.json"
	layerFileName  = layerFile
	forksLock      = ".lock"
	upperName      = layerUpper
	workName       = "work" // begins the names of all such folders; the rest is random: see workDirs
	memoryName     = "memory"
	goneForkPrefix = ".gone-"
	makingPrefix   = ".making-"
	forkVersion    = 2

	// forkSource begins the source of an overlay that is a fork, as in
	// /proc/self/mountinfo. NAME@ID follows, of its record.
	forkSource = "snapctl-fork:"
)

// newForkRegistry gives the registry of forks of a state folder. It makes nothing.
func newForkRegistry(stateDir string) (*forkRegistry, error) {
	if stateDir == "" {
		return nil, fmt.Errorf("%w: forks need a state folder", snapshot.ErrInvalid)
	}
	// As the kernel's table has it, wherever we are later.
	dir, err := fsys.Resolve(stateDir)
	if err != nil {
		return nil, fmt.Errorf("%w: state folder: %w", snapshot.ErrInvalid, err)
	}
	if err := checkState(dir); err != nil {
		return nil, err
	}
	return &forkRegistry{registry{filepath.Join(dir, local.Forks)}, dir}, nil
}

// A forkRecord is what an entry says. It is enough to mount the fork again.
type forkRecord struct {
	Version    int               `json:"version"`
	ID         string            `json:"id"` // a random word
	Name       string            `json:"name"`
	Repository recordRepository  `json:"repository"`
	Snapshot   snapshot.Snapshot `json:"snapshot"`
	Dir        rawPath           `json:"dir"`
	MadeDir    bool              `json:"madeDir,omitempty"` // there was none
	Bare       *bareDir          `json:"bare,omitempty"`    // what it was; nil if it is not guarded
	Layer      rawPath           `json:"layer,omitempty"`   // the folder of upper and work; "" for the entry
	MadeLayer  bool              `json:"madeLayer,omitempty"`
	TookLayer  bool              `json:"tookLayer,omitempty"` // it was kept of another fork
	Took       *layerRecord      `json:"took,omitempty"`      // and what layer.json said before
	Works      workDirs          `json:"works,omitempty"`     // work folders that we made beside upper, the last in use
	Mode       ForkMode          `json:"mode"`
	Ephemeral  bool              `json:"ephemeral,omitempty"`
	Prefetch   string            `json:"prefetch"`
	Created    time.Time         `json:"created"`
	Mounted    *forkPlace        `json:"mounted,omitempty"` // nil since it was unmounted
	Copy       *forkCopy         `json:"copy,omitempty"`    // in mode restore
}

// A forkCopy identifies a directory, so that no other is taken for it.
type forkCopy struct {
	Inode uint64 `json:"inode"`
	Born  int64  `json:"born"` // nanoseconds; 0 where the file system does not say
}

func (c *forkRecord) encode() ([]byte, error) {
	b, err := json.MarshalIndent(c, "", "  ")
	return append(b, '\n'), err
}

var (
	forkNames = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)
	forkWords = regexp.MustCompile(`^[a-z0-9]{8,26}$`)
)

// checkForkName reports a name that a fork cannot have.
func checkForkName(name string) error {
	if !forkNames.MatchString(name) {
		return fmt.Errorf("%w: name %q of a fork: letters, digits, dots, dashes and underscores, 64 at most", snapshot.ErrInvalid, name)
	}
	return nil
}

func decodeForkRecord(b []byte) (*forkRecord, error) {
	var v struct {
		Version int `json:"version"`
	}
	if err := json.Unmarshal(b, &v); err != nil {
		return nil, err
	}
	if v.Version > forkVersion {
		return nil, errNewer
	}
	c := &forkRecord{}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(c); err != nil {
		return nil, err
	}
	dir, layer := string(c.Dir), string(c.Layer)
	switch {
	case v.Version < 1, c.Snapshot.ID.IsZero(), !forkWords.MatchString(c.ID), checkForkName(c.Name) != nil:
		return nil, errors.New("incomplete")
	case !filepath.IsAbs(dir), filepath.Clean(dir) != dir, dir == "/":
		return nil, errors.New("no path")
	case layer != "" && (!filepath.IsAbs(layer) || filepath.Clean(layer) != layer || layer == "/" || c.Ephemeral && c.Mode != ForkFuse):
		return nil, errors.New("no layer")
	case !c.Works.valid(), c.Took != nil && !c.Took.Works.valid():
		return nil, errors.New("no work folder")
	case !slices.Contains(forkModes, c.Mode), (c.Mode == ForkRestore) != (c.Copy != nil):
		return nil, errors.New("no mode")
	}
	if _, err := ParsePrefetch(c.Prefetch); err != nil {
		return nil, err
	}
	return c, nil
}

// forkKey is the name of a fork's entry: of two forks neither name nor directory
// can be the same.
func forkKey(name, dir string) string { return name + forkKeyOf(dir) }

func forkKeyOf(dir string) string {
	sum := sha256.Sum256([]byte(dir))
	return "@" + hex.EncodeToString(sum[:8])
}

// A forkEntry is a fork in the registry.
type forkEntry struct {
	*entry
	g   *forkRegistry
	rec *forkRecord
	at  string // where it was seen to be mounted; "" for nowhere yet
	// over is what was seen to lie over it: no path leads to the fork then.
	over *mountinfo.Info
}

// folder is the entry's path.
func (e *forkEntry) folder() string { return filepath.Join(e.g.dir, e.key) }

// layer is the folder of upper and work.
func (e *forkEntry) layer() string {
	switch {
	case e.rec.Layer != "":
		return string(e.rec.Layer)
	case e.rec.Ephemeral:
		return filepath.Join(e.folder(), memoryName)
	}
	return e.folder()
}

func (e *forkEntry) upper() string { return filepath.Join(e.layer(), upperName) }

// write writes the record. The caller has the lock.
func (e *forkEntry) write() error {
	b, err := e.rec.encode()
	if err != nil {
		return err
	}
	return e.put(forkFileName, b)
}

// make makes an entry and gives it its name: that of the record, or if that is ""
// one after the directory. The entry is locked.
func (g *forkRegistry) make(ctx context.Context, rec *forkRecord) (_ *forkEntry, err error) {
	plain, err := g.newEntry()
	if err != nil {
		return nil, err
	}
	e := &forkEntry{entry: plain, g: g, rec: rec}
	defer func() {
		if err != nil {
			e.discard(context.WithoutCancel(ctx))
			e.close()
		}
	}()
	if e.lock, err = os.OpenFile(e.path(lockName), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600); err != nil {
		return nil, err
	}
	if err := disk.Lock(int(e.lock.Fd())); err != nil {
		return nil, os.NewSyscallError("flock", err)
	}
	// Once the name is known nobody else may take it; so it is known first, and
	// written down before anybody can see the entry.
	naming, err := g.lockNames(ctx)
	if err != nil {
		return nil, err
	}
	defer naming.Close()
	names, err := os.ReadDir(g.dir)
	if err != nil {
		return nil, err
	}
	if err := rec.choose(names); err != nil {
		return nil, err
	}
	b, err := rec.encode()
	if err != nil {
		return nil, err
	}
	f, err := os.OpenFile(e.path(forkFileName), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if _, err := f.Write(b); err != nil {
		return nil, err
	}
	key := forkKey(rec.Name, string(rec.Dir))
	if err := os.WriteFile(g.making(key), nil, 0o600); err != nil {
		return nil, err
	}
	if err := os.Rename(e.folder(), filepath.Join(g.dir, key)); err != nil {
		os.Remove(g.making(key))
		return nil, err
	}
	e.key = key
	naming.Close()
	// Durable before anything is written into the fork, or by then: see makeDirs.
	if !rec.MadeDir || rec.Mode == ForkRestore {
		if err := errors.Join(f.Sync(), e.dir.Sync()); err != nil {
			return nil, err
		}
	}
	return e, disk.SyncDir(g.dir)
}

// choose gives the record a name, unless it has one, and reports what is taken.
func (c *forkRecord) choose(names []os.DirEntry) error {
	taken := map[string]bool{}
	for _, n := range names {
		name, word, ok := strings.Cut(n.Name(), "@")
		if !ok || !n.IsDir() {
			continue
		}
		if "@"+word == forkKeyOf(string(c.Dir)) {
			return fmt.Errorf("%w: fork %s is at %s", snapshot.ErrExists, name, c.Dir)
		}
		taken[name] = true
	}
	if c.Name != "" {
		if taken[c.Name] {
			return fmt.Errorf("%w: a fork of the name %s", snapshot.ErrExists, c.Name)
		}
		return nil
	}
	base := strings.Map(func(r rune) rune {
		if forkNames.MatchString("a" + string(r)) {
			return r
		}
		return '-'
	}, filepath.Base(string(c.Dir)))
	if base = strings.TrimLeft(base, "._-"); base == "" {
		base = "fork"
	}
	base = base[:min(len(base), 48)]
	c.Name = base
	for taken[c.Name] {
		c.Name = base + "-" + strings.ToLower(rand.Text()[:6])
	}
	return nil
}

// load opens an entry of this user's and reads what it says.
func (g *forkRegistry) load(key string) (*forkEntry, error) {
	plain, err := g.open(key)
	if err != nil {
		return nil, err
	}
	e := &forkEntry{entry: plain, g: g}
	if err := e.reload(); err != nil {
		e.close()
		return nil, err
	}
	return e, nil
}

func (e *forkEntry) reload() error {
	b, err := readRecord(e.path(forkFileName))
	if err != nil {
		return err
	}
	rec, err := decodeForkRecord(b)
	if err == nil && e.key != forkKey(rec.Name, string(rec.Dir)) {
		err = errors.New("it is another fork's")
	}
	if err != nil {
		return fmt.Errorf("%s: %w", filepath.Join(e.folder(), forkFileName), err)
	}
	e.rec = rec
	return nil
}

// take waits until nobody else changes something about the fork, and reads what it
// is by then. It fails with fs.ErrNotExist if it was removed meanwhile.
func (e *forkEntry) take(ctx context.Context) error {
	for wait := time.Millisecond; ; wait = min(2*wait, 20*time.Millisecond) {
		err := e.tryOwn()
		if err == nil {
			return e.reload()
		}
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for another process that works on the fork: %w", ctx.Err())
		case <-time.After(wait):
		}
	}
}

// keys gives the names of entries.
func (g *forkRegistry) keys() (keys []string, err error) {
	names, err := os.ReadDir(g.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil // there is none yet
	}
	if err != nil {
		return nil, fmt.Errorf("registry of forks: %w", err)
	}
	for _, n := range names {
		if name := n.Name(); n.IsDir() && !strings.HasPrefix(name, ".") && strings.Contains(name, "@") {
			keys = append(keys, name)
		}
	}
	return keys, nil
}

// all loads all entries that can be. Those that cannot are given by the error.
func (g *forkRegistry) all() (all []*forkEntry, err error) {
	keys, err := g.keys()
	errs := []error{err}
	for _, key := range keys {
		e, err := g.load(key)
		if err == nil {
			all = append(all, e)
		} else if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, fs.ErrPermission) {
			errs = append(errs, err)
		}
	}
	slices.SortFunc(all, func(a, b *forkEntry) int { return a.rec.Created.Compare(b.rec.Created) })
	return all, errors.Join(errs...)
}

// find loads the fork of a name, or at a directory: the one that is mounted there, or
// else is to be.
func (g *forkRegistry) find(nameOrDir string) (*forkEntry, error) {
	if nameOrDir == "" {
		return nil, fmt.Errorf("%w: no name of a fork", snapshot.ErrInvalid)
	}
	table, err := readMountTable()
	if err != nil {
		return nil, err
	}
	at := ""
	if path, err := fusefs.Resolve(nameOrDir); err == nil {
		at = forkKeyOf(path)
		switch e, err := g.atIn(table, path); {
		case err != nil:
			return nil, err
		case e != nil:
			at = e.key[strings.Index(e.key, "@"):]
			e.close()
		}
	}
	isName := forkNames.MatchString(nameOrDir)
	keys, err := g.keys()
	if err != nil {
		return nil, err
	}
	var found []string
	for _, key := range keys {
		if isName && strings.HasPrefix(key, nameOrDir+"@") || at != "" && strings.HasSuffix(key, at) {
			found = append(found, key)
		}
	}
	switch {
	case len(found) == 0:
		return nil, fmt.Errorf("%w: %s", snapshot.ErrNoFork, nameOrDir)
	case len(found) > 1:
		return nil, fmt.Errorf("%w: %s is the name of one fork and the directory of another", snapshot.ErrAmbiguous, nameOrDir)
	}
	e, err := g.load(found[0])
	if err == nil {
		e.mountedIn(table)
	}
	return e, err
}

// at loads the fork that is mounted at a path, topmost; nil if none is.
func (g *forkRegistry) at(path string) (*forkEntry, error) {
	table, err := readMountTable()
	if err != nil {
		return nil, err
	}
	return g.atIn(table, path)
}

func (g *forkRegistry) atIn(table *mountTable, path string) (*forkEntry, error) {
	top := table.at(path)
	if top == nil || top.Root != "/" {
		return nil, nil
	}
	keys, damaged := g.keys()
	for _, key := range keys {
		if !mayBe(key, top) {
			continue
		}
		e, err := g.load(key)
		switch {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			if top.FSType == overlayType || strings.HasSuffix(key, forkKeyOf(path)) {
				damaged = err
			}
		case e.isAt(top):
			e.at = path
			return e, nil
		default:
			e.close()
		}
	}
	return nil, damaged
}

// mayBe reports whether a mount may be the fork of a key.
func mayBe(key string, m *mountinfo.Info) bool {
	name, _, _ := strings.Cut(key, "@")
	return m.FSType == fuseOverlayType || m.FSType == overlayType && strings.HasPrefix(m.Source, forkSource+name+"@")
}
