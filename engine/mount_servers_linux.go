package engine

import (
	"context"
	"sync"

	"github.com/snapctl/snapctl/manifest"
)

// servers are those of a repository, by snapshot.
type servers struct {
	mu      sync.Mutex
	all     map[manifest.ID]*mountServer
	looking map[manifest.ID]chan struct{} // closed when who looks for a server has found or become one
}

func (v *servers) put(id manifest.ID, s *mountServer) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.all == nil {
		v.all = map[manifest.ID]*mountServer{}
	}
	v.all[id] = s
}

func (v *servers) get(id manifest.ID) *mountServer {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.all[id]
}

func (v *servers) remove(id manifest.ID, s *mountServer) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.all[id] == s {
		delete(v.all, id)
	}
}

// look waits until nobody else of this process looks for a server of the snapshot.
func (v *servers) look(ctx context.Context, id manifest.ID) (done func(), err error) {
	for {
		v.mu.Lock()
		other := v.looking[id]
		if other == nil {
			mine := make(chan struct{})
			if v.looking == nil {
				v.looking = map[manifest.ID]chan struct{}{}
			}
			v.looking[id] = mine
			v.mu.Unlock()
			return func() {
				v.mu.Lock()
				delete(v.looking, id)
				v.mu.Unlock()
				close(mine)
			}, nil
		}
		v.mu.Unlock()
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-other:
		}
	}
}
