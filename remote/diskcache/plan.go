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
	obj.mu.Lock()
	defer obj.mu.Unlock()
	p := planner{obj: obj, reader: r, keep: obj.cache.storing(), pos: start, end: end, lo: start, hi: end}
	if p.keep {
		w := int64(obj.cache.opts.Window)
		p.lo, p.hi = start/w*w, min((end+w-1)/w*w, maxObject)
	}
	p.first, p.last = p.lo/blockSize, ceilBlock(p.hi)
	var size int64
	size, p.here = obj.blocksLocked(p.first, p.last)
	if size > 0 {
		if end > size {
			return nil, false
		}
		p.hi = min(p.hi, size)
	}
	for p.pos < end {
		if !p.fromDisk() && !p.fromOthers() && !p.fetch(ctx) {
			return nil, false
		}
	}
	return p.segments, true
}

// planner makes one plan, segment by segment from the front. The object's mutex is
// held meanwhile.
type planner struct {
	obj         *object
	reader      *missReader
	keep        bool   // what is fetched can be stored
	pos, end    int64  // what has no segment yet
	lo, hi      int64  // within which is fetched
	first, last int64  // the blocks of that,
	here        []bool // and which of them the disk has
	segments    []segment
}

// add says where the bytes up to below end come from.
func (p *planner) add(end int64, fl *flight) {
	end = min(end, p.end)
	p.segments = append(p.segments, segment{p.pos, end, fl})
	p.pos = end
}

// fromDisk takes what the disk has at pos. It tells whether that is anything, as do
// the others.
func (p *planner) fromDisk() bool {
	b := p.pos / blockSize
	to := b
	for to < p.last && p.here[to-p.first] {
		to++
	}
	if to == b {
		return false
	}
	p.add(to*blockSize, nil)
	return true
}

// fromOthers joins the fetch that is under way of what is at pos.
func (p *planner) fromOthers() bool {
	fl := p.obj.covering(p.pos, min((p.pos/blockSize+1)*blockSize, p.end))
	if fl == nil {
		return false
	}
	fl.join()
	p.reader.held, p.reader.joined = append(p.reader.held, fl), true
	p.add(fl.end, fl)
	return true
}

// fetch starts fetches of what is missing at pos. It fails when the cache is closed.
func (p *planner) fetch(ctx context.Context) bool {
	from, to := p.missing()
	piece := int64(p.obj.cache.opts.Piece)
	for ; from < min(to, p.end); from += piece {
		fl := p.obj.start(ctx, p.reader.cached, from, min(to, from+piece), p.keep, classRead)
		if fl == nil {
			return false
		}
		fl.reader = p.reader
		p.reader.held, p.reader.own = append(p.reader.held, fl), true
		p.add(fl.end, fl)
	}
	return true
}

// missing is the range around pos that is neither on the disk nor on its way: as far
// as it is wanted, or as far as the window goes if it can be kept.
func (p *planner) missing() (from, to int64) {
	b := p.pos / blockSize
	next := b + 1
	for next*blockSize < p.end && p.absent(next) {
		next++
	}
	if !p.keep {
		return p.pos, min(next*blockSize, p.end)
	}
	for from = b * blockSize; from > p.lo && p.absent(from/blockSize-1); {
		from -= blockSize
	}
	for next < p.last && p.absent(next) {
		next++
	}
	return from, min(next*blockSize, p.hi)
}

// absent tells whether a block is neither on the disk nor on its way.
func (p *planner) absent(b int64) bool {
	return p.first <= b && b < p.last && !p.here[b-p.first] &&
		p.obj.covering(b*blockSize, min((b+1)*blockSize, p.hi)) == nil
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
