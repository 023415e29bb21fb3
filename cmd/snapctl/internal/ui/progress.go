package ui

import (
	"fmt"
	"math"
	"strings"
	"sync"
	"time"

	"github.com/dustin/go-humanize"

	"github.com/snapctl/snapctl/engine/snapshot"
)

const (
	barDelay     = 500 * time.Millisecond // what is over sooner needs no bar
	lineInterval = 10 * time.Second       // without a terminal
	rateMemory   = 3 * time.Second        // over which the rate is averaged
)

// A Progress shows how an operation gets on: a bar on a terminal, a line now
// and then in a log, or nothing. It implements engine.Progress.
type Progress struct {
	console *Console
	style   progressStyle

	mu       sync.Mutex
	stats    snapshot.Stats
	meter    meter
	lastLine time.Duration
	warned   map[string]bool // what Warn has told of
}

type progressStyle int

const (
	noProgress progressStyle = iota
	progressLines
	progressBar
)

// StartProgress makes the progress of an operation. The caller stops it before
// it prints results.
func (s *Streams) StartProgress() *Progress {
	p := &Progress{console: s.Console, warned: make(map[string]bool)}
	switch {
	case s.Quiet:
	case canDraw(s.Console.out) && !s.dumb:
		p.style = progressBar
	default:
		p.style = progressLines
	}
	return p
}

// Update implements engine.Progress.
func (p *Progress) Update(s snapshot.Stats) {
	p.mu.Lock()
	p.stats = s
	p.meter.update(s)
	line := ""
	if p.style == progressLines && s.Elapsed-p.lastLine >= lineInterval {
		p.lastLine = s.Elapsed
		line = strings.Join(describe(s, &p.meter), ", ")
	}
	bar := p.style == progressBar && s.Elapsed >= barDelay
	p.mu.Unlock()

	if line != "" {
		p.console.Line(line)
	}
	if bar {
		p.console.show(p.barLine)
	}
}

// Warn implements engine.Progress.
func (p *Progress) Warn(err error) {
	p.mu.Lock()
	p.warned[err.Error()] = true
	p.mu.Unlock()
	p.console.Warn(err.Error())
}

// Stop ends the drawing, and names the problems that no warning has named.
func (p *Progress) Stop(problems []error) {
	p.mu.Lock()
	p.style = noProgress
	p.mu.Unlock()
	p.console.hide()
	for _, err := range problems {
		if !p.warned[err.Error()] {
			p.console.Warn(err.Error())
		}
	}
}

func (p *Progress) barLine(columns int) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return barLine(p.stats, &p.meter, columns)
}

// A meter measures how fast an operation gets on.
type meter struct {
	last snapshot.Stats
	rate float64 // units a second, 0 while unknown
}

// units is what the rate and the time left are measured by: bytes, but files
// where all of them are empty.
func units(s snapshot.Stats) (done, total int64) {
	if s.TotalFiles > 0 && s.TotalBytes == 0 {
		return s.Files, s.TotalFiles
	}
	return s.Bytes, s.TotalBytes
}

func (m *meter) update(s snapshot.Stats) {
	before, _ := units(m.last)
	now, _ := units(s)
	seconds := (s.Elapsed - m.last.Elapsed).Seconds()
	switch {
	case s.Phase != m.last.Phase:
		m.rate = 0
	case seconds <= 0:
		return
	case m.rate == 0:
		m.rate = float64(now-before) / seconds
	default:
		weight := math.Exp(-seconds / rateMemory.Seconds())
		m.rate = weight*m.rate + (1-weight)*float64(now-before)/seconds
	}
	m.last = s
}

// left is how long the phase will still take, 0 while unknown.
func (m *meter) left() time.Duration {
	done, total := units(m.last)
	if m.rate < 1 || total <= done {
		return 0
	}
	seconds := float64(total-done) / m.rate
	if seconds > (1000 * time.Hour).Seconds() {
		return 0
	}
	return time.Duration(seconds * float64(time.Second))
}

// describe says in words how far an operation is, what matters most first.
func describe(s snapshot.Stats, m *meter) []string {
	words := []string{string(s.Phase)}
	done, total := units(s)
	if total > 0 {
		words[0] += fmt.Sprintf(" %d%%", 100*min(done, total)/total)
	}
	entries := humanize.Comma(s.Files) // folders too, which Snapshot.Files does not count
	if s.TotalFiles > 0 {
		entries += "/" + humanize.Comma(s.TotalFiles)
	}
	bytes := Size(s.Bytes)
	if s.TotalBytes > 0 {
		bytes += "/" + Size(s.TotalBytes)
	}
	if s.Phase != snapshot.PhaseData { // of packs
		words = append(words, entries+" entries")
	}
	if s.Phase != snapshot.PhaseChecking { // of what has no contents
		words = append(words, bytes)
	}
	if left := m.left(); left > 0 {
		words = append(words, max(left.Round(time.Second), time.Second).String()+" left")
	}
	if m.rate >= 1 && s.Bytes > 0 {
		words = append(words, Size(int64(m.rate))+"/s")
	}
	if s.Phase == snapshot.PhaseReading || s.Phase == snapshot.PhaseCopying || s.Phase == snapshot.PhaseCommitting {
		words = append(words, Size(s.NewBytes)+" new")
		if s.InFlight > 0 {
			words = append(words, Plural(int64(s.InFlight), "upload"))
		}
	} else if s.InFlight > 0 && s.Phase != snapshot.PhaseData {
		words = append(words, Plural(int64(s.InFlight), "download"))
	}
	return words
}

const (
	minBar = 10
	maxBar = 30
)

// barLine is describe in at most width columns, with a bar where there is room
// and the end is known.
func barLine(s snapshot.Stats, m *meter, width int) string {
	words := describe(s, m)
	line := strings.Join(words, ", ")
	for len(line) > width && len(words) > 1 {
		words = words[:len(words)-1]
		line = strings.Join(words, ", ")
	}
	if len(line) > width {
		return line[:max(width, 0)]
	}
	done, total := units(s)
	room := min(width-len(line)-len(" []"), maxBar)
	if total <= 0 || room < minBar {
		return line
	}
	full := int(float64(room) * float64(min(done, total)) / float64(total))
	bar := "[" + strings.Repeat("=", full) + strings.Repeat(" ", room-full) + "]"
	return words[0] + " " + strings.Join(append([]string{bar}, words[1:]...), ", ")
}
