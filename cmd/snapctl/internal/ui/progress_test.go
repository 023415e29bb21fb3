//go:build linux

package ui

import (
	"bytes"
	"errors"
	"io"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/snapctl/snapctl/engine/snapshot"
)

func TestBarLine(t *testing.T) {
	reading := snapshot.Stats{
		Phase: snapshot.PhaseReading, Files: 68123, TotalFiles: 110534,
		Bytes: 512 << 20, TotalBytes: 1 << 30, NewBytes: 23 << 20, InFlight: 4, Elapsed: 2 * time.Second,
	}
	unknown := reading
	unknown.TotalFiles, unknown.TotalBytes, unknown.InFlight = 0, 0, 0
	empties := snapshot.Stats{Phase: snapshot.PhaseWriting, Files: 100, TotalFiles: 400, Elapsed: time.Second}
	for _, c := range []struct {
		stats snapshot.Stats
		width int
		want  string
	}{
		{reading, 160, "reading 50% [===============               ], 68,123/110,534 entries, 512 MiB/1.0 GiB, 2s left, 256 MiB/s, 23 MiB new, 4 uploads"},
		{reading, 120, "reading 50% [===========           ], 68,123/110,534 entries, 512 MiB/1.0 GiB, 2s left, 256 MiB/s, 23 MiB new, 4 uploads"},
		{reading, 100, "reading 50%, 68,123/110,534 entries, 512 MiB/1.0 GiB, 2s left, 256 MiB/s, 23 MiB new, 4 uploads"},
		{reading, 62, "reading 50%, 68,123/110,534 entries, 512 MiB/1.0 GiB, 2s left"},
		{reading, 5, "readi"},
		{reading, 0, ""},
		{reading, -1, ""},
		{unknown, 160, "reading, 68,123 entries, 512 MiB, 256 MiB/s, 23 MiB new"},
		{empties, 80, "writing 25% [=======                       ], 100/400 entries, 0 B, 3s left"},
		{snapshot.Stats{Phase: snapshot.PhaseWriting, Files: 9, TotalFiles: 8, Bytes: 9, TotalBytes: 8}, 80,
			"writing 100% [==============================], 9/8 entries, 9 B/8 B"},
	} {
		var m meter
		m.update(snapshot.Stats{Phase: c.stats.Phase})
		m.update(c.stats)
		if got := barLine(c.stats, &m, c.width); got != c.want {
			t.Errorf("%d columns:\n%s\nwant\n%s", c.width, got, c.want)
		}
	}
}

func TestMeterForgetsSlowly(t *testing.T) {
	var m meter
	s := snapshot.Stats{Phase: snapshot.PhaseReading, TotalBytes: 1 << 40}
	m.update(s)
	run := func(rate int64, seconds int) {
		for range 10 * seconds {
			s.Elapsed += 100 * time.Millisecond
			s.Bytes += rate / 10
			m.update(s)
		}
	}
	run(1e6, 20)
	if m.rate < 0.99e6 || m.rate > 1.01e6 {
		t.Errorf("at a steady 1e6 the rate is %g", m.rate)
	}
	run(2e6, 3)
	if m.rate < 1.5e6 || m.rate > 1.8e6 {
		t.Errorf("3 s after it doubled the rate is %g", m.rate)
	}
	run(2e6, 20)
	if m.rate < 1.98e6 || m.rate > 2.02e6 {
		t.Errorf("23 s after it doubled the rate is %g", m.rate)
	}
	run(0, 120)
	if left := m.left(); left != 0 {
		t.Errorf("of a stalled operation %s are left", left)
	}
	s.Phase = snapshot.PhaseCommitting
	m.update(s)
	if m.rate != 0 {
		t.Errorf("a new phase begins with the rate %g", m.rate)
	}
}

// testStreams are streams whose standard error is w.
func testStreams(w io.Writer) *Streams { return New(io.Discard, w, time.Now, false) }

func TestProgressWithoutTerminal(t *testing.T) {
	var out bytes.Buffer
	p := testStreams(&out).StartProgress()
	for i := range 250 { // 25 s
		p.Update(snapshot.Stats{Phase: snapshot.PhaseReading, Bytes: int64(i) << 20, TotalBytes: 250 << 20, Elapsed: time.Duration(i) * 100 * time.Millisecond})
	}
	told := errors.New("open a\x1bb: permission denied")
	p.Warn(told)
	p.Stop([]error{told, errors.New("late\n")})
	want := "reading 40%, 0 entries, 100 MiB/250 MiB, 15s left, 10 MiB/s, 0 B new\n" +
		"reading 80%, 0 entries, 200 MiB/250 MiB, 5s left, 10 MiB/s, 0 B new\n" +
		"warning: open a\\x1bb: permission denied\n" +
		"warning: late\\n\n"
	if out.String() != want {
		t.Errorf("got\n%s\nwant\n%s", &out, want)
	}
}

func TestQuietProgress(t *testing.T) {
	var out bytes.Buffer
	s := testStreams(&out)
	s.Quiet = true
	p := s.StartProgress()
	p.Update(snapshot.Stats{Phase: snapshot.PhaseReading, Elapsed: time.Minute})
	s.Say("summary")
	p.Warn(errors.New("unreadable"))
	p.Stop(nil)
	if want := "warning: unreadable\n"; out.String() != want {
		t.Errorf("got %q, want %q", &out, want)
	}
}

func TestProgressOnTerminal(t *testing.T) {
	master, tty := openPTY(t, 100)
	shown := terminalText{more: make(chan struct{}, 1)}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_, _ = io.Copy(&shown, master) // ends with EIO when the tty is closed
	}()

	p := testStreams(tty).StartProgress()
	s := snapshot.Stats{Phase: snapshot.PhaseReading, TotalFiles: 4, TotalBytes: 1 << 20}
	p.Update(s) // too early for a bar
	for s.Elapsed = barDelay; s.Files < 4; s.Elapsed += 200 * time.Millisecond {
		s.Files++
		s.Bytes += 256 << 10
		p.Update(s)
		if s.Files == 2 {
			for _, want := range []string{"reading 50% [=", "], 2/4 entries"} {
				shown.wait(t, want)
			}
			p.Warn(errors.New("half way"))
		}
	}
	p.Stop(nil)
	p.Update(s) // too late
	p.console.Line("done")
	tty.Close()

	<-ended
	out := shown.String()
	if got, want := screen(out), "warning: half way\ndone\n"; got != want {
		t.Errorf("left on the screen:\n%s\nwant\n%s\nof %q", got, want, out)
	}
}

// terminalText is what was written to a terminal.
type terminalText struct {
	mu   sync.Mutex
	b    bytes.Buffer
	more chan struct{} // holds one when something was written
}

func (x *terminalText) Write(p []byte) (int, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	select {
	case x.more <- struct{}{}:
	default:
	}
	return x.b.Write(p)
}

func (x *terminalText) String() string {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.b.String()
}

// wait waits until there is that text.
func (x *terminalText) wait(t *testing.T, want string) {
	t.Helper()
	const tooLong = 5 * time.Minute
	for late := time.After(tooLong); !strings.Contains(x.String(), want); {
		select {
		case <-x.more:
		case <-late:
			t.Fatalf("never shown: %q, but %q", want, x.String())
		}
	}
}

// screen is what a terminal shows after out, of which it knows what mpb uses:
// ESC [ n A, ESC [ J, and line ends.
func screen(out string) string {
	lines, row := []string{""}, 0
	for out != "" {
		if rest, ok := strings.CutPrefix(out, "\x1b["); ok {
			i := strings.IndexAny(rest, "AJ")
			switch n, _ := strconv.Atoi(rest[:i]); rest[i] {
			case 'A':
				row -= n
			case 'J':
				lines = append(lines[:row], "")
			}
			out = rest[i+1:]
			continue
		}
		switch out[0] {
		case '\r':
		case '\n':
			if row++; row == len(lines) {
				lines = append(lines, "")
			}
		default:
			lines[row] += out[:1]
		}
		out = out[1:]
	}
	return strings.Join(lines, "\n")
}

// openPTY opens a pseudo-terminal of that many columns.
func openPTY(t *testing.T, columns uint16) (master, tty *os.File) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skip("no pseudo-terminals: ", err)
	}
	t.Cleanup(func() { master.Close() })
	fd := int(master.Fd())
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: columns}); err != nil {
		t.Fatal(err)
	}
	tty, err = os.OpenFile("/dev/pts/"+strconv.Itoa(n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	return master, tty
}
