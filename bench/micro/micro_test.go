package micro

import (
	"errors"
	"flag"
	"testing"
)

// TestRun: what is measured is done once before and then counted, both sides have their
// names, and who fails fails.
func TestRun(t *testing.T) {
	before := flag.Lookup("test.benchtime").Value.String()
	defer flag.Set("test.benchtime", before)
	if err := flag.Set("test.benchtime", "5x"); err != nil {
		t.Fatal(err)
	}
	ours, limit := 0, 0
	count := func(n *int) func() error {
		return func() error {
			*n++
			return nil
		}
	}
	testing.Benchmark(func(b *testing.B) {
		Run(b, "name", Work{Bytes: 1, Entries: 1}, count(&ours), count(&limit))
		Run(b, "alone", Work{}, count(&ours), nil)
	})
	// Each is also tried once by the testing package, to see how long it takes.
	if limit < 6 || ours != 2*limit {
		t.Errorf("%d times ours, %d times the limit", ours, limit)
	}
	r := testing.Benchmark(func(b *testing.B) { measure(b, Work{Bytes: 7, Entries: 3}, count(new(int))) })
	if r.N != 5 || r.Bytes != 7 || r.Extra["entries/s"] <= 0 {
		t.Errorf("%+v", r)
	}
	if r := testing.Benchmark(func(b *testing.B) { measure(b, Work{}, func() error { return errors.New("no") }) }); r.N != 0 {
		t.Errorf("a failure is measured: %+v", r)
	}
}
