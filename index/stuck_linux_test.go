package index

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// writing gives an index whose Badger is open for writing, and has something to flush.
func writing(t *testing.T, dir string, b *bucket) *Index {
	t.Helper()
	ix := open(t, dir)
	b.sync(t, ix)
	ix.writing.Lock()
	defer ix.writing.Unlock()
	ix.takePack(makePack(8, span(1000, 1000)...))
	if err := ix.flush(); err != nil {
		t.Fatal(err)
	}
	return ix
}

// TestStuckClose: Badger cannot write the table that it flushes when it is closed, and
// tries that again for ever. Close says so, and the slot is nobody's as long as this
// process lives; others go on without it, and without what was lost.
func TestStuckClose(t *testing.T) {
	dir := t.TempDir()
	b := newBucket()
	b.fill(t, 0, 1000)
	ix := writing(t, dir, b)
	ix.slot.patience = time.Second // in vain, however long
	slot := ix.slot
	away := filepath.Join(t.TempDir(), "db")
	if err := os.Rename(slot.db(), away); err != nil {
		t.Fatal(err)
	}
	if err := ix.Close(); !errors.Is(err, errStuck) {
		t.Fatal(err)
	}
	if _, err := lockSlot(slot.dir); !errors.Is(err, errBusy) {
		t.Errorf("the slot was given to somebody else: %v", err)
	}
	other := open(t, dir)
	b.sync(t, other)
	check(t, other, b.places(t), 1500)
	if other.slot.dir == slot.dir {
		t.Error("the slot is used again")
	}
	mustClose(t, other)
	// When the disk is well again the call comes back, and the slot is free.
	if err := os.Rename(away, slot.db()); err != nil {
		t.Fatal(err)
	}
	lock, err := os.Open(filepath.Join(slot.dir, lockName))
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil { // waits for that
		t.Fatal(err)
	}
	lock.Close()
	again := open(t, dir)
	b.sync(t, again)
	check(t, again, b.places(t), 1500)
	mustClose(t, again)
}

// TestStuckOnTheWay: an index whose Badger does not come back goes on in memory.
func TestStuckOnTheWay(t *testing.T) {
	for name, step := range map[string]func(ix *Index) error{
		"reopen": func(ix *Index) error { return ix.settle(true) },
		"clear":  func(ix *Index) error { return ix.clearDisk() },
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			b := newBucket()
			b.fill(t, 0, 1000)
			ix := writing(t, dir, b)
			ix.slot.patience = time.Second
			db := ix.slot.db()
			away := filepath.Join(t.TempDir(), "db")
			if err := os.Rename(db, away); err != nil {
				t.Fatal(err)
			}
			ix.writing.Lock()
			err := step(ix)
			if ix.slot != nil {
				ix.abandon(err)
			}
			ix.writing.Unlock()
			if !errors.Is(err, errStuck) {
				t.Error(err)
			}
			if err := os.Rename(away, db); err != nil { // so that nothing is left running
				t.Fatal(err)
			}
			ix.writing.Lock()
			ix.forgetSegments()
			ix.writing.Unlock()
			b.sync(t, ix)
			check(t, ix, b.places(t), 1500)
			mustClose(t, ix)
		})
	}
}

// TestStuckLate: what was opened after the patience is closed.
func TestStuckLate(t *testing.T) {
	s, err := lockSlot(filepath.Join(t.TempDir(), "0"))
	if err != nil {
		t.Fatal(err)
	}
	s.patience = time.Millisecond
	opened, closed := make(chan struct{}), make(chan struct{})
	if err := s.bounded(func() error { <-opened; return nil }, func() { close(closed) }); !errors.Is(err, errStuck) {
		t.Error(err)
	}
	if err := s.bounded(func() error { t.Error("it is called"); return nil }, nil); !errors.Is(err, errStuck) {
		t.Error(err)
	}
	close(opened)
	<-closed
}
