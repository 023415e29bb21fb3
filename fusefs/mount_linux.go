package fusefs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"path/filepath"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/snapctl/snapctl/manifest"
	"golang.org/x/sys/unix"
)

// Options are how a snapshot is mounted. nil will do.
type Options struct {
	// AllowOther lets users other than the one who mounts look at it; the
	// permissions of files are checked in any case. Root always does.
	AllowOther bool
	// View is for whom it is mounted.
	View View
	// Fail is told of every request that failed for want of data: what was
	// asked, of which path ("" if that is not known). It must be safe for
	// parallel use.
	Fail func(op, path string, err error)
}

// A Server serves one mount.
type Server struct {
	dir    string
	fs     *snapshotFS
	server *fuse.Server
	device *device
	stop   context.CancelFunc // ends what is done in the background
	ended  chan struct{}      // closed when nothing goes on any more
}

// FSType is the type of the file system, as in /proc/self/mountinfo.
const FSType = "fuse.snapctl"

// readAheadKB is how far ahead the kernel reads in a file, once it is mounted:
// go-fuse asks for 128 KiB at most.
const readAheadKB = 1024

// Mount mounts a snapshot at dir, an absolute path. It returns when the mount
// serves. As root it needs no helper program; other users need fusermount3.
func Mount(dir string, m *manifest.Manifest, tree *manifest.Tree, src Source, o *Options) (*Server, error) {
	if o == nil {
		o = &Options{}
	}
	s := newServerOf(dir, m, tree, src, o)
	dev, err := openDevice(dir, SourceOf(m.ID), o.AllowOther || os.Geteuid() == 0)
	if err != nil {
		s.stop()
		return nil, fmt.Errorf("mounting at %s: %w", dir, err)
	}
	if s.server, s.device, err = connect(dev, s.fs, serverOptions(m)); err != nil {
		s.stop()
		dev.Close()
		return nil, fmt.Errorf("mounting at %s: %w", dir, errors.Join(err, unmount(dir, true)))
	}
	s.serve()
	if err := settle(dir); err != nil {
		return nil, fmt.Errorf("mounting at %s: %w", dir, errors.Join(err, unmount(dir, true)))
	}
	s.fs.mounted.Store(true)
	s.raiseReadAhead()
	return s, nil
}

// newServerOf makes a Server that is mounted nowhere.
func newServerOf(dir string, m *manifest.Manifest, tree *manifest.Tree, src Source, o *Options) *Server {
	serving, stop := context.WithCancel(context.Background())
	return &Server{dir: dir, fs: newFS(serving, m, tree, src, o), stop: stop, ended: make(chan struct{})}
}

// serverOptions are how go-fuse serves a snapshot.
func serverOptions(m *manifest.Manifest) *fuse.MountOptions {
	return &fuse.MountOptions{
		MaxBackground:            256,
		MaxWrite:                 maxRequest,
		DisableXAttrs:            !m.Xattrs,
		EnableAcl:                m.Xattrs,
		EnableSymlinkCaching:     true,
		ExplicitDataCacheControl: true,
		// Passthrough costs overlayfs a level of stacking.
		DisabledCapabilities: fuse.CAP_PASSTHROUGH,
		// What is in memory it would push through a pipe in vain first.
		DisableSplice: true,
		Logger:        log.New(io.Discard, "", 0),
	}
}

// serve answers requests until the mount is gone.
func (s *Server) serve() {
	go func() {
		defer close(s.ended)
		s.server.Serve()
		s.device.file.Close()
		s.stop()
		s.fs.ahead.wait()
	}()
}

// raiseReadAhead lets the kernel read further ahead. Where that is not allowed,
// large files are read more slowly.
func (s *Server) raiseReadAhead() {
	m, _, err := mountAt(s.dir)
	if err != nil || m == nil {
		return
	}
	path := filepath.Join("/sys/class/bdi", fmt.Sprintf("%d:%d", m.Major, m.Minor), "read_ahead_kb")
	if f, err := os.OpenFile(path, os.O_WRONLY, 0); err == nil {
		fmt.Fprintln(f, readAheadKB)
		f.Close()
	}
}

// Unmount unmounts: see the function of that name.
func (s *Server) Unmount(detach bool) error { return Unmount(s.dir, detach) }

// Wait waits until the mount is gone, and nothing asks its source any more.
func (s *Server) Wait() { <-s.ended }

// Connected reports whether the kernel still has the file system. As long as it says so,
// the file system's device number is not another's: the kernel disconnects it first.
func (s *Server) Connected() bool {
	raw, err := s.device.file.SyscallConn()
	if err != nil {
		return false
	}
	fds := []unix.PollFd{{}} // for an error, which is always told
	perr := raw.Control(func(fd uintptr) {
		fds[0].Fd = int32(fd)
		_, err = retry(func() (int, error) { return unix.Poll(fds, 0) })
	})
	return perr == nil && err == nil && fds[0].Revents == 0
}

// Errors is how many requests failed for want of data.
func (s *Server) Errors() int64 { return s.fs.Errors() }
