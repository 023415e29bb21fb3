package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/snapctl/snapctl/cmd/snapctl/internal/man"
	"github.com/snapctl/snapctl/cmd/snapctl/internal/ui"
)

// manCommand is for those who build a release, hence hidden: make man.
func manCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:    "man DIR",
		Short:  "Write the manual pages",
		Hidden: true,
		Long: `Writes a manual page into DIR for every command (section 1) and every help topic
(section 7), and prints their paths. It replaces no file. The pages carry the
date SOURCE_DATE_EPOCH, in seconds since 1970; without it that of the commit
which this program was built from, if it knows that.`,
		Args: takes("DIR"),
		ValidArgsFunction: func(*cobra.Command, []string, string) ([]cobra.Completion, cobra.ShellCompDirective) {
			return completeDir(true)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			date, err := manDate(a)
			if err != nil {
				return err
			}
			return writeManPages(a.ui, cmd.Root(), args[0], date)
		},
	}
}

// manDate is the day that the pages are of, "" if it is not known.
func manDate(a *app) (string, error) {
	if epoch := a.env.getenv("SOURCE_DATE_EPOCH"); epoch != "" {
		seconds, err := strconv.ParseInt(epoch, 10, 64)
		if err != nil {
			return "", &usageError{err: fmt.Errorf("SOURCE_DATE_EPOCH is no number: %q", epoch), help: "snapctl man"}
		}
		return time.Unix(seconds, 0).UTC().Format(time.DateOnly), nil
	}
	at, err := time.Parse(time.RFC3339, readVersion().Time)
	if err != nil {
		return "", nil
	}
	return at.UTC().Format(time.DateOnly), nil
}

// writeManPages writes the pages of a command and of all below it into a directory.
func writeManPages(out *ui.Streams, root *cobra.Command, dir, date string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	files := []string{}
	for _, cmd := range man.Documented(root) {
		path := filepath.Join(dir, man.Name(cmd)+"."+man.Section(cmd))
		f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
		if err != nil {
			return err
		}
		_, err = f.WriteString(man.Page(cmd, readVersion().Version, date))
		if cerr := f.Close(); err == nil {
			err = cerr
		}
		if err != nil {
			return err
		}
		if files = append(files, path); !out.JSON {
			if err := out.PrintLine(path); err != nil {
				return err
			}
		}
	}
	if out.JSON {
		return out.PrintJSON(files)
	}
	return nil
}
