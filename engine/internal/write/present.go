package write

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/snapctl/snapctl/chunk"
	"github.com/snapctl/snapctl/engine/internal/fsys"
	"github.com/snapctl/snapctl/engine/internal/repo"
	"github.com/snapctl/snapctl/engine/snapshot"
	"github.com/snapctl/snapctl/manifest"
	"github.com/snapctl/snapctl/remote"
)

// looksAtOnce is how many packs present asks for at the same time.
const looksAtOnce = 32

// A witness is what tells a writer of packs.
type witness int

const (
	ByIndex    witness = iota // which may not know yet that they have gone
	ByManifest                // which needs them
	ByCache                   // and a manifest: this machine has written or read them before
)

// PacksNamed gives the packs that a manifest names.
func PacksNamed(m *manifest.Manifest) []repo.SizedPack {
	all := make([]repo.SizedPack, len(m.Packs))
	for i := range m.Packs {
		all[i].Id = m.Packs[i].ID
	}
	return all
}

// Present makes sure that packs which a writer takes over are in the store: one Stat
// each, once, in parallel, in the background. It does not wait for the answers, which
// check does. A pack that is missing, or of another size than known, is barred.
//
// Where this machine has not seen them before the footer is looked at too: that an object
// is there does not say that it is a pack.
func (g *Guard) Present(by witness, packs ...repo.SizedPack) {
	for _, p := range packs {
		if !g.isNew(p) {
			continue
		}
		g.asking.Go(func() {
			err := g.ctx.Err()
			select {
			case g.asks <- struct{}{}:
				err = g.ask(g.ctx, p, by)
				<-g.asks
			case <-g.ctx.Done():
			}
			if err != nil {
				g.fail(err)
			}
		})
	}
}

// isNew notes a pack, and reports whether it is news.
func (g *Guard) isNew(p repo.SizedPack) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if _, ok := g.known[p.Id]; ok {
		return false
	}
	g.known[p.Id] = p.Size
	return true
}

// ask bars a pack if it is not there, or not what it was.
func (g *Guard) ask(ctx context.Context, p repo.SizedPack, by witness) error {
	bad, err := g.inspect(ctx, p, by != ByCache)
	if err != nil || bad == nil {
		return err
	}
	// One that was repacked has a tombstone as long as a manifest names it.
	if err := g.Ready(ctx); err != nil {
		return err
	}
	doomed := g.bars(p.Id)
	if ix, err := g.repo.OpenIndex(); err == nil {
		if errors.Is(bad, remote.ErrNotExist) {
			ix.Forget(p.Id)
		}
		ix.Exclude([]chunk.PackID{p.Id})
	}
	if !doomed && g.tellBad != nil && (by != ByIndex || !errors.Is(bad, remote.ErrNotExist)) {
		g.tellBad(fmt.Errorf("%w: pack %v: %w; what it held is stored again, and 'snapctl verify' names the snapshots that need it", snapshot.ErrIntegrity, p.Id, bad))
	}
	return nil
}

// bars bars a pack, and reports whether it was barred before.
func (g *Guard) bars(id chunk.PackID) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	_, before := g.barred[id]
	g.barred[id] = struct{}{}
	return before
}

// inspect says what is wrong with a pack, nil for nothing. Where the size is known the
// footer is read side by side with the Stat.
func (g *Guard) inspect(ctx context.Context, p repo.SizedPack, foot bool) (bad, err error) {
	var reading sync.WaitGroup
	var footBad, footErr error
	if foot && p.Size > 0 {
		reading.Go(func() { footBad, footErr = g.footer(ctx, p) })
	}
	info, err := g.repo.Store.Stat(ctx, repo.PackName(p.Id))
	reading.Wait()
	switch {
	case errors.Is(err, remote.ErrNotExist):
		return err, nil
	case err != nil:
		return nil, err
	case p.Size > 0 && info.Size != p.Size:
		return fmt.Errorf("it has %d bytes instead of %d", info.Size, p.Size), nil
	}
	g.mu.Lock()
	g.known[p.Id] = info.Size
	g.mu.Unlock()
	if foot && p.Size == 0 {
		footBad, footErr = g.footer(ctx, repo.SizedPack{Id: p.Id, Size: info.Size})
	}
	return footBad, footErr
}

// footer says what is wrong with the end of a pack of that size.
func (g *Guard) footer(ctx context.Context, p repo.SizedPack) (bad, err error) {
	if p.Size < chunk.PackHeaderSize+chunk.PackFooterSize {
		return fmt.Errorf("%w: %d bytes", chunk.ErrNotPack, p.Size), nil
	}
	b := make([]byte, chunk.PackFooterSize)
	err = g.repo.Store.ReadAt(ctx, repo.PackName(p.Id), p.Size-int64(len(b)), b)
	if fsys.IsAny(err, remote.ErrNotExist, remote.ErrShort) {
		return err, nil
	}
	if err != nil {
		return nil, err
	}
	n, bad := chunk.PackIndexSize(b)
	if bad == nil && int64(n) > p.Size-chunk.PackHeaderSize {
		bad = fmt.Errorf("%w: index of %d bytes in %d", chunk.ErrNotPack, n, p.Size)
	}
	return bad, nil
}
