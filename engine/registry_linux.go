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
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/snapctl/snapctl/engine/internal/local"
	"github.com/snapctl/snapctl/engine/snapshot"
	"github.com/snapctl/snapctl/fusefs"
	"github.com/snapctl/snapctl/manifest"
	"github.com/snapctl/snapctl/remote"
	"github.com/snapctl/snapctl/remote/disk"
	"golang.org/x/sys/unix"
)

// A registry is what the processes of this user serve, as they wrote it down in
// the state folder, an entry for each server:
//
//	mounts/ID.WORD/mount.json   what it serves and where: record
//	mounts/ID.WORD/lock         locked (flock) by the server, as long as it lives
//	mounts/ID.WORD/socket       where it answers: see control
//	mounts/ID.lock              locked by who looks for a server, or becomes one
//
// ID is the snapshot's. Who holds the lock of an entry, and nobody else, writes
// the entry: the server, or, when that is gone, who clears away behind it. So a
// server that was killed is known at once, and another process with its number
// is not taken for it.
//
// What is mounted the kernel says, not the registry: see fusefs.Points. An entry
// without a server is
//
//   - dead, if what it served is still mounted;
//   - lost, if it is from before the machine was started, or from another mount
//     namespace: what it served can be brought back;
//   - garbage else: somebody unmounted what was dead. Whoever sees it removes it.
//
// Entries that belong to another user are left alone and not believed.
type registry struct{ dir string }

const (
	recordName    = "mount.json"
	lockName      = "lock"
	socketName    = "socket"
	newPrefix     = ".new-" // of an entry that is being made
	recordVersion = 1
	maxRecord     = 4 << 20
)

// newRegistry gives the registry of a state folder, nil for none. It makes nothing.
func newRegistry(stateDir string) (*registry, error) {
	if stateDir == "" {
		return nil, nil
	}
	dir, err := remote.Abs(stateDir) // a process may leave the directory that it is in
	if err != nil {
		return nil, fmt.Errorf("%w: state folder: %w", snapshot.ErrInvalid, err)
	}
	if err := checkState(dir); err != nil {
		return nil, err
	}
	return &registry{filepath.Join(dir, local.Mounts)}, nil
}

// checkState fails with ErrShared for a state directory into which others may write:
// what stands there says what is unmounted and deleted.
func checkState(dir string) error {
	err := local.CheckPrivate(dir, local.Mounts, local.Forks, local.Lowers, local.Kept, local.Restored, local.Used)
	if err == nil {
		if info, serr := os.Stat(dir); serr == nil {
			err = local.CheckOwner(dir, info)
		}
	}
	if err != nil {
		return fmt.Errorf("state directory: %w", err)
	}
	return nil
}

// makeState makes a state directory, if there is none.
func makeState(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	return checkState(dir)
}

// A record is what an entry says. It is enough to mount all of it again.
type record struct {
	Version    int               `json:"version"`
	Repository recordRepository  `json:"repository"`
	Snapshot   snapshot.Snapshot `json:"snapshot"`
	Options    recordOptions     `json:"options"`
	Since      time.Time         `json:"since"`
	Pid        int               `json:"pid"`
	Restarts   int               `json:"restarts,omitempty"` // how often a server took over from one that had died
	Share      bool              `json:"share"`              // it serves other processes' mount points too
	Boot       string            `json:"boot"`               // which start of the machine
	Namespace  string            `json:"namespace"`          // of mounts, as in mnt:[4026531841]
	Points     []recordPoint     `json:"points"`
}

type recordRepository struct {
	URL string    `json:"url"` // canonical, without credentials; "" for a store that has none
	ID  uuid.UUID `json:"id"`
}

type recordOptions struct {
	AllowOther bool   `json:"allowOther,omitempty"`
	Memory     int    `json:"memory,omitempty"`
	Prefetch   string `json:"prefetch"`
}

type recordPoint struct {
	Dir    rawPath       `json:"dir"`
	Device fusefs.Device `json:"device"`
	Since  time.Time     `json:"since"`
}

func (c *record) encode() ([]byte, error) {
	b, err := json.MarshalIndent(c, "", "  ")
	return append(b, '\n'), err
}

// errNewer: a newer program wrote it. It is none of our business.
var errNewer = errors.New("written by a newer version of snapctl")

func decodeRecord(b []byte) (*record, error) {
	var v struct {
		Version int `json:"version"`
	}
	if err := json.Unmarshal(b, &v); err != nil {
		return nil, err
	}
	if v.Version > recordVersion {
		return nil, errNewer
	}
	c := &record{}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(c); err != nil {
		return nil, err
	}
	if v.Version < 1 || c.Snapshot.ID.IsZero() || len(c.Points) == 0 {
		return nil, errors.New("incomplete")
	}
	return c, nil
}

// open opens an entry of this user's.
func (g *registry) open(key string) (*entry, error) {
	fd, err := unix.Open(filepath.Join(g.dir, key), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	e := &entry{registry: g, key: key, dir: os.NewFile(uintptr(fd), key)}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		e.close()
		return nil, err
	}
	if int(st.Uid) != os.Geteuid() {
		e.close()
		return nil, fs.ErrPermission
	}
	return e, nil
}

// make makes an entry that this process serves. prepare is called before
// anybody can see it.
func (g *registry) make(rec *record, prepare func(e *entry) error) (_ *entry, err error) {
	e, err := g.newEntry()
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			e.remove()
			e.close()
		}
	}()
	if e.lock, err = os.OpenFile(e.path(lockName), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600); err != nil {
		return nil, err
	}
	if err := disk.Lock(int(e.lock.Fd())); err != nil {
		return nil, os.NewSyscallError("flock", err)
	}
	if err := e.write(rec); err != nil {
		return nil, err
	}
	if err := prepare(e); err != nil {
		return nil, err
	}
	key := rec.Snapshot.ID.String() + "." + strings.ToLower(rand.Text()[:8])
	if err := os.Rename(filepath.Join(g.dir, e.key), filepath.Join(g.dir, key)); err != nil {
		return nil, err
	}
	e.key = key
	return e, disk.SyncDir(g.dir)
}

// write writes the record, whole or not at all, and durably. The caller has the
// lock.
func (e *entry) write(rec *record) error {
	b, err := rec.encode()
	if err != nil {
		return err
	}
	return e.put(recordName, b)
}

func (e *entry) read() (*record, error) {
	b, err := readRecord(e.path(recordName))
	if err != nil {
		return nil, err
	}
	return decodeRecord(b)
}

// remove removes the entry. The caller has the lock, and gives it up afterwards.
func (e *entry) remove() {
	for _, name := range []string{socketName, recordName + ".new", recordName, lockName} {
		os.Remove(e.path(name)) // what cannot be removed is garbage to the next who sees it
	}
	os.Remove(filepath.Join(e.registry.dir, e.key))
}

// forget takes a mount point, or "" for all of them, out of an entry without a
// server, and removes it if none is left.
func (e *entry) forget(rec *record, path string) error {
	if err := e.own(); errors.Is(err, fs.ErrNotExist) {
		return nil // somebody else removed it
	} else if err != nil {
		return err
	}
	left := slices.DeleteFunc(slices.Clone(rec.Points), func(p recordPoint) bool { return path == "" || string(p.Dir) == path })
	if len(left) == 0 {
		e.remove()
		return nil
	}
	rec.Points = left
	return e.write(rec)
}

// forget forgets what was lost at a path, now that something else is mounted there.
func (g *registry) forget(path string) error {
	points, err := fusefs.Points()
	if err != nil {
		return err
	}
	entries, err := g.scan("", points)
	defer closeAll(entries)
	errs := []error{err}
	for _, e := range entries {
		if e.lost() && e.has(path) {
			errs = append(errs, e.forget(e.rec, path))
		}
	}
	return errors.Join(errs...)
}

// An entryState is what a look at the kernel says of an entry.
type entryState struct {
	*entry
	rec    *record
	live   bool
	died   bool           // since we looked
	points []fusefs.Point // where it is mounted, as far as this process sees
}

func (s *entryState) lost() bool { return !s.live && len(s.points) == 0 }

// scan gives the entries of this user whose keys begin with a prefix, and removes
// garbage that it sees. What it can read it gives together with the error about what it
// cannot, which it leaves alone.
func (g *registry) scan(prefix string, points []fusefs.Point) (all []*entryState, damaged error) {
	if g == nil {
		return nil, nil
	}
	names, err := os.ReadDir(g.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil // there is none yet
	}
	if err != nil {
		return nil, err
	}
	claimed := map[fusefs.Point]bool{}
	for _, n := range names {
		if !n.IsDir() || !strings.HasPrefix(n.Name(), prefix) {
			continue
		}
		e, err := g.open(n.Name())
		if err != nil {
			if unreadable(err) {
				damaged = errors.Join(damaged, fmt.Errorf("registry of mounts: %s: %w", n.Name(), err))
			}
			continue
		}
		s := &entryState{entry: e, live: e.live()}
		s.rec, err = e.read()
		switch {
		case unreadable(err):
			damaged = errors.Join(damaged, fmt.Errorf("registry of mounts: %s: %w", n.Name(), err))
			e.close()
			continue
		case strings.HasPrefix(n.Name(), newPrefix):
			if e.claim() {
				e.remove()
			}
			e.close()
			continue
		case err != nil:
			if !s.live && !errors.Is(err, errNewer) {
				e.reap()
			}
			e.close()
			continue
		}
		if s.live {
			s.find(points, claimed)
		}
		all = append(all, s)
	}
	// What a server serves is none that was served by one that is gone, though
	// the kernel may have given it the number again.
	boot, namespace := bootID(), mountNamespace()
	return slices.DeleteFunc(all, func(s *entryState) bool {
		if s.live {
			return false
		}
		if s.rec.Boot == boot {
			s.find(points, claimed)
		}
		if len(s.points) > 0 || s.rec.Boot != boot || s.rec.Namespace != namespace {
			return false
		}
		s.reap()
		s.close()
		return true
	}), damaged
}

// find finds where the entry is mounted.
func (s *entryState) find(points []fusefs.Point, claimed map[fusefs.Point]bool) {
	for _, p := range points {
		if s.is(p) && !claimed[p] {
			claimed[p] = true
			s.points = append(s.points, p)
		}
	}
}

// is reports whether a mount point is of a file system of the entry.
func (s *entryState) is(p fusefs.Point) bool {
	return p.Source == fusefs.SourceOf(s.rec.Snapshot.ID) && slices.ContainsFunc(s.rec.Points, func(x recordPoint) bool { return x.Device == p.Device })
}

// reap removes an entry that is garbage.
func (e *entry) reap() {
	if err := e.own(); err == nil || errors.Is(err, fs.ErrNotExist) {
		e.remove()
	}
}

func closeAll(all []*entryState) {
	for _, s := range all {
		s.close()
	}
}

// lock waits until nobody else looks for a server of the snapshot, or becomes one.
func (g *registry) lock(ctx context.Context, id manifest.ID) (unlock func(), err error) {
	if err := os.MkdirAll(g.dir, 0o700); err != nil {
		return nil, err
	}
	f, err := lockFile(ctx, filepath.Join(g.dir, id.String()+".lock"), unix.LOCK_EX)
	if err != nil {
		return nil, err
	}
	return func() { os.Remove(f.Name()); f.Close() }, nil
}
