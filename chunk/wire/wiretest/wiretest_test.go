package wiretest

import "testing"

type fakeTB struct {
	testing.TB
	failed bool
}

func (f *fakeTB) Helper()               {}
func (f *fakeTB) Fatalf(string, ...any) { f.failed = true }

var sink []byte

func TestBounded(t *testing.T) {
	for size, want := range map[int]bool{1000: false, 3 << 20: true} {
		f := &fakeTB{TB: t}
		if Bounded(f, 1000, func() { sink = make([]byte, size) }); f.failed != want {
			t.Errorf("%d bytes: failed %t", size, f.failed)
		}
	}
}
