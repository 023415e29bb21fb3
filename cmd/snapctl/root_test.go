//go:build linux

package main

import (
	"bytes"
	"context"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"
)

// testApp is an app whose standard error is w.
func testApp(w io.Writer) *app {
	return newApp(&env{stdin: strings.NewReader(""), stdout: io.Discard, stderr: w, getenv: func(string) string { return "" }, now: time.Now})
}

func TestEveryCommandIsDocumented(t *testing.T) {
	root := newRootCommand(testApp(nil).env)
	var names []string
	for _, cmd := range root.Commands() {
		if cmd.Hidden {
			continue
		}
		names = append(names, cmd.Name())
		if cmd.Short == "" || strings.HasSuffix(cmd.Short, ".") {
			t.Errorf("%s: Short is %q", cmd.Name(), cmd.Short)
		}
		if slices.Contains([]string{"completion", "help"}, cmd.Name()) {
			continue
		}
		for line := range strings.Lines(cmd.Long) {
			if len(strings.TrimSuffix(line, "\n")) > 80 {
				t.Errorf("%s: wider than 80 columns: %s", cmd.Name(), line)
			}
		}
		if cmd.Long == "" || cmd.Runnable() && cmd.Name() != "version" && cmd.Example == "" {
			t.Errorf("%s: no Long or no Example", cmd.Name())
		}
		cmd.Flags().VisitAll(func(f *pflag.Flag) {
			if f.Usage == "" {
				t.Errorf("%s --%s: no usage", cmd.Name(), f.Name)
			}
		})
	}
	want := []string{
		"cat", "completion", "copy", "create", "diff", "doctor", "dump", "encryption", "exit-codes", "extend", "find", "fork", "forks", "gc", "help", "init", "key", "lifecycle", "list", "log", "ls", "maintenance", "mount", "mounts",
		"permissions", "pin", "prune", "references", "rename", "repair", "repositories", "restore", "resume", "rm", "sandboxes", "show", "stats", "tag", "troubleshooting", "umount", "unfork", "unpin", "verify", "version",
	}
	if !slices.Equal(names, want) {
		t.Errorf("commands are %q; want %q", names, want)
	}
}

// People copy examples, so they must parse.
func TestExamplesParse(t *testing.T) {
	e := testApp(nil).env
	tree := newRootCommand(e)
	quotes := strings.NewReplacer("'", "", `"`, "", "(", "", ")", "")
	for _, documented := range append(tree.Commands(), tree) {
		for line := range strings.Lines(documented.Example) {
			for part := range strings.SplitSeq(line, "|") {
				_, call, ok := strings.Cut(part, "snapctl ")
				if !ok {
					continue
				}
				call, _, _ = strings.Cut(call, "#")
				args := strings.Fields(quotes.Replace(call))
				cmd, args, err := newRootCommand(e).Find(args)
				if err == nil {
					err = cmd.ParseFlags(args)
				}
				if err == nil {
					err = cmd.ValidateArgs(cmd.Flags().Args())
				}
				if err != nil {
					t.Errorf("snapctl %s: %v", call, err)
				}
			}
		}
	}
}

func TestUnexpectedOutputErrorIsTold(t *testing.T) {
	var stderr bytes.Buffer
	e := testApp(&stderr).env
	e.stdout = failing{}
	if code := execute(context.Background(), e, []string{"version"}); code != exitFailed {
		t.Errorf("exit code %d", code)
	}
	if got, want := stderr.String(), "snapctl: writing to standard output: out of paper\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

type failing struct{}

func (failing) Write([]byte) (int, error) { return 0, errOutOfPaper{} }

type errOutOfPaper struct{}

func (errOutOfPaper) Error() string { return "out of paper" }
