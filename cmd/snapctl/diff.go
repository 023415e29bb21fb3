package main

import (
	"bufio"
	"context"
	"strconv"
	"strings"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"github.com/snapctl/snapctl/cmd/snapctl/internal/ui"
	"github.com/snapctl/snapctl/engine"
	"github.com/snapctl/snapctl/manifest"
)

// diffOptions are the flags of diff.
type diffOptions struct {
	engine.DiffOptions
	namesOnly, exitCode bool
}

func (a *app) diffCommand() *cobra.Command {
	var opts diffOptions
	cmd := &cobra.Command{
		Use:   "diff A B [PATH]",
		Short: "Show what differs between two snapshots",
		Long: `Shows what differs from snapshot A to snapshot B, in all of them or at PATH and
below, by comparing their trees where they differ: no file is read. How to write
a REF, which A and B are: snapctl help references.

Prints a line for each path from the root of the snapshots, the entries of a
directory before those of the directories in it:
  + PATH                  it is in B alone
  - PATH                  it is in A alone
  M PATH (content, mode)  it is in both, and these differ: content (of a symlink
                          its target, of a device its number), mode, owner,
                          xattrs, links (of which file it is a hard link), times
  T PATH (file, symlink)  it is in both, of these types

The root itself is "."; names with special characters are quoted. Times of
modification count with --times only: those of a directory change with whatever
comes and goes in it. What was moved is a "-" and a "+". A change of a file with
several names is shown at the first of them alone. No symbolic link is followed.

How many there are is told on standard error. With --json, prints an array of
objects with the fields path, kind (added, removed or modified), changed (type,
content, mode, owner, xattrs, links, times), and old and new, which are objects
such as ls --json prints. A path that is not UTF-8 is also there as pathBytes,
in base64.`,
		Example: `  snapctl diff app~1 app
  snapctl diff app~1 app node_modules/react
  snapctl diff --exit-code --times app~1 app src`,
		Args: takes("A", "B", "[PATH]"),
		ValidArgsFunction: func(cmd *cobra.Command, args []string, typed string) ([]cobra.Completion, cobra.ShellCompDirective) {
			if len(args) > 1 {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			return a.completeRef(cmd, args, typed)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if a.ui.JSON && opts.namesOnly {
				return usagef(cmd, "diff: --json and --name-only do not go together")
			}
			refs := make([]string, 2)
			for i := range refs {
				var err error
				if refs[i], err = a.ref(cmd, args[i]); err != nil {
					return err
				}
			}
			path := ""
			if len(args) > 2 {
				if path = args[2]; strings.ContainsRune(path, 0) {
					return usagef(cmd, "diff: a NUL in a path")
				}
			}
			return a.diff(cmd.Context(), refs[0], refs[1], path, &opts)
		},
	}
	flags := cmd.Flags()
	flags.SortFlags = false
	flags.BoolVar(&opts.Times, "times", false, "times of modification count too")
	flags.BoolVar(&opts.namesOnly, "name-only", false, "print paths alone, as they are, one a line")
	flags.BoolVar(&opts.exitCode, "exit-code", false, "exit code 1 if there are differences")
	return cmd
}

func (a *app) diff(ctx context.Context, old, new, path string, opts *diffOptions) error {
	repo, err := a.openFor(ctx, old)
	if err != nil {
		return about(old, err)
	}
	defer a.closeRepo(repo)
	p := &diffPrinter{app: a, namesOnly: opts.namesOnly, terminal: a.ui.Out.Terminal(), out: bufio.NewWriterSize(a.ui.Out, 64<<10)}
	err = p.finish(repo.Diff(ctx, old, new, path, &opts.DiffOptions, p.print))
	if err == nil {
		a.ui.Say(p.summary())
	}
	if err == nil && opts.exitCode && p.counts != ([3]int64{}) {
		err = errDifferences
	}
	return err
}

// changeOutput is what diff prints of a change with --json.
type changeOutput struct {
	Path      string      `json:"path"`
	PathBytes []byte      `json:"pathBytes,omitempty"`
	Kind      string      `json:"kind"`
	Changed   []string    `json:"changed,omitempty"`
	Old       *fileOutput `json:"old,omitempty"`
	New       *fileOutput `json:"new,omitempty"`
}

// A diffPrinter prints changes one by one.
type diffPrinter struct {
	app       *app
	namesOnly bool
	terminal  bool
	out       *bufio.Writer
	counts    [3]int64 // added, removed, modified

	// What surrounds the array in the output of restore --dry-run --json; nothing in
	// that of diff.
	before string
	after  func() (string, error)
}

func (p *diffPrinter) print(c *engine.Change) error {
	first := p.counts == [3]int64{}
	switch c.Kind {
	case engine.Added:
		p.counts[0]++
	case engine.Removed:
		p.counts[1]++
	default:
		p.counts[2]++
	}
	line, err := p.line(c)
	if err == nil && p.app.ui.JSON {
		begin := ",\n"
		if first {
			begin = p.before + "["
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

func (p *diffPrinter) line(c *engine.Change) (string, error) {
	path := c.Path
	switch {
	case p.app.ui.JSON:
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

// finish ends the output, whatever the error that ends it.
func (p *diffPrinter) finish(err error) error {
	var werr error
	switch {
	case !p.app.ui.JSON:
	case p.counts != [3]int64{}:
		werr = p.end("]", err)
	case err == nil:
		werr = p.end(p.before+"[]", err)
	}
	if werr == nil {
		werr = p.out.Flush()
	}
	if werr != nil {
		return werr
	}
	return err
}

// end writes the end of an array, and what comes after it, if no error ended it.
func (p *diffPrinter) end(text string, err error) error {
	rest := "\n"
	if p.before != "" {
		rest = "}\n"
	}
	if p.after != nil && err == nil {
		after, err := p.after()
		if err != nil {
			return err
		}
		rest = after
	}
	_, err = p.out.WriteString(text + rest)
	return err
}

func (p *diffPrinter) summary() string {
	if p.counts == [3]int64{} {
		return "no differences"
	}
	return humanize.Comma(p.counts[0]) + " added, " + humanize.Comma(p.counts[1]) + " removed, " + humanize.Comma(p.counts[2]) + " changed"
}
