package index

import (
	"github.com/snapctl/snapctl/chunk"
)

// bufferLimit is how many entries wait in memory, at about 90 bytes each,
// before they are written to Badger: every opening of Badger for writing costs
// 10 ms and a table that lookups have to ask.
const bufferLimit = 32 << 10

// Add makes the chunks of packs known that are in the repository, but in no
// segment yet. Lookup finds them at once. The next process does not, unless
// [Index.Commit] follows. A chunk that lies in several packs is found in the
// one that came last.
func (ix *Index) Add(packs ...Pack) {
	ix.mu.Lock()
	defer ix.mu.Unlock()
	if ix.closed {
		return
	}
	for _, p := range packs {
		if _, ok := ix.numbers[p.ID]; !ok {
			n := ix.number(p)
			ix.packs[n].added = true
			insert(ix.added, n, p)
		}
	}
}

// number makes a pack known under a number of its own. mu is held.
func (ix *Index) number(p Pack) uint32 {
	n := ix.next
	ix.next++
	known := &pack{id: p.ID, size: p.Size}
	for _, f := range p.Index.Frames {
		known.chunks += len(f.Chunks)
	}
	_, known.excluded = ix.excluded[p.ID]
	ix.packs[n] = known
	ix.numbers[p.ID] = n
	return n
}

func insert(m map[chunk.ID]entry, n uint32, p Pack) {
	for id, loc := range p.Index.All(p.ID) {
		m[id] = entry{pack: n, frame: loc.Frame, offset: loc.Offset, length: loc.Length}
	}
}

// Commit says that the segment named id, with these packs, is durable in the
// repository. The next process may then believe in them. Packs that were not
// added are added. The only error is [ErrClosed]: a disk that fails costs the
// next process the memory of it, and this one nothing.
func (ix *Index) Commit(id SegmentID, s *Segment) error {
	ix.writing.Lock()
	defer ix.writing.Unlock()
	if ix.closed {
		return ErrClosed
	}
	if _, ok := ix.segments[id]; ok {
		return nil
	}
	ix.take(id, s)
	if ix.unsaved > 0 {
		ix.settle(true)
	}
	return nil
}

// take makes a segment part of the index. writing is held.
func (ix *Index) take(id SegmentID, s *Segment) {
	numbers := make([]uint32, 0, len(s.Packs))
	for _, p := range s.Packs {
		numbers = append(numbers, ix.takePack(p))
		ix.flushIfFull()
	}
	ix.mu.Lock()
	defer ix.mu.Unlock()
	for _, n := range numbers {
		if p := ix.packs[n]; p != nil { // nil if it was forgotten meanwhile
			p.segments++
			p.added = false
		}
	}
	ix.segments[id] = numbers
	ix.changed = true
}

// takePack makes a pack durable, and gives its number. If it is new, it becomes
// live with its segment.
func (ix *Index) takePack(p Pack) uint32 {
	ix.mu.Lock()
	defer ix.mu.Unlock()
	n, ok := ix.numbers[p.ID]
	if ok && ix.packs[n].segments > 0 {
		return n // another segment has brought its entries
	}
	if !ok {
		n = ix.number(p)
	}
	// Of a chunk that lies in two packs one place is known: not that in the excluded.
	if !ix.packs[n].excluded {
		insert(ix.recent, n, p)
	}
	if ix.packs[n].added {
		for id := range p.Index.All(p.ID) {
			if ix.added[id].pack == n {
				delete(ix.added, id)
			}
		}
	}
	return n
}

// Exclude makes lookups blind to packs that are doomed, known already or not:
// what is found must not be about to be deleted. It holds until Close, for this
// Index alone, and adds to what was excluded before. A Sync that brings such packs
// later leaves the places of their chunks to other packs, for good: doomed is for ever.
func (ix *Index) Exclude(packs []chunk.PackID) {
	ix.mu.Lock()
	defer ix.mu.Unlock()
	if ix.excluded == nil {
		ix.excluded = make(map[chunk.PackID]struct{}, len(packs))
	}
	for _, id := range packs {
		ix.excluded[id] = struct{}{}
		if n, ok := ix.numbers[id]; ok {
			ix.packs[n].excluded = true
		}
	}
}

// Forget drops a pack that was found to be missing from the repository, for
// this process at once, and for others with Close. It comes back with a segment
// that is new to the slot and lists it.
func (ix *Index) Forget(id chunk.PackID) {
	ix.writing.Lock()
	defer ix.writing.Unlock()
	ix.mu.Lock()
	defer ix.mu.Unlock()
	if n, ok := ix.numbers[id]; ok {
		ix.drop(n)
		ix.changed = true
	}
}

// drop removes a pack. Its entries stay where they are, and mean nothing any
// more. mu is held.
func (ix *Index) drop(n uint32) {
	p := ix.packs[n]
	ix.dead += int64(p.chunks)
	delete(ix.packs, n)
	delete(ix.numbers, p.id)
}
