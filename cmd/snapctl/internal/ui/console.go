package ui

import (
	"io"
	"os"
	"sync"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
	"golang.org/x/term"
)

// A Console is standard error: lines for people, above the progress bar while
// there is one. It is safe for parallel use. Nothing useful can be done about
// an error of writing to it.
type Console struct {
	out io.Writer

	mu   sync.Mutex
	bars *mpb.Progress // nil while there is none
	bar  *mpb.Bar      // the one in it
}

// NewConsole gives the console that writes to out.
func NewConsole(out io.Writer) *Console { return &Console{out: out} }

// Line prints one line, whatever s holds.
func (c *Console) Line(s string) { io.WriteString(c, Printable(s)+"\n") }

// Warn prints a line that is a warning.
func (c *Console) Warn(s string) { c.Line("warning: " + s) }

// Write prints whole lines as they are.
func (c *Console) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.bars != nil {
		if n, err := c.bars.Write(p); err == nil {
			return n, nil
		}
	}
	return c.out.Write(p)
}

// show draws a bar below all further lines, until hide. It takes its text, at
// most so many columns, from line.
func (c *Console) show(line func(columns int) string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.bars != nil {
		return
	}
	c.bars = mpb.New(mpb.WithOutput(c.out))
	c.bar = c.bars.MustAdd(0, mpb.BarFillerFunc(func(w io.Writer, st decor.Statistics) error {
		_, err := io.WriteString(w, line(st.AvailableWidth-1)) // some terminals wrap after the last column
		return err
	}), mpb.BarFillerTrim())
}

// hide ends the drawing, and leaves the lines that were printed above it.
func (c *Console) hide() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.bars != nil {
		c.bar.Abort(true)
		c.bars.Wait()
		c.bars, c.bar = nil, nil
	}
}

// canDraw reports whether w is a terminal with room for a bar. Some containers
// have terminals of no size, on which mpb shows nothing at all.
func canDraw(w io.Writer) bool {
	if !isTerminal(w) {
		return false
	}
	columns, rows, err := term.GetSize(int(w.(*os.File).Fd()))
	return err == nil && columns > 0 && rows > 1
}

// isTerminal reports whether a person looks at what is written to w.
func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}
