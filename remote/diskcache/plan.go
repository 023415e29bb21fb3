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
func (obj *object) plan(ctx context.Context, r *missReader, start, end int64) (segments []segment, ok bool) {
	c := obj.cache
	obj.mu.Lock()
	defer obj.mu.Unlock()
	keep := c.storing()
	lo, hi := start, end // within which is fetched
	if keep {
		w := int64(c.opts.Window)
		lo, hi = start/w*w, min((end+w-1)/w*w, maxObject)
	}
	first, last := lo/blockSize, ceilBlock(hi)
	size, here := obj.blocksLocked(first, last)
	if size > 0 {
		if end > size {
			return nil, false
		}
		hi = min(hi, size)
	}
	absent := func(b int64) bool {
		return first <= b && b < last && !here[b-first] && obj.covering(b*blockSize, min((b+1)*blockSize, hi)) == nil
	}
	for pos := start; pos < end; {
		b := pos / blockSize
		to := b
		for to < last && here[to-first] {
			to++
		}
		if to > b {
			segments = append(segments, segment{pos, min(to*blockSize, end), nil})
			pos = segments[len(segments)-1].end
			continue
		}
		if fl := obj.covering(pos, min((b+1)*blockSize, end)); fl != nil {
			fl.join()
			r.held, r.joined = append(r.held, fl), true
			segments = append(segments, segment{pos, min(fl.end, end), fl})
			pos = segments[len(segments)-1].end
			continue
		}
		for to = b + 1; to*blockSize < end && absent(to); {
			to++
		}
		from, upto := pos, min(to*blockSize, end)
		if keep {
			from = b * blockSize
			for from > lo && absent(from/blockSize-1) {
				from -= blockSize
			}
			for to < last && absent(to) {
				to++
			}
			upto = min(to*blockSize, hi)
		}
		for ; from < min(upto, end); from += int64(c.opts.Piece) {
			fl := obj.start(ctx, r.Store, from, min(upto, from+int64(c.opts.Piece)), keep, classRead)
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
func (obj *object) covering(start, end int64) *flight {
	for _, fl := range obj.flights {
		if fl.start <= start && end <= fl.end &&
			(fl.class == classRead || start-fl.reached <= int64(obj.cache.opts.Window)) {
			return fl
		}
	}
	return nil
}

// blocks tells the object's size, or 0, and which of the blocks from b0 to
// below b1 the disk has.
func (obj *object) blocks(b0, b1 int64) (size int64, here []bool) {
	obj.mu.Lock()
	defer obj.mu.Unlock()
	return obj.blocksLocked(b0, b1)
}

func (obj *object) blocksLocked(b0, b1 int64) (size int64, here []bool) {
	for range 2 {
		f := obj.open()
		if f == nil {
			break
		}
		size, here, err := f.blocks(b0, b1)
		f.release()
		if err == nil {
			if size > 0 {
				obj.size = size
			}
			return obj.size, here
		}
		obj.dropLocked(f)
	}
	return obj.size, make([]bool, b1-b0)
}

func (obj *object) setSize(size int64) {
	obj.mu.Lock()
	defer obj.mu.Unlock()
	obj.size = size
}

// longer is called when the object was seen to have bytes up to end.
func (obj *object) longer(end int64) {
	obj.mu.Lock()
	defer obj.mu.Unlock()
	if obj.size == 0 || obj.size >= end {
		return
	}
	obj.size = 0
	if f := obj.open(); f != nil {
		_ = f.setSize(0)
		f.release()
	}
}

// invalidate makes a range absent, and keeps nobody from fetching it anew.
func (obj *object) invalidate(start, end int64) {
	obj.mu.Lock()
	defer obj.mu.Unlock()
	for _, fl := range slices.Clone(obj.flights) {
		if fl.start < end && start < fl.end {
			fl.keep = false
			obj.land(fl)
		}
	}
	f := obj.open()
	if f == nil {
		return
	}
	defer f.release()
	if err := f.clear(start/blockSize, ceilBlock(end)); err != nil {
		obj.cache.trouble(troubleStore, obj.writeError(err))
	}
}
