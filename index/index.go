package index

import (
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"sync"
	"syscall"

	"github.com/snapctl/snapctl/chunk"
)

// Errors that callers branch on; they are wrapped with what was being done.
var (
	// ErrBadSegment: bytes are no segment, a damaged one, or not the one that
	// was asked for.
	ErrBadSegment = errors.New("not a valid index segment")
	// ErrClosed: the index has been closed.
	ErrClosed = errors.New("index is closed")
)

// Options are what most callers leave at zero.
type Options struct {
	// Log is told, in words for people, why a slot was emptied or could not be
	// used. None of it needs action. It must be safe for parallel use, and must
	// not call the Index.
	Log func(msg string)
}

// An Index knows where the chunks of one repository lie. Its methods are safe
// for parallel use; Sync, Commit and Close wait for each other, and none of
// them keeps Lookup waiting for longer than it takes to reopen Badger.
type Index struct {
	repo  [16]byte
	codec *chunk.Codec
	log   func(msg string)

	// writing is held by whoever changes what the slot holds. It is taken
	// before mu.
	writing sync.Mutex
	slot    *slot         // nil: everything stays in memory
	changed bool          // the catalog on disk is out of date
	frozen  bool          // the disk is full: what is on it stays, nothing is written
	unsaved int           // entries in Badger since the catalog was written
	files   []fingerprint // of db, as the catalog on disk has them

	// mu guards what Lookup reads. It is held for writing while Badger is
	// opened or closed, so that none reads from what is being unmapped.
	mu       sync.RWMutex
	closed   bool
	db       *store             // nil: nothing on disk
	added    map[chunk.ID]entry // of packs that are in no segment yet
	recent   map[chunk.ID]entry // of packs that are, to be written to Badger
	packs    map[uint32]*pack   // by number
	numbers  map[chunk.PackID]uint32
	next     uint32 // number of the next pack; never used twice in a slot
	segments map[SegmentID][]uint32
	excluded map[chunk.PackID]struct{}
	dead     int64 // entries on disk whose packs are gone, at most

	doubt doubt
}

// A pack is live, and lookups find its chunks, while a segment lists it or
// this process has added it, unless it is excluded.
type pack struct {
	id       chunk.PackID
	size     int64
	chunks   int
	segments int  // that list it
	added    bool // by this process, and in no segment yet
	excluded bool
}

func (p *pack) live() bool { return p != nil && (p.segments > 0 || p.added) && !p.excluded }

// Open takes a free slot in the folder dir, which is made where it does not
// exist, for the repository with the id repo. dir is best used for one
// repository alone: a slot that another repository has filled is emptied. Until
// the first [Index.Sync], lookups answer by the listing that the slot's last
// user had, which may name packs that have been deleted since.
//
// Any number of processes, and of Indexes in one process, may use one folder
// at once; each is alone in its slot. What dir holds of a slot that is damaged,
// of another format or of another repository is removed and filled anew by
// Sync; folders that do not look like a slot are left alone. Where dir cannot
// be written to, or is on a full disk, or is "", the index is kept in memory:
// a cache is no reason to fail.
func Open(dir string, repo [16]byte, codec *chunk.Codec, opts *Options) (*Index, error) {
	ix := &Index{
		repo:  repo,
		codec: codec,
		log:   func(string) {},
	}
	if opts != nil && opts.Log != nil {
		ix.log = opts.Log
	}
	ix.forget()
	if dir == "" {
		return ix, nil
	}
	s, err := takeSlot(dir)
	if err != nil {
		if !withoutDisk(err) {
			return nil, fmt.Errorf("opening index: %w", err)
		}
		ix.log(fmt.Sprintf("index is kept in memory: %v", err))
		return ix, nil
	}
	ix.slot = s
	if err := ix.load(); err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			ix.log(fmt.Sprintf("index %s is rebuilt: %v", s.dir, err))
		}
		ix.forget()
		if err := s.empty(); err != nil {
			ix.abandon(err)
		}
	}
	return ix, nil
}

// withoutDisk reports errors of the disk which a cache can do without.
func withoutDisk(err error) bool {
	for _, e := range []error{
		syscall.EROFS, syscall.EACCES, syscall.EPERM, syscall.ENOSPC, syscall.EDQUOT, syscall.EIO,
		syscall.ENOLCK, syscall.EMFILE, syscall.ENFILE, errNotOurs,
	} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// forget makes the index empty, as if it had never been synced.
func (ix *Index) forget() {
	ix.added = map[chunk.ID]entry{}
	ix.recent = map[chunk.ID]entry{}
	ix.packs = map[uint32]*pack{}
	ix.numbers = map[chunk.PackID]uint32{}
	ix.segments = map[SegmentID][]uint32{}
	ix.dead, ix.unsaved, ix.files = 0, 0, nil
	// The numbers go on: one that was used must not come to mean another pack.
}

// Lookup says where a chunk lies. It answers false for a chunk that is not
// known, whose pack is excluded, or whose entry cannot be read or verified
// (see [Index.Err]): the caller stores it again, which is always right. Any
// number of goroutines may call it.
func (ix *Index) Lookup(id chunk.ID) (chunk.Location, bool) {
	ix.mu.RLock()
	defer ix.mu.RUnlock()
	for _, m := range [...]map[chunk.ID]entry{ix.added, ix.recent} {
		if len(m) == 0 {
			continue
		}
		if e, ok := m[id]; ok {
			if p := ix.packs[e.pack]; p.live() {
				return e.location(p), true
			}
		}
	}
	if ix.db == nil || len(ix.packs) == 0 {
		return chunk.Location{}, false
	}
	loc, ok, err := ix.stored(id)
	if err != nil {
		ix.doubts(fmt.Errorf("looking up chunk %s: %w", id, err))
	}
	return loc, ok
}

func (e entry) location(p *pack) chunk.Location {
	return chunk.Location{Pack: p.id, Frame: e.frame, Offset: e.offset, Length: e.length}
}

// stored looks a chunk up in Badger. mu is held for reading.
func (ix *Index) stored(id chunk.ID) (loc chunk.Location, ok bool, err error) {
	err = ix.db.get(id[:], func(value []byte) error {
		n, err := readEntryPack(value)
		if err != nil {
			return err
		}
		p := ix.packs[n]
		if !p.live() {
			return nil
		}
		e, err := readEntry(value, &id, &p.id)
		if err != nil {
			return err
		}
		loc, ok = e.location(p), true
		return nil
	})
	return loc, ok && err == nil, err
}

// Stats counts what lookups can find.
type Stats struct {
	Segments  int
	Packs     int
	Chunks    int64 // a chunk that lies in two packs counts twice
	PackBytes int64 // sizes of the packs
}

// Stats counts what lookups can find.
func (ix *Index) Stats() Stats {
	ix.mu.RLock()
	defer ix.mu.RUnlock()
	s := Stats{Segments: len(ix.segments)}
	for _, p := range ix.packs {
		if p.live() {
			s.Packs++
			s.Chunks += int64(p.chunks)
			s.PackBytes += p.size
		}
	}
	return s
}

// Packs gives the packs in which lookups can find chunks, with their sizes in
// bytes, in no order. It is a copy: the index may change and be used while it
// is read.
func (ix *Index) Packs() iter.Seq2[chunk.PackID, int64] {
	ix.mu.RLock()
	defer ix.mu.RUnlock()
	live := make([]pack, 0, len(ix.packs))
	for _, p := range ix.packs {
		if p.live() {
			live = append(live, *p)
		}
	}
	return func(yield func(chunk.PackID, int64) bool) {
		for _, p := range live {
			if !yield(p.id, p.size) {
				return
			}
		}
	}
}

// PackSize is the size of a pack in bytes, 0 for one that is not known.
func (ix *Index) PackSize(id chunk.PackID) int64 {
	ix.mu.RLock()
	defer ix.mu.RUnlock()
	if p := ix.packs[ix.numbers[id]]; p != nil && p.id == id {
		return p.size
	}
	return 0
}

// Err tells why the index doubts itself, nil if it does not. A doubtful index
// still answers, and what it finds it has verified; it is rebuilt by whoever
// opens the slot next.
func (ix *Index) Err() error { return ix.doubt.err() }

func (ix *Index) doubts(err error) {
	if !ix.doubt.set(err) {
		return
	}
	ix.log(fmt.Sprintf("index is doubtful, and will be rebuilt: %v", err))
	// At once: the process may not live to close the index.
	if ix.slot != nil {
		ix.slot.removeCatalog()
	}
}

// doubt holds the first error that made the index doubt itself.
type doubt struct {
	mu    sync.Mutex
	first error
}

func (d *doubt) err() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.first
}

// set reports whether err is the first.
func (d *doubt) set(err error) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.first != nil {
		return false
	}
	d.first = err
	return true
}

// Close keeps for the next process what this one learnt, and frees the slot.
// An error says only that nothing was kept. Lookups answer false from then on.
// Closing twice is no error.
func (ix *Index) Close() error {
	ix.writing.Lock()
	defer ix.writing.Unlock()
	if ix.closed {
		return nil
	}
	var err error
	if ix.slot != nil && !ix.slot.private {
		err = ix.settle(false)
	}
	ix.mu.Lock()
	defer ix.mu.Unlock()
	ix.closed = true
	err = errors.Join(err, ix.db.close())
	ix.db = nil
	ix.forget()
	if ix.slot != nil {
		err = errors.Join(err, ix.slot.free())
	}
	if err != nil {
		return fmt.Errorf("closing index: %w", err)
	}
	return nil
}

// abandon gives the disk up: what was learnt in memory stays, what only Badger
// knows is forgotten, which at worst stores chunks again. writing is held, or
// nobody else has the index yet.
func (ix *Index) abandon(err error) {
	ix.log(fmt.Sprintf("index is kept in memory: %v", err))
	ix.mu.Lock()
	defer ix.mu.Unlock()
	ix.slot.removeCatalog()
	ix.db.close()
	ix.db = nil
	ix.slot.free()
	ix.slot = nil
}

// forgetSegments leaves only what this process has added.
func (ix *Index) forgetSegments() {
	ix.mu.Lock()
	defer ix.mu.Unlock()
	for n, p := range ix.packs {
		if p.segments > 0 {
			delete(ix.packs, n)
			delete(ix.numbers, p.id)
		}
	}
	clear(ix.recent)
	clear(ix.segments)
	ix.dead, ix.changed = 0, true
}
