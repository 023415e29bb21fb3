// Package access holds access profiles: what the readers of a mount touched, in which
// order, with copies of what lies scattered.
package access

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"

	"github.com/snapctl/snapctl/chunk"
	"github.com/snapctl/snapctl/chunk/wire"
	"github.com/snapctl/snapctl/engine/internal/crypt"
	"github.com/snapctl/snapctl/engine/internal/repo"
	"github.com/snapctl/snapctl/manifest"
)

// An access profile is what the readers of a mount touched, in the order in which
// they first did. A later mount of the snapshot fetches that before anybody asks:
// frames where they are, and in a bundle copies of what lies scattered. Profiles are
// objects hot/SNAPSHOT/ID, where ID is the BLAKE3-256 of the object:
//
//	offset  size  field
//	0       4     length of the head as it is stored, h, little-endian
//	4       h     head; in an encrypted repository sealed, together with the snapshot's
//	              id (repo.Repo.SealObject)
//	4+h     ...   bundle: nothing, or a data pack (see chunk), up to the end
//
// and the head, whose numbers are little-endian:
//
//	offset  size  field
//	0       8     magic "snaphot\x00"
//	8       1     format version, 2
//	9       7     zero
//	16      16    snapshot id
//	32      ...   number of packs, uvarint; then each pack's id, 32 bytes
//	...           number of frames, uvarint; then for each
//	                pack            uvarint, place in the table of packs
//	                offset, stored length   uvarints
//	...           length of the bundle, uvarint
//
// No frame stands twice. Packs stand in the order in which frames first use them,
// and each is used.
type Profile struct {
	Snapshot manifest.ID
	Frames   []Frame
	Bundle   []byte // a pack, whose index is for OpenBundle to read; at the end of the object
}

// A Frame is a frame that was touched, and where it lies.
type Frame struct {
	Pack   chunk.PackID
	Offset uint32
	Stored uint32
}

const (
	ProfileMagic   = "snaphot\x00"
	profileVersion = 2
	ProfileHead    = 16

	MaxProfileFrames = 64 << 10
	maxHead          = 4 << 20  // bytes
	MaxProfile       = 24 << 20 // bytes
)

// ErrDamaged: the object is no access profile, or not the one that its name says.
var ErrDamaged = errors.New("damaged access profile")

// Prefix begins the names of the profiles of a snapshot.
func Prefix(id manifest.ID) string { return repo.ProfilePrefix + id.String() + "/" }

// ParseName tells which snapshot the object is a profile of that has the name.
func ParseName(name string) (manifest.ID, bool) {
	rest, ok := strings.CutPrefix(name, repo.ProfilePrefix)
	dir, sum, _ := strings.Cut(rest, "/")
	id, err := manifest.ParseID(dir)
	b, serr := hex.DecodeString(sum)
	return id, ok && err == nil && serr == nil && len(b) == 32 && hex.EncodeToString(b) == sum
}

// EncodeHead gives the plaintext of the head.
func (p *Profile) EncodeHead() []byte {
	b := append([]byte(ProfileMagic), profileVersion, 0, 0, 0, 0, 0, 0, 0)
	b = append(b, p.Snapshot[:]...)
	at := map[chunk.PackID]uint64{}
	var packs []chunk.PackID
	for i := range p.Frames {
		if _, ok := at[p.Frames[i].Pack]; !ok {
			at[p.Frames[i].Pack] = uint64(len(packs))
			packs = append(packs, p.Frames[i].Pack)
		}
	}
	b = binary.AppendUvarint(b, uint64(len(packs)))
	for i := range packs {
		b = append(b, packs[i][:]...)
	}
	b = binary.AppendUvarint(b, uint64(len(p.Frames)))
	for _, f := range p.Frames {
		b = binary.AppendUvarint(b, at[f.Pack])
		b = binary.AppendUvarint(b, uint64(f.Offset))
		b = binary.AppendUvarint(b, uint64(f.Stored))
	}
	return binary.AppendUvarint(b, uint64(len(p.Bundle)))
}

// DecodeHead decodes a head. bundle is what comes behind it.
func DecodeHead(b, bundle []byte) (*Profile, error) {
	r := wire.NewReader(b)
	if len(b) > maxHead {
		r.Failf("%d bytes, the most is %d", len(b), maxHead)
	}
	head := r.Fixed("header", ProfileHead)
	if r.Err() == nil && !bytes.Equal(head, append([]byte(ProfileMagic), profileVersion, 0, 0, 0, 0, 0, 0, 0)) {
		r.Failf("not an access profile of version %d", profileVersion)
	}
	p := &Profile{Bundle: bundle}
	copy(p.Snapshot[:], r.Fixed("snapshot id", len(p.Snapshot)))
	packs := make([]chunk.PackID, r.Count("number of packs", chunk.IDSize))
	seenPacks := make(map[chunk.PackID]bool, len(packs))
	for i := range packs {
		copy(packs[i][:], r.Fixed("pack id", chunk.IDSize))
		if seenPacks[packs[i]] {
			r.Failf("pack named twice")
		}
		seenPacks[packs[i]] = true
	}
	n := r.Count("number of frames", 3)
	if n > MaxProfileFrames {
		r.Failf("%d frames, the most is %d", n, MaxProfileFrames)
		n = 0
	}
	p.Frames = make([]Frame, 0, n)
	seen := make(map[Frame]bool, n)
	used := 0
	for ; n > 0 && r.Err() == nil; n-- {
		at := int(r.Uvarint("pack of a frame", uint64(max(len(packs), 1)-1)))
		offset := uint32(r.Uvarint("frame offset", chunk.MaxPack))
		stored := uint32(r.Uvarint("frame stored length", chunk.MaxFrame+chunk.MaxOverhead))
		switch {
		case r.Err() != nil:
			continue
		case len(packs) == 0:
			r.Failf("frame without a pack")
			continue
		case at > used:
			r.Failf("packs out of order")
		case stored == 0 || uint64(offset)+uint64(stored) > chunk.MaxPack:
			r.Failf("frame outside of a pack")
		}
		used = max(used, at+1)
		f := Frame{packs[at], offset, stored}
		if key := (Frame{f.Pack, f.Offset, 0}); seen[key] {
			r.Failf("frame named twice")
		} else {
			seen[key] = true
		}
		p.Frames = append(p.Frames, f)
	}
	if r.Err() == nil && used != len(packs) {
		r.Failf("unused pack")
	}
	if n := r.Uvarint("length of the bundle", MaxProfile); r.Err() == nil && n != uint64(len(bundle)) {
		r.Failf("bundle of %d bytes, %d expected", len(bundle), n)
	}
	if err := r.Close(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return p, nil
}

// Put stores a profile.
func Put(ctx context.Context, r *repo.Repo, p *Profile) error {
	b := Encode(r, p)
	return r.Store.Put(ctx, Prefix(p.Snapshot)+crypt.SumHex(b), b)
}

// Encode gives a profile's object.
func Encode(r *repo.Repo, p *Profile) []byte {
	head := r.SealObject(crypt.UseProfile, p.Snapshot.String(), p.EncodeHead())
	b := binary.LittleEndian.AppendUint32(make([]byte, 0, 4+len(head)+len(p.Bundle)), uint32(len(head)))
	return append(append(b, head...), p.Bundle...)
}

// Decode decodes the object of a profile of a snapshot.
func Decode(r *repo.Repo, id manifest.ID, b []byte) (*Profile, error) {
	if len(b) > MaxProfile || len(b) < 4 {
		return nil, fmt.Errorf("%w: %d bytes", ErrDamaged, len(b))
	}
	n := binary.LittleEndian.Uint32(b)
	if uint64(n) > uint64(len(b)-4) {
		return nil, fmt.Errorf("%w: head of %d bytes in %d", ErrDamaged, n, len(b))
	}
	head, err := r.OpenObject(crypt.UseProfile, id.String(), b[4:4+n])
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	p, err := DecodeHead(head, b[4+n:])
	if err == nil && p.Snapshot != id {
		err = fmt.Errorf("%w: of snapshot %v", ErrDamaged, p.Snapshot)
	}
	return p, err
}
