// Package man makes manual pages of a program's commands and help topics. Page is where to
// start.
//
// A page is made of the command's own texts, which are wrapped for a terminal: lines that
// begin with a space are tables and stay as they are, and all others are paragraphs to be
// filled. Of Markdown, in which help topics are written, headings that are underlined,
// **strong** and `code` are known. The macros are those of man(7).
package man

import (
	"cmp"
	"regexp"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// Documented is a command and all below it that has a page of its own.
func Documented(cmd *cobra.Command) []*cobra.Command {
	all := []*cobra.Command{cmd}
	for _, c := range cmd.Commands() {
		if !c.Hidden && c.Name() != "help" {
			all = append(all, Documented(c)...)
		}
	}
	return all
}

// Name is a page's name: snapctl-key-add.
func Name(cmd *cobra.Command) string { return strings.ReplaceAll(cmd.CommandPath(), " ", "-") }

// Section is 1 for a command and 7 for a help topic.
func Section(cmd *cobra.Command) string {
	if isTopic(cmd) {
		return "7"
	}
	return "1"
}

// isTopic reports whether a command is a help topic: one that does nothing.
func isTopic(cmd *cobra.Command) bool { return !cmd.Runnable() && !cmd.HasSubCommands() }

// A writer writes one page.
type writer struct {
	page  strings.Builder
	begun bool // a section, and nothing in it yet
}

func (w *writer) line(parts ...string) {
	w.begun = strings.HasPrefix(parts[0], ".SH") || strings.HasPrefix(parts[0], ".SS")
	for _, p := range parts {
		w.page.WriteString(p)
	}
	w.page.WriteByte('\n')
}

// Page is the page of a command or help topic. date is the day it is of, "" if that is
// not known.
func Page(cmd *cobra.Command, version, date string) string {
	w := &writer{}
	name := Name(cmd)
	w.line(`.TH "`, roff(strings.ToUpper(name)), `" "`, Section(cmd), `" "`, date, `" "snapctl `, roff(version), `" "snapctl"`)
	w.line(".SH NAME")
	w.line(roff(name), ` \- `, roff(lowerFirst(cmd.Short)))
	if !isTopic(cmd) {
		w.line(".SH SYNOPSIS")
		w.line(`\fB`, roff(cmd.CommandPath()), `\fR`, roff(usageOf(cmd)))
	}
	w.line(".SH DESCRIPTION")
	w.text(cmp.Or(cmd.Long, cmd.Short+"."))
	if cmd.HasAvailableSubCommands() {
		w.line(".SH COMMANDS")
		for _, c := range cmd.Commands() {
			if !c.Hidden && c.Name() != "help" && !isTopic(c) {
				w.item(`\fB`+roff(Name(c))+`\fR(1)`, c.Short)
			}
		}
	}
	if !isTopic(cmd) {
		w.options(cmd)
		if cmd.Example != "" {
			w.line(".SH EXAMPLES")
			w.table(strings.Split(cmd.Example, "\n"))
		}
		w.line(".SH EXIT STATUS")
		w.text(exitStatus)
		w.line(".SH ENVIRONMENT")
		w.text(environment)
	}
	w.seeAlso(cmd)
	return w.page.String()
}

const (
	exitStatus = `0 done, 1 failed, 2 usage, 3 done but incomplete, 4 no such snapshot, 5 expired, 6
damaged repository, 7 locked repository, 130 interrupted, 141 nobody reads the
output: snapctl-exit-codes(7) says more.`
	environment = `SNAPCTL_REPO, SNAPCTL_CACHE_DIR, SNAPCTL_CACHE_SIZE and SNAPCTL_STATE_DIR stand for
the options of the same names, and SNAPCTL_PASSPHRASE_FILE or SNAPCTL_IDENTITY_FILE
opens an encrypted repository: snapctl-repositories(7) says more, also about the
credentials of a bucket.`
)

// usageOf is what follows the command's name on its usage line.
func usageOf(cmd *cobra.Command) string {
	_, rest, _ := strings.Cut(cmd.Use, " ")
	switch {
	case !cmd.HasParent():
		return " COMMAND [OPTION...] [ARGUMENT...]"
	case rest == "" && cmd.HasSubCommands():
		return " COMMAND [OPTION...]"
	}
	return strings.TrimRight(" [OPTION...] "+rest, " ")
}

func (w *writer) options(cmd *cobra.Command) {
	w.line(".SH OPTIONS")
	cmd.InitDefaultHelpFlag()
	cmd.InitDefaultVersionFlag()
	cmd.NonInheritedFlags().VisitAll(func(f *pflag.Flag) {
		if !f.Hidden {
			value, usage := pflag.UnquoteUsage(f)
			tag := ""
			if f.Shorthand != "" {
				tag = `\fB` + roff("-"+f.Shorthand) + `\fR, `
			}
			tag += `\fB` + roff("--"+f.Name) + `\fR`
			if value != "" {
				tag += ` \fI` + roff(value) + `\fR`
			}
			w.item(tag, strings.Join(strings.Fields(usage), " "))
		}
	})
	if cmd.HasParent() {
		w.line(".PP")
		w.line(`The options of every command, such as \fB`, roff("--repo"), `\fR and \fB`, roff("--json"), `\fR, are in \fBsnapctl\fR(1).`)
	}
}

func (w *writer) item(tag, text string) {
	w.line(".TP")
	w.line(tag)
	w.fill(text)
}

// text writes paragraphs and tables.
func (w *writer) text(s string) {
	var lines []string // of one kind
	flush := func() {
		switch {
		case len(lines) == 0:
		case indented(lines[0]):
			w.table(lines)
		case len(lines) == 2 && strings.Trim(lines[1], "-") == "":
			w.line(`.SS "`, roff(lines[0]), `"`)
		default:
			if !w.begun {
				w.line(".PP")
			}
			w.fill(strings.Join(lines, "\n"))
		}
		lines = nil
	}
	for line := range strings.SplitSeq(strings.ReplaceAll(s, "\t", "    "), "\n") {
		if strings.TrimSpace(line) == "" || len(lines) > 0 && indented(line) != indented(lines[0]) {
			flush()
		}
		if strings.TrimSpace(line) != "" {
			lines = append(lines, line)
		}
	}
	flush()
}

func indented(line string) bool { return strings.HasPrefix(line, " ") }

// table writes lines as they are. One that would not fit beside the margin of a page
// on a terminal of 80 columns begins further left.
func (w *writer) table(lines []string) {
	const margin, columns = 7, 80
	common, widest := 1000, 0
	for _, line := range lines {
		if s := strings.TrimLeft(line, " "); s != "" {
			common = min(common, len(line)-len(s))
		}
	}
	for _, line := range lines {
		widest = max(widest, len([]rune(line))-common)
	}
	wide := widest+margin >= columns
	if !w.begun {
		w.line(".PP")
	}
	if wide {
		w.line(".in 2n")
	}
	w.line(".nf")
	for _, line := range lines {
		w.line(roffLine(line[min(common, len(line)):]))
	}
	w.line(".fi")
	if wide {
		w.line(".in")
	}
}

// fill writes text whose lines are filled.
func (w *writer) fill(text string) {
	var lines []string
	for line := range strings.SplitSeq(strings.TrimRight(text, "\n"), "\n") {
		lines = append(lines, roffLine(strings.TrimSpace(line)))
	}
	w.line(strong.ReplaceAllString(strings.Join(lines, "\n"), `\fB$1$2\fR`))
}

// strong is what stands out, escaped.
var strong = regexp.MustCompile(`(?s)\*\*(.+?)\*\*|\\\(ga(.+?)\\\(ga`)

// roff escapes text within a line.
var roff = strings.NewReplacer(`\`, `\e`, `-`, `\-`, `"`, `\(dq`, `'`, `\(aq`, "`", `\(ga`, `^`, `\(ha`, `~`, `\(ti`).Replace

// roffLine escapes a line, which must not be taken for a request.
func roffLine(line string) string {
	line = roff(line)
	if strings.HasPrefix(line, ".") {
		line = `\&` + line
	}
	return line
}

var mention = regexp.MustCompile(`\bsnapctl(?: help)? ([a-z-]+)(?: ([a-z]+))?`)

// seeAlso names the pages of what the command's texts mention, of what is above and
// below it, and, of snapctl itself, of all topics.
func (w *writer) seeAlso(cmd *cobra.Command) {
	var pages []*cobra.Command
	add := func(c *cobra.Command) {
		if c != nil && c != cmd && !c.Hidden && c.Name() != "help" && !slices.Contains(pages, c) {
			pages = append(pages, c)
		}
	}
	root := cmd.Root()
	add(root)
	add(cmd.Parent())
	for _, m := range mention.FindAllStringSubmatch(cmd.Long+"\n"+cmd.Example, -1) {
		if c, _, err := root.Find(m[1:2]); err == nil {
			add(c)
		}
	}
	if cmd != root {
		for _, c := range cmd.Commands() {
			add(c)
		}
	}
	for _, c := range root.Commands() {
		if isTopic(c) && (cmd == root || c.Name() == "exit-codes" || c.Name() == "repositories") {
			add(c)
		}
	}
	slices.SortStableFunc(pages, func(a, b *cobra.Command) int {
		return cmp.Or(cmp.Compare(Section(a), Section(b)), cmp.Compare(Name(a), Name(b)))
	})
	w.line(".SH SEE ALSO")
	for i, c := range pages {
		end := `),`
		if i == len(pages)-1 {
			end = `)`
		}
		w.line(`\fB`, roff(Name(c)), `\fR(`, Section(c), end)
	}
}

func lowerFirst(s string) string {
	if len(s) > 1 && s[1] >= 'a' && s[1] <= 'z' || len(s) > 1 && s[1] == ' ' {
		return strings.ToLower(s[:1]) + s[1:]
	}
	return s
}
