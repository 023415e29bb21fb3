package listing

import (
	"bufio"
	"strconv"
	"strings"

	"github.com/dustin/go-humanize"

	"github.com/snapctl/snapctl/cmd/snapctl/internal/ui"
	"github.com/snapctl/snapctl/engine"
	"github.com/snapctl/snapctl/manifest"
)

// changeOutput is what diff prints of a change with --json.
type changeOutput struct {
	Path      string      `json:"path"`
	PathBytes []byte      `json:"pathBytes,omitempty"`
	Kind      string      `json:"kind"`
	Changed   []string    `json:"changed,omitempty"`
	Old       *fileOutput `json:"old,omitempty"`
	New       *fileOutput `json:"new,omitempty"`
}

// Changes prints changes one by one.
type Changes struct {
	json      bool
	namesOnly bool
	terminal  bool
	out       *bufio.Writer
	field     string   // of a JSON object that the array is; "" if it is none
	counts    [3]int64 // added, removed, modified
}

// NewChanges gives a printer to standard output, with namesOnly of paths alone.
func NewChanges(s *ui.Streams, namesOnly bool) *Changes {
	return &Changes{json: s.JSON, namesOnly: namesOnly, terminal: s.Out.Terminal(), out: bufio.NewWriterSize(s.Out, 64<<10)}
}

// InObject has the JSON array of changes be a field of an object, of which Finish gets
// the others.
func (p *Changes) InObject(field string) { p.field = field }

// Any reports whether there was a change.
func (p *Changes) Any() bool { return p.counts != [3]int64{} }

// Print prints a change.
func (p *Changes) Print(c *engine.Change) error {
	first := !p.Any()
	switch c.Kind {
	case engine.Added:
		p.counts[0]++
	case engine.Removed:
		p.counts[1]++
	default:
		p.counts[2]++
	}
	line, err := p.line(c)
	if err == nil && p.json {
		begin := ",\n"
		if first {
			begin = p.before() + "["
		}
		line = begin + strings.TrimSuffix(line, "\n")
	}
	if err == nil {
		_, err = p.out.WriteString(line)
	}
	if err == nil && p.terminal {
		err = p.out.Flush()
	}
	return err
}

func (p *Changes) line(c *engine.Change) (string, error) {
	path := c.Path
	switch {
	case p.json:
		o := changeOutput{Path: c.Path, PathBytes: bytesUnlessText(c.Path), Kind: string(c.Kind), Changed: c.What.Words()}
		if c.Old != nil {
			o.Old = newFileOutput("", c.Old)
		}
		if c.New != nil {
			o.New = newFileOutput("", c.New)
		}
		return ui.JSONLine(o)
	case path == "":
		path = "."
	case p.namesOnly && p.terminal, !p.namesOnly:
		path = ui.Quoted(path)
		if strings.Contains(c.Path, " (") && path == c.Path {
			path = strconv.Quote(path) // what follows the path begins like this
		}
	}
	switch {
	case p.namesOnly:
		return path + "\n", nil
	case c.Kind == engine.Added:
		return "+ " + path + "\n", nil
	case c.Kind == engine.Removed:
		return "- " + path + "\n", nil
	case c.What&manifest.ChangedType != 0:
		return "T " + path + " (" + typeText(c.Old.Mode()) + ", " + typeText(c.New.Mode()) + ")\n", nil
	}
	return "M " + path + " (" + strings.Join(c.What.Words(), ", ") + ")\n", nil
}

// before is what comes before the array.
func (p *Changes) before() string {
	if p.field == "" {
		return ""
	}
	return `{"` + p.field + `":`
}

// Finish ends the output, whatever the error that ends it. rest is an object with the
// other fields of the one that the array is in, nil if there are none.
func (p *Changes) Finish(err error, rest any) error {
	var werr error
	switch {
	case !p.json:
	case p.Any():
		werr = p.end("]", rest)
	case err == nil:
		werr = p.end(p.before()+"[]", rest)
	}
	if werr == nil {
		werr = p.out.Flush()
	}
	if werr != nil {
		return werr
	}
	return err
}

// end writes the end of an array, and what comes after it.
func (p *Changes) end(text string, rest any) error {
	end := "\n"
	switch {
	case rest != nil:
		line, err := ui.JSONLine(rest)
		if err != nil {
			return err
		}
		end = "," + line[1:]
	case p.field != "":
		end = "}\n"
	}
	_, err := p.out.WriteString(text + end)
	return err
}

// Summary says how many changes there were.
func (p *Changes) Summary() string {
	if !p.Any() {
		return "no differences"
	}
	return humanize.Comma(p.counts[0]) + " added, " + humanize.Comma(p.counts[1]) + " removed, " + humanize.Comma(p.counts[2]) + " changed"
}
