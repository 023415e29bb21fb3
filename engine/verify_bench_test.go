//go:build linux

package engine

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/snapctl/snapctl/engine/internal/check"
	"github.com/snapctl/snapctl/engine/snapshot"
	"golang.org/x/sys/unix"
)

// BenchmarkVerifyData reads every byte of a repository. MB/s are of stored bytes, and
// so are MB/core-s, by the processor time of the process, whatever else is running.
func BenchmarkVerifyData(b *testing.B) {
	for name, text := range map[string]bool{"random": false, "text": true} {
		b.Run(name, func(b *testing.B) {
			p := newPlace(b)
			r := p.init()
			src := p.path("src")
			words := rand.New(rand.NewPCG(1, 2))
			var plain int64
			for i := range 4000 {
				data := random(uint64(i), 16<<10)
				if text { // about as compressible as a node_modules tree
					for at := range data {
						if at%16 >= 3 {
							data[at] = byte('a' + words.IntN(2))
						}
					}
				}
				plain += int64(len(data))
				writeFile(b, fmt.Sprintf("%s/%d/%d", src, i%50, i), data)
			}
			complete(b, r, src, nil)
			b.ReportAllocs()
			begun := cpuTime(b)
			var stored int64
			for b.Loop() {
				rep, err := check.Verify(b.Context(), r.repo, nil, &snapshot.VerifyOptions{ReadData: 1})
				must(b, err)
				must(b, rep.Err())
				stored = rep.ReadBytes
			}
			b.SetBytes(stored)
			used := (cpuTime(b) - begun).Seconds() / float64(b.N)
			b.ReportMetric(float64(stored)/used/1e6, "MB/core-s")
			b.ReportMetric(float64(plain)/used/1e6, "plainMB/core-s")
			b.ReportMetric(float64(plain)/float64(stored), "ratio")
		})
	}
}

// cpuTime is what this process has used of the processors.
func cpuTime(t testing.TB) time.Duration {
	t.Helper()
	var u unix.Rusage
	must(t, unix.Getrusage(unix.RUSAGE_SELF, &u))
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
