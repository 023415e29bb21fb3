package ui

import (
	"sync"
	"time"
)

// A Seldom tells people of one thing a second: when a server cannot be reached, all
// requests that are under way side by side fail. It is safe for parallel use.
type Seldom struct {
	Console *Console
	Now     func() time.Time

	mu     sync.Mutex
	next   time.Time // until then nothing is said
	unsaid int64
}

// Tell prints the line that text gives, unless something was told of a moment ago. text
// gets how many things were not told of before.
func (s *Seldom) Tell(text func(unsaid int64) string) {
	if unsaid, ok := s.may(); ok {
		s.Console.Line(text(unsaid))
	}
}

// may reports whether it may be told of now, and of how many before it was not.
func (s *Seldom) may() (unsaid int64, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.Now()
	if now.Before(s.next) {
		s.unsaid++
		return 0, false
	}
	unsaid, s.unsaid, s.next = s.unsaid, 0, now.Add(time.Second)
	return unsaid, true
}
