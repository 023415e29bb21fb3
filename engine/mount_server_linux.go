package engine

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/snapctl/snapctl/engine/internal/local"
	"github.com/snapctl/snapctl/engine/internal/read"
	"github.com/snapctl/snapctl/engine/internal/repo"
	"github.com/snapctl/snapctl/engine/internal/write"
	"github.com/snapctl/snapctl/engine/snapshot"
	"github.com/snapctl/snapctl/fusefs"
	"github.com/snapctl/snapctl/manifest"
)

var _ fusefs.Source = (*read.Chunks)(nil)

// A mountServer serves one snapshot from this process, at one mount point or
// several: one tree, one set of decoded frames, one lease, one entry in the
// registry. As root its mount points are one file system of the kernel's, with one
// page cache, and likewise those that forks lie over, by their View; fusermount3 cannot
// do that, so for others each is one of its own.
//
// It ends with the last mount point, whoever unmounts it, and however it came to
// be: a bind mount that somebody else made counts too.
type mountServer struct {
	repo     *Repository
	manifest *manifest.Manifest
	snapshot snapshot.Snapshot
	tree     *manifest.Tree
	chunks   *read.Chunks
	ahead    *prefetcher // nil for none
	stop     context.CancelFunc
	share    bool
	tellers  atomic.Pointer[[]func(op, path string, err error)]

	// changes is held by who changes where the snapshot is mounted, and tells the registry
	// and the keeper: it may wait for mount(2), fusermount3, a disk and another process.
	// Who has it may take mu, and not the other way round.
	changes sync.Mutex
	entry   *entry   // nil without a registry
	record  *record  // nil without a registry
	encoded *os.File // the manifest, for the keeper

	// mu is held for moments: nobody waits for anything while they have it.
	mu       sync.Mutex
	systems  []*fileSystem
	mounts   []*Mount // that have not ended
	closing  bool     // the last file system has ended
	detached bool     // a mount point may be gone and still be in use
	keeper   Keeper   // nil for none

	lease    *write.Lease
	control  *http.Server // nil without a registry
	unwatch  chan struct{}
	finish   sync.Once
	finished chan struct{}
}

// A fileSystem is one as the kernel counts them.
type fileSystem struct {
	*fusefs.Server
	device fusefs.Device
	view   fusefs.View
	ended  bool
}

// serve makes this process the server of a snapshot, and mounts it at path.
func (r *Repository) serve(ctx context.Context, id manifest.ID, path string, opts *MountOptions) (*Mount, error) {
	man, encoded, err := r.repo.EncodedManifest(ctx, id)
	if err == nil {
		err = r.repo.CheckLive(ctx, repo.SnapshotOf(&man.Info))
	}
	if err != nil {
		return nil, fmt.Errorf("snapshot %v: %w", id, err)
	}
	s, err := r.newMountServer(ctx, man, opts)
	if err != nil {
		return nil, fmt.Errorf("snapshot %v: %w", id, repo.Integrity(err))
	}
	m, err := s.begin(path, encoded, opts)
	if err != nil {
		s.end()
		return nil, err
	}
	return m, nil
}

// newMountServer makes a server that is mounted nowhere yet.
func (r *Repository) newMountServer(ctx context.Context, man *manifest.Manifest, opts *MountOptions) (*mountServer, error) {
	// Not the caller's context: the mount outlives the call.
	serving, stop := context.WithCancel(context.WithoutCancel(ctx))
	s := &mountServer{
		repo: r, manifest: man, snapshot: *repo.SnapshotOf(&man.Info), share: opts.Share, stop: stop,
		ahead: r.newPrefetcher(serving, man, opts.Prefetch), unwatch: make(chan struct{}), finished: make(chan struct{}),
	}
	memory := opts.Memory
	if memory <= 0 {
		memory = local.ShareOf(defaultMemory, 1<<20)
	}
	s.chunks = read.New(serving, r.repo, r.repo.PackStore(), memory)
	var pages manifest.PageSource = r.repo
	if p := s.ahead; p != nil {
		p.chunks = s.chunks
		s.chunks.Store, s.chunks.Hot, s.chunks.Rec = p.store, p.hot, &p.rec
		pages = mountPages{p}
	}
	var err error
	if s.tree, err = man.Tree(pages); err != nil {
		stop()
		return nil, err
	}
	s.ahead.begin(s.tree)
	return s, nil
}

// begin makes the first mount point, and what there is one of for all of them.
func (s *mountServer) begin(path string, encoded []byte, opts *MountOptions) (*Mount, error) {
	s.changes.Lock()
	defer s.changes.Unlock()
	m, err := s.mount(path, opts)
	if err != nil {
		s.close()
		return nil, fmt.Errorf("snapshot %v: %w", s.snapshot.ID, err)
	}
	s.lease = write.HoldLease(s.repo.repo, s.snapshot.ID, encoded, opts.warn)
	err = s.register(opts)
	if err == nil {
		err = fusefs.Watch(s.unwatch, s.check)
	}
	if err != nil {
		s.close()
		return nil, errors.Join(fmt.Errorf("registering the mount: %w", err), fusefs.Unmount(path, true))
	}
	s.repo.servers.put(s.snapshot.ID, s)
	s.ahead.start()
	return m, nil
}

// close says that the server takes no mount point any more. The caller has changes, so
// that none is on its way.
func (s *mountServer) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closing = true
}

// isClosing reports whether the server is about to end.
func (s *mountServer) isClosing() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.closing
}

// mount mounts a file system of its own. The caller has changes.
func (s *mountServer) mount(path string, opts *MountOptions) (*Mount, error) {
	view := viewAt(s.repo.stateDir(), path)
	fs, err := fusefs.Mount(path, s.manifest, s.tree, s.chunks, &fusefs.Options{AllowOther: opts.AllowOther, View: view, Fail: s.fail})
	if err != nil {
		return nil, err
	}
	var device fusefs.Device
	points, err := fusefs.Points()
	for _, p := range points {
		if p.Dir == path && p.Source == fusefs.SourceOf(s.snapshot.ID) && !p.Covered {
			device = p.Device
		}
	}
	s.addSystem(fs, device, view)
	if err != nil {
		return nil, errors.Join(err, fs.Unmount(true))
	}
	return s.add(path, device, opts), nil
}

// addSystem has the end of a file system noticed.
func (s *mountServer) addSystem(fs *fusefs.Server, device fusefs.Device, view fusefs.View) {
	x := &fileSystem{Server: fs, device: device, view: view}
	s.mu.Lock()
	s.systems = append(s.systems, x)
	s.mu.Unlock()
	go func() {
		fs.Wait()
		s.systemEnded(x)
	}()
}

// add makes the handle of a mount point.
func (s *mountServer) add(path string, device fusefs.Device, opts *MountOptions) *Mount {
	m := &Mount{
		Dir: path, Snapshot: s.snapshot, mountServer: s,
		point: recordPoint{Dir: rawPath(path), Device: device, Since: s.repo.repo.Now().UTC()},
		fail:  opts.Fail, ended: make(chan struct{}),
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mounts = append(s.mounts, m)
	s.setTellers()
	return m
}

// setTellers remembers who wants to know of requests that failed. The caller has
// mu, for which a request does not wait.
func (s *mountServer) setTellers() {
	var all []func(op, path string, err error)
	for _, m := range s.mounts {
		if m.fail != nil {
			all = append(all, m.fail)
		}
	}
	s.tellers.Store(&all)
}

// fail tells whoever wants to know of a request that failed.
func (s *mountServer) fail(op, path string, err error) {
	if all := s.tellers.Load(); all != nil {
		for _, tell := range *all {
			tell(op, path, err)
		}
	}
}

// attach shows the snapshot at a further mount point. It begins before the context ends,
// or not at all: who has asked may have turned to another server since.
func (s *mountServer) attach(ctx context.Context, path string, opts *MountOptions) (*Mount, error) {
	if err := s.repo.repo.CheckLive(ctx, &s.snapshot); err != nil {
		return nil, fmt.Errorf("snapshot %v: %w", s.snapshot.ID, err)
	}
	s.changes.Lock()
	defer s.changes.Unlock()
	if s.isClosing() {
		return nil, ErrServerEnds
	}
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("snapshot %v: %w", s.snapshot.ID, err)
	}
	m := s.bind(path, opts)
	if m == nil {
		var err error
		if m, err = s.mount(path, opts); err != nil {
			return nil, fmt.Errorf("snapshot %v: %w", s.snapshot.ID, err)
		}
		s.handOver()
	}
	if err := s.writeRecord(); err != nil {
		return nil, errors.Join(fmt.Errorf("registering the mount: %w", err), fusefs.Unmount(path, true))
	}
	return m, nil
}

// bind shows what is mounted already at path too; nil where that cannot be. The caller
// has changes.
func (s *mountServer) bind(path string, opts *MountOptions) *Mount {
	if os.Geteuid() != 0 {
		return nil
	}
	view := viewAt(s.repo.stateDir(), path)
	for _, p := range s.points() {
		if !p.Whole || p.Covered || !s.looks(p.Device, view) {
			continue
		}
		err := fusefs.Bind(p.Dir, p.Device, path)
		if err == nil && !s.has(p.Device) { // it ended meanwhile, and the number is another's
			if err := fusefs.Unmount(path, true); err != nil {
				s.repo.repo.Logger.Warn("sharing a mount", "err", err)
			}
			return nil
		}
		if err == nil {
			return s.add(path, p.Device, opts)
		}
		s.repo.repo.Logger.Info("sharing a mount", "err", err)
	}
	return nil
}

// points is where the server's file systems are mounted.
func (s *mountServer) points() []fusefs.Point {
	all, err := fusefs.Points()
	if err != nil {
		s.repo.repo.Logger.Warn("mounts", "err", err)
		return nil
	}
	source := fusefs.SourceOf(s.snapshot.ID)
	return slices.DeleteFunc(all, func(p fusefs.Point) bool { return p.Source != source || !s.has(p.Device) })
}

// has reports whether a device number that was just seen is that of one of the server's
// file systems. It is another's soon after the kernel has freed it, which may be
// before we hear of the end.
func (s *mountServer) has(d fusefs.Device) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.ContainsFunc(s.systems, func(x *fileSystem) bool { return !x.ended && x.device == d && x.Connected() })
}

// looks reports whether a file system of the server's shows the snapshot as a view does.
func (s *mountServer) looks(d fusefs.Device, view fusefs.View) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.ContainsFunc(s.systems, func(x *fileSystem) bool { return !x.ended && x.device == d && x.view == view })
}

// register writes an entry in the registry.
func (s *mountServer) register(opts *MountOptions) (err error) {
	g := s.repo.registry
	if g == nil {
		return nil
	}
	s.record = &record{
		Version:    recordVersion,
		Repository: recordRepository{URL: s.repo.recordURL(), ID: s.repo.repo.Cfg.ID},
		Snapshot:   s.snapshot,
		Options:    recordOptions{AllowOther: opts.AllowOther, Memory: opts.Memory, Prefetch: opts.Prefetch.String()},
		Since:      s.mounts[0].point.Since,
		Pid:        os.Getpid(),
		Share:      s.share,
		Boot:       bootID(),
		Namespace:  mountNamespace(),
		Points:     []recordPoint{s.mounts[0].point},
	}
	s.entry, err = g.make(s.record, s.listen)
	return err
}

// writeRecord writes where the server's mount points are. When there is none, it
// keeps where the last was. The caller has changes.
func (s *mountServer) writeRecord() error {
	var points []recordPoint
	s.mu.Lock()
	for _, m := range s.mounts {
		points = append(points, m.point)
	}
	s.mu.Unlock()
	if s.entry == nil || len(points) == 0 || slices.Equal(points, s.record.Points) {
		return nil
	}
	s.record.Points = points
	return s.entry.write(s.record)
}

// check looks which mount points are gone. The last stays until the server has
// ended, which the kernel tells when nobody uses it any more.
func (s *mountServer) check() {
	s.changes.Lock()
	defer s.changes.Unlock()
	points := s.points()
	if s.isClosing() || len(points) == 0 {
		return
	}
	s.drop(points)
	if err := s.writeRecord(); err != nil {
		s.repo.repo.Logger.Warn("registry of mounts", "err", err)
	}
}

// checkFor is check for who waits no longer than that: it goes on by itself.
func (s *mountServer) checkFor(patience time.Duration) {
	done := make(chan struct{})
	go func() {
		s.check()
		close(done)
	}()
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case <-done:
	case <-timer.C:
	}
}

// drop ends the mount points that are not among those that there are.
func (s *mountServer) drop(points []fusefs.Point) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mounts = slices.DeleteFunc(s.mounts, func(m *Mount) bool {
		there := slices.ContainsFunc(points, func(p fusefs.Point) bool { return p.Dir == m.Dir && p.Device == m.point.Device })
		if !there {
			close(m.ended)
		}
		return !there
	})
	s.setTellers()
}

// systemEnded is told that nobody uses a file system any more.
func (s *mountServer) systemEnded(x *fileSystem) {
	s.check()
	s.changes.Lock()
	defer s.changes.Unlock()
	s.mu.Lock()
	x.ended = true
	s.closing = s.closing || !slices.ContainsFunc(s.systems, func(x *fileSystem) bool { return !x.ended })
	closing := s.closing
	s.mu.Unlock()
	if closing {
		go s.end()
	} else {
		s.handOver()
	}
}

// end frees what the server has, once. Readers of what is still in use get
// errors from then on.
func (s *mountServer) end() {
	s.finish.Do(func() {
		s.release()
		s.stop()
		if s.control != nil {
			s.control.Close()
		}
		close(s.unwatch)
		s.ahead.close()
		if s.lease != nil {
			s.lease.Release()
		}
		if s.entry != nil {
			s.entry.remove()
			s.entry.close()
		}
		s.repo.servers.remove(s.snapshot.ID, s)
		s.mu.Lock()
		defer s.mu.Unlock()
		s.closing = true
		close(s.finished)
		for _, m := range s.mounts {
			close(m.ended)
		}
		s.mounts = nil
	})
}

// status tells how the server is.
func (s *mountServer) status() statusReply {
	r := statusReply{Pid: os.Getpid(), Stats: s.stats()}
	if s.record != nil {
		r.Restarts = s.record.Restarts // which stays what it is as long as we serve
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.keeper != nil {
		r.Keeper, r.Kept = s.keeper.Pid(), s.keeper.Alive()
	}
	r.Used = slices.ContainsFunc(s.systems, func(x *fileSystem) bool { return !x.ended && x.Connected() })
	return r
}

// stats tells what the server did so far.
func (s *mountServer) stats() MountStats {
	x := MountStats{Decoded: s.chunks.Decoded.Load(), Requests: s.repo.Requests()}
	s.mu.Lock()
	for _, fs := range s.systems {
		x.Errors += fs.Errors()
	}
	s.mu.Unlock()
	s.ahead.stats(&x)
	return x
}

// unmountPatience is how long Unmount waits for the end of a server. It ends at
// once unless somebody keeps using what was detached before.
const unmountPatience = 10 * time.Second

// unmount unmounts one mount point.
func (s *mountServer) unmount(m *Mount, detach bool) error {
	err := fusefs.Unmount(m.Dir, detach)
	if err != nil && !errors.Is(err, fusefs.ErrNotMounted) { // by somebody else, a moment ago
		return err
	}
	s.mu.Lock()
	s.detached = s.detached || detach
	wait := !s.detached
	s.mu.Unlock()
	s.check()
	if wait {
		timer := time.NewTimer(unmountPatience)
		defer timer.Stop()
		select {
		case <-m.ended:
		case <-timer.C:
		}
	}
	return nil
}

// shutdown unmounts all, and ends the server whether or not somebody uses it.
func (s *mountServer) shutdown() (inUse []string, err error) {
	var errs []error
	for {
		s.changes.Lock()
		points := s.points()
		if len(points) == 0 || len(errs) > 0 {
			s.close() // so that nobody attaches from here on
			s.changes.Unlock()
			break
		}
		s.changes.Unlock()
		for _, p := range slices.Backward(points) {
			err := fusefs.Unmount(p.Dir, false)
			if errors.Is(err, fusefs.ErrBusy) {
				inUse = append(inUse, p.Dir)
				err = fusefs.Unmount(p.Dir, true)
			}
			if err != nil && !errors.Is(err, fusefs.ErrNotMounted) {
				errs = append(errs, err)
			}
		}
	}
	s.end() // and not only when the kernel says so, which waits for those who use it
	return inUse, errors.Join(errs...)
}
