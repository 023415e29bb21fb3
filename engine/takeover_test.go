//go:build linux

package engine

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/snapctl/snapctl/engine/internal/repo"
	"github.com/snapctl/snapctl/fusefs"
	"github.com/snapctl/snapctl/remote"
	"github.com/snapctl/snapctl/remote/remotetest"
	"golang.org/x/sys/unix"
)

// A testKeeper has what it is given, and starts nobody. It takes it when it may.
type testKeeper struct {
	asked chan struct{} // of each that it is to take; nil for nobody who wants to know
	may   chan struct{} // closed, or nil: at once

	mu   sync.Mutex
	last Handover
}

func (k *testKeeper) Keep(h *Handover) error {
	if k.asked != nil {
		k.asked <- struct{}{}
	}
	if k.may != nil {
		<-k.may
	}
	k.Release()
	k.mu.Lock()
	defer k.mu.Unlock()
	k.last = Handover{State: bytes.Clone(h.State), Files: copies(h.Files)}
	return nil
}

func (k *testKeeper) Release() {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, f := range k.last.Files {
		f.Close()
	}
	k.last = Handover{}
}

func (k *testKeeper) Pid() int    { return os.Getpid() }
func (k *testKeeper) Alive() bool { return true }

// give gives a copy of what the keeper has, as it does to who takes over, and its state.
func (k *testKeeper) give(t *testing.T) (*Handover, *handover) {
	t.Helper()
	k.mu.Lock()
	defer k.mu.Unlock()
	v := &handover{}
	must(t, json.Unmarshal(k.last.State, v))
	return &Handover{Files: copies(k.last.Files)}, v
}

func copies(files []*os.File) (all []*os.File) {
	for _, f := range files {
		fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 3)
		if err != nil {
			panic(err)
		}
		all = append(all, os.NewFile(uintptr(fd), f.Name()))
	}
	return all
}

// keepWith gives a mount a keeper, or skips the test.
func keepWith(t *testing.T, m *Mount, k Keeper) {
	t.Helper()
	err := m.KeepWith(k)
	if errors.Is(err, fusefs.ErrNoTakeOver) {
		t.Skip(err)
	}
	must(t, err)
}

// TestBusyServer: a server that waits for another process says how it is all the same,
// and is not taken for one that is gone: who mounts the snapshot again waits for it.
func TestBusyServer(t *testing.T) {
	s := newShared(t)
	a := mountAt(t, s.open(), s.id, s.path("a"), &MountOptions{Share: true})
	first := &testKeeper{}
	keepWith(t, a, first)
	defer first.Release()
	slow := &testKeeper{asked: make(chan struct{}, 1), may: make(chan struct{})}
	kept := make(chan error, 1)
	go func() { kept <- a.KeepWith(slow) }()
	<-slow.asked
	stop := time.AfterFunc(tooLong, func() { close(slow.may) }) // not to wait for ever for the other
	s.states("asked", map[string]MountState{"a": MountServing})
	if x := a.Stats(); x.Errors != 0 { // which it tells without a request too
		t.Errorf("%+v", x)
	}
	second := make(chan *Mount, 1)
	s.job("b")
	go func() {
		m, err := s.open().Mount(t.Context(), s.id.String(), s.path("b"), nil)
		if err != nil {
			t.Error(err)
		}
		second <- m
	}()
	if stop.Stop() {
		close(slow.may)
	}
	must(t, <-kept)
	if m := <-second; m != nil {
		if infoOf(t, m.Dir).Minor != infoOf(t, a.Dir).Minor {
			t.Error("another server")
		}
		must(t, m.Unmount(false))
	}
}

// TestAttachLate: who has given up on a server does not get its mount point later, when
// perhaps another server has mounted there.
func TestAttachLate(t *testing.T) {
	s := newShared(t)
	m := mountAt(t, s.open(), s.id, s.path("a"), nil)
	s.job("b")
	ctx, cancel := context.WithCancel(t.Context())
	m.changes.Lock()
	waits := make(chan error, 1)
	go func() {
		_, err := m.attach(ctx, s.path("b"), &MountOptions{})
		waits <- err
	}()
	cancel()
	m.changes.Unlock()
	if err := <-waits; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if source, err := fusefs.Mounted(s.path("b")); source != "" || err != nil {
		t.Errorf("%q is mounted, %v", source, err)
	}
}

// openFiles counts the descriptors of this process whose link says so.
func openFiles(t *testing.T, says func(link string) bool) (n int) {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	for _, fd := range fds {
		if link, err := os.Readlink("/proc/self/fd/" + fd.Name()); err == nil && says(link) {
			n++
		}
	}
	return n
}

// mountKept mounts a snapshot of a bucket with a keeper. next is the repository as another
// process would have it that is to take over.
func mountKept(t *testing.T) (w *wobbly, content map[string][]byte, k *testKeeper, next *Repository) {
	t.Helper()
	w = newWobbly(t)
	id, content := w.snapshot()
	open := func() *Repository {
		o := w.options()
		o.StateDir = w.path("state")
		return w.openWith(o)
	}
	m := mountAt(t, open(), id, w.path("mnt"), &MountOptions{Prefetch: PrefetchHot})
	k = &testKeeper{}
	keepWith(t, m, k)
	return w, content, k, open()
}

// takeOverWith has next try to take over what a keeper has, after a change to it.
func takeOverWith(t *testing.T, next *Repository, k *testKeeper, change func(v *handover, files []*os.File) []*os.File) error {
	t.Helper()
	h, v := k.give(t)
	h.Files = change(v, h.Files)
	b, err := json.Marshal(v)
	must(t, err)
	h.State = b
	_, err = next.TakeOver(t.Context(), h, &MountOptions{})
	return err
}

// anotherAnswer changes what was said to the kernel about the last file system.
func anotherAnswer(v *handover, files []*os.File) []*os.File {
	v.Systems[len(v.Systems)-1].Answer = []byte("another")
	return files
}

// TestTakeOverFails: a server that cannot take over leaves nothing behind in its process,
// whatever it is that fails, and the next may try.
func TestTakeOverFails(t *testing.T) {
	w, content, k, next := mountKept(t)
	ours := func(link string) bool { // what a takeover has open, and nothing else of this process
		return link == "/dev/fuse" || link == "/memfd:manifest (deleted)" || strings.HasPrefix(link, w.path("state"))
	}
	before := openFiles(t, ours)
	for what, change := range map[string]func(v *handover, files []*os.File) []*os.File{
		"another lock": func(_ *handover, files []*os.File) []*os.File {
			files[0].Close()
			files[0] = copies(files[1:2])[0]
			return files
		},
		"no manifest": func(_ *handover, files []*os.File) []*os.File {
			files[1].Close()
			files[1] = copies(files[:1])[0]
			return files
		},
		"another answer": anotherAnswer,
		"the second of two": func(v *handover, files []*os.File) []*os.File {
			v.Systems = append(v.Systems, v.Systems[0])
			return anotherAnswer(v, append(files, copies(files[2:])...))
		},
	} {
		if err := takeOverWith(t, next, k, change); err == nil {
			t.Fatalf("%s: it took over", what)
		}
		if n := openFiles(t, ours); n != before {
			t.Errorf("%s: %d descriptors are open, and before it were %d", what, n, before)
		}
	}
	for name, data := range content { // of the server that lives
		sameFile(t, w.path("mnt", name), data)
	}
}

// TestTakeOverFailsPrefetch: when a takeover has failed nothing is fetched for it any more.
func TestTakeOverFailsPrefetch(t *testing.T) {
	w, _, k, next := mountKept(t)
	var seen, late, left atomic.Int64
	eventually(t, "something is fetched", func() bool {
		returned := make(chan struct{})
		w.fail(func(op remote.Op, name string) remotetest.Fault {
			if op == remote.OpList && strings.HasPrefix(name, repo.ProfilePrefix) {
				seen.Add(1)
				defer left.Add(1)
				select {
				case <-returned:
					late.Add(1)
				case <-time.After(100 * time.Millisecond): // it is waited for
				}
			}
			return remotetest.Fault{}
		})
		if err := takeOverWith(t, next, k, anotherAnswer); err == nil {
			t.Fatal("it took over")
		}
		close(returned)
		return seen.Load() > 0
	})
	w.heal()
	eventually(t, "all of them have ended", func() bool { return left.Load() == seen.Load() })
	if n := late.Load(); n > 0 {
		t.Errorf("%d requests were under way when the takeover had failed", n)
	}
}
