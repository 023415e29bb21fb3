package engine

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/snapctl/snapctl/engine/snapshot"
	"github.com/snapctl/snapctl/fusefs"
	"github.com/snapctl/snapctl/manifest"
	"github.com/snapctl/snapctl/remote"
	"golang.org/x/sys/unix"
)

// Mounts gives what is mounted: by this user with that state folder, and whatever
// else this process can see, in the order in which it was mounted; then what is
// not mounted here but known. It waits a second at most for servers that
// do not answer. What it can read it gives together with the error about what it cannot.
func Mounts(ctx context.Context, stateDir string) ([]*MountStatus, error) {
	g, err := newRegistry(stateDir)
	if err != nil {
		return nil, err
	}
	for tries := 0; ; tries++ {
		all, changed, err := g.mounts(ctx)
		if err != nil || !changed || tries == 5 {
			if forks, err := newForkRegistry(stateDir); err == nil {
				for _, s := range all {
					s.Lower = forks.isLower(s.Dir)
				}
			}
			return all, err
		}
	}
}

// mounts is Mounts. changed says that something was mounted, or ended, meanwhile.
func (g *registry) mounts(ctx context.Context) (_ []*MountStatus, changed bool, err error) {
	points, err := fusefs.Points()
	if err != nil {
		return nil, false, err
	}
	entries, damaged := g.scan("", points)
	defer closeAll(entries)
	// All at once: each may take as long as we are patient.
	replies := make([]*statusReply, len(entries))
	var asking sync.WaitGroup
	at := map[fusefs.Point]*MountStatus{}
	for i, e := range entries {
		if e.live {
			asking.Go(func() { replies[i] = e.ask(ctx) })
		}
	}
	asking.Wait()
	now, err := fusefs.Points()
	if err != nil {
		return nil, false, err
	}
	changed = !slices.Equal(now, points) || slices.ContainsFunc(entries, func(e *entryState) bool { return e.died })
	var unseen []*MountStatus
	for i, e := range entries {
		for _, p := range e.points {
			s := e.describe(p.Dir, replies[i])
			if p.Covered && s.State == MountServing {
				s.State = MountCovered
			}
			at[p] = s
		}
		if len(e.points) == 0 {
			for _, p := range e.rec.Points {
				unseen = append(unseen, e.describe(string(p.Dir), replies[i]))
			}
		}
	}
	var all []*MountStatus
	for _, p := range points {
		s := at[p]
		if s == nil {
			id, err := p.Snapshot()
			if err != nil {
				continue // somebody else's idea of a snapshot
			}
			s = &MountStatus{Dir: p.Dir, Snapshot: snapshot.Snapshot{ID: id}, State: MountUnknown}
		}
		all = append(all, s)
	}
	return append(all, unseen...), changed, errors.Join(damaged, ctx.Err())
}

// ask asks the server of an entry how it is, and gives nil if it does not answer. One
// that is about to end may have closed its socket and not yet given up its lock.
func (e *entryState) ask(ctx context.Context) *statusReply {
	for began := time.Now(); ; time.Sleep(2 * time.Millisecond) {
		s, err := e.status(ctx)
		if err == nil {
			return s
		}
		if !e.entry.live() {
			e.died = true
			return nil
		}
		if time.Since(began) > statusPatience || ctx.Err() != nil {
			return nil
		}
	}
}

// describe describes a mount point of an entry. reply is that of its server, nil
// for none.
func (e *entryState) describe(dir string, reply *statusReply) *MountStatus {
	s := &MountStatus{
		Dir: dir, Snapshot: e.rec.Snapshot, Repository: e.rec.Repository.URL, Since: &e.rec.Since, Pid: e.rec.Pid,
		Restarts: e.rec.Restarts, Registered: true,
	}
	s.AllowOther = e.rec.Options.AllowOther
	s.Prefetch, _ = ParsePrefetch(e.rec.Options.Prefetch) // of a later version: the default
	for i := range e.rec.Points {
		if p := &e.rec.Points[i]; string(p.Dir) == dir {
			s.Since = &p.Since
		}
	}
	if reply != nil {
		s.Stats, s.Keeper = &reply.Stats, reply.Keeper
		s.Unkept = !reply.Kept && reply.Keeper == 0   // which alone earlier versions tell
		s.Pid, s.Restarts = reply.Pid, reply.Restarts // it may have taken over a moment ago
	}
	switch {
	case len(e.points) > 0 && !e.live:
		s.State = MountDead
	case !e.live:
		s.State = MountLost
	case reply == nil:
		s.State = MountSilent
	case len(e.points) > 0:
		s.State = MountServing
	case e.rec.Namespace != mountNamespace():
		s.State = MountElsewhere
	default:
		s.State = MountDetached
	}
	return s
}

// serverPatience is how long Unmount waits for a server to end. The longest that
// one has to do is to delete its lease; on a machine with much else to do all of it took
// more than ten seconds.
const serverPatience = time.Minute

// Unmount unmounts the snapshot or the fork at dir, also one whose server is gone,
// and forgets one that was lost. What was changed in a fork is kept. When it was the
// last that a process of that state folder served, it waits until that has ended, and
// fails with ErrServerStays after a minute; but it waits for a few seconds only for those who
// use the snapshot in another mount namespace, or what was detached before. It fails with fusefs.ErrNotMounted, and
// with fusefs.ErrBusy for a mount that somebody uses, unless Detach is set.
func Unmount(ctx context.Context, stateDir, dir string, opts *UnmountOptions) error {
	err := unmountAt(ctx, stateDir, dir, opts)
	if stateDir != "" {
		_, _ = Sweep(ctx, stateDir) // what is left doctor says: this is about a mount
	}
	return err
}

// unmountAt is Unmount, and sweeps nothing.
func unmountAt(ctx context.Context, stateDir, dir string, opts *UnmountOptions) error {
	if opts == nil {
		opts = &UnmountOptions{}
	}
	g, err := newRegistry(stateDir)
	if err != nil {
		return err
	}
	path, err := fusefs.Resolve(dir)
	if err != nil {
		return fmt.Errorf("unmounting %s: %w", dir, err)
	}
	if g == nil {
		_, err := unmountBusy(path, opts.Detach)
		return err
	}
	if is, err := unmountForkAt(ctx, stateDir, path, opts.Detach); is || err != nil {
		if err != nil {
			err = fmt.Errorf("unmounting %s: %w", path, err)
		}
		return err
	}
	server, err := g.unmount(ctx, path, opts.Detach)
	if err != nil {
		return err
	}
	if err := server.wait(ctx); err != nil {
		return fmt.Errorf("unmounting %s: %w", path, err)
	}
	return nil
}

// unmount unmounts the snapshot at a path, and forgets what was lost there. It gives
// the server if that was its last mount.
func (g *registry) unmount(ctx context.Context, path string, detach bool) (*endingServer, error) {
	points, err := fusefs.Points()
	if err != nil {
		return nil, err
	}
	entries, damaged := g.scan("", points)
	defer func() { closeAll(entries) }()
	var here *fusefs.Point // that the path leads to
	for i := range points {
		if points[i].Dir == path && !points[i].Covered {
			here = &points[i]
		}
	}
	forgotten, at := false, -1
	for i, e := range entries {
		if here != nil && slices.Contains(e.points, *here) {
			at = i
		}
		if e.lost() && e.has(path) {
			if err := e.forget(e.rec, path); err != nil {
				return nil, fmt.Errorf("unmounting %s: %w", path, err)
			}
			forgotten = true
		}
	}
	if forgotten && here == nil {
		return nil, nil
	}
	if at < 0 {
		_, err := unmountBusy(path, detach)
		return nil, errors.Join(err, damaged) // it may have been of an entry that cannot be read
	}
	of := entries[at]
	server, err := of.unmount(ctx, path, detach)
	if server != nil {
		entries = slices.Delete(entries, at, at+1) // which it has from now on
	}
	return server, err
}

// unmount unmounts a mount point of the entry. It gives its server if that has no other.
func (e *entryState) unmount(ctx context.Context, path string, detach bool) (*endingServer, error) {
	server := &endingServer{entryState: e}
	if e.live && e.rec.Share {
		server.process = e.process(ctx)
	}
	detached, err := unmountBusy(path, detach)
	var left []fusefs.Point
	if err == nil {
		left, err = e.pointsLeft()
	}
	switch {
	case err == nil && e.live && !detached && len(left) == 0:
		return server, nil
	case err == nil && e.live:
		// So that it has written down what is left before we return.
		_, _ = e.status(ctx)
	case err == nil && len(left) == 0:
		err = e.forget(e.rec, "")
	case err == nil:
		err = e.forget(e.rec, path)
	}
	server.process.close()
	return nil, err
}

// An endingServer is one whose last mount point was unmounted. A nil one is none.
type endingServer struct {
	*entryState
	process *process
}

// giveUp forgets the server.
func (s *endingServer) giveUp() {
	if s == nil {
		return
	}
	s.process.close()
	s.close()
}

// wait waits until the server has ended, or need not: see process.wait.
func (s *endingServer) wait(ctx context.Context) error {
	if s == nil {
		return nil
	}
	defer s.giveUp()
	if err := s.process.wait(ctx, s.entryState); err != nil {
		return fmt.Errorf("process %d: %w", s.rec.Pid, err)
	}
	if !s.entry.live() {
		s.reap() // if it did not come to that
	}
	return nil
}

// unmountBusy unmounts what is mounted at a path. Only if it is in use, and may
// be, it is detached.
func unmountBusy(path string, detach bool) (detached bool, err error) {
	err = fusefs.Unmount(path, false)
	if detach && errors.Is(err, fusefs.ErrBusy) {
		return true, fusefs.Unmount(path, true)
	}
	return false, err
}

// has reports whether the entry says that it was mounted there.
func (e *entryState) has(path string) bool {
	return slices.ContainsFunc(e.rec.Points, func(p recordPoint) bool { return string(p.Dir) == path })
}

// pointsLeft is where the entry is mounted now.
func (e *entryState) pointsLeft() ([]fusefs.Point, error) {
	points, err := fusefs.Points()
	now := &entryState{rec: e.rec}
	now.find(points, map[fusefs.Point]bool{})
	return now.points, err
}

// A process is one that serves. A nil one has no handle.
type process struct{ fd int }

// process gives the server's process, by who listens at its socket: its own word
// for its number may be that of another container.
func (e *entry) process(ctx context.Context) *process {
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", e.path(socketName))
	if err != nil {
		return nil
	}
	defer c.Close()
	raw, err := c.(*net.UnixConn).SyscallConn()
	if err != nil {
		return nil
	}
	var peer *unix.Ucred
	var peerErr error
	err = raw.Control(func(fd uintptr) { peer, peerErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	if err != nil || peerErr != nil || peer.Pid <= 0 || int(peer.Pid) == os.Getpid() {
		return nil
	}
	fd, err := unix.PidfdOpen(int(peer.Pid), 0)
	if err != nil {
		return nil
	}
	if !e.live() { // and the number may be another's by now
		unix.Close(fd)
		return nil
	}
	return &process{fd}
}

func (p *process) close() {
	if p != nil {
		unix.Close(p.fd)
	}
}

// wait waits until the process has ended; without a handle, until it has given up
// its entry. It stops when something of the entry is mounted again, or somebody still
// uses what was: in another mount namespace, or what was detached before.
func (p *process) wait(ctx context.Context, e *entryState) error {
	for began := time.Now(); time.Since(began) < serverPatience; {
		if err := ctx.Err(); err != nil {
			return err
		}
		if left, err := e.pointsLeft(); err == nil && len(left) > 0 {
			return nil
		}
		if time.Since(began) > elsewherePatience {
			if reply, err := e.status(ctx); err == nil && reply.Used {
				return nil
			}
		}
		if p == nil {
			if !e.entry.live() {
				return nil
			}
			time.Sleep(2 * time.Millisecond)
			continue
		}
		fds := []unix.PollFd{{Fd: int32(p.fd), Events: unix.POLLIN}}
		if n, err := unix.Poll(fds, 50); n > 0 && err == nil {
			return nil
		}
	}
	return snapshot.ErrServerStays
}

// served is what a process has of a mount that another one serves for it.
type served struct {
	registry *registry
	key      string
	pid      int
	watching sync.Once
	gone     sync.Once
}

// mountElsewhere has another process that serves the snapshot show it at path too.
// It gives nil where there is none that can.
func (r *Repository) mountElsewhere(ctx context.Context, id manifest.ID, path string, opts *MountOptions) (*Mount, error) {
	points, err := fusefs.Points()
	if err != nil {
		return nil, err
	}
	entries, err := r.registry.scan(id.String()+".", points)
	defer closeAll(entries)
	if err != nil {
		r.repo.Logger.Warn("looking for a server of the snapshot", "err", err)
	}
	for _, e := range entries {
		if !e.live || !e.rec.Share || len(e.points) == 0 || e.rec.Repository.ID != r.repo.Cfg.ID || e.rec.Namespace != mountNamespace() {
			continue
		}
		if err := r.repo.CheckLive(ctx, &e.rec.Snapshot); err != nil {
			return nil, fmt.Errorf("snapshot %v: %w", id, err)
		}
		// Of one that is stopped it is soon known, and one that takes over soon there.
		var reply *pointReply
		err := context.DeadlineExceeded
		if e.ask(ctx) != nil {
			reply, err = e.attach(ctx, path, opts)
		}
		if err != nil {
			r.repo.Logger.Info("the server of the snapshot does not mount it again", "pid", e.rec.Pid, "err", err)
			continue
		}
		m := &Mount{
			Dir: path, Snapshot: e.rec.Snapshot, point: reply.Point, ended: make(chan struct{}),
			elsewhere: &served{registry: r.registry, key: e.key, pid: reply.Pid},
		}
		if there, err := m.there(); err != nil || !there {
			return nil, errors.Join(fmt.Errorf("mounting at %s: process %d says that it has, and has not", path, reply.Pid), err)
		}
		return m, nil
	}
	return nil, nil
}

// there reports whether the mount point is there.
func (m *Mount) there() (bool, error) {
	points, err := fusefs.Points()
	return slices.ContainsFunc(points, func(p fusefs.Point) bool { return p.Dir == m.Dir && p.Device == m.point.Device }), err
}

// watch sees to it that Ended is closed when the mount point is gone.
func (v *served) watch(m *Mount) {
	v.watching.Do(func() {
		if fusefs.Watch(m.ended, func() { v.look(m) }) != nil {
			v.gone.Do(func() { close(m.ended) }) // better than to wait for ever
		}
	})
}

func (v *served) look(m *Mount) {
	if there, err := m.there(); err == nil && !there {
		v.gone.Do(func() { close(m.ended) })
	}
}

func (v *served) unmount(m *Mount, detach bool) error {
	ctx, cancel := context.WithTimeout(context.Background(), 2*serverPatience) // one for locks
	defer cancel()
	err := unmountAt(ctx, filepath.Dir(v.registry.dir), m.Dir, &UnmountOptions{Detach: detach})
	if errors.Is(err, fusefs.ErrNotMounted) { // by somebody else, a moment ago
		err = nil
	}
	v.look(m)
	return err
}

func (v *served) stats() MountStats {
	e, err := v.registry.open(v.key)
	if err != nil {
		return MountStats{}
	}
	defer e.close()
	s, err := e.status(context.Background())
	if err != nil {
		return MountStats{}
	}
	return s.Stats
}

// recordURL is the repository's URL for the registry: one that can be opened, and
// that holds no secret.
func (r *Repository) recordURL() string {
	loc, err := remote.ParseURL(r.repo.URL())
	if err != nil {
		return "" // a store of the caller's
	}
	return loc.String()
}
