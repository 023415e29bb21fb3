package index

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/snapctl/snapctl/remote/disk"
)

const (
	// maxSlots bounds the disk space: beyond, processes use slots that end with
	// them, and have to fetch every segment.
	maxSlots = 8

	privatePrefix = "tmp-"

	lockName    = "lock"
	catalogName = "catalog"
	dbName      = "db"
	tempSuffix  = ".tmp"
)

var (
	errBusy    = errors.New("slot is in use")
	errNotOurs = errors.New("folder holds files that are not an index's")

	// badgerFile is what Badger v4 calls its files.
	badgerFile = regexp.MustCompile(`^([0-9]+\.(sst|mem|vlog)|MANIFEST|MANIFEST-REWRITE|KEYREGISTRY|REWRITE-KEYREGISTRY|DISCARD|LOCK)$`)
)

// A slot is a folder that one Index at a time uses. The lock is flock(2)'s on a
// file that stays where it is, so that everything else can be removed while it
// is held; the kernel drops it with the process, however that ends.
type slot struct {
	dir     string
	lock    *os.File
	private bool // removed when freed

	patience time.Duration // with Badger; 0 is badgerPatience
	stuck    bool          // a call did not come back: what is in the slot is not ours any more
}

func (s *slot) path(name string) string { return filepath.Join(s.dir, name) }
func (s *slot) db() string              { return s.path(dbName) }

// takeSlot takes the first slot that is free, or else makes a private one.
func takeSlot(dir string) (*slot, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	removeLeftovers(dir)
	for n := range maxSlots {
		// Whatever is wrong with one slot, another user's or a folder that is
		// none, another one may do.
		if s, err := lockSlot(filepath.Join(dir, strconv.Itoa(n))); err == nil {
			return s, nil
		}
	}
	for {
		path, err := os.MkdirTemp(dir, privatePrefix)
		if err != nil {
			return nil, err
		}
		s, err := lockSlot(path)
		if err == nil {
			s.private = true
			return s, nil
		}
		// Another process may take the new folder for a leftover.
		if !errors.Is(err, errBusy) && !errors.Is(err, fs.ErrNotExist) {
			os.Remove(path)
			return nil, err
		}
	}
}

// removeLeftovers removes private slots of processes that were killed.
func removeLeftovers(dir string) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return
	}
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), privatePrefix) || !e.IsDir() {
			continue
		}
		path := filepath.Join(dir, e.Name())
		if _, err := os.Lstat(filepath.Join(path, lockName)); err != nil {
			os.Remove(path) // succeeds only if it is empty: a process died between mkdir and open
			continue
		}
		if s, err := lockSlot(path); err == nil {
			s.private = true
			s.free()
		}
	}
}

// lockSlot takes the slot at path, made where it does not exist, or fails with
// errBusy or errNotOurs.
func lockSlot(path string) (*slot, error) {
	if err := os.Mkdir(path, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	if err := looksOurs(path); err != nil {
		return nil, err
	}
	name := filepath.Join(path, lockName)
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	if err := disk.Lock(int(f.Fd())); err != nil {
		f.Close()
		if err == disk.ErrLocked {
			err = errBusy
		}
		return nil, fmt.Errorf("locking %s: %w", name, err)
	}
	// The file may have been removed, as a leftover, between open and flock:
	// then the lock is on nothing.
	held, err := f.Stat()
	if err == nil {
		var there fs.FileInfo
		if there, err = os.Lstat(name); err == nil && !os.SameFile(held, there) {
			err = errBusy
		}
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return &slot{dir: path, lock: f}, nil
}

// looksOurs refuses a folder that holds anything which an index does not make.
func looksOurs(path string) error {
	info, err := os.Lstat(path)
	if err != nil {
		return err
	}
	if !info.IsDir() {
		return fmt.Errorf("%s: %w", path, errNotOurs)
	}
	entries, err := os.ReadDir(path)
	if err != nil {
		return err
	}
	locked := false
	for _, e := range entries {
		switch e.Name() {
		case lockName:
			locked = true
		case catalogName, catalogName + tempSuffix, dbName:
		default:
			return fmt.Errorf("%s: %w", filepath.Join(path, e.Name()), errNotOurs)
		}
	}
	if len(entries) > 0 && !locked {
		return fmt.Errorf("%s: %w", path, errNotOurs)
	}
	return nil
}

// badgerPatience is how long a call of Badger's may take: some seconds, if the disk is
// slow and there is much to compact.
const badgerPatience = 30 * time.Second

// errStuck: a call of Badger's did not come back.
var errStuck = errors.New("badger does not come back, and its slot is given up")

// bounded calls Badger, which retries what fails for ever: the flush of a table when it
// is closed, if the disk is full or there are no descriptors left. When patience is over
// it is errStuck, and so is every later call. The call then goes on by itself, and the
// slot stays locked as long as it does, so that nobody else uses what it may still write.
// late, if not nil, is called if it comes back after all. A panic is an error.
func (s *slot) bounded(f func() error, late func()) error {
	if s.stuck {
		return errStuck
	}
	done, gone := make(chan error), make(chan struct{})
	go func() {
		err := protected(f)
		select {
		case done <- err:
		case <-gone:
			if late != nil {
				late()
			}
			s.lock.Close()
		}
	}()
	patience := s.patience
	if patience == 0 {
		patience = badgerPatience
	}
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case err := <-done:
		return err
	case <-timer.C:
		s.stuck = true
		close(gone)
		return errStuck
	}
}

func protected(f func() error) (err error) {
	defer recovered(&err)
	return f()
}

// empty removes everything but the lock, after it has seen that all of it is
// ours. Nothing is ever removed recursively.
func (s *slot) empty() error {
	if s.stuck {
		return errStuck
	}
	if err := s.removeCatalog(); err != nil {
		return err
	}
	info, err := os.Lstat(s.db())
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if !info.IsDir() {
		return fmt.Errorf("%s: %w", s.db(), errNotOurs)
	}
	entries, err := os.ReadDir(s.db())
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !e.Type().IsRegular() || !badgerFile.MatchString(e.Name()) {
			return fmt.Errorf("%s: %w", filepath.Join(s.db(), e.Name()), errNotOurs)
		}
	}
	for _, e := range entries {
		if err := os.Remove(filepath.Join(s.db(), e.Name())); err != nil {
			return err
		}
	}
	return os.Remove(s.db())
}

// removeCatalog makes the slot one that nobody believes.
func (s *slot) removeCatalog() error {
	os.Remove(s.path(catalogName + tempSuffix))
	if err := os.Remove(s.path(catalogName)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// free gives the slot back, and removes it if it is private. One that is stuck it leaves
// to whoever opens it when this process, or the call that is stuck, has ended.
func (s *slot) free() error {
	if s.stuck {
		return nil
	}
	var err error
	if s.private {
		if err = s.empty(); err == nil {
			err = errors.Join(os.Remove(s.lock.Name()), os.Remove(s.dir))
		}
	}
	return errors.Join(err, s.lock.Close())
}

// space is how many bytes can still be written to the file system of dir.
func space(dir string) (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, &fs.PathError{Op: "statfs", Path: dir, Err: err}
	}
	return int64(st.Bavail) * int64(st.Bsize), nil
}
