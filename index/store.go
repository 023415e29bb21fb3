package index

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"

	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/options"
)

const (
	// memTableSize is that of Badger's tables in memory, of which there are up
	// to three while it writes, and of its tables on disk.
	memTableSize = 4 << 20

	// compactAt is how many tables of level 0, each of which every lookup asks,
	// make closing compact them into one. Badger's own compactors wait up to a
	// second before they look, longer than it is ever open for writing.
	compactAt = 8
)

// store is an open Badger.
type store struct {
	slot     *slot
	db       *badger.DB
	writable bool
}

// openStore opens Badger in a slot. What lies there has been verified; a panic is an
// error nevertheless.
func openStore(in *slot, writable, compact bool) (s *store, err error) {
	opt := badger.DefaultOptions(in.db()).
		WithReadOnly(!writable).
		WithBypassLockGuard(true). // the slot's lock is held
		WithMemTableSize(memTableSize).
		WithNumMemtables(2).
		WithValueThreshold(1 << 10).
		WithValueLogFileSize(1 << 20). // nothing is ever in it
		WithCompression(options.None).
		WithBlockCacheSize(0).
		WithIndexCacheSize(0). // without encryption, indexes are read where they are mapped
		WithDetectConflicts(false).
		WithNumCompactors(2).
		WithCompactL0OnClose(compact).
		WithMetricsEnabled(false).
		WithLogger(nil)
	open := badger.OpenManaged
	if writable {
		open = badger.Open
	}
	var db *badger.DB
	err = in.bounded(func() (err error) {
		db, err = open(opt)
		return err
	}, func() {
		if db != nil {
			db.Close()
		}
	})
	if err != nil {
		return nil, fmt.Errorf("opening badger: %w", err)
	}
	return &store{slot: in, db: db, writable: writable}, nil
}

// recovered turns a panic into an error, one by a fault in mapped memory
// included: it is deferred.
func recovered(err *error) {
	if r := recover(); r != nil {
		*err = fmt.Errorf("badger panicked: %v", r)
	}
}

// get calls fn with the value under key, or does nothing if there is none.
func (s *store) get(key []byte, fn func(value []byte) error) (err error) {
	// A table that cannot be read, because the disk fails or somebody has
	// truncated it, is a fault in mapped memory.
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer recovered(&err)
	var txn *badger.Txn
	if s.writable {
		txn = s.db.NewTransaction(false)
	} else {
		// Of the latest: this spares a round trip to the one goroutine that
		// knows which version that is.
		txn = s.db.NewTransactionAt(math.MaxUint64, false)
	}
	defer txn.Discard()
	item, err := txn.Get(key)
	if errors.Is(err, badger.ErrKeyNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	return item.Value(fn)
}

// close may be called on nil.
func (s *store) close() error {
	if s == nil {
		return nil
	}
	return s.slot.bounded(s.db.Close, nil)
}

// levelZero is the number of tables that every lookup asks.
func (s *store) levelZero() int {
	if s == nil {
		return 0
	}
	n := 0
	for _, t := range s.db.Tables() {
		if t.Level == 0 {
			n++
		}
	}
	return n
}

// write puts keys in; values[i] is for keys[i]. Neither may change any more.
func (s *store) write(b *batch) error {
	return s.slot.bounded(func() error {
		wb := s.db.NewWriteBatch()
		defer wb.Cancel()
		for i := range b.ids {
			if err := wb.Set(b.ids[i][:], b.values[i]); err != nil {
				return err
			}
		}
		return wb.Flush()
	}, nil)
}

// tidy removes, once Badger is closed, the files that it makes for large
// values, of which there are none, and fails if it left any of its log.
func tidy(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		name := e.Name()
		switch {
		case strings.HasSuffix(name, ".mem"):
			return fmt.Errorf("badger left %s", name)
		case strings.HasSuffix(name, ".vlog"), name == "DISCARD":
			if err := os.Remove(filepath.Join(dir, name)); err != nil {
				return err
			}
		}
	}
	return nil
}

// diskUsage is the size of the files in dir, 0 where it does not exist.
func diskUsage(dir string) (n int64, err error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	for _, e := range entries {
		if info, err := e.Info(); err == nil {
			n += info.Size()
		}
	}
	return n, err
}
