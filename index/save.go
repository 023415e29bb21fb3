package index

import (
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/snapctl/snapctl/chunk"
)

const (
	// settleAfter is how many entries go to Badger before the catalog is
	// written: what a Sync of a huge repository loses when it is killed.
	settleAfter = 1 << 20

	// spaceReserve is how many bytes have to be free on the disk before Badger
	// is opened for writing. It writes to sparse files that are mapped into
	// memory, and on a full disk that is no error but SIGBUS, which ends the
	// process; and it retries the flush of a table for ever. Besides its logs
	// and tables, a compaction writes once more what there is.
	spaceReserve = 128 << 20
)

// load reads the slot, or says why it must be emptied.
func (ix *Index) load() error {
	data, err := os.ReadFile(ix.slot.path(catalogName))
	if err != nil {
		return err
	}
	c, err := decodeCatalog(data)
	if err != nil {
		return err
	}
	if c.repo != ix.repo {
		return errors.New("it is of another repository")
	}
	trusted := c.files
	if boot := bootID(); boot == "" || boot != c.boot {
		trusted = nil
	}
	files, read, err := fingerprints(ix.slot.db(), trusted)
	if err != nil {
		return err
	}
	if !slices.EqualFunc(files, c.files, func(a, b fingerprint) bool { return a.name == b.name && a.hash == b.hash }) {
		return errors.New("its files are not those of its catalog")
	}
	if len(files) > 0 {
		if ix.db, err = openStore(ix.slot, false, false); err != nil {
			return err
		}
	}
	ix.files, ix.changed = files, read > 0
	ix.packs, ix.segments, ix.next, ix.dead = c.packs, c.segments, c.next, c.dead
	for n, p := range c.packs {
		ix.numbers[p.id] = n
	}
	return nil
}

// settle writes what waits in memory to Badger, and the catalog. Badger is then
// open for reading, or not at all. If the disk fails, it is given up. writing
// is held.
func (ix *Index) settle(reopen bool) error {
	// A private slot is removed in the end, and so needs no catalog.
	if !ix.canWrite() || ix.slot.private {
		return nil
	}
	err := ix.save(reopen)
	if err != nil {
		ix.abandon(err)
	}
	return err
}

// canWrite reports whether the slot may be changed. A doubtful one may not:
// Badger would compact, on a goroutine of its own, what cannot be read.
func (ix *Index) canWrite() bool {
	return ix.slot != nil && !ix.frozen && ix.doubt.err() == nil
}

func (ix *Index) save(reopen bool) error {
	if len(ix.segments) == 0 && ix.db != nil {
		if err := ix.clearDisk(); err != nil {
			return err
		}
	} else if len(ix.recent) > 0 {
		if err := ix.flush(); err != nil || ix.frozen {
			return err
		}
	}
	if ix.db != nil && ix.db.writable {
		if err := ix.reopen(false); err != nil {
			return err
		}
	}
	if !ix.changed {
		return nil
	}
	files, _, err := fingerprints(ix.slot.db(), ix.files)
	if err != nil {
		return err
	}
	ix.files = files
	if err := ix.writeCatalog(); err != nil {
		return err
	}
	ix.changed, ix.unsaved = false, 0
	// A lookup that came to doubt meanwhile has removed the catalog before it
	// was written.
	if ix.doubt.err() != nil {
		return ix.slot.removeCatalog()
	}
	return nil
}

// reopen closes Badger and opens it for reading or for writing. Lookups wait.
// writing is held.
func (ix *Index) reopen(writable bool) error {
	if writable {
		// From here on until the catalog is written anew, a process that dies
		// leaves a slot that the next one empties: what Badger makes of its log
		// and half-written tables is then nobody's concern.
		if err := ix.slot.removeCatalog(); err != nil {
			return err
		}
		ix.changed = true
	}
	ix.mu.Lock()
	defer ix.mu.Unlock()
	compact := ix.db.levelZero() >= compactAt
	err := ix.db.close()
	ix.db = nil
	if err != nil {
		return fmt.Errorf("closing badger: %w", err)
	}
	if !writable {
		if err := tidy(ix.slot.db()); err != nil {
			return err
		}
	}
	ix.db, err = openStore(ix.slot, writable, compact)
	return err
}

// clearDisk empties the slot. writing is held.
func (ix *Index) clearDisk() error {
	ix.mu.Lock()
	defer ix.mu.Unlock()
	err := ix.db.close()
	ix.db, ix.files, ix.dead, ix.unsaved = nil, nil, 0, 0
	ix.changed = true
	return errors.Join(err, ix.slot.empty())
}

// flushIfFull writes to Badger if much waits in memory, and lets a long Sync
// keep what it has so far. writing is held.
func (ix *Index) flushIfFull() {
	if len(ix.recent) < bufferLimit || !ix.canWrite() {
		return
	}
	if err := ix.flush(); err != nil {
		ix.abandon(err)
	}
}

// flush moves the recent entries from memory to Badger, which it leaves open
// for writing. writing is held.
func (ix *Index) flush() error {
	if ix.db == nil || !ix.db.writable {
		used, err := diskUsage(ix.slot.db())
		if err != nil {
			return err
		}
		free, err := space(ix.slot.dir)
		if err != nil {
			return err
		}
		if free < spaceReserve+2*used {
			// What is on the disk stays good, it just learns nothing new.
			ix.frozen = true
			ix.log(fmt.Sprintf("index is not written: %d MiB left on the disk", free>>20))
			return nil
		}
		if err := ix.reopen(true); err != nil {
			return err
		}
	}
	b := ix.waiting()
	if err := ix.db.write(b); err != nil {
		return fmt.Errorf("writing to badger: %w", err)
	}
	ix.mu.Lock()
	defer ix.mu.Unlock()
	for i, id := range b.ids {
		if ix.recent[id].pack == b.packs[i] {
			delete(ix.recent, id)
		}
	}
	if len(ix.recent) == 0 {
		ix.recent = map[chunk.ID]entry{} // a map never shrinks
	}
	ix.unsaved += len(b.ids)
	return nil
}

// batch is what goes to Badger.
type batch struct {
	ids    []chunk.ID
	packs  []uint32
	values [][]byte
}

// waiting collects the recent entries, and drops those whose packs have gone.
// It copies: lookups need not wait for Badger to write.
func (ix *Index) waiting() *batch {
	ix.mu.Lock()
	defer ix.mu.Unlock()
	b := &batch{
		ids:    make([]chunk.ID, 0, len(ix.recent)),
		packs:  make([]uint32, 0, len(ix.recent)),
		values: make([][]byte, 0, len(ix.recent)),
	}
	slab := make([]byte, 0, len(ix.recent)*maxEntrySize)
	for id, e := range ix.recent {
		p := ix.packs[e.pack]
		if p == nil {
			delete(ix.recent, id)
			continue
		}
		start := len(slab)
		slab = appendEntry(slab, &id, &p.id, e)
		b.ids = append(b.ids, id)
		b.packs = append(b.packs, e.pack)
		b.values = append(b.values, slab[start:len(slab):len(slab)])
	}
	return b
}
