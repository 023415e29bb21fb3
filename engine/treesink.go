package engine

import (
	"context"

	"github.com/snapctl/snapctl/chunk"
	"github.com/snapctl/snapctl/manifest"
)

// treeSink stores the pages of a new tree: in tree packs, or nowhere when the
// repository has them. It is not safe for parallel use.
type treeSink struct {
	codec  *chunk.Codec
	hasher *chunk.Hasher
	up     *uploader
	lookup func(chunk.ID) (manifest.PageRef, bool)

	pages map[chunk.ID]manifest.PageRef
	open  *packBuild
	inOne []chunk.ID // pages of the open pack
	frame []byte
}

func (s *treeSink) Add(ctx context.Context, page []byte) (chunk.ID, error) {
	id := s.hasher.Sum(page)
	if _, ok := s.pages[id]; ok {
		return id, nil
	}
	if ref, ok := s.lookup(id); ok {
		s.pages[id] = ref
		return id, nil
	}
	if s.open == nil {
		s.open = s.up.newPack(s.codec, chunk.TreePack)
	}
	s.frame = s.codec.Encode(s.frame[:0], page)
	at := s.open.Add(s.frame, []chunk.SizedID{{ID: id, Length: uint32(len(page))}})
	s.pages[id] = manifest.PageRef{ID: id, Frame: at} // the pack's name comes with Flush
	s.inOne = append(s.inOne, id)
	if s.open.Size() >= packTarget {
		return id, s.Flush(ctx)
	}
	return id, nil
}

func (s *treeSink) Flush(ctx context.Context) error {
	if s.open == nil {
		return nil
	}
	pack, err := s.open.seal(ctx, s.up)
	if err != nil {
		return err
	}
	for _, id := range s.inOne {
		ref := s.pages[id]
		ref.Pack = pack
		s.pages[id] = ref
	}
	s.open, s.inOne = nil, s.inOne[:0]
	return nil
}

func (s *treeSink) Page(id chunk.ID) manifest.PageRef { return s.pages[id] }
