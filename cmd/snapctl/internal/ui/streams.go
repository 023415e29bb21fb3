// Package ui is how the command talks: data on standard output, and messages, warnings
// and progress on standard error. It also has the words for both: tables, sizes, times,
// and names of files that may hold any bytes. It knows nothing of commands and flags;
// New is where to start.
package ui

import (
	"io"
	"time"

	"github.com/dustin/go-humanize"
)

// Streams are what a command writes: data to standard output, and everything that is
// said to people to standard error.
type Streams struct {
	Out     *Output
	Console *Console
	JSON    bool // data is JSON
	Quiet   bool // there is no progress and no summary

	now  func() time.Time
	dumb bool // standard error is a terminal that cannot move its cursor
}

// New gives the streams of a command. Times are told as seen from now. dumb says that
// standard error, if it is a terminal, cannot move its cursor.
func New(stdout, stderr io.Writer, now func() time.Time, dumb bool) *Streams {
	return &Streams{Out: &Output{w: stdout}, Console: NewConsole(stderr), now: now, dumb: dumb}
}

// An Output is standard output. It remembers that a write failed: cobra, which
// prints the helps, does not.
type Output struct {
	Err error // of the last write that failed

	w io.Writer
}

// Write writes to standard output. Its error is an *OutputError.

func (o *Output) Write(p []byte) (int, error) {
	n, err := o.w.Write(p)
	if err != nil {
		err = &OutputError{err}
		o.Err = err
	}
	return n, err
}

// Terminal reports whether a person looks at it.
func (o *Output) Terminal() bool { return isTerminal(o.w) }

// An OutputError is a failed write to standard output, which is told from the
// same error on a connection: only a reader of ours who left is no failure.
type OutputError struct{ Err error }

func (e *OutputError) Error() string { return "writing to standard output: " + e.Err.Error() }
func (e *OutputError) Unwrap() error { return e.Err }

// Print writes data to standard output.
func (s *Streams) Print(text string) error {
	_, err := io.WriteString(s.Out, text)
	return err
}

// PrintLine writes a line of data: as it is for a program, and such that it
// does no harm for a person.
func (s *Streams) PrintLine(text string) error {
	if s.Out.Terminal() {
		text = Quoted(text)
	}
	return s.Print(text + "\n")
}

// PrintJSON writes v as one line of JSON.
func (s *Streams) PrintJSON(v any) error {
	line, err := JSONLine(v)
	if err != nil {
		return err
	}
	return s.Print(line)
}

// Say tells people something that --quiet silences.
func (s *Streams) Say(text string) {
	if !s.Quiet {
		s.Console.Line(text)
	}
}

// Warn tells people something that nothing silences.
func (s *Streams) Warn(err error) { s.Console.Warn(err.Error()) }

// When is how tables show times: as seen from now on a terminal, and in full elsewhere.
func (s *Streams) When() func(time.Time) string {
	if s.Out.Terminal() {
		return s.Relative
	}
	return func(t time.Time) string { return t.UTC().Format(time.RFC3339) }
}

// Relative is a time as seen from now: 3 hours ago, 2 days from now.
func (s *Streams) Relative(t time.Time) string {
	return humanize.RelTime(t, s.now(), "ago", "from now")
}
