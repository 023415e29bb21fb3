package engine

import (
	"bytes"
	"context"
	"encoding/binary"
	"sync/atomic"

	"github.com/cespare/xxhash/v2"
	"github.com/snapctl/snapctl/engine/internal/local"
	"github.com/snapctl/snapctl/engine/internal/repo"
	"github.com/snapctl/snapctl/manifest"
	"github.com/zeebo/blake3"
)

// overlayMemo is what a machine knows of the files of a fork's upper directory, as they
// were when the newest snapshot of the fork was made: one fingerprint for each that
// was read, in no order. The file lies among the stat caches and is
//
//	offset  size  field
//	0       8     magic "snapfork"
//	8       16    id of the snapshot that was made
//	24      16    id of the snapshot below the fork
//	40      16n   keyHash and fingerprint, little-endian
//	40+16n  8     the first bytes of the BLAKE3 of all before
type overlayMemo struct {
	snapshot manifest.ID
	prints   map[uint64]uint64

	tree   *manifest.Tree // of the snapshot
	failed func(error)    // told why it cannot be read any further
	bad    atomic.Bool    // some page could not be read: nothing is taken from it any more
}

const memoMagic = "snapfork"

// keyHash stands for an entry's key.
func keyHash(k manifest.Key) uint64 {
	var d xxhash.Digest
	d.Reset()
	_, _ = d.WriteString(k.Dir)
	_, _ = d.Write([]byte{0})
	_, _ = d.WriteString(k.Name)
	return d.Sum64()
}

// memoKey names a fork's memo among the stat caches, which go by absolute paths.
func memoKey(o *overlayInfo) string { return repo.DirKey("upper:" + o.Upper) }

// readMemo gives what is known of a fork, nil for nothing.
func readMemo(c local.Dir, o *overlayInfo) *overlayMemo {
	b := c.Read("dirs", memoKey(o))
	const head = len(memoMagic) + 2*len(manifest.ID{})
	if len(b) < head+8 || (len(b)-head)%16 != 8 || string(b[:len(memoMagic)]) != memoMagic {
		return nil
	}
	end := len(b) - 8
	if sum := blake3.Sum256(b[:end]); !bytes.Equal(sum[:8], b[end:]) {
		return nil
	}
	at := len(memoMagic) + len(manifest.ID{})
	if manifest.ID(b[at:head]) != o.Lower {
		return nil
	}
	m := &overlayMemo{snapshot: manifest.ID(b[len(memoMagic):at]), prints: make(map[uint64]uint64, (end-head)/16)}
	for b = b[head:end]; len(b) > 0; b = b[16:] {
		m.prints[binary.LittleEndian.Uint64(b)] = binary.LittleEndian.Uint64(b[8:])
	}
	return m
}

func writeMemo(c local.Dir, o *overlayInfo, id manifest.ID, prints map[uint64]uint64) error {
	b := make([]byte, 0, len(memoMagic)+2*len(id)+16*len(prints)+8)
	b = append(append(append(b, memoMagic...), id[:]...), o.Lower[:]...)
	for key, print := range prints {
		b = binary.LittleEndian.AppendUint64(b, key)
		b = binary.LittleEndian.AppendUint64(b, print)
	}
	sum := blake3.Sum256(b)
	b = append(b, sum[:8]...)
	err := c.Write("dirs", memoKey(o), b)
	c.Trim("dirs", repo.MaxCachedDirs)
	return err
}

// fail says that nothing more is taken from it. The goroutine that reuses entries and the
// one that reuses pages may both find out.
func (m *overlayMemo) fail(err error) {
	if m.bad.CompareAndSwap(false, true) {
		m.failed(err)
	}
}

// reuse completes the item from the newest snapshot of the fork, if it has not
// changed since.
func (m *overlayMemo) reuse(ctx context.Context, it *item) bool {
	if m == nil || m.bad.Load() || m.prints[keyHash(it.entry.Key())] != statPrint(&it.stat) {
		return false
	}
	var e manifest.Entry
	if _, err := m.tree.Lookup(ctx, it.entry.Key(), &e); err != nil {
		if ctx.Err() == nil {
			m.fail(err)
		}
		return false
	}
	if e.Type != it.entry.Type || e.Mtime != it.entry.Mtime || e.Type == manifest.File && e.Size != it.entry.Size {
		return false
	}
	it.entry.Target, it.entry.Extents, it.entry.Spill, it.entry.Xattrs = e.Target, e.Extents, e.Spill, e.Xattrs
	if it.print == 0 {
		it.print = statPrint(&it.stat)
	}
	return true
}
