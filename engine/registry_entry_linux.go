package engine

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/snapctl/snapctl/remote/disk"
	"golang.org/x/sys/unix"
)

// What the registries of mounts and of forks have in common: folders that belong to who has
// their lock, with records in them.

// An entry is a folder of the registry. Its files are reached through its
// descriptor: nobody can put another folder in its place, and the path of a
// socket, which may have no more than 108 bytes, is short.
type entry struct {
	registry *registry
	key      string
	dir      *os.File
	lock     *os.File // held, by who made the entry or owns it; else nil
}

func (e *entry) path(name string) string {
	return fmt.Sprintf("/proc/self/fd/%d/%s", e.dir.Fd(), name)
}

// close gives up the entry: its lock too, if it is held.
func (e *entry) close() {
	if e.lock != nil {
		e.lock.Close()
	}
	e.dir.Close()
}

// newEntry makes an entry's folder, under a name that nobody takes for an entry yet.
// The folder itself is locked: one of such a name that nobody has locked was left by
// a process that was killed, and whoever sees it removes it.
func (g *registry) newEntry() (*entry, error) {
	if err := os.MkdirAll(g.dir, 0o700); err != nil {
		return nil, err
	}
	for {
		name := newPrefix + strings.ToLower(rand.Text()[:16])
		if err := os.Mkdir(filepath.Join(g.dir, name), 0o700); err != nil {
			return nil, err
		}
		e, err := g.open(name)
		if errors.Is(err, fs.ErrNotExist) {
			continue // somebody saw it before it was locked
		}
		if err != nil {
			return nil, err
		}
		if e.claim() {
			return e, nil
		}
		e.close()
	}
}

// claim locks the folder of an entry, for who makes or removes it. It reports whether
// it could, and the folder is still there.
func (e *entry) claim() bool {
	if disk.Lock(int(e.dir.Fd())) != nil {
		return false
	}
	ours, err := e.dir.Stat()
	if err != nil {
		return false
	}
	there, err := os.Lstat(filepath.Join(e.registry.dir, e.key))
	return err == nil && os.SameFile(ours, there)
}

// put writes a file of the entry, whole or not at all, and durably.
func (e *entry) put(name string, b []byte) error {
	temp := name + ".new"
	f, err := os.OpenFile(e.path(temp), os.O_WRONLY|os.O_CREATE|os.O_TRUNC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := os.Rename(e.path(temp), e.path(name)); err != nil {
		return err
	}
	return e.dir.Sync()
}

// readRecord reads a file that may be anything. See unreadable.
func readRecord(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > maxRecord {
		return nil, fmt.Errorf("%s is no record", filepath.Base(path))
	}
	b, err := io.ReadAll(io.LimitReader(f, maxRecord+1))
	if err == nil && len(b) > maxRecord {
		err = fmt.Errorf("%s is no record", filepath.Base(path))
	}
	return b, err
}

// unreadable reports whether an error says nothing about what is in an entry, but that it
// could not be read: there may be no more file descriptors, or the disk may fail.
func unreadable(err error) bool {
	var no unix.Errno
	return errors.As(err, &no) && no != unix.ENOENT && no != unix.ENOTDIR && no != unix.ELOOP
}

// live reports whether the server lives, or may. The lock that it tries is one that
// several can have, so that two who ask do not take each other for it.
func (e *entry) live() bool {
	f, err := os.OpenFile(e.path(lockName), os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return unreadable(err)
	}
	defer f.Close()
	return disk.LockShared(int(f.Fd())) != nil
}

// own takes the lock of an entry whose server is gone. It fails if there is a
// server, or another who clears away.
func (e *entry) own() error {
	// Who only asks, as live does, is gone in a moment.
	for wait := time.Millisecond; ; wait *= 2 {
		err := e.tryOwn()
		if !errors.Is(err, unix.EWOULDBLOCK) || wait > 100*time.Millisecond {
			return err
		}
		time.Sleep(wait)
	}
}

func (e *entry) tryOwn() error {
	f, err := os.OpenFile(e.path(lockName), os.O_RDWR|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	var st unix.Stat_t
	err = disk.Lock(int(f.Fd()))
	if err == nil {
		err = unix.Fstat(int(f.Fd()), &st)
	}
	if err == nil && st.Nlink == 0 {
		err = fs.ErrNotExist // somebody removed the entry
	}
	if err != nil {
		f.Close()
		return err
	}
	e.lock = f
	return nil
}

// tryLockFile takes a lock, which closing the file gives up. It gives nil if somebody
// else has it. The file may be removed by who has it exclusively.
func tryLockFile(path string, how int) (*os.File, error) {
	for {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
		if err != nil {
			return nil, err
		}
		var st unix.Stat_t
		if how == unix.LOCK_SH {
			err = disk.LockShared(int(f.Fd()))
		} else {
			err = disk.Lock(int(f.Fd()))
		}
		if err == nil {
			err = unix.Fstat(int(f.Fd()), &st)
		}
		if err == nil && st.Nlink > 0 {
			return f, nil
		}
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, nil
		}
		if err != nil {
			return nil, os.NewSyscallError("flock", err)
		} // or who had it removed it
	}
}

// lockFile waits for a lock: see tryLockFile.
func lockFile(ctx context.Context, path string, how int) (*os.File, error) {
	for wait := time.Millisecond; ; {
		if f, err := tryLockFile(path, how); f != nil || err != nil {
			return f, err
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("waiting for the lock of %s, which is held %v: %w", path, lockedBy(path), ctx.Err())
		case <-time.After(wait):
			wait = min(2*wait, 10*time.Millisecond)
		}
	}
}

// lockedBy finds out who holds the lock of a file.
func lockedBy(path string) holder {
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_NOFOLLOW, 0)
	if err != nil {
		return holder{}
	}
	defer f.Close()
	return lockHolder(int(f.Fd()))
}

// dropLock removes the file of a lock that nobody has.
func dropLock(path string) {
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_NOFOLLOW, 0)
	if err != nil {
		return
	}
	defer f.Close()
	var st unix.Stat_t
	if disk.Lock(int(f.Fd())) == nil && unix.Fstat(int(f.Fd()), &st) == nil && st.Nlink > 0 {
		os.Remove(path)
	}
}

// A rawPath is an absolute path that survives JSON whatever bytes it has.
type rawPath string

const rawPrefix = "base64:" // which begins no absolute path

func (p rawPath) MarshalText() ([]byte, error) {
	if utf8.ValidString(string(p)) {
		return []byte(p), nil
	}
	return []byte(rawPrefix + base64.StdEncoding.EncodeToString([]byte(p))), nil
}

func (p *rawPath) UnmarshalText(b []byte) error {
	if text, ok := strings.CutPrefix(string(b), rawPrefix); ok {
		raw, err := base64.StdEncoding.DecodeString(text)
		*p = rawPath(raw)
		return err
	}
	*p = rawPath(b)
	return nil
}

// boot identifies this start of the machine.
func bootID() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// mountNamespace identifies what this process can see mounted.
func mountNamespace() string {
	s, err := os.Readlink("/proc/self/ns/mnt")
	if err != nil {
		return ""
	}
	return s
}
