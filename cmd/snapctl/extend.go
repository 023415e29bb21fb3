package main

import (
	"errors"
	"time"

	"github.com/spf13/cobra"

	"github.com/snapctl/snapctl/engine"
)

func extendCommand(a *app) *cobra.Command {
	var ttl time.Duration
	var until string
	cmd := &cobra.Command{
		Use:   "extend REF...",
		Short: "Say anew when snapshots expire",
		Long: `Has snapshots expire some time from now, or at a time: later than they would
have, or sooner. One that is pinned no longer is. Prints their ids; with --json,
an array of the objects that show --json prints. Unless every REF names one
snapshot, none is changed.

What time it is the repository's clock says, not this machine's, for --ttl here
and in create; a time that has passed by it is refused.

What has expired stays expired: exit code 5. So it does when the repository had
the change so late that garbage collection may have been first.

Where a snapshot is named by its full id, it is the id alone that is asked for
in the repository, and a time that was made sooner counts only when garbage
collection has removed the snapshot.`,
		Example: `  snapctl extend app~1 --ttl 30d
  snapctl extend 0193a5b2-7c1e --until 2027-01-31
  snapctl list --json --tag release=yes | snapctl extend - --ttl 52w`,
		Args:              takes("REF..."),
		ValidArgsFunction: a.complete.ref,
		RunE: func(cmd *cobra.Command, args []string) error {
			at, err := expiry(ttl, until)
			if err != nil {
				return usagef(cmd, "extend: %w", err)
			}
			return changeSnapshots(a, cmd, args, &engine.Changes{Until: at, TTL: ttl}, "to expire")
		},
	}
	flags := cmd.Flags()
	flags.SortFlags = false
	flags.Var((*ttlFlag)(&ttl), "ttl", "expire after `DURATION`, such as 90m, 7d or 2w, from now")
	flags.StringVar(&until, "until", "", "expire at `TIME`: 2027-01-31, 2027-01-31 15:04 or 2027-01-31T15:04:05Z")
	noCompletions(cmd, "ttl", "until")
	return cmd
}

// expiry is the time that --until means, if it is that and not --ttl which is given.
func expiry(ttl time.Duration, until string) (time.Time, error) {
	switch {
	case ttl != 0 && until != "":
		return time.Time{}, errors.New("--ttl and --until are two times")
	case ttl != 0:
		return time.Time{}, nil
	case until == "":
		return time.Time{}, errors.New("until when? give --ttl or --until; for ever: snapctl pin")
	}
	for _, layout := range []string{time.RFC3339, "2006-01-02 15:04:05", "2006-01-02 15:04", "2006-01-02"} {
		if at, err := time.ParseInLocation(layout, until, time.Local); err == nil {
			return at, nil
		}
	}
	return time.Time{}, errors.New("--until: not a time such as 2027-01-31, 2027-01-31 15:04 or 2027-01-31T15:04:05Z")
}
