package engine

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/snapctl/snapctl/engine/snapshot"
)

// meter counts what an operation does and tells a Progress.
type meter struct {
	to    snapshot.Progress
	begun time.Time

	files, bytes, fresh, moved atomic.Int64
	totalFiles, totalBytes     atomic.Int64
	busy                       atomic.Int64
	now                        atomic.Value // Phase

	quit chan struct{}
	done sync.WaitGroup
}

const reportEvery = 100 * time.Millisecond

func newMeter(to snapshot.Progress) *meter { return &meter{to: to} }

func (m *meter) addFile()                       { m.files.Add(1) }
func (m *meter) addBytes(n int64)               { m.bytes.Add(n) }
func (m *meter) addNew(n int64)                 { m.fresh.Add(n) }
func (m *meter) transfer(delta int, size int64) { m.busy.Add(int64(delta)); m.moved.Add(size) }

func (m *meter) phase(p snapshot.Phase) { m.now.Store(p) }

// start begins to report, until stop.
func (m *meter) start(p snapshot.Phase) {
	m.begun = time.Now()
	m.phase(p)
	if m.to == nil {
		return
	}
	m.quit = make(chan struct{})
	m.done.Go(func() {
		tick := time.NewTicker(reportEvery)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				m.to.Update(m.stats())
			case <-m.quit:
				m.to.Update(m.stats())
				return
			}
		}
	})
}

func (m *meter) stop() {
	if m.quit != nil {
		close(m.quit)
		m.done.Wait()
	}
}

func (m *meter) stats() snapshot.Stats {
	return snapshot.Stats{
		Phase: m.now.Load().(snapshot.Phase),
		Files: m.files.Load(), Bytes: m.bytes.Load(), NewBytes: m.fresh.Load(),
		TotalFiles: m.totalFiles.Load(), TotalBytes: m.totalBytes.Load(),
		Moved: m.moved.Load(), InFlight: int(m.busy.Load()),
		Elapsed: time.Since(m.begun),
	}
}
