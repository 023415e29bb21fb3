package check

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/snapctl/snapctl/chunk"
	"github.com/snapctl/snapctl/engine/internal/local"
	"github.com/snapctl/snapctl/engine/snapshot"
	"github.com/zeebo/blake3"
)

// readState is how far the reading of packs got, kept in the cache of this machine
// as verify/progress: the BLAKE3 of what follows in hex, a newline, and this as JSON.
type readState struct {
	Share   float64   // of the data that is read
	Scope   string    // which snapshots, "" for all
	Seed    uint64    // of the sample
	Started time.Time // by this machine's clock, for people
	// Newest is the newest time of a pack when it began, by the store's clock: what
	// is not older may have come since, among those that had been passed.
	Newest  time.Time
	Through string   // every pack up to this one was read
	Bad     []string // of those, the ones to be read again, since they were damaged
}

// readLog writes down now and then which packs were read.
type readLog struct {
	cache local.Dir
	now   func() time.Time

	mu      sync.Mutex
	state   readState
	through chunk.PackID
	resumed bool
	bad     map[string]bool
	order   []*packFacts
	ended   []bool // of order
	next    int    // the first of order that has not ended
	saved   time.Time
}

const (
	ReadLogKind  = "verify"
	ReadLogName  = "progress"
	readLogEvery = 2 * time.Second
	// maxBadPacks bounds the log; with more, it is not worth going on.
	maxBadPacks = 10_000
)

// openReadLog gives the log of the run that is to be resumed, or a new one.
func (v *checkup) openReadLog() (*readLog, error) {
	scope := ""
	for _, s := range v.snapshots {
		if v.part {
			scope += s.id.String() + " "
		}
	}
	l := &readLog{cache: v.repo.Cache, now: time.Now, bad: map[string]bool{}}
	l.saved = l.now()
	if v.opts.Resume {
		if s := cachedLog(v.repo.Cache); s != nil {
			if s.Share != v.opts.ReadData || s.Scope != scope {
				return nil, fmt.Errorf("%w: the run that was stopped was of other snapshots, or of another share of the data", snapshot.ErrInvalid)
			}
			l.state, l.resumed = *s, true
			l.through, _ = chunk.ParsePackID(s.Through)
			for _, id := range s.Bad {
				l.bad[id] = true
			}
			return l, nil
		}
	}
	l.state = readState{Share: v.opts.ReadData, Scope: scope, Seed: rand.Uint64(), Started: l.now()}
	for _, p := range v.packs {
		if p.modified.After(l.state.Newest) {
			l.state.Newest = p.modified
		}
	}
	return l, nil
}

// cachedLog gives the state of the run that was stopped last, nil for none.
func cachedLog(c local.Dir) *readState {
	b := c.Read(ReadLogKind, ReadLogName)
	sum, text, ok := bytes.Cut(b, []byte("\n"))
	if want := blake3.Sum256(text); !ok || string(sum) != hex.EncodeToString(want[:]) {
		return nil
	}
	s := &readState{}
	if json.Unmarshal(text, s) != nil {
		return nil
	}
	if _, err := chunk.ParsePackID(s.Through); err != nil {
		return nil
	}
	return s
}

// begin says which packs will be read, in which order.
func (l *readLog) begin(order []*packFacts) { l.order, l.ended = order, make([]bool, len(order)) }

// read reports whether the run that is resumed has read a pack, and found it good.
func (l *readLog) read(p *packFacts) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.resumed && comparePacks(p.id, l.through) <= 0 && p.modified.Before(l.state.Newest) && !l.bad[p.id.String()]
}

// done notes that a pack was read.
func (l *readLog) done(p *packFacts, good bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if good {
		delete(l.bad, p.id.String())
	} else {
		l.bad[p.id.String()] = true
	}
	for i := l.next; i < len(l.order); i++ {
		if l.order[i] == p {
			l.ended[i] = true
			break
		}
	}
	for l.next < len(l.ended) && l.ended[l.next] {
		l.next++
	}
	if l.now().Sub(l.saved) >= readLogEvery {
		l.save()
	}
}

// save writes the log, unless that is of no use yet. That it cannot be written is no
// reason to fail.
func (l *readLog) save() {
	l.saved = l.now()
	if l.next == 0 || len(l.bad) > maxBadPacks {
		return
	}
	s := l.state
	through := l.order[l.next-1].id
	if l.resumed && comparePacks(through, l.through) < 0 {
		through = l.through
	}
	s.Through, s.Bad = through.String(), nil
	for id := range l.bad {
		s.Bad = append(s.Bad, id)
	}
	text, err := json.Marshal(s)
	if err != nil {
		return
	}
	sum := blake3.Sum256(text)
	_ = l.cache.Write(ReadLogKind, ReadLogName, []byte(hex.EncodeToString(sum[:])+"\n"), text)
}

// end closes the log: there is nothing to resume when all was read.
func (l *readLog) end(whole bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if whole {
		l.cache.Remove(ReadLogKind, ReadLogName)
	} else {
		l.save()
	}
}
