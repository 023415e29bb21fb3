package check

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"sync"

	"github.com/snapctl/snapctl/chunk"
	"github.com/snapctl/snapctl/chunk/lru"
	"github.com/snapctl/snapctl/engine/internal/access"
	"github.com/snapctl/snapctl/engine/internal/repo"
	"github.com/snapctl/snapctl/manifest"
	"github.com/snapctl/snapctl/remote"
	"golang.org/x/sync/singleflight"
)

// storePages gives pages of trees as the store has them, whatever this machine's
// cache has. From a bucket it reads windows, since pages that are wanted one after
// the other lie so in their packs.
type storePages struct {
	repo *repo.Repo
	size func(chunk.PackID) int64 // of a pack, so that no window reaches beyond; nil reads pages alone

	mu      sync.Mutex
	windows *lru.Cache[access.FrameKey, []byte]
	fetch   singleflight.Group
}

const (
	pageWindow  = 1 << 20
	pageWindows = 32 // that are kept
)

func newStorePages(r *repo.Repo) *storePages {
	return &storePages{repo: r, windows: lru.New[access.FrameKey, []byte](pageWindows)}
}

// Page is manifest.PageSource.
func (s *storePages) Page(ctx context.Context, ref manifest.PageRef) ([]byte, error) {
	page, err := s.at(ctx, ref)
	if errors.Is(err, remote.ErrNotExist) {
		var loc chunk.Location
		if loc, err = s.repo.Relocate(ctx, ref.ID, ref.Pack); err == nil {
			page, err = s.alone(ctx, ref.ID, loc)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("tree page: %w", repo.Integrity(err))
	}
	return page, nil
}

func (s *storePages) at(ctx context.Context, ref manifest.PageRef) ([]byte, error) {
	stored, err := s.window(ctx, ref)
	if err == nil && stored != nil {
		if page, err := s.repo.DecodeChunk(ref.ID, ref.Location(), stored); err == nil {
			return page, nil
		}
		// Once more: something on the way may have spoiled it.
	}
	if err != nil {
		return nil, err
	}
	return s.alone(ctx, ref.ID, ref.Location())
}

// alone reads one page and nothing else.
func (s *storePages) alone(ctx context.Context, id chunk.ID, loc chunk.Location) ([]byte, error) {
	stored := make([]byte, loc.Frame.Stored)
	if err := s.repo.Store.ReadAt(ctx, repo.PackName(loc.Pack), int64(loc.Frame.Offset), stored); err != nil {
		return nil, err
	}
	return s.repo.DecodeChunk(id, loc, stored)
}

// window gives the stored bytes of a page from the window that it lies in; nil if
// there is none that holds all of it.
func (s *storePages) window(ctx context.Context, ref manifest.PageRef) ([]byte, error) {
	if s.repo.Local() || s.size == nil {
		return nil, nil
	}
	begin := ref.Frame.Offset / pageWindow * pageWindow
	// Twice as long as the step between two, so that a page that reaches into the
	// next one lies in it.
	end := min(int64(begin)+2*pageWindow, s.size(ref.Pack))
	if end < int64(ref.Frame.End()) || end > math.MaxUint32 {
		return nil, nil
	}
	key := access.FrameKey{Pack: ref.Pack, Offset: begin}
	w := s.kept(key)
	if w == nil {
		got, err, _ := s.fetch.Do(fmt.Sprintf("%s%08x", ref.Pack[:], begin), func() (any, error) {
			if w := s.kept(key); w != nil {
				return w, nil
			}
			b := make([]byte, end-int64(begin))
			if err := s.repo.Store.ReadAt(ctx, repo.PackName(ref.Pack), int64(begin), b); err != nil {
				return nil, err
			}
			s.mu.Lock()
			s.windows.Add(key, b)
			s.mu.Unlock()
			return b, nil
		})
		if err != nil {
			return nil, err
		}
		w = got.([]byte)
	}
	// A copy: a page that is kept must not keep the window.
	return bytes.Clone(w[ref.Frame.Offset-begin : ref.Frame.End()-begin]), nil
}

func (s *storePages) kept(key access.FrameKey) []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	w, _ := s.windows.Get(key)
	return w
}
