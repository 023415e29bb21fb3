package write

import (
	"context"

	"github.com/snapctl/snapctl/chunk"
	"github.com/snapctl/snapctl/manifest"
)

// TreeSink stores the pages of a new tree: in tree packs, or nowhere when the
// repository has them. It is not safe for parallel use.
type TreeSink struct {
	Codec  *chunk.Codec
	Hasher *chunk.Hasher
	Up     *Uploader
	Lookup func(chunk.ID) (manifest.PageRef, bool)

	Pages map[chunk.ID]manifest.PageRef
	open  *packBuild
	inOne []chunk.ID // pages of the open pack
	frame []byte
}

// Add is manifest.PageSink: it stores a page, unless the repository has it.
func (s *TreeSink) Add(ctx context.Context, page []byte) (chunk.ID, error) {
	id := s.Hasher.Sum(page)
	if _, ok := s.Pages[id]; ok {
		return id, nil
	}
	if ref, ok := s.Lookup(id); ok {
		s.Pages[id] = ref
		return id, nil
	}
	if s.open == nil {
		s.open = s.Up.newPack(s.Codec, chunk.TreePack)
	}
	s.frame = s.Codec.Encode(s.frame[:0], page)
	at := s.open.Add(s.frame, []chunk.SizedID{{ID: id, Length: uint32(len(page))}})
	s.Pages[id] = manifest.PageRef{ID: id, Frame: at} // the pack's name comes with Flush
	s.inOne = append(s.inOne, id)
	if s.open.Size() >= PackTarget {
		return id, s.Flush(ctx)
	}
	return id, nil
}

// Flush uploads the pack that is open. Without it the last pages are in no pack.
func (s *TreeSink) Flush(ctx context.Context) error {
	if s.open == nil {
		return nil
	}
	pack, err := s.open.seal(ctx, s.Up)
	if err != nil {
		return err
	}
	for _, id := range s.inOne {
		ref := s.Pages[id]
		ref.Pack = pack
		s.Pages[id] = ref
	}
	s.open, s.inOne = nil, s.inOne[:0]
	return nil
}

// Page is where a page that was added is; its pack is known after Flush.
func (s *TreeSink) Page(id chunk.ID) manifest.PageRef { return s.Pages[id] }
