package engine

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/snapctl/snapctl/chunk"
	"github.com/snapctl/snapctl/chunk/wire"
	"github.com/snapctl/snapctl/engine/snapshot"
	"github.com/zeebo/blake3"
)

// A tombstone says that packs are doomed: no writer may refer to them any more, and
// when a grace has passed they are deleted. Doomed is for ever. See
// gc_protocol.go. It is an object gc/ID, where ID is a UUIDv7. All numbers are
// little-endian:
//
//	offset  size  field
//	0       8     magic "snaptomb"
//	8       1     format version, 1
//	9       7     zero
//	16      ...   number of packs, uvarint, 1 to 65,536; then for each, by ascending id
//	                id              32 bytes
//	                size            uvarint, of the pack in bytes
//	                number of packs that its chunks were moved to, uvarint, 0 for a pack
//	                                that nothing referred to; then each one's id, 32
//	                                bytes, ascending
//	end-32  32    BLAKE3-256 of everything before
//
// Beside it lie two empty notes of when: gc/ID-seen was put by somebody for whom the
// tombstone was there to be read, gc/ID-done when all its packs were gone and none of
// them was needed to find what was moved. Their times, by the store's clock, are what
// graces are counted from. That of the tombstone itself will not do: a store may give
// an object the time when its writing began, long before anybody could see it.
type tombstone struct {
	packs []doomedPack // by ascending id
}

type doomedPack struct {
	id    chunk.PackID
	size  int64
	moved []chunk.PackID // where its chunks are now; empty if nothing referred to it
}

const (
	gcPrefix        = "gc/"
	tombMagic       = "snaptomb"
	tombVersion     = 1
	tombHead        = 16
	tombSum         = 32
	seenSuffix      = "-seen"
	doneSuffix      = "-done"
	clockPrefix     = gcPrefix + "clock-"
	maxTombPacks    = 64 << 10
	maxTombstone    = 8 << 20 // bytes
	maxMovedPerPack = 1 << 10
)

var errTombstone = errors.New("damaged tombstone")

func (t *tombstone) encode() []byte {
	b := append([]byte(tombMagic), tombVersion, 0, 0, 0, 0, 0, 0, 0)
	b = binary.AppendUvarint(b, uint64(len(t.packs)))
	for _, p := range t.packs {
		b = append(b, p.id[:]...)
		b = binary.AppendUvarint(b, uint64(p.size))
		b = binary.AppendUvarint(b, uint64(len(p.moved)))
		for i := range p.moved {
			b = append(b, p.moved[i][:]...)
		}
	}
	sum := blake3.Sum256(b)
	return append(b, sum[:]...)
}

func decodeTombstone(b []byte) (*tombstone, error) {
	if len(b) < tombHead+tombSum || len(b) > maxTombstone {
		return nil, fmt.Errorf("%w: %d bytes", errTombstone, len(b))
	}
	body, sum := b[:len(b)-tombSum], b[len(b)-tombSum:]
	if blake3.Sum256(body) != [tombSum]byte(sum) {
		return nil, fmt.Errorf("%w: checksum does not match", errTombstone)
	}
	r := wire.NewReader(body)
	if !bytes.Equal(r.Fixed("header", tombHead), append([]byte(tombMagic), tombVersion, 0, 0, 0, 0, 0, 0, 0)) {
		r.Failf("not a tombstone of version %d", tombVersion)
	}
	n := r.Count("number of packs", chunk.IDSize+2)
	if n < 1 || n > maxTombPacks {
		r.Failf("%d packs, 1 to %d expected", n, maxTombPacks)
		n = 0
	}
	t := &tombstone{packs: make([]doomedPack, n)}
	for i := range t.packs {
		p := &t.packs[i]
		copy(p.id[:], r.Fixed("pack id", chunk.IDSize))
		p.size = int64(r.Uvarint("size of a pack", chunk.MaxPack))
		if i > 0 && bytes.Compare(t.packs[i-1].id[:], p.id[:]) >= 0 {
			r.Failf("packs out of order")
		}
		moved := r.Count("number of packs that it was moved to", chunk.IDSize)
		if moved > maxMovedPerPack {
			r.Failf("moved to %d packs, the most is %d", moved, maxMovedPerPack)
		}
		for j := 0; j < moved && r.Err() == nil; j++ {
			var to chunk.PackID
			copy(to[:], r.Fixed("pack id", chunk.IDSize))
			if to == p.id || j > 0 && bytes.Compare(p.moved[j-1][:], to[:]) >= 0 {
				r.Failf("packs that it was moved to are out of order")
			}
			p.moved = append(p.moved, to)
		}
		if r.Err() != nil {
			break
		}
	}
	if err := r.Close(); err != nil {
		return nil, fmt.Errorf("%w: %w", errTombstone, err)
	}
	return t, nil
}

// sort puts the packs in order, as a tombstone has them.
func (t *tombstone) sort() {
	slices.SortFunc(t.packs, func(a, b doomedPack) int { return bytes.Compare(a.id[:], b.id[:]) })
}

// A gcName is an object under gc/ by its name.
type gcName struct {
	id   string // of a tombstone, "" for a clock
	kind string // "", seenSuffix or doneSuffix
}

// parseGCName tells what an object under gc/ is. What it does not know is somebody
// else's.
func parseGCName(name string) (n gcName, ok bool) {
	n.id = strings.TrimPrefix(name, gcPrefix)
	if rest, clock := strings.CutPrefix(name, clockPrefix); clock {
		return gcName{}, validUUID(rest)
	}
	for _, kind := range []string{seenSuffix, doneSuffix} {
		if id, is := strings.CutSuffix(n.id, kind); is {
			n = gcName{id, kind}
			break
		}
	}
	return n, validUUID(n.id)
}

// isTombstone reports whether an object is a tombstone by its name.
func isTombstone(name string) bool {
	n, ok := parseGCName(name)
	return ok && strings.HasPrefix(name, gcPrefix) && n.id != "" && n.kind == ""
}

func validUUID(s string) bool {
	u, err := uuid.Parse(s)
	return err == nil && u.String() == s
}

// grace is how long packs are doomed before they are deleted.
func (r *Repo) grace() time.Duration { return time.Duration(r.cfg.GCGrace) * time.Second }

// tombstone reads a tombstone, which the cache may have.
func (r *Repo) tombstone(ctx context.Context, name string) (*tombstone, error) {
	id := strings.TrimPrefix(name, gcPrefix)
	if b := r.cache.Read("tombstones", id); b != nil {
		if t, err := decodeTombstone(b); err == nil {
			return t, nil
		}
		r.cache.Remove("tombstones", id)
	}
	b, err := r.store.Get(ctx, name)
	if err != nil {
		return nil, err
	}
	t, err := decodeTombstone(b)
	if err != nil {
		return nil, fmt.Errorf("%w: object %s: %w; delete it while no snapctl gc runs", snapshot.ErrIntegrity, name, err)
	}
	if err := r.cache.Write("tombstones", id, b); err != nil {
		r.log.Info("caching a tombstone", "err", err)
	}
	return t, nil
}
