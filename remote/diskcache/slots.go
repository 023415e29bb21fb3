package diskcache

import (
	"context"
	"slices"
	"sync"
	"time"
)

// A class of fetches. Each goes before those that follow.
type class int

const (
	classRead  class = iota // somebody waits for it
	classAhead              // somebody will soon: [Store.Prefetch]
	classFill               // somebody may, some day: [Store.Fill]

	numClasses
)

// slots bound the requests that are under way. Those that a reader waits for
// go first, and find slots that the others cannot take. Fills begin only when
// no reader waits nor has waited a moment ago, and give way at once when one
// comes: a program that is starting faults again and again, and has the line
// to itself.
type slots struct {
	total, background int
	quiet             time.Duration // how long a moment is

	mu               sync.Mutex
	used, usedBehind int
	queue            [numClasses][]chan struct{}
	busy             int // readers that wait, and fetches of theirs
	lastBusy         time.Time
	waking           bool      // a timer will call grant
	fills            []*flight // under way
}

// enter is called when a reader begins to wait, and when a fetch for one begins.
func (s *slots) enter() {
	s.mu.Lock()
	s.busy++
	fills := s.fills
	s.fills = nil
	s.mu.Unlock()
	for _, fl := range fills {
		fl.giveWay()
	}
}

func (s *slots) exit() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.busy--
	s.lastBusy = time.Now()
	s.grant()
}

// filling is called when a fill has begun to fetch, and filled when it ends.
func (s *slots) filling(fl *flight) {
	s.mu.Lock()
	late := s.busy > 0
	if !late {
		s.fills = append(s.fills, fl)
	}
	s.mu.Unlock()
	if late {
		fl.giveWay()
	}
}

func (s *slots) filled(fl *flight) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if i := slices.Index(s.fills, fl); i >= 0 {
		s.fills = slices.Delete(slices.Clone(s.fills), i, i+1)
	}
}

// acquire waits for a slot, or for the end of the context.
func (s *slots) acquire(ctx context.Context, c class) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	turn := make(chan struct{})
	s.mu.Lock()
	s.queue[c] = append(s.queue[c], turn)
	s.grant()
	s.mu.Unlock()
	select {
	case <-turn:
		return nil
	case <-ctx.Done():
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if i := slices.Index(s.queue[c], turn); i >= 0 {
		s.queue[c] = slices.Delete(s.queue[c], i, i+1)
		s.grant()
	} else {
		s.free(c)
	}
	return ctx.Err()
}

func (s *slots) release(c class) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.free(c)
}

func (s *slots) free(c class) {
	s.used--
	if c != classRead {
		s.usedBehind--
	}
	s.grant()
}

// grant gives slots to those who wait, class by class: as long as one of a
// class waits, none of the next gets any.
func (s *slots) grant() {
	for c := range s.queue {
		for len(s.queue[c]) > 0 {
			if s.used == s.total || class(c) != classRead && s.usedBehind == s.background || class(c) == classFill && !s.calm() {
				return
			}
			close(s.queue[c][0])
			s.queue[c] = s.queue[c][1:]
			s.used++
			if class(c) != classRead {
				s.usedBehind++
			}
		}
	}
}

// calm tells whether fills may begin; if they may soon, grant will be called then.
func (s *slots) calm() bool {
	if s.busy > 0 {
		return false // exit calls grant
	}
	wait := s.quiet - time.Since(s.lastBusy)
	if wait <= 0 {
		return true
	}
	if !s.waking {
		s.waking = true
		time.AfterFunc(wait, func() {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.waking = false
			s.grant()
		})
	}
	return false
}
