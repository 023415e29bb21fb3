package main

import (
	"io"
	"time"

	"github.com/dustin/go-humanize"
)

// Streams are what a command writes: data to standard output, and everything that is
// said to people to standard error.
type streams struct {
	out     *output
	console *console
	now     func() time.Time
	dumb    bool // standard error is a terminal that cannot move its cursor

	json  bool // data is JSON
	quiet bool // there is no progress and no summary
}

func newStreams(stdout, stderr io.Writer, now func() time.Time, dumb bool) *streams {
	return &streams{out: &output{w: stdout}, console: &console{out: stderr}, now: now, dumb: dumb}
}

// An output is standard output. It remembers that a write failed: cobra, which
// prints the helps, does not.
type output struct {
	w   io.Writer
	err error
}

func (o *output) Write(p []byte) (int, error) {
	n, err := o.w.Write(p)
	if err != nil {
		err = &outputError{err}
		o.err = err
	}
	return n, err
}

// terminal reports whether a person looks at it.
func (o *output) terminal() bool { return isTerminal(o.w) }

// An outputError is a failed write to standard output, which is told from the
// same error on a connection: only a reader of ours who left is no failure.
type outputError struct{ err error }

func (e *outputError) Error() string { return "writing to standard output: " + e.err.Error() }
func (e *outputError) Unwrap() error { return e.err }

// print writes data to standard output.
func (s *streams) print(text string) error {
	_, err := io.WriteString(s.out, text)
	return err
}

// printLine writes a line of data: as it is for a program, and such that it
// does no harm for a person.
func (s *streams) printLine(text string) error {
	if s.out.terminal() {
		text = quoted(text)
	}
	return s.print(text + "\n")
}

// printJSON writes v as one line of JSON.
func (s *streams) printJSON(v any) error {
	line, err := jsonLine(v)
	if err != nil {
		return err
	}
	return s.print(line)
}

// say tells people something that --quiet silences.
func (s *streams) say(text string) {
	if !s.quiet {
		s.console.line(text)
	}
}

// warn tells people something that nothing silences.
func (s *streams) warn(err error) { s.console.warn(err.Error()) }

// when is how tables show times: as seen from now on a terminal, and in full elsewhere.
func (s *streams) when() func(time.Time) string {
	if s.out.terminal() {
		return s.relative
	}
	return func(t time.Time) string { return t.UTC().Format(time.RFC3339) }
}

// relative is a time as seen from now: 3 hours ago, 2 days from now.
func (s *streams) relative(t time.Time) string {
	return humanize.RelTime(t, s.now(), "ago", "from now")
}
