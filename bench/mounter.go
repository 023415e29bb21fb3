package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// A mounter is a way to look at a tree as a file system: snapctl's, or a
// peer's.
type mounter struct {
	name     string
	programs []string // all must be on the machine
	version  command
	root     bool // only root may
	slow     bool // does each work in the first round only, and once warm
	open     func(ctx context.Context, p place) (mountable, error)
}

func (m mounter) Name() string { return m.name }

func (m mounter) needs() (programs []string, root bool) { return m.programs, m.root }

// A mountable is a vault that can show what it keeps.
type mountable interface {
	Create(ctx context.Context, name, tree string) (usage, error)
	// Mount begins to show the snapshot of that name at dir, an empty folder,
	// or below it. What it starts may still be getting ready.
	Mount(ctx context.Context, name, dir string) (mounted, error)
}

// mounted is what a mountable mounted.
type mounted struct {
	root   string  // of the tree
	pid    int     // of the process that serves it, 0 for the kernel
	server *server // the same, if it is a child of ours
	usage  usage   // of mounting
}

// mounterOf makes a mounter of a tool whose vaults are mountable.
func mounterOf(t tool, slow bool, programs ...string) mounter {
	return mounter{name: t.Name(), programs: append(programs, t.Programs()...), version: t.Version(), slow: slow,
		open: func(ctx context.Context, p place) (mountable, error) {
			v, err := t.Open(ctx, p)
			if err != nil {
				return nil, err
			}
			return v.(mountable), nil
		}}
}

// mountPeers are all mounters but snapctl, in the order of the tables.
func mountPeers() []mounter {
	kernel := mounterOf(squashfs{compression: "zstd"}, false, "mount")
	kernel.root = true
	return []mounter{ext4, kernel, squashfuse, mounterOf(restic{}, true), mounterOf(kopia{}, true)}
}

// native is the tree itself, for a machine where no ext4 can be mounted.
var native = mounter{name: "native", open: func(context.Context, place) (mountable, error) { return &inPlace{}, nil }}

type inPlace struct{ tree string }

func (v *inPlace) Create(_ context.Context, _, tree string) (usage, error) {
	v.tree = tree
	return usage{}, nil
}

func (v *inPlace) Mount(context.Context, string, string) (mounted, error) {
	return mounted{root: v.tree}, nil
}

// cannotMount says why snapctl cannot mount anything here, if so.
func cannotMount() error {
	f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("no FUSE here: %w", err)
	}
	f.Close()
	if os.Geteuid() != 0 {
		if _, err := exec.LookPath("fusermount3"); err != nil {
			return errors.New("not root, and no fusermount3")
		}
	}
	return nil
}

// A server is a program that serves a mount until it is unmounted.
type server struct {
	cmd   *exec.Cmd
	said  *tail
	ended chan struct{} // closed when it has
	err   error         // set before that
}

// serve starts a server that stays in the foreground.
func (r *runner) serve(c command) (mounted, error) {
	s := &server{said: &tail{max: 4 << 10}, ended: make(chan struct{})}
	// Not the context's: the mount is undone first, and that ends it.
	s.cmd = exec.CommandContext(context.Background(), c.Args[0], c.Args[1:]...)
	s.cmd.Env, s.cmd.Dir = slices.Concat(r.env, c.Env), c.Dir
	s.cmd.Stdout, s.cmd.Stderr = s.said, s.said
	ownGroup(s.cmd)
	started := time.Now()
	if err := s.cmd.Start(); err != nil {
		return mounted{}, err
	}
	go func() {
		s.err = s.cmd.Wait()
		close(s.ended)
	}()
	return mounted{pid: s.cmd.Process.Pid, server: s, usage: usage{Wall: time.Since(started)}}, nil
}

// A mount is a mounted tree, until it is unmounted.
type mount struct {
	mounted
	dir string
}

// mountPoint is a path in the folder of all mount points, which lies in the
// work folder.
func (b *bench) mountPoint(elem ...string) string {
	return filepath.Join(append([]string{b.work, "mnt"}, elem...)...)
}

// mount mounts a snapshot at a folder of its own. It returns when there is an
// entry of that name in the root; the usage tells how long that took.
func (b *bench) mount(ctx context.Context, v mountable, name, entry string) (_ *mount, err error) {
	if err := os.MkdirAll(b.mountPoint(), 0o755); err != nil {
		return nil, err
	}
	m := &mount{}
	if m.dir, err = os.MkdirTemp(b.mountPoint(), ""); err != nil {
		return nil, err
	}
	b.mounts = append(b.mounts, m)
	if m.mounted, err = v.Mount(ctx, name, m.dir); err == nil {
		err = m.wait(ctx, entry, b.o.timeout)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("mount: %w", err), b.unmount(m))
	}
	m.usage.CPU += processCPU(m.pid)
	m.usage.Peak = max(m.usage.Peak, processPeak(m.pid))
	return m, nil
}

// wait waits until there is an entry in the root.
func (m *mount) wait(ctx context.Context, entry string, timeout time.Duration) error {
	started := time.Now()
	defer func() { m.usage.Wall += time.Since(started) }()
	var ended chan struct{}
	if m.server != nil {
		ended = m.server.ended
	}
	for {
		_, err := os.Lstat(m.root)
		if err == nil {
			if _, err = os.Lstat(filepath.Join(m.root, entry)); err == nil {
				return nil
			}
		}
		if ended == nil || time.Since(started) > timeout {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-ended:
			return fmt.Errorf("%s ended: %w\n%s", filepath.Base(m.server.cmd.Path), m.server.err, m.server.said)
		case <-time.After(time.Millisecond):
		}
	}
}

// ending is how long a server may take to end after its mount is gone.
const ending = time.Minute

// unmount undoes a mount, and waits until its server has ended.
func (b *bench) unmount(m *mount) error {
	b.mounts = slices.DeleteFunc(b.mounts, func(x *mount) bool { return x == m })
	err := unmount(m.dir, patience)
	switch {
	case m.server != nil:
		select {
		case <-m.server.ended:
		case <-time.After(ending):
			m.server.cmd.Cancel()
			<-m.server.ended
		}
	case m.pid != 0:
		if !gone(m.pid, ending) {
			err = errors.Join(err, fmt.Errorf("process %d serves no mount and does not end", m.pid))
		}
	}
	return errors.Join(err, os.Remove(m.dir))
}

// patience is how long a mount may be in use before it is detached.
const patience = 5 * time.Second

// unmount undoes what is mounted at dir, if anything is. What stays in use that
// long is detached, and ends when it no longer is used.
func unmount(dir string, patience time.Duration) error {
	flags := unix.UMOUNT_NOFOLLOW
	for deadline := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		err := unix.Unmount(dir, flags)
		if errors.Is(err, unix.EPERM) {
			err = fusermount(dir, flags&unix.MNT_DETACH != 0)
		}
		switch {
		case err == nil, errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOENT): // nothing is mounted
			return nil
		case flags&unix.MNT_DETACH != 0:
			return &os.PathError{Op: "unmount", Path: dir, Err: err}
		case time.Now().After(deadline):
			flags |= unix.MNT_DETACH
		}
	}
}

// fusermount unmounts for those who are not root.
func fusermount(dir string, lazily bool) error {
	if mounts, err := mountsBelow(dir); err == nil && len(mounts) == 0 {
		return nil
	}
	args := []string{"-u", dir}
	if lazily {
		args = []string{"-u", "-z", dir}
	}
	program, err := exec.LookPath("fusermount3")
	if err != nil {
		program = "fusermount"
	}
	return exec.Command(program, args...).Run()
}
