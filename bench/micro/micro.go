// Package micro gives the micro-benchmarks of all packages one shape: each stands
// beside the limit that the machine sets to it, measured in the same run, so that the
// two can be compared whatever the machine, and however busy it is. What they are is in
// bench/README.md.
package micro

import "testing"

// Work is what is done once, to tell rates. What is zero is not told.
type Work struct {
	Bytes   int
	Entries int // directory entries, chunks, or whatever is counted one by one
}

// Run measures work under two names, which benchstat -col /by puts side by side:
//
//	NAME/by=snapctl  ours
//	NAME/by=limit    the least that must be done for it here, such as the copying of
//	                 its bytes; left out where limit is nil
//
// Each is done once before it is measured, so that pools and caches are warm. It should
// allocate nothing for the benchmark's own sake.
func Run(b *testing.B, name string, w Work, ours, limit func() error) {
	b.Helper()
	for _, side := range []struct {
		by string
		do func() error
	}{{"snapctl", ours}, {"limit", limit}} {
		if side.do != nil {
			b.Run(name+"/by="+side.by, func(b *testing.B) { measure(b, w, side.do) })
		}
	}
}

func measure(b *testing.B, w Work, do func() error) {
	if err := do(); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	if w.Bytes > 0 {
		b.SetBytes(int64(w.Bytes))
	}
	for b.Loop() {
		if err := do(); err != nil {
			b.Fatal(err)
		}
	}
	if w.Entries > 0 {
		b.ReportMetric(float64(w.Entries)*float64(b.N)/b.Elapsed().Seconds(), "entries/s")
	}
}

// Copy is the limit of whatever touches every byte once: a copy, at the speed of the
// memory.
func Copy(data []byte) func() error {
	to := make([]byte, len(data))
	return func() error {
		copy(to, data)
		return nil
	}
}
