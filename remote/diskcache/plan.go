package diskcache

import (
	"context"
	"slices"
)

// A segment is a part of a read: on the disk, or from a flight.
type segment struct {
	start, end int64
	flight     *flight
}

// plan says where the bytes from start to below end come from, and starts
// fetches for those that are neither on the disk nor on their way. It is not ok
// if that is to be left to the store.
func (pk *cachePack) plan(ctx context.Context, r *missReader, start, end int64) (segments []segment, ok bool) {
	c := pk.cache
	pk.mu.Lock()
	defer pk.mu.Unlock()
	keep := c.storing()
	lo, hi := start, end // within which is fetched
	if keep {
		w := int64(c.opts.Window)
		lo, hi = start/w*w, min((end+w-1)/w*w, cacheMaxObject)
	}
	first, last := lo/cacheBlock, ceilBlock(hi)
	size, here := pk.blocksLocked(first, last)
	if size > 0 {
		if end > size {
			return nil, false
		}
		hi = min(hi, size)
	}
	absent := func(b int64) bool {
		return first <= b && b < last && !here[b-first] && pk.covering(b*cacheBlock, min((b+1)*cacheBlock, hi)) == nil
	}
	for pos := start; pos < end; {
		b := pos / cacheBlock
		to := b
		for to < last && here[to-first] {
			to++
		}
		if to > b {
			segments = append(segments, segment{pos, min(to*cacheBlock, end), nil})
			pos = segments[len(segments)-1].end
			continue
		}
		if fl := pk.covering(pos, min((b+1)*cacheBlock, end)); fl != nil {
			fl.join()
			r.held, r.joined = append(r.held, fl), true
			segments = append(segments, segment{pos, min(fl.end, end), fl})
			pos = segments[len(segments)-1].end
			continue
		}
		for to = b + 1; to*cacheBlock < end && absent(to); {
			to++
		}
		from, upto := pos, min(to*cacheBlock, end)
		if keep {
			from = b * cacheBlock
			for from > lo && absent(from/cacheBlock-1) {
				from -= cacheBlock
			}
			for to < last && absent(to) {
				to++
			}
			upto = min(to*cacheBlock, hi)
		}
		for ; from < min(upto, end); from += int64(c.opts.Piece) {
			fl := pk.start(ctx, r.Store, from, min(upto, from+int64(c.opts.Piece)), keep, classRead)
			if fl == nil {
				return nil, false
			}
			fl.reader = r
			r.held, r.own = append(r.held, fl), true
			segments = append(segments, segment{pos, min(fl.end, end), fl})
			pos = segments[len(segments)-1].end
		}
	}
	return segments, true
}

// covering gives a flight that brings the whole range. One of the background
// that has a long way to go yet is none: the reader fetches for itself.
func (pk *cachePack) covering(start, end int64) *flight {
	for _, fl := range pk.flights {
		if fl.start <= start && end <= fl.end &&
			(fl.class == classRead || start-fl.reached <= int64(pk.cache.opts.Window)) {
			return fl
		}
	}
	return nil
}

// skip gives the first block from offset on that the disk does not have; all
// is true when it has everything before end.
func (pk *cachePack) skip(offset, end int64) (next int64, all bool) {
	for offset < end {
		b0 := offset / cacheBlock
		b1 := min(ceilBlock(end), b0+scratchBlocks)
		size, here := pk.blocks(b0, b1)
		if size > 0 && size < end {
			if end = size; offset >= end {
				break
			}
			b1 = min(b1, ceilBlock(end))
		}
		if i := slices.Index(here[:b1-b0], false); i >= 0 {
			return max(offset, (b0+int64(i))*cacheBlock), false
		}
		offset = b1 * cacheBlock
	}
	return end, true
}

// fill starts a fetch for the background, of what is missing from offset on,
// up to end or a piece; or it joins one that is under way there. It is nil when
// the cache is closed. The caller has a slot, which the fetch takes over if it
// is its own.
func (pk *cachePack) fill(ctx context.Context, s *Store, offset, end int64, class class) (fl *flight, own bool) {
	pk.mu.Lock()
	defer pk.mu.Unlock()
	busy := func(b int64) *flight {
		for _, fl := range pk.flights {
			if fl.start <= b*cacheBlock && b*cacheBlock < fl.end {
				return fl
			}
		}
		return nil
	}
	b0 := offset / cacheBlock
	if fl := busy(b0); fl != nil {
		fl.join()
		return fl, false
	}
	last := min(ceilBlock(end), b0+int64(pk.cache.opts.Piece)/cacheBlock)
	size, here := pk.blocksLocked(b0, last)
	b1 := b0 + 1
	for b1 < last && !here[b1-b0] && busy(b1) == nil {
		b1++
	}
	to := b1 * cacheBlock
	if size > b0*cacheBlock {
		to = min(to, size)
	}
	return pk.start(ctx, s, b0*cacheBlock, to, true, class), true
}

// blocks tells the object's size, or 0, and which of the blocks from b0 to
// below b1 the disk has.
func (pk *cachePack) blocks(b0, b1 int64) (size int64, here []bool) {
	pk.mu.Lock()
	defer pk.mu.Unlock()
	return pk.blocksLocked(b0, b1)
}

func (pk *cachePack) blocksLocked(b0, b1 int64) (size int64, here []bool) {
	for range 2 {
		f := pk.open()
		if f == nil {
			break
		}
		size, here, err := f.blocks(b0, b1)
		f.release()
		if err == nil {
			if size > 0 {
				pk.size = size
			}
			return pk.size, here
		}
		pk.dropLocked(f)
	}
	return pk.size, make([]bool, b1-b0)
}

func (pk *cachePack) setSize(size int64) {
	pk.mu.Lock()
	defer pk.mu.Unlock()
	pk.size = size
}

// longer is called when the object was seen to have bytes up to end.
func (pk *cachePack) longer(end int64) {
	pk.mu.Lock()
	defer pk.mu.Unlock()
	if pk.size == 0 || pk.size >= end {
		return
	}
	pk.size = 0
	if f := pk.open(); f != nil {
		_ = f.setSize(0)
		f.release()
	}
}

// invalidate makes a range absent, and keeps nobody from fetching it anew.
func (pk *cachePack) invalidate(start, end int64) {
	pk.mu.Lock()
	defer pk.mu.Unlock()
	for _, fl := range slices.Clone(pk.flights) {
		if fl.start < end && start < fl.end {
			fl.keep = false
			pk.land(fl)
		}
	}
	f := pk.open()
	if f == nil {
		return
	}
	defer f.release()
	if err := f.clear(start/cacheBlock, ceilBlock(end)); err != nil {
		pk.cache.trouble(troubleStore, pk.writeError(err))
	}
}
