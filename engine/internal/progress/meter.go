// Package progress counts what an operation does and tells a snapshot.Progress.
package progress

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/snapctl/snapctl/engine/snapshot"
)

// Meter counts what an operation does and tells a Progress.
type Meter struct {
	to    snapshot.Progress
	begun time.Time

	Files, Bytes, fresh, moved atomic.Int64
	TotalFiles, TotalBytes     atomic.Int64
	busy                       atomic.Int64
	now                        atomic.Value // Phase

	quit chan struct{}
	done sync.WaitGroup
}

const reportEvery = 100 * time.Millisecond

// New makes a meter, which tells nobody if to is nil.
func New(to snapshot.Progress) *Meter { return &Meter{to: to} }

// AddFile counts a file that was gone through.
func (m *Meter) AddFile() { m.Files.Add(1) }

// AddBytes counts bytes that were gone through.
func (m *Meter) AddBytes(n int64) { m.Bytes.Add(n) }

// AddNew counts bytes that the repository did not have.
func (m *Meter) AddNew(n int64) { m.fresh.Add(n) }

// Transfer counts requests that begin, +1, or end, -1, and bytes that were moved.
func (m *Meter) Transfer(delta int, size int64) { m.busy.Add(int64(delta)); m.moved.Add(size) }

// SetPhase is what Stats.Phase says from now on.
func (m *Meter) SetPhase(p snapshot.Phase) { m.now.Store(p) }

// Start begins to report, until Stop.
func (m *Meter) Start(p snapshot.Phase) {
	m.begun = time.Now()
	m.SetPhase(p)
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

// Stop tells the last figures and ends the reports. It waits for the one under way.
func (m *Meter) Stop() {
	if m.quit != nil {
		close(m.quit)
		m.done.Wait()
	}
}

func (m *Meter) stats() snapshot.Stats {
	return snapshot.Stats{
		Phase: m.now.Load().(snapshot.Phase),
		Files: m.Files.Load(), Bytes: m.Bytes.Load(), NewBytes: m.fresh.Load(),
		TotalFiles: m.TotalFiles.Load(), TotalBytes: m.TotalBytes.Load(),
		Moved: m.moved.Load(), InFlight: int(m.busy.Load()),
		Elapsed: time.Since(m.begun),
	}
}
