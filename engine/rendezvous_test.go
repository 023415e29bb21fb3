package engine

import (
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/snapctl/snapctl/remote"
	"github.com/snapctl/snapctl/remote/remotetest"
)

// A rendezvous holds the operations of a store that are said to be under way at the same
// time until all of them are: so they surely are, and if they are not at all that is an
// error. It is the hook of a remotetest.Faulty.
type rendezvous struct {
	t *testing.T

	mu   sync.Mutex
	next []*meeting
}

type meeting struct {
	missing []string // "put packs/"
	all     chan struct{}
}

// expect says which operations will be at the same time: each of groups is a list such
// as "list index/, list gc/".
func (v *rendezvous) expect(groups ...string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, g := range groups {
		v.next = append(v.next, &meeting{strings.Split(g, ", "), make(chan struct{})})
	}
}

// rest gives those that have not come, and forgets them.
func (v *rendezvous) rest() (missing []string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, m := range v.next {
		missing = append(missing, m.missing...)
	}
	v.next = nil
	return missing
}

// join takes an operation to the first meeting that it is missing from, nil for none.
func (v *rendezvous) join(what string) chan struct{} {
	v.mu.Lock()
	defer v.mu.Unlock()
	for i, m := range v.next {
		for j, prefix := range m.missing {
			if !strings.HasPrefix(what, prefix) {
				continue
			}
			m.missing = append(m.missing[:j], m.missing[j+1:]...)
			if len(m.missing) == 0 {
				v.next = append(v.next[:i], v.next[i+1:]...)
				close(m.all)
			}
			return m.all
		}
	}
	return nil
}

func (v *rendezvous) hook(op remote.Op, name string) remotetest.Fault {
	if all := v.join(op.String() + " " + name); all != nil {
		select {
		case <-all:
		case <-time.After(time.Minute): // it would be for ever
			v.t.Errorf("%v %s: nothing of %q was under way at the same time", op, name, v.rest())
		}
	}
	return remotetest.Fault{}
}
