package main

import (
	"sync"
	"time"
)

// seldom lets people be told of one thing a second: when a server cannot be reached, all
// requests that are under way side by side fail.
type seldom struct {
	now func() time.Time

	mu     sync.Mutex
	next   time.Time // until then nothing is said
	unsaid int64
}

// may reports whether it may be told of now, and of how many before it was not.
func (s *seldom) may() (unsaid int64, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.now()
	if now.Before(s.next) {
		s.unsaid++
		return 0, false
	}
	unsaid, s.unsaid, s.next = s.unsaid, 0, now.Add(time.Second)
	return unsaid, true
}
