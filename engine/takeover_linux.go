package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"

	"github.com/snapctl/snapctl/engine/internal/write"
	"github.com/snapctl/snapctl/engine/snapshot"
	"github.com/snapctl/snapctl/fusefs"
	"github.com/snapctl/snapctl/manifest"
	"golang.org/x/sys/unix"
)

// A Keeper is another process that has what it takes to serve a snapshot on. While
// it lives the mount outlives its server: readers wait, until a process that the
// keeper starts has taken over (Repository.TakeOver).
type Keeper interface {
	// Keep replaces what the keeper has. It has copies of the files then.
	Keep(h *Handover) error
	// Release is called when the server is about to end of its own accord, and
	// returns when the keeper has nothing any more.
	Release()
	// Pid is the keeper's process, 0 if it has died or takes no signal yet.
	Pid() int
	// Alive reports whether the keeper's process is there: one that has just been started
	// already does what it is for.
	Alive() bool
}

// A Handover is what TakeOver needs. It means something only to the program that
// made it.
type Handover struct {
	State []byte
	// Files are the lock of the registry's entry, the manifest, and a /dev/fuse for
	// each file system.
	Files []*os.File
}

// handover is Handover.State. The rest stands in the entry of the registry.
type handover struct {
	Entry   string           `json:"entry"`
	Lease   string           `json:"lease"`
	Systems []handoverSystem `json:"systems"`
}

type handoverSystem struct {
	Device fusefs.Device `json:"device"`
	View   fusefs.View   `json:"view,omitempty"`
	Init   []byte        `json:"init"`
	Answer []byte        `json:"answer"`
}

// maxHandover bounds Handover.Files: the kernel sends no more than 253 at once.
const maxHandover = 120

// KeepWith gives a keeper what another process needs to take over, now and
// whenever it changes. It takes the place of the keeper before, which should have died.
// It fails with fusefs.ErrNoTakeOver where the kernel cannot do that, with ErrServerEnds
// if nothing is left to keep, and with ErrInvalid if this process does not serve the
// mount, or has no registry.
func (m *Mount) KeepWith(k Keeper) error {
	s := m.mountServer
	if s == nil || s.entry == nil {
		return fmt.Errorf("%w: no keeper without a server in this process, and a state folder", snapshot.ErrInvalid)
	}
	s.changes.Lock()
	defer s.changes.Unlock()
	if s.isClosing() {
		return ErrServerEnds
	}
	if s.encoded == nil {
		f, err := memoryFile("manifest", s.lease.Manifest)
		if err != nil {
			return err
		}
		s.encoded = f
	}
	if err := s.handTo(k); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.keeper = k
	return nil
}

// memoryFile is a file that is nowhere but in memory.
func memoryFile(name string, data []byte) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	f := os.NewFile(uintptr(fd), name)
	if _, err := f.Write(data); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// handTo gives a keeper what it needs. The caller has changes.
func (s *mountServer) handTo(k Keeper) error {
	v := handover{Entry: s.entry.key, Lease: s.lease.Name}
	h := &Handover{Files: []*os.File{s.entry.lock, s.encoded}}
	s.mu.Lock()
	systems := slices.Clone(s.systems)
	s.mu.Unlock()
	for _, x := range systems {
		c, err := x.Connection()
		if errors.Is(err, os.ErrClosed) {
			continue // it has ended
		}
		if err != nil {
			return err
		}
		defer c.Device.Close()
		v.Systems = append(v.Systems, handoverSystem{x.device, x.view, c.Init, c.Answer})
		h.Files = append(h.Files, c.Device)
	}
	if len(h.Files) > maxHandover {
		return fmt.Errorf("%d mounts are too many for a keeper", len(v.Systems))
	}
	var err error
	if h.State, err = json.Marshal(&v); err != nil {
		return err
	}
	return k.Keep(h)
}

// handOver tells the keeper what has changed. The caller has changes.
func (s *mountServer) handOver() {
	s.mu.Lock()
	k, closing := s.keeper, s.closing
	s.mu.Unlock()
	if k == nil || closing {
		return
	}
	if err := s.handTo(k); err != nil {
		s.repo.repo.Logger.Warn("keeper of the mount", "err", err)
	}
}

// release tells the keeper that this server ends, and is not to be replaced.
func (s *mountServer) release() {
	s.changes.Lock()
	s.close()
	k, encoded := s.keeper, s.encoded
	s.changes.Unlock()
	if k != nil {
		k.Release()
	}
	if encoded != nil {
		encoded.Close()
	}
}

// TakeOver makes this process the server of what a server has handed to a keeper
// and then died: which is so, as two would take requests from each other. The
// mount goes on with the options that it has; of opts only Fail and Warn count. The
// files of the Handover are the mount's from then on, also if this fails. Nothing
// is read from the repository before a reader asks for it: the snapshot may have
// been removed meanwhile.
func (r *Repository) TakeOver(ctx context.Context, h *Handover, opts *MountOptions) (*Mount, error) {
	var v handover
	err := json.Unmarshal(h.State, &v)
	switch {
	case err != nil:
	case len(v.Systems) == 0 || len(h.Files) != len(v.Systems)+2:
		err = errors.New("not all of it is there")
	case r.registry == nil:
		err = errors.New("no state folder")
	}
	var m *Mount
	if err == nil {
		m, err = r.takeOver(ctx, &v, h.Files, opts)
	}
	if err != nil {
		for _, f := range h.Files {
			f.Close()
		}
		return nil, fmt.Errorf("taking over a mount: %w", err)
	}
	return m, nil
}

func (r *Repository) takeOver(ctx context.Context, v *handover, files []*os.File, given *MountOptions) (_ *Mount, err error) {
	lock, encodedFile, devices := files[0], files[1], files[2:]
	entry, rec, err := r.registry.inherit(v.Entry, lock)
	if err != nil {
		return nil, fmt.Errorf("state folder: %w", err)
	}
	defer func() {
		if err != nil {
			entry.close()
		}
	}()
	encoded, err := io.ReadAll(io.NewSectionReader(encodedFile, 0, 1<<40))
	if err != nil {
		return nil, err
	}
	man, err := manifest.Decode(r.repo.Codec, encoded)
	if err == nil && (man.ID != rec.Snapshot.ID || rec.Repository.ID != r.repo.Cfg.ID) {
		err = errors.New("it is that of something else")
	}
	if err != nil {
		return nil, fmt.Errorf("manifest: %w", err)
	}
	opts := *given
	opts.AllowOther, opts.Memory, opts.Share = rec.Options.AllowOther, rec.Options.Memory, rec.Share
	if opts.Prefetch, err = ParsePrefetch(rec.Options.Prefetch); err != nil {
		return nil, err
	}
	s, err := r.newMountServer(ctx, man, &opts)
	if err != nil {
		return nil, err
	}
	s.entry, s.record, s.encoded = entry, rec, encodedFile
	s.changes.Lock()
	defer s.changes.Unlock()
	for _, p := range rec.Points {
		m := s.add(string(p.Dir), p.Device, &opts)
		m.point.Since = p.Since
	}
	systems, err := s.takeSystems(v.Systems, devices, &opts)
	if err != nil {
		s.stop()
		s.ahead.abandon()
		return nil, err
	}
	s.lease = write.HoldLeaseAs(r.repo, v.Lease, encoded, opts.warn)
	for i, fs := range systems {
		fs.Start()
		s.addSystem(fs, v.Systems[i].Device, v.Systems[i].View)
	}
	// Readers go on from here, whatever becomes of the rest.
	rec.Pid = os.Getpid()
	rec.Restarts++
	werr := entry.write(rec)
	if rerr := os.Remove(entry.path(socketName)); rerr != nil && !errors.Is(rerr, fs.ErrNotExist) {
		werr = errors.Join(werr, rerr)
	}
	werr = errors.Join(werr, s.listen(entry), fusefs.Watch(s.unwatch, s.check))
	if werr != nil {
		opts.warn(fmt.Errorf("registry of mounts: %w", werr))
	}
	r.servers.put(s.snapshot.ID, s)
	s.ahead.start()
	return s.mounts[0], nil
}

// takeSystems makes servers of all file systems, or of none. They do not serve yet.
func (s *mountServer) takeSystems(systems []handoverSystem, devices []*os.File, opts *MountOptions) ([]*fusefs.Server, error) {
	var all []*fusefs.Server
	for i, x := range systems {
		c := &fusefs.Connection{Device: devices[i], Init: x.Init, Answer: x.Answer}
		fs, err := fusefs.TakeOver(c, string(s.dirOf(x.Device)), s.manifest, s.tree, s.chunks, &fusefs.Options{AllowOther: opts.AllowOther, View: x.View, Fail: s.fail})
		if err != nil {
			for _, fs := range all {
				fs.Discard()
			}
			return nil, err
		}
		all = append(all, fs)
	}
	return all, nil
}

// dirOf is a mount point of a file system, if it is known.
func (s *mountServer) dirOf(d fusefs.Device) rawPath {
	for _, p := range s.record.Points {
		if p.Device == d {
			return p.Dir
		}
	}
	return ""
}

// inherit opens an entry whose lock this process has from its server.
func (g *registry) inherit(key string, lock *os.File) (*entry, *record, error) {
	e, err := g.open(key)
	if err != nil {
		return nil, nil, err
	}
	there, err := os.Stat(e.path(lockName))
	var ours os.FileInfo
	if err == nil {
		ours, err = lock.Stat()
	}
	if err == nil && !os.SameFile(there, ours) {
		err = errors.New("the lock is another's")
	}
	var rec *record
	if err == nil {
		rec, err = e.read()
	}
	if err != nil {
		e.close()
		return nil, nil, err
	}
	e.lock = lock
	return e, rec, nil
}
