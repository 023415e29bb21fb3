package fusefs

import (
	"context"
	"sync"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// patience is how long a request goes on after its caller got a signal. Most
// signals end nobody, and few programs expect a read of a file to fail because
// of one: the Go runtime sends itself hundreds a second. But who is killed
// while the network is away should not wait for it.
const patience = time.Second

// request is the context of a request. It ends with patience, when the kernel
// interrupts it.
type request struct {
	context.Context
	interrupted <-chan struct{}

	mu    sync.Mutex
	over  chan struct{} // closed when the request is
	done  chan struct{} // made when somebody asks, which is when there is something to wait for
	ended bool
}

func begin(cancel <-chan struct{}) *request {
	return &request{Context: context.Background(), interrupted: cancel}
}

// end must be called when the request is answered.
func (r *request) end() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.over != nil {
		close(r.over)
	}
}

// Done is context.Context.
func (r *request) Done() <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.done == nil {
		r.over, r.done = make(chan struct{}), make(chan struct{})
		go r.watch(r.over, r.done)
	}
	return r.done
}

func (r *request) watch(over <-chan struct{}, done chan<- struct{}) {
	select {
	case <-over:
		return
	case <-r.interrupted:
	}
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case <-over:
	case <-timer.C:
		r.mu.Lock()
		r.ended = true
		r.mu.Unlock()
		close(done)
	}
}

// Err is context.Context.
func (r *request) Err() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ended {
		return context.Canceled
	}
	return nil
}

// status is the answer to the kernel. It is never ENOENT, which the kernel and
// overlayfs remember for ever: that a name is not there, Lookup alone says.
func (f *snapshotFS) status(r *request, op, path string, err error) fuse.Status {
	switch {
	case err == nil:
		return fuse.OK
	case r.Err() != nil:
		return fuse.EINTR
	}
	f.errors.Add(1)
	if f.fail != nil {
		f.fail(op, path, err)
	}
	return fuse.EIO
}
