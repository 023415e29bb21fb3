package manifest

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"time"

	"github.com/snapctl/snapctl/chunk/wire"
	"github.com/zeebo/blake3"
)

// A lease object, all numbers little-endian:
//
//	offset  size  field
//	0       8     magic "snapleas"
//	8       1     format version, 1
//	9       3     zero
//	12      4     hold in seconds, 1 to 2,678,400 (31 days)
//	16      4     length of the manifest, m
//	20      4     zero
//	24      m     the manifest, byte for byte as in manifests/
//	24+m    32    BLAKE3-256 of all before
//
// It lies at leases/<manifest id>/<lease id>, the latter a UUID of its writer's.
// It counts until hold has passed since it was last written, both by the clock
// of the store. It is the one object that is overwritten, always with the same
// bytes.
const (
	leaseMagic   = "snapleas"
	leaseVersion = 1
	leaseHeader  = 24

	// MaxHold bounds the hold of a lease.
	MaxHold = 31 * 24 * time.Hour
	// MaxLease is the longest lease in bytes: a bound for decoders.
	MaxLease = leaseHeader + MaxManifest + sumSize
)

// A Lease says that a snapshot is in use, also when its manifest has been
// removed: then the lease still tells what the snapshot needs.
type Lease struct {
	Hold     time.Duration // for how long it counts after it was written; whole seconds
	Manifest []byte        // the manifest object: see Decode
}

// Encode gives the object's bytes. It fails for what DecodeLease would refuse.
func (l *Lease) Encode() ([]byte, error) {
	b := append(make([]byte, 0, leaseHeader+len(l.Manifest)+sumSize), leaseMagic...)
	b = append(b, leaseVersion, 0, 0, 0)
	b = binary.LittleEndian.AppendUint32(b, uint32(min(max(l.Hold, 0), MaxHold+time.Second)/time.Second))
	b = binary.LittleEndian.AppendUint32(b, uint32(len(l.Manifest)))
	b = append(b, 0, 0, 0, 0)
	b = appendSum(append(b, l.Manifest...))
	if l.Hold%time.Second != 0 {
		return nil, fmt.Errorf("lease: hold of %v is no number of seconds", l.Hold)
	}
	_, err := DecodeLease(b)
	return b, err
}

// DecodeLease decodes a lease. Of the manifest it checks that it is one, whole
// and of the right length; its contents are for Decode.
func DecodeLease(b []byte) (*Lease, error) {
	r := wire.NewReader(b)
	if string(r.Fixed("magic", len(leaseMagic))) != leaseMagic {
		r.Failf("no lease")
	}
	if v := r.Byte("version"); v != leaseVersion {
		r.Failf("version %d, this program knows %d", v, leaseVersion)
	}
	zero(r, 3)
	hold := time.Duration(fixed32(r, "hold")) * time.Second
	if hold <= 0 || hold > MaxHold {
		r.Failf("hold of %v", hold)
	}
	n := fixed32(r, "length of the manifest")
	zero(r, 4)
	if n > MaxManifest {
		r.Failf("manifest of %d bytes", n)
	}
	m := r.Fixed("manifest", int(n))
	end := r.Offset()
	sum := r.Fixed("checksum", sumSize)
	if err := r.Close(); err != nil {
		return nil, fmt.Errorf("%w: lease: %w", ErrDamaged, err)
	}
	if want := blake3.Sum256(b[:end]); !bytes.Equal(sum, want[:]) {
		return nil, fmt.Errorf("%w: checksum of the lease does not match", ErrDamaged)
	}
	if err := CheckObject(m); err != nil {
		return nil, fmt.Errorf("lease: %w", err)
	}
	return &Lease{hold, m}, nil
}

func fixed32(r *wire.Reader, what string) uint32 {
	if b := r.Fixed(what, 4); b != nil {
		return binary.LittleEndian.Uint32(b)
	}
	return 0
}

func zero(r *wire.Reader, n int) {
	if !bytes.Equal(r.Fixed("padding", n), make([]byte, n)) {
		r.Failf("padding is not zero")
	}
}
