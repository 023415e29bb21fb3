package repo

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"sync"

	"github.com/snapctl/snapctl/chunk"
	"github.com/snapctl/snapctl/engine/snapshot"
	"github.com/snapctl/snapctl/index"
	"github.com/snapctl/snapctl/manifest"
	"github.com/snapctl/snapctl/remote"
)

// SegmentPrefix is where index segments lie.
const SegmentPrefix = "index/"

// repoIndex is the local index of a repository, opened when it is first needed:
// a create that finds nothing new never does.
type repoIndex struct {
	mu sync.Mutex
	ix *index.Index
}

func (x *repoIndex) close() error {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.ix == nil {
		return nil
	}
	err := x.ix.Close()
	x.ix = nil
	return err
}

// OpenIndex opens the index as this machine has it.
func (r *Repo) OpenIndex() (*index.Index, error) {
	r.index.mu.Lock()
	defer r.index.mu.Unlock()
	if r.index.ix != nil {
		return r.index.ix, nil
	}
	opts := &index.Options{Log: func(msg string) { r.Logger.Info("index: " + msg) }}
	ix, err := index.Open(r.Cache.IndexDir(), [16]byte(r.Cfg.ID), r.Codec, opts)
	if err != nil {
		// A cache is no reason to fail: without a folder it is kept in memory.
		r.Logger.Warn("no folder for the index", "err", err)
		ix, err = index.Open("", [16]byte(r.Cfg.ID), r.Codec, opts)
	}
	if err != nil {
		return nil, fmt.Errorf("opening the index: %w", err)
	}
	r.index.ix = ix
	return ix, nil
}

// ListSegments lists the repository's index segments.
func (r *Repo) ListSegments(ctx context.Context) ([]index.SegmentID, error) {
	var all []index.SegmentID
	err := r.Store.List(ctx, SegmentPrefix, func(o remote.Info) error {
		if id, err := index.ParseSegmentID(strings.TrimPrefix(o.Name, SegmentPrefix)); err == nil {
			all = append(all, id)
		} else {
			r.Logger.Warn("not an index segment", "object", o.Name)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("listing index segments: %w", err)
	}
	return all, nil
}

// SyncIndex opens the index and brings it in line with the repository.
func (r *Repo) SyncIndex(ctx context.Context, have []index.SegmentID) (*index.Index, error) {
	ix, err := r.OpenIndex()
	if err != nil {
		return nil, err
	}
	err = ix.Sync(ctx, have, func(ctx context.Context, id index.SegmentID) ([]byte, error) {
		if b := cachedSegment(r.Cache, id); b != nil && index.SumSegment(b) == id {
			return b, nil
		}
		b, err := r.Store.Get(ctx, SegmentPrefix+id.String())
		if errors.Is(err, remote.ErrNotExist) {
			err = fmt.Errorf("%w: %w", fs.ErrNotExist, err)
		}
		return b, err
	})
	if errors.Is(err, index.ErrBadSegment) {
		// What the damaged segment lists is stored again: nothing is lost.
		r.Logger.Warn("index segment left out", "err", err)
		err = nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading index segments: %w", err)
	}
	for _, id := range have {
		r.Cache.Remove("segments", id.String())
	}
	return ix, nil
}

// PutSegment makes packs known to other machines and later runs.
func (r *Repo) PutSegment(ctx context.Context, s *index.Segment) (index.SegmentID, error) {
	data, err := s.Encode(r.Codec)
	if err != nil {
		return index.SegmentID{}, err
	}
	id := index.SumSegment(data)
	if err := r.Store.Put(ctx, SegmentPrefix+id.String(), data); err != nil {
		return id, fmt.Errorf("writing an index segment: %w", err)
	}
	// So that this machine's next run need not fetch it.
	if err := writeSegment(r.Cache, id, data); err != nil {
		r.Logger.Info("caching an index segment", "err", err)
	}
	return id, nil
}

// Relocate finds a chunk whose pack has gone: it was repacked.
func (r *Repo) Relocate(ctx context.Context, id chunk.ID, gone chunk.PackID) (chunk.Location, error) {
	loc, ok, err := r.MovedTo(ctx, gone, id)
	if ok || err != nil {
		return loc, err
	}
	// A tool that mended the repository may have left it elsewhere.
	have, err := r.ListSegments(ctx)
	if err != nil {
		return chunk.Location{}, err
	}
	ix, err := r.SyncIndex(ctx, have)
	if err != nil {
		return chunk.Location{}, err
	}
	loc, ok = ix.Lookup(id)
	if !ok || loc.Pack == gone {
		return chunk.Location{}, fmt.Errorf("%w: pack %v is missing, and chunk %v is nowhere else", snapshot.ErrIntegrity, gone, id)
	}
	return loc, nil
}

// Page is manifest.PageSource.
func (r *Repo) Page(ctx context.Context, ref manifest.PageRef) ([]byte, error) {
	page, err := r.pageAt(ctx, ref.ID, ref.Location())
	if errors.Is(err, remote.ErrNotExist) {
		var loc chunk.Location
		if loc, err = r.Relocate(ctx, ref.ID, ref.Pack); err == nil {
			page, err = r.pageAt(ctx, ref.ID, loc)
		}
	}
	if err = Integrity(err); errors.Is(err, snapshot.ErrIntegrity) {
		err = &DamagedPack{ref.Pack, err}
	}
	if err != nil {
		return nil, fmt.Errorf("tree page: %w", err)
	}
	return page, nil
}

// DamagedPack is an error that tells which pack is not to be relied on.
type DamagedPack struct {
	Pack chunk.PackID
	err  error
}

func (d *DamagedPack) Error() string { return d.err.Error() }
func (d *DamagedPack) Unwrap() error { return d.err }

// pageAt gives a page from there. What is wrong in the disk cache is fetched once
// more.
func (r *Repo) pageAt(ctx context.Context, id chunk.ID, loc chunk.Location) ([]byte, error) {
	stored := make([]byte, loc.Frame.Stored)
	name, offset := PackName(loc.Pack), int64(loc.Frame.Offset)
	disk := r.treeStore()
	if disk == nil {
		if err := r.Store.ReadAt(ctx, name, offset, stored); err != nil {
			return nil, err
		}
		return r.DecodeChunk(id, loc, stored)
	}
	for again := true; ; again = false {
		if err := disk.ReadAt(ctx, name, offset, stored); err != nil {
			return nil, err
		}
		page, err := r.DecodeChunk(id, loc, stored)
		if err == nil || !again {
			return page, err
		}
		r.Logger.Info("damaged tree page, fetching again", "err", err)
		disk.Invalidate(name, offset, int64(len(stored)))
	}
}

// DecodeChunk decodes a frame and gives the chunk in it, checked. The result may
// alias stored.
func (r *Repo) DecodeChunk(id chunk.ID, loc chunk.Location, stored []byte) ([]byte, error) {
	raw, err := r.Codec.Decode(nil, stored, int(loc.Frame.Raw))
	if err != nil {
		return nil, fmt.Errorf("%w: pack %v at %d: %w", snapshot.ErrIntegrity, loc.Pack, loc.Frame.Offset, err)
	}
	if uint64(loc.Offset)+uint64(loc.Length) > uint64(len(raw)) {
		return nil, fmt.Errorf("%w: chunk %v lies outside of its frame", snapshot.ErrIntegrity, id)
	}
	data := raw[loc.Offset : loc.Offset+loc.Length]
	if r.Hasher.Sum(data) != id {
		return nil, fmt.Errorf("%w: pack %v at %d: the bytes of chunk %v are not what they were", snapshot.ErrIntegrity, loc.Pack, loc.Frame.Offset, id)
	}
	return data, nil
}

// Segment reads an index segment from the store.
func (r *Repo) Segment(ctx context.Context, id index.SegmentID) (*index.Segment, error) {
	data, err := r.Store.Get(ctx, SegmentPrefix+id.String())
	if err != nil {
		return nil, err
	}
	if index.SumSegment(data) != id {
		return nil, fmt.Errorf("%w: its bytes are of another name", index.ErrBadSegment)
	}
	return index.DecodeSegment(r.Codec, data)
}
