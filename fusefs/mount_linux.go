package fusefs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/moby/sys/mountinfo"
	"github.com/snapctl/snapctl/manifest"
	"golang.org/x/sys/unix"
)

// Options are how a snapshot is mounted. nil will do.
type Options struct {
	// AllowOther lets users other than the one who mounts look at it; the
	// permissions of files are checked in any case. Root always does.
	AllowOther bool
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
	ended  chan struct{} // closed when nothing goes on any more
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
	serving, stop := context.WithCancel(context.Background())
	s := &Server{dir: dir, fs: newFS(serving, m, tree, src, o.Fail), ended: make(chan struct{})}
	root := os.Geteuid() == 0
	mo := &fuse.MountOptions{
		AllowOther:               o.AllowOther || root,
		Options:                  []string{"ro", "default_permissions"},
		MaxBackground:            256,
		MaxWrite:                 1 << 20,
		FsName:                   SourceOf(m.ID),
		Name:                     "snapctl",
		DisableXAttrs:            !m.Xattrs,
		EnableAcl:                m.Xattrs,
		EnableSymlinkCaching:     true,
		ExplicitDataCacheControl: true,
		DirectMount:              root,
		DirectMountFlags:         unix.MS_NOSUID | unix.MS_NODEV | unix.MS_RDONLY,
		// Passthrough costs overlayfs a level of stacking.
		DisabledCapabilities: fuse.CAP_PASSTHROUGH,
		// What is in memory it would push through a pipe in vain first.
		DisableSplice: true,
		Logger:        log.New(io.Discard, "", 0),
	}
	var err error
	if s.server, err = fuse.NewServer(s.fs, dir, mo); err != nil {
		stop()
		return nil, fmt.Errorf("mounting at %s: %w", dir, plain(err))
	}
	closeOnExec()
	go func() {
		defer close(s.ended)
		s.server.Serve()
		stop()
		s.fs.ahead.wait()
	}()
	if err := s.server.WaitMount(); err != nil {
		s.server.Unmount()
		return nil, fmt.Errorf("mounting at %s: %w", dir, err)
	}
	s.fs.mounted.Store(true)
	s.raiseReadAhead()
	return s, nil
}

// closeOnExec sees to it that a program which this process starts does not have
// its /dev/fuse too, which go-fuse opens such that it would: when this process
// dies the mount would not be dead but silent, for as long as that program runs.
func closeOnExec() {
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return
	}
	for _, fd := range fds {
		if to, err := os.Readlink("/proc/self/fd/" + fd.Name()); err == nil && to == "/dev/fuse" {
			if n, err := strconv.Atoi(fd.Name()); err == nil {
				syscall.CloseOnExec(n)
			}
		}
	}
}

// plain is an error of go-fuse, which ends those about fusermount3 in a backslash
// and an n. What fusermount3 had to say is on standard error by then.
func plain(err error) error {
	if text, ok := strings.CutSuffix(err.Error(), `\n`); ok {
		return errors.New(text)
	}
	return err
}

// raiseReadAhead lets the kernel read further ahead. Where that is not allowed,
// large files are read more slowly.
func (s *Server) raiseReadAhead() {
	mounts, err := mountinfo.GetMounts(atPath(s.dir))
	if err != nil || len(mounts) == 0 {
		return
	}
	m := mounts[len(mounts)-1]
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

// Errors is how many requests failed for want of data.
func (s *Server) Errors() int64 { return s.fs.Errors() }
