package remote

import (
	"context"
	"slices"
	"sync"
)

// slots bound the requests that are under way. Those that a reader waits for
// go first, and find slots that the background cannot take.
type slots struct {
	total, background int

	mu               sync.Mutex
	used, usedBehind int
	queue            [2][]chan struct{} // waiting: foreground, background
}

func queueOf(background bool) int {
	if background {
		return 1
	}
	return 0
}

// acquire waits for a slot, or for the end of the context.
func (s *slots) acquire(ctx context.Context, background bool) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	turn := make(chan struct{})
	q := queueOf(background)
	s.mu.Lock()
	s.queue[q] = append(s.queue[q], turn)
	s.grant()
	s.mu.Unlock()
	select {
	case <-turn:
		return nil
	case <-ctx.Done():
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if i := slices.Index(s.queue[q], turn); i >= 0 {
		s.queue[q] = slices.Delete(s.queue[q], i, i+1)
	} else {
		s.free(background)
	}
	return ctx.Err()
}

func (s *slots) release(background bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.free(background)
}

func (s *slots) free(background bool) {
	s.used--
	if background {
		s.usedBehind--
	}
	s.grant()
}

func (s *slots) grant() {
	for len(s.queue[0]) > 0 && s.used < s.total {
		close(s.queue[0][0])
		s.queue[0] = s.queue[0][1:]
		s.used++
	}
	for len(s.queue[0]) == 0 && len(s.queue[1]) > 0 && s.used < s.total && s.usedBehind < s.background {
		close(s.queue[1][0])
		s.queue[1] = s.queue[1][1:]
		s.used++
		s.usedBehind++
	}
}
