package engine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/snapctl/snapctl/engine/internal/repo"
	"github.com/snapctl/snapctl/engine/snapshot"
	"github.com/snapctl/snapctl/fusefs"
	"golang.org/x/sys/unix"
)

// errNoServer: no process serves the snapshot.
var errNoServer = errors.New("no process serves the snapshot")

// A Mount is a snapshot as a read-only file system at a directory. It ends with
// Unmount, or when somebody else unmounts it; its repository must stay open until
// then.
type Mount struct {
	Dir      string // the mount point's path, absolute and without symbolic links
	Snapshot snapshot.Snapshot

	*mountServer // nil if another process serves it
	elsewhere    *served

	point recordPoint
	fail  func(op, path string, err error)
	ended chan struct{}
}

// Mount mounts a snapshot at dir, an empty directory, and returns when it can be
// used. Nothing but the manifest and the root page is read before a reader asks
// for it; every byte is checked against the snapshot before the reader sees it.
// Readers wait while the repository cannot be reached, until retries are at
// their end; a read then fails with EIO, and the next one may succeed.
//
// A snapshot that this repository serves already is served by the same server, with
// the Memory and Prefetch of the first; a full id then takes no request at all. With
// Options.StateDir that goes for other processes of the same user too, if they
// have set Share.
//
// It fails with ErrExists for a directory that holds something, unless Force is
// set.
func (r *Repository) Mount(ctx context.Context, ref, dir string, opts *MountOptions) (*Mount, error) {
	if opts == nil {
		opts = &MountOptions{}
	}
	path, err := mountPoint(dir, opts.Force)
	if err != nil {
		return nil, fmt.Errorf("mounting at %s: %w", dir, err)
	}
	id, ok := repo.IdOf(ref)
	if !ok {
		s, err := r.Get(ctx, ref)
		if err != nil {
			return nil, err
		}
		id = s.ID
	}
	done, err := r.servers.look(ctx, id)
	if err != nil {
		return nil, err
	}
	defer done()
	if s := r.servers.get(id); s != nil {
		m, err := s.attach(ctx, path, opts)
		if !errors.Is(err, ErrServerEnds) {
			return m, err
		}
	}
	if r.registry == nil {
		return r.serve(ctx, id, path, opts)
	}
	unlock, err := r.registry.lock(ctx, id)
	if err != nil {
		return nil, fmt.Errorf("state folder: %w", err)
	}
	defer unlock()
	m, err := r.mountElsewhere(ctx, id, path, opts)
	switch {
	case m != nil || err != nil:
	case opts.byOthers:
		return nil, errNoServer
	default:
		m, err = r.serve(ctx, id, path, opts)
	}
	if err == nil {
		// What was mounted there before the machine was started is not to be again.
		if err := r.registry.forget(path); err != nil {
			r.repo.Logger.Warn("registry of mounts", "err", err)
		}
	}
	return m, err
}

// Unmount ends the mount, and returns when nothing of it is left. It fails if
// somebody uses it, unless detach is set: then the path is free at once, and
// the mount ends, which Wait waits for, when nobody uses it any more. Other mount
// points of the snapshot go on.
func (m *Mount) Unmount(detach bool) error {
	select {
	case <-m.Ended():
		return nil
	default:
	}
	if m.mountServer != nil {
		return m.mountServer.unmount(m, detach)
	}
	return m.elsewhere.unmount(m, detach)
}

// Shutdown unmounts all mount points of the snapshot that this process serves,
// also those that other processes asked it for. It does not wait for those who use
// one: they get I/O errors, and it tells which mount points were in use. If another
// process serves the snapshot, it ends this mount alone.
func (m *Mount) Shutdown() (inUse []string, err error) {
	if m.mountServer != nil {
		return m.mountServer.shutdown()
	}
	err = m.Unmount(false)
	if errors.Is(err, fusefs.ErrBusy) {
		return []string{m.Dir}, m.Unmount(true)
	}
	return nil, err
}

// Wait waits until the mount has ended, whoever ended it.
func (m *Mount) Wait() { <-m.Ended() }

// Ended is closed when the mount has ended. If it was detached, and other mount
// points of the snapshot are left, it has ended although somebody may use it.
func (m *Mount) Ended() <-chan struct{} {
	if m.elsewhere != nil {
		m.elsewhere.watch(m)
	}
	return m.ended
}

// ServerEnded is closed when this process serves the snapshot at no mount point
// any more. If another process serves it, it is Ended.
func (m *Mount) ServerEnded() <-chan struct{} {
	if m.mountServer == nil {
		return m.Ended()
	}
	return m.finished
}

// Pid is the process that serves the mount.
func (m *Mount) Pid() int {
	if m.elsewhere != nil {
		return m.elsewhere.pid
	}
	return os.Getpid()
}

// Stats tells what the server of the mount did so far. If that is another process
// which does not answer, they are zero.
func (m *Mount) Stats() MountStats {
	if m.elsewhere != nil {
		return m.elsewhere.stats()
	}
	return m.mountServer.stats()
}

// mountPoint checks a directory to mount at, and gives its path as the kernel
// has it. A mount of ours whose server was killed is cleared away.
func mountPoint(dir string, force bool) (string, error) {
	if dir == "" {
		return "", fmt.Errorf("%w: no directory", snapshot.ErrInvalid)
	}
	path, err := fusefs.Resolve(dir)
	if err != nil {
		return "", err
	}
	source, err := fusefs.Mounted(path)
	if err != nil {
		return "", err
	}
	if source != "" {
		switch err := fusefs.Probe(path, statusPatience); {
		case errors.Is(err, fusefs.ErrNoServer):
			if err := fusefs.Unmount(path, true); err != nil {
				return "", err
			}
		case !force:
			return "", fmt.Errorf("%w: %s is mounted there", snapshot.ErrExists, source)
		}
	}
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return "", pathless(err)
	}
	defer f.Close()
	if force {
		return path, nil
	}
	if names, err := f.Readdirnames(1); len(names) > 0 {
		return "", snapshot.ErrNotEmpty
	} else if !errors.Is(err, io.EOF) {
		return "", pathless(err)
	}
	return path, nil
}

// pathless is an error without the path, which the caller names.
func pathless(err error) error {
	var p *os.PathError
	if errors.As(err, &p) {
		return p.Err
	}
	return err
}
