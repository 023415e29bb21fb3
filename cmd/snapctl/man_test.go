package main

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"github.com/snapctl/snapctl/cmd/snapctl/internal/man"
)

// TestManPages: every command that help shows has a page with all of its sections and
// options, tables stay as they are, and nothing is in it of the machine it was made on.
func TestManPages(t *testing.T) {
	const home = "/home/maker"
	t.Setenv("HOME", home)
	root := newRootCommand(processEnv())
	here, err := filepath.Abs(".")
	if err != nil {
		t.Fatal(err)
	}
	pages := map[string]string{}
	for _, cmd := range man.Documented(root) {
		pages[man.Name(cmd)+"."+man.Section(cmd)] = man.Page(cmd, "v1", "2026-01-02")
	}
	var visit func(cmd *cobra.Command)
	visit = func(cmd *cobra.Command) {
		for _, c := range cmd.Commands() {
			if !c.Hidden && c.Name() != "help" {
				visit(c)
			}
		}
		name := man.Name(cmd) + "." + man.Section(cmd)
		page, ok := pages[name]
		if !ok {
			t.Errorf("there is no %s", name)
			return
		}
		want := []string{".SH NAME", ".SH DESCRIPTION", ".SH SEE ALSO"}
		if man.Section(cmd) == "1" {
			want = append(want, ".SH SYNOPSIS", ".SH OPTIONS", ".SH EXIT STATUS", ".SH ENVIRONMENT", `\fB\-\-help\fR`)
		}
		if cmd.Example != "" {
			want = append(want, ".SH EXAMPLES")
		}
		for _, w := range want {
			if !strings.Contains(page, w+"\n") {
				t.Errorf("%s has no %s", name, w)
			}
		}
		for _, secret := range []string{here, home} {
			if strings.Contains(page, secret) {
				t.Errorf("%s holds %s", name, secret)
			}
		}
		if n, m := strings.Count(page, "\n.nf\n"), strings.Count(page, "\n.fi\n"); n != m {
			t.Errorf("%s begins %d tables and ends %d", name, n, m)
		}
	}
	visit(root)
	if page := pages["snapctl-references.7"]; !strings.Contains(page, ".nf\n0193a5b2\\-7c1e\\-7d43\\-9a55\\-0c8b1f6e2a00  its id\n") {
		t.Errorf("the table of references is not as it was:\n%s", page)
	}
	if page := pages["snapctl-troubleshooting.7"]; !strings.Contains(page, ".PP\n\\fBAccess denied.\\fR The ") {
		t.Errorf("what is strong is not:\n%s", page)
	}
	if page := pages["snapctl-sandboxes.7"]; !strings.Contains(page, "\n.SS \"After a restart\"\nMounts and forks ") {
		t.Errorf("there is no heading:\n%s", page)
	}
	if page := pages["snapctl-mount.1"]; !strings.Contains(page, `\fBsnapctl\-umount\fR(1)`) {
		t.Errorf("mount does not refer to umount:\n%s", page)
	}
}
