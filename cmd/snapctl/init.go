package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/snapctl/snapctl/engine"
)

func initCommand(a *app) *cobra.Command {
	var opts engine.InitOptions
	var keys newKeys
	encrypt := false
	cmd := &cobra.Command{
		Use:   "init",
		Short: "Make a repository",
		Long: `Makes a repository at --repo or SNAPCTL_REPO. The bucket must exist; a local
folder is made. How to write a URL, and where credentials come from:
snapctl help repositories.

A repository that exists is left as it is, with exit code 1. Without --repo,
create makes the default repository by itself. One that has lost its config gets
a new one, unless it is encrypted: exit code 6.

With --encrypt all that is stored is encrypted, from the beginning or never. It
asks for a passphrase twice, or reads it from the file that
SNAPCTL_PASSPHRASE_FILE names; with --recipient age identities open it instead.
Whoever loses the passphrase, or the identities, has lost the snapshots. See:
snapctl help encryption.`,
		Example: `  snapctl init --repo /srv/snapshots
  snapctl init --repo 's3://bucket/prefix?region=eu-central-1'
  snapctl init --repo r2://ACCOUNT/bucket/prefix --compression 9
  snapctl init --repo /srv/secret --encrypt`,
		Args:              takes(),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			location, chosen, err := a.repos.location()
			if err == nil && !chosen {
				err = privateRepository(location)
			}
			if err != nil {
				return err
			}
			if encrypt || len(keys.recipients) > 0 {
				keys.file = a.secrets.PassphraseFile()
				if opts.Keys, err = keys.keys(cmd.Context(), a); err != nil {
					return fmt.Errorf("making an encrypted repository: %w", err)
				}
			}
			repo, err := engine.Init(cmd.Context(), location, &opts, a.repos.optionsFor(location))
			if errors.Is(err, engine.ErrExists) {
				return &hintError{err: err, hint: "it can be used as it is"}
			}
			if err != nil {
				return err
			}
			a.repos.close(repo)
			if a.ui.JSON {
				return a.ui.PrintJSON(struct {
					Repo string `json:"repo"`
				}{location})
			}
			made := "made a repository at "
			if len(opts.Keys) > 0 {
				made = "made an encrypted repository at "
			}
			a.ui.Say(made + location)
			return nil
		},
	}
	cmd.Flags().BoolVar(&encrypt, "encrypt", false, "encrypt all that is stored")
	keys.recipientFlag(cmd)
	cmd.Flags().IntVar(&opts.Compression, "compression", 0, "zstd `level`, 1 to 22 (default 1)")
	cmd.Flags().Var((*ttlFlag)(&opts.GCGrace), "gc-grace", "let gc wait for `DURATION` before it deletes what nothing needs, at least 10s; a\ncreate that is stopped for half of it begins anew (default 1d)")
	noCompletions(cmd, "gc-grace")
	return cmd
}
