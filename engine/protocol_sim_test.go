//go:build linux

package engine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"runtime/metrics"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/snapctl/snapctl/remote"
	"golang.org/x/sys/unix"
)

// A sim is an object store that does nothing by itself. Every operation of every
// actor waits until the test lets it be done, answers it without doing it, or does
// it later, when nobody waits for it any more. Its clock stands still until the test
// moves it. So a test decides what happens, in which order, and with the same
// decisions it happens again.
type sim struct {
	t testing.TB

	mu      sync.Mutex
	objects map[string]simObject
	clock   time.Time // of the store
	waiting []*simCall
	late    []*simCall     // answered, not done yet
	born    map[string]int // names, in the order in which they were first used
	said    sync.Map       // the sizes of packs that a hastyStore put, or did not, by name
	changes int            // deletes of what was there, and new manifests

	quiet   []metrics.Sample
	threads map[string]int // their stat files, open
	away    uint64         // goroutines in system calls that have nothing to do with the test
}

type simObject struct {
	data []byte
	time time.Time
}

// A simActor is a process that uses the store.
type simActor struct {
	name string
	free bool // its operations do not wait
	dead bool // it was killed: nothing that it does reaches the store
}

// A simCall is an operation that an actor waits for.
type simCall struct {
	actor  *simActor
	op     remote.Op
	name   string
	size   int
	nth    int // of all calls
	sent   time.Time
	do     func() error // at the store
	answer chan error
}

var (
	// errLost: the request, or its answer, was lost; the client tries again.
	errLost = &remote.TransientError{Err: errors.New("lost on the way")}
	// errRefused: the store does not do this one.
	errRefused = errors.New("refused by the store")
	errKilled  = errors.New("the process was killed")
)

func newSim(t testing.TB, now time.Time) *sim {
	s := &sim{
		t: t, objects: map[string]simObject{}, born: map[string]int{}, threads: map[string]int{},
		clock: now,
		quiet: []metrics.Sample{
			{Name: "/sched/goroutines/running:goroutines"},
			{Name: "/sched/goroutines/runnable:goroutines"},
			{Name: "/sched/goroutines/not-in-go:goroutines"},
		},
	}
	// What others left in system calls stays there.
	metrics.Read(s.quiet)
	s.away = s.quiet[2].Value.Uint64()
	return s
}

// settle waits until every goroutine of every actor waits: for an answer, or for
// another goroutine. The runtime counts those that run, can run, or are in a system
// call, but not one that changes from one to another at this moment. So the threads
// must sleep too, as the kernel sees them.
func (s *sim) settle() {
	nap := unix.NsecToTimespec(10_000)
	for tries := 1; !s.resting() || !s.asleep() || !s.resting(); tries++ {
		// Whoever runs may need this processor.
		if runtime.Gosched(); tries%4 == 0 {
			_ = unix.Nanosleep(&nap, nil)
		}
		if tries == 1_000_000 {
			buf := make([]byte, 1<<20)
			s.t.Fatalf("it does not come to rest\n%s", buf[:runtime.Stack(buf, true)])
		}
	}
}

// resting reports whether no goroutine but this one is seen to do anything.
func (s *sim) resting() bool {
	metrics.Read(s.quiet)
	return s.quiet[0].Value.Uint64() == 1 && s.quiet[1].Value.Uint64() == 0 && s.quiet[2].Value.Uint64() <= s.away
}

// asleep reports whether all other threads of the process sleep.
func (s *sim) asleep() bool {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	self := fmt.Sprint(unix.Gettid())
	tasks, err := os.ReadDir("/proc/self/task")
	must(s.t, err)
	buf := make([]byte, 64)
	for _, task := range tasks {
		tid := task.Name()
		if tid == self {
			continue
		}
		fd, ok := s.threads[tid]
		if !ok {
			if fd, err = unix.Open("/proc/self/task/"+tid+"/stat", unix.O_RDONLY|unix.O_CLOEXEC, 0); err != nil {
				return false // it has just ended
			}
			s.threads[tid] = fd
		}
		n, err := unix.Pread(fd, buf, 0)
		if err != nil {
			unix.Close(fd)
			delete(s.threads, tid)
			return false
		}
		// "tid (name) state ...", and names of ours have no parentheses.
		if _, state, ok := bytes.Cut(buf[:n], []byte(") ")); !ok || state[0] != 'S' {
			return false
		}
	}
	return true
}

// close gives back what asleep opened.
func (s *sim) close() {
	for _, fd := range s.threads {
		unix.Close(fd)
	}
}

// simKind orders names whose bytes are random: by what they are.
func simKind(name string) string {
	kind, _, _ := strings.Cut(name, "/")
	return kind
}

// calls gives what waits, in an order that does not depend on how goroutines were
// scheduled.
func (s *sim) calls(of *simActor) []*simCall {
	s.settle()
	s.mu.Lock()
	defer s.mu.Unlock()
	slices.SortFunc(s.waiting, func(a, b *simCall) int {
		if c := strings.Compare(a.actor.name, b.actor.name); c != 0 {
			return c
		}
		if c := strings.Compare(simKind(a.name), simKind(b.name)); c != 0 {
			return c
		}
		for _, d := range []int{int(a.op - b.op), s.ordinal(a.name) - s.ordinal(b.name), a.size - b.size} {
			if d != 0 {
				return d
			}
		}
		return a.nth - b.nth
	})
	var mine []*simCall
	for _, c := range s.waiting {
		if of == nil || c.actor == of {
			mine = append(mine, c)
		}
	}
	return mine
}

// ordinal is when an object was made; what does not exist comes last.
func (s *sim) ordinal(name string) int {
	if n, ok := s.born[name]; ok {
		return n
	}
	return len(s.born)
}

// A fate is what becomes of a call.
type fate int

const (
	fateDone    fate = iota
	fateLost         // not done, and the client tries again
	fateUnheard      // done, and the client does not learn it, and tries again
	fateRefused      // not done, and the client gives up
	fateLate         // the client tries again, and then it is done after all
)

// decide ends a call.
func (s *sim) decide(c *simCall, f fate) {
	s.mu.Lock()
	s.waiting = slices.DeleteFunc(s.waiting, func(w *simCall) bool { return w == c })
	s.mu.Unlock()
	var err error
	switch f {
	case fateDone:
		err = c.do()
	case fateLost:
		err = errLost
	case fateUnheard:
		_ = c.do()
		err = errLost
	case fateRefused:
		err = errRefused
	case fateLate:
		s.late = append(s.late, c)
		err = errLost
	}
	c.answer <- err
}

// changes reports whether an operation is one that may come late.
func (c *simCall) changes() bool {
	return c.op == remote.OpPut || c.op == remote.OpDelete || c.op == remote.OpReplace
}

// arrive does what comes late.
func (s *sim) arrive(c *simCall) {
	s.late = slices.DeleteFunc(s.late, func(l *simCall) bool { return l == c })
	_ = c.do()
}

// kill ends an actor. What it waits for is done, or not, or comes late.
func (s *sim) kill(a *simActor, fates func() fate) {
	waiting := s.calls(a)
	s.mu.Lock()
	a.dead = true
	s.mu.Unlock()
	for _, c := range waiting {
		f := fates()
		if f == fateLate && !c.changes() {
			f = fateLost
		}
		s.mu.Lock()
		s.waiting = slices.DeleteFunc(s.waiting, func(w *simCall) bool { return w == c })
		s.mu.Unlock()
		switch f {
		case fateDone, fateUnheard:
			_ = c.do()
		case fateLate:
			s.late = append(s.late, c)
		}
		c.answer <- errKilled
	}
}

// now is the time by the store's clock.
func (s *sim) now() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.clock
}

// advance moves the clock. No request is on its way for longer than patience.
func (s *sim) advance(d, patience time.Duration) {
	now := s.now().Add(d)
	for _, c := range slices.Clone(s.late) {
		if now.Sub(c.sent) > patience {
			s.arrive(c)
		}
	}
	s.mu.Lock()
	s.clock = now
	s.mu.Unlock()
}

// names gives the objects under a prefix.
func (s *sim) names(prefix string) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []string
	for name := range s.objects {
		if strings.HasPrefix(name, prefix) {
			all = append(all, name)
		}
	}
	slices.Sort(all)
	return all
}

func (s *sim) has(name string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, ok := s.objects[name]
	return ok
}

// simStore is the store as an actor sees it.
type simStore struct {
	sim   *sim
	actor *simActor
}

var (
	_ remote.Store    = simStore{}
	_ remote.Replacer = simStore{}
	_ remote.Resumer  = simStore{}
)

// call has do done when the test wants it. Deadlines of contexts are not kept: the
// machine's clock has nothing to do with that of the test.
func (s simStore) call(op remote.Op, name string, size int, do func() error) error {
	if s.actor.free {
		return do()
	}
	c := &simCall{actor: s.actor, op: op, name: name, size: size, do: do, answer: make(chan error, 1)}
	s.sim.mu.Lock()
	if s.actor.dead {
		s.sim.mu.Unlock()
		return errKilled
	}
	c.nth, c.sent = len(s.sim.born)+len(s.sim.waiting), s.sim.clock
	s.sim.waiting = append(s.sim.waiting, c)
	s.sim.mu.Unlock()
	return <-c.answer
}

func (s simStore) Put(ctx context.Context, name string, data []byte) error {
	return s.put(ctx, remote.OpPut, name, data)
}

func (s simStore) Replace(ctx context.Context, name string, data []byte) error {
	return s.put(ctx, remote.OpReplace, name, data)
}

func (s simStore) put(ctx context.Context, op remote.Op, name string, data []byte) error {
	if err := ctx.Err(); errors.Is(err, context.Canceled) {
		return err
	}
	data = bytes.Clone(data) // it may come late
	return s.call(op, name, len(data), func() error {
		s.sim.mu.Lock()
		defer s.sim.mu.Unlock()
		if old, ok := s.sim.objects[name]; ok && op == remote.OpPut {
			if bytes.Equal(old.data, data) {
				return nil
			}
			return fmt.Errorf("put %s: %w", name, remote.ErrExist)
		}
		if _, ok := s.sim.born[name]; !ok {
			s.sim.born[name] = len(s.sim.born)
		}
		if simKind(name) == "manifests" {
			s.sim.changes++
		}
		s.sim.objects[name] = simObject{data, s.sim.clock}
		return nil
	})
}

func (s simStore) object(name string) (simObject, error) {
	s.sim.mu.Lock()
	defer s.sim.mu.Unlock()
	o, ok := s.sim.objects[name]
	if !ok {
		return o, fmt.Errorf("%s: %w", name, remote.ErrNotExist)
	}
	return o, nil
}

func (s simStore) Get(_ context.Context, name string) (data []byte, err error) {
	err = s.call(remote.OpGet, name, 0, func() error {
		o, err := s.object(name)
		data = bytes.Clone(o.data)
		return err
	})
	if err != nil {
		return nil, err
	}
	return data, nil
}

func (s simStore) ReadAt(_ context.Context, name string, offset int64, p []byte) error {
	var got []byte
	err := s.call(remote.OpReadAt, name, len(p), func() error {
		o, err := s.object(name)
		if err == nil && offset+int64(len(p)) > int64(len(o.data)) {
			err = fmt.Errorf("%s: %w", name, remote.ErrShort)
		}
		if err == nil {
			got = o.data[offset:]
		}
		return err
	})
	if err == nil {
		copy(p, got)
	}
	return err
}

func (s simStore) Stat(_ context.Context, name string) (info remote.Info, err error) {
	err = s.call(remote.OpStat, name, 0, func() error {
		o, err := s.object(name)
		info = remote.Info{Name: name, Size: int64(len(o.data)), ModTime: o.time}
		return err
	})
	return info, err
}

func (s simStore) List(ctx context.Context, prefix string, yield func(remote.Info) error) error {
	return s.ListAfter(ctx, prefix, "", yield)
}

// ListAfter lists in pages of pageSize, each of them an operation.
func (s simStore) ListAfter(ctx context.Context, prefix, after string, yield func(remote.Info) error) error {
	const pageSize = 4
	for {
		var page []remote.Info
		more := false
		err := s.call(remote.OpList, prefix, 0, func() error {
			page, more = nil, false
			for _, name := range s.sim.names(prefix) {
				if name <= after {
					continue
				}
				if more = len(page) == pageSize; more {
					break
				}
				o, _ := s.object(name)
				page = append(page, remote.Info{Name: name, Size: int64(len(o.data)), ModTime: o.time})
			}
			return nil
		})
		if err != nil {
			return err
		}
		for _, info := range page {
			if err := ctx.Err(); errors.Is(err, context.Canceled) {
				return err
			}
			if err := yield(info); err != nil {
				return err
			}
			after = info.Name
		}
		if !more {
			return nil
		}
	}
}

// Delete deletes one object after another.
func (s simStore) Delete(_ context.Context, names ...string) error {
	var errs []error
	for _, name := range names {
		errs = append(errs, s.call(remote.OpDelete, name, 0, func() error {
			s.sim.mu.Lock()
			defer s.sim.mu.Unlock()
			if _, ok := s.sim.objects[name]; ok {
				s.sim.changes++
			}
			delete(s.sim.objects, name)
			return nil
		}))
	}
	return errors.Join(errs...)
}
