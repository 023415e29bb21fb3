package main

import (
	"context"
	"errors"
	"fmt"

	"filippo.io/age"
	"github.com/spf13/cobra"

	"github.com/snapctl/snapctl/cmd/snapctl/internal/ui"
	"github.com/snapctl/snapctl/engine"
)

func keyCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "key",
		Short: "List, add and remove the keys of an encrypted repository",
		Long: `An encrypted repository has one or more keys, each of which opens it: a
passphrase, or an age recipient (age1...), whose identity opens it. See: snapctl
help encryption.`,
		Example: `  snapctl key list
  snapctl key add --label laptop --recipient age1...`,
		Args: takes(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return usagef(cmd, "key: what to do is missing: list, add or remove")
		},
	}
	cmd.AddCommand(keyListCommand(a), keyAddCommand(a), keyRemoveCommand(a))
	return cmd
}

func keyListCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "Show who can open the repository",
		Long: `Lists the keys of the repository, the oldest first, in the columns id (the
beginning of it), created, kind (passphrase or recipient), label and recipient.
With --json, prints an array of objects: id, kind, label, recipient, createdAt.`,
		Args:              takes(),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			repo, err := a.repos.open(cmd.Context())
			if err != nil {
				return err
			}
			defer a.repos.close(repo)
			keys, err := repo.Keys(cmd.Context())
			if len(keys) == 0 && err != nil {
				return err
			}
			return errors.Join(printKeys(a.ui, keys), err)
		},
	}
}

func printKeys(out *ui.Streams, keys []*engine.KeyInfo) error {
	if out.JSON {
		if keys == nil {
			keys = []*engine.KeyInfo{}
		}
		return out.PrintJSON(keys)
	}
	if len(keys) == 0 {
		return nil
	}
	when := out.When()
	t := &ui.Table{Right: []bool{4: false}}
	t.Add("ID", "CREATED", "KIND", "LABEL", "RECIPIENT")
	for _, k := range keys {
		t.Add(shortKey(k.ID), when(k.CreatedAt), k.Kind, ui.Cell(k.Label), ui.Cell(shorten(k.Recipient)))
	}
	return out.Print(t.String())
}

// shorten keeps a post-quantum recipient, of 2,000 characters, from filling the
// screen.
func shorten(s string) string {
	if len(s) > 80 {
		return s[:77] + "..."
	}
	return s
}

// shortKey is as much of a key's id as people need.
func shortKey(id string) string { return id[:12] }

func keyAddCommand(a *app) *cobra.Command {
	var n newKeys
	cmd := &cobra.Command{
		Use:   "add",
		Short: "Let another passphrase or identity open the repository",
		Long: `Adds a key: a passphrase, which it asks for twice, or reads from a file; or
age recipients, a key for each. It takes a key that is there to do so.

Prints the id of each key; with --json an array of objects as key list does.`,
		Example: `  snapctl key add --label ci --recipient age1...
  snapctl key add --passphrase-file new.txt`,
		Args:              takes(),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              func(cmd *cobra.Command, _ []string) error { return addKeys(a, cmd, &n) },
	}
	flags := cmd.Flags()
	flags.SortFlags = false
	n.recipientFlag(cmd)
	flags.StringVar(&n.file, "passphrase-file", "", "read the new passphrase from `FILE`, instead of asking for it")
	flags.StringVar(&n.label, "label", "", "call it `TEXT` in the list")
	noCompletions(cmd, "label")
	return cmd
}

// newKeys is what a command line says of keys to be made.
type newKeys struct {
	recipients []string
	file       string // of a passphrase; "" to ask for one
	label      string
}

func (n *newKeys) recipientFlag(cmd *cobra.Command) {
	cmd.Flags().StringArrayVar(&n.recipients, "recipient", nil, "have the identity of the age recipient `age1...` open it; may be repeated")
	noCompletions(cmd, "recipient")
}

// keys gets what is needed to make the keys.
func (n *newKeys) keys(ctx context.Context, a *app) ([]*engine.NewKey, error) {
	var all []*engine.NewKey
	for _, s := range n.recipients {
		r, err := parseRecipient(s)
		if err != nil {
			return nil, &hintError{err: &usageError{err: err}, hint: encryptionHint}
		}
		all = append(all, &engine.NewKey{Recipient: r, Label: n.label})
	}
	if len(all) == 0 {
		p, err := a.secrets.NewPassphrase(ctx, n.file)
		if err != nil {
			return nil, fmt.Errorf("new passphrase: %w", err)
		}
		all = append(all, &engine.NewKey{Passphrase: p, Label: n.label, WorkFactor: a.env.workFactor})
	}
	return all, nil
}

func parseRecipient(s string) (age.Recipient, error) {
	if r, err := age.ParseX25519Recipient(s); err == nil {
		return r, nil
	}
	if r, err := age.ParseHybridRecipient(s); err == nil {
		return r, nil
	}
	return nil, fmt.Errorf("--recipient: %q is not what age-keygen prints as a public key (age1 and more)", s)
}

func addKeys(a *app, cmd *cobra.Command, n *newKeys) error {
	if len(n.recipients) > 0 && n.file != "" {
		return usagef(cmd, "key add: --recipient or --passphrase-file, not both")
	}
	repo, err := a.repos.open(cmd.Context())
	if err != nil {
		return err
	}
	defer a.repos.close(repo)
	if !repo.Encrypted() {
		return fmt.Errorf("adding a key to %s: %w", repo.URL(), engine.ErrNotEncrypted)
	}
	keys, err := n.keys(cmd.Context(), a)
	if err != nil {
		return err
	}
	var added []*engine.KeyInfo
	for _, k := range keys {
		info, kerr := repo.AddKey(cmd.Context(), k)
		if kerr != nil {
			err = kerr
			break
		}
		added = append(added, info)
		if !a.ui.JSON {
			err = errors.Join(err, a.ui.PrintLine(info.ID))
		}
	}
	if a.ui.JSON {
		err = errors.Join(printKeys(a.ui, added), err)
	}
	return err
}

func keyRemoveCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "remove ID",
		Short: "Take a key away",
		Long: `Removes the key whose id begins with ID, at least four digits. The last one is
refused.

Whoever has used the key may have kept what it held, and can then still read the
bucket or folder, if he gets at that. To shut somebody out for good, take away
his access to it, or begin a new repository.

Prints nothing; with --json the key, as key list does.`,
		Args:              takes("ID"),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, args []string) error {
			repo, err := a.repos.open(cmd.Context())
			if err != nil {
				return err
			}
			defer a.repos.close(repo)
			k, err := repo.RemoveKey(cmd.Context(), args[0])
			switch {
			case errors.Is(err, engine.ErrLastKey):
				return &hintError{err: err, hint: "add another one first: snapctl key add"}
			case errors.Is(err, engine.ErrNoKey), errors.Is(err, engine.ErrAmbiguous):
				return &hintError{err: err, hint: "see what there is: snapctl key list"}
			case err != nil:
				return err
			case a.ui.JSON:
				return a.ui.PrintJSON(k)
			}
			a.ui.Say("removed the key " + shortKey(k.ID))
			return nil
		},
	}
}
