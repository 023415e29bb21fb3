//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/snapctl/snapctl/engine"
)

func readme(t *testing.T) string {
	b, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestReadmeLinks: what README.md and the pages of help link to is there.
func TestReadmeLinks(t *testing.T) {
	for _, link := range regexp.MustCompile(`(?:\]\(|src(?:set)?=")([^)"#]+)`).FindAllStringSubmatch(readme(t), -1) {
		if strings.Contains(link[1], "://") {
			continue
		}
		if _, err := os.Stat(filepath.Join("../..", link[1])); err != nil {
			t.Error(err)
		}
	}
	for _, topic := range helpTopics() {
		if !strings.Contains(readme(t), "(cmd/snapctl/help/"+topic.Name()+".md)") {
			t.Errorf("it has no link to %s", topic.Name())
		}
	}
	mentions := regexp.MustCompile("`?snapctl help ([a-z-]+)")
	root := newRootCommand(processEnv())
	pages, err := filepath.Glob("help/*.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, page := range pages {
		b, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range mentions.FindAllStringSubmatch(string(b), -1) {
			if cmd, _, err := root.Find(m[1:]); err != nil || cmd == root {
				t.Errorf("%s: no help about %q", page, m[1])
			}
		}
	}
}

// TestReadmeCommands: the table of commands has every command, and only flags that there are.
func TestReadmeCommands(t *testing.T) {
	rows := map[string]string{}
	for line := range strings.Lines(readme(t)) {
		if cells := strings.Split(line, " | "); strings.HasPrefix(line, "| `") && len(cells) == 2 {
			for _, m := range regexp.MustCompile("`([a-z]+)[^`]*`").FindAllStringSubmatch(cells[0], -1) {
				rows[m[1]] = cells[1]
			}
		}
	}
	for _, cmd := range newRootCommand(processEnv()).Commands() {
		name := cmd.Name()
		if cmd.Hidden || cmd.IsAdditionalHelpTopicCommand() || name == "help" || name == "completion" || name == "version" {
			continue
		}
		row, ok := rows[name]
		if !ok {
			t.Errorf("it has no row of %s", name)
		}
		for _, m := range regexp.MustCompile("`--([a-z-]+)").FindAllStringSubmatch(row, -1) {
			known := cmd.Flags().Lookup(m[1]) != nil
			for _, sub := range cmd.Commands() {
				known = known || sub.Flags().Lookup(m[1]) != nil
			}
			for other, text := range rows { // of another command in the same row
				if text == row {
					c, _, _ := cmd.Root().Find([]string{other})
					known = known || c.Flags().Lookup(m[1]) != nil
				}
			}
			if !known {
				t.Errorf("%s has no --%s", name, m[1])
			}
		}
	}
}

// readmeProgram is the program of README.md as main has built it, in places of its own:
// repo, state, app and fork in a directory.
var readmeProgram struct {
	dir string
	err error
}

// buildReadmeProgram builds it as main in dir.
func buildReadmeProgram(dir string) error {
	text, err := os.ReadFile("../../README.md")
	if err != nil {
		return err
	}
	_, rest, ok := strings.Cut(string(text), "```go\n")
	program, _, ok2 := strings.Cut(rest, "```\n")
	if !ok || !ok2 {
		return errors.New("there is none")
	}
	file := filepath.Join(dir, "main.go")
	if err := os.WriteFile(file, []byte(program), 0o644); err != nil {
		return err
	}
	if out, err := exec.Command("gofmt", "-l", file).CombinedOutput(); err != nil || len(out) > 0 {
		return fmt.Errorf("gofmt: %v %s", err, out)
	}
	for old, name := range map[string]string{
		"s3://bucket/prefix": "repo", "/var/lib/sandboxes": "state", "/work/app": "app", "/sandboxes/1": "fork",
	} {
		if strings.Count(program, strconv.Quote(old)) != 1 {
			return fmt.Errorf("it does not name %s once", old)
		}
		program = strings.ReplaceAll(program, strconv.Quote(old), strconv.Quote(filepath.Join(dir, name)))
	}
	if err := os.WriteFile(file, []byte(program), 0o644); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), tooLong)
	defer cancel()
	for _, args := range [][]string{{"vet", file}, {"build", "-o", filepath.Join(dir, "main"), file}} {
		if out, err := exec.CommandContext(ctx, "go", args...).CombinedOutput(); err != nil {
			return fmt.Errorf("go %s: %w\n%s", args[0], err, out)
		}
	}
	return nil
}

// TestReadmeProgram: the program of README.md runs, and leaves nothing mounted.
func TestReadmeProgram(t *testing.T) {
	if readmeProgram.err != nil {
		t.Fatal(readmeProgram.err)
	}
	dir := readmeProgram.dir
	if err := errors.Join(os.Mkdir(filepath.Join(dir, "app"), 0o755),
		os.WriteFile(filepath.Join(dir, "app", "package.json"), []byte("{}\n"), 0o644)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // for -count
		for _, name := range []string{"repo", "state", "app", "fork", "cache"} {
			if err := os.RemoveAll(filepath.Join(dir, name)); err != nil {
				t.Error(err)
			}
		}
	})
	repo, err := engine.Init(t.Context(), filepath.Join(dir, "repo"), nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := repo.Close(); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), filepath.Join(dir, "main"))
	cmd.Env = append(os.Environ(), "XDG_CACHE_HOME="+filepath.Join(dir, "cache"))
	out, err := cmd.CombinedOutput()
	if want := " 1 files\nat " + filepath.Join(dir, "fork") + "\n{}\n"; err != nil || !strings.HasSuffix(string(out), want) {
		t.Errorf("%v\n%s", err, out)
	}
	mounts, err := os.ReadFile("/proc/mounts")
	if err != nil || strings.Contains(string(mounts), dir) {
		t.Errorf("%v, or mounts are left:\n%s", err, mounts)
	}
}

// TestUnit: the unit in snapctl help sandboxes is the one that is installed.
func TestUnit(t *testing.T) {
	unit, err := os.ReadFile("../../tools/snapctl.service")
	if err != nil {
		t.Fatal(err)
	}
	page, err := helpPages.ReadFile("help/sandboxes.md")
	if err != nil {
		t.Fatal(err)
	}
	indented := strings.ReplaceAll("    "+strings.TrimSpace(string(unit)), "\n", "\n    ")
	if !strings.Contains(string(page), strings.ReplaceAll(indented, "\n    \n", "\n\n")) {
		t.Errorf("it is not\n%s", unit)
	}
}
