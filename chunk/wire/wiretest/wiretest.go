// Package wiretest has what fuzz targets of decoders have in common.
package wiretest

import (
	"runtime/metrics"
	"testing"
)

// slack is what a decoder may allocate whatever its input: errors, tables of a codec,
// and what the runtime does not count at once.
const slack = 1 << 20

// Bounded fails the test if decode allocates more than limit bytes and some slack. The
// limit is one that the input's own length sets, or the bound of its kind where the
// input is compressed. Nothing else may allocate at the same time.
func Bounded(t testing.TB, limit int, decode func()) {
	t.Helper()
	before := allocated()
	decode()
	if n := allocated() - before; n > uint64(limit)+slack {
		t.Fatalf("%d bytes are allocated, %d is the most", n, limit)
	}
}

// allocated is how many bytes were ever allocated.
func allocated() uint64 {
	s := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}}
	metrics.Read(s)
	return s[0].Value.Uint64()
}
