package main

import (
	"fmt"
	"sync"
	"time"
)

// retries tells people that requests failed and are sent again. When a server cannot be
// reached, all that are under way side by side fail: a line a second is enough.
type retries struct {
	console *console
	now     func() time.Time

	mu   sync.Mutex
	next time.Time // until then nothing is said
}

func (r *retries) tell(err error, wait time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if now := r.now(); !now.Before(r.next) {
		r.next = now.Add(time.Second)
		r.console.line(fmt.Sprintf("retrying in %s: %v", round(wait), err))
	}
}
