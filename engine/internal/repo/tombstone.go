package repo

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

// A Tombstone says that packs are doomed: no writer may refer to them any more, and
// when a grace has passed they are deleted. Doomed is for ever. See
// engine/internal/gc/protocol.go. It is an object gc/ID, where ID is a UUIDv7. All numbers are
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
// Tombstone was there to be read, gc/ID-done when all its packs were gone and none of
// them was needed to find what was moved. Their times, by the store's clock, are what
// graces are counted from. That of the tombstone itself will not do: a store may give
// an object the time when its writing began, long before anybody could see it.
type Tombstone struct {
	Packs []DoomedPack // by ascending id
}

// A DoomedPack is a pack that will be deleted when its grace has passed.
type DoomedPack struct {
	Id    chunk.PackID
	Size  int64
	Moved []chunk.PackID // where its chunks are now; empty if nothing referred to it
}

const (
	GcPrefix        = "gc/"
	tombMagic       = "snaptomb"
	tombVersion     = 1
	tombHead        = 16
	TombSum         = 32
	SeenSuffix      = "-seen"
	DoneSuffix      = "-done"
	ClockPrefix     = GcPrefix + "clock-"
	maxTombPacks    = 64 << 10
	MaxTombstone    = 8 << 20 // bytes
	maxMovedPerPack = 1 << 10
)

// ErrTombstone: an object that is named as a tombstone is none.
var ErrTombstone = errors.New("damaged tombstone")

// Encode gives the bytes of the object.
func (t *Tombstone) Encode() []byte {
	b := append([]byte(tombMagic), tombVersion, 0, 0, 0, 0, 0, 0, 0)
	b = binary.AppendUvarint(b, uint64(len(t.Packs)))
	for _, p := range t.Packs {
		b = append(b, p.Id[:]...)
		b = binary.AppendUvarint(b, uint64(p.Size))
		b = binary.AppendUvarint(b, uint64(len(p.Moved)))
		for i := range p.Moved {
			b = append(b, p.Moved[i][:]...)
		}
	}
	sum := blake3.Sum256(b)
	return append(b, sum[:]...)
}

// DecodeTombstone is the inverse of Tombstone.Encode. It fails with ErrTombstone.
func DecodeTombstone(b []byte) (*Tombstone, error) {
	if len(b) < tombHead+TombSum || len(b) > MaxTombstone {
		return nil, fmt.Errorf("%w: %d bytes", ErrTombstone, len(b))
	}
	body, sum := b[:len(b)-TombSum], b[len(b)-TombSum:]
	if blake3.Sum256(body) != [TombSum]byte(sum) {
		return nil, fmt.Errorf("%w: checksum does not match", ErrTombstone)
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
	t := &Tombstone{Packs: make([]DoomedPack, n)}
	for i := range t.Packs {
		p := &t.Packs[i]
		copy(p.Id[:], r.Fixed("pack id", chunk.IDSize))
		p.Size = int64(r.Uvarint("size of a pack", chunk.MaxPack))
		if i > 0 && bytes.Compare(t.Packs[i-1].Id[:], p.Id[:]) >= 0 {
			r.Failf("packs out of order")
		}
		moved := r.Count("number of packs that it was moved to", chunk.IDSize)
		if moved > maxMovedPerPack {
			r.Failf("moved to %d packs, the most is %d", moved, maxMovedPerPack)
		}
		for j := 0; j < moved && r.Err() == nil; j++ {
			var to chunk.PackID
			copy(to[:], r.Fixed("pack id", chunk.IDSize))
			if to == p.Id || j > 0 && bytes.Compare(p.Moved[j-1][:], to[:]) >= 0 {
				r.Failf("packs that it was moved to are out of order")
			}
			p.Moved = append(p.Moved, to)
		}
		if r.Err() != nil {
			break
		}
	}
	if err := r.Close(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrTombstone, err)
	}
	return t, nil
}

// Sort puts the packs in order, as a tombstone has them.
func (t *Tombstone) Sort() {
	slices.SortFunc(t.Packs, func(a, b DoomedPack) int { return bytes.Compare(a.Id[:], b.Id[:]) })
}

// A GcName is an object under gc/ by its name.
type GcName struct {
	Id   string // of a tombstone, "" for a clock
	Kind string // "", SeenSuffix or DoneSuffix
}

// ParseGCName tells what an object under gc/ is. What it does not know is somebody
// else's.
func ParseGCName(name string) (n GcName, ok bool) {
	n.Id = strings.TrimPrefix(name, GcPrefix)
	if rest, clock := strings.CutPrefix(name, ClockPrefix); clock {
		return GcName{}, ValidUUID(rest)
	}
	for _, kind := range []string{SeenSuffix, DoneSuffix} {
		if id, is := strings.CutSuffix(n.Id, kind); is {
			n = GcName{id, kind}
			break
		}
	}
	return n, ValidUUID(n.Id)
}

// IsTombstone reports whether an object is a tombstone by its name.
func IsTombstone(name string) bool {
	n, ok := ParseGCName(name)
	return ok && strings.HasPrefix(name, GcPrefix) && n.Id != "" && n.Kind == ""
}

// ValidUUID reports whether s is a UUID in its canonical form.
func ValidUUID(s string) bool {
	u, err := uuid.Parse(s)
	return err == nil && u.String() == s
}

// Grace is how long packs are doomed before they are deleted.
func (r *Repo) Grace() time.Duration { return time.Duration(r.Cfg.GCGrace) * time.Second }

// Tombstone reads a tombstone, which the cache may have.
func (r *Repo) Tombstone(ctx context.Context, name string) (*Tombstone, error) {
	id := strings.TrimPrefix(name, GcPrefix)
	if b := r.Cache.Read("tombstones", id); b != nil {
		if t, err := DecodeTombstone(b); err == nil {
			return t, nil
		}
		r.Cache.Remove("tombstones", id)
	}
	b, err := r.Store.Get(ctx, name)
	if err != nil {
		return nil, err
	}
	t, err := DecodeTombstone(b)
	if err != nil {
		return nil, fmt.Errorf("%w: object %s: %w; delete it while no snapctl gc runs", snapshot.ErrIntegrity, name, err)
	}
	if err := r.Cache.Write("tombstones", id, b); err != nil {
		r.Logger.Info("caching a tombstone", "err", err)
	}
	return t, nil
}

// ExpirySlack is how long after its expiry, by the clock of the store, a snapshot is
// left alone by garbage collection: a note that is durable by then is seen in time.
func (r *Repo) ExpirySlack() time.Duration { return min(r.Grace()/2, 15*time.Minute) }
