package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"
)

// helpCommand is cobra's, but that an unknown topic is an error.
func helpCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "help [COMMAND or TOPIC]",
		Short: "Help about a command or a topic",
		Args:  takes("[COMMAND]", "[SUBCOMMAND]"),
		ValidArgsFunction: func(cmd *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
			var names []cobra.Completion
			if len(args) == 0 {
				for _, c := range cmd.Root().Commands() {
					if !c.Hidden {
						names = append(names, cobra.CompletionWithDesc(c.Name(), c.Short))
					}
				}
			}
			return names, cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			about, rest, err := cmd.Root().Find(args)
			if err != nil || len(rest) > 0 {
				return &usageError{err: fmt.Errorf("help: no such command or topic: %q", strings.Join(args, " ")), help: "snapctl"}
			}
			about.InitDefaultHelpFlag()
			about.InitDefaultVersionFlag()
			return about.Help()
		},
	}
}

// helpTopics are commands that do nothing, which cobra lists as help topics.
func helpTopics() []*cobra.Command {
	return []*cobra.Command{
		{
			Use:   "exit-codes",
			Short: "What exit codes mean",
			Long: `Exit codes:
    0  done
    1  failed; also an ambiguous REF, a repository or a target that exists, and
       a mount that is in use, or whose process does not end; with diff
       --exit-code and verify REF DIR also that there are differences, and then
       without an error
    2  the command line cannot be meant
    3  done but incomplete: some files could not be read, or not be restored as
       they were; each is named on standard error; with repair --apply, that
       what is left of a snapshot is not all of it
    4  no such snapshot
    5  the snapshot has expired
    6  damaged repository: an object of it is not what was written; no byte of
       it was used
    7  locked repository: it is encrypted, and the passphrase is wrong, or
       nothing was given that opens it
  130  interrupted by Ctrl-C, SIGTERM or SIGHUP; what create or copy had
       uploaded is reused by the next one, and a restore's target is as it was
       (with --into, each file of it is)
  141  whoever read standard output stopped reading

An error is one line on standard error, "snapctl: ...", and maybe a second one
on what to do. It is text with --json too: what to do follows from the exit
code.`,
		},
		{
			Use:   "references",
			Short: "How to name a snapshot",
			Long: `A REF, which names a snapshot, is one of
  0193a5b2-7c1e-7d43-9a55-0c8b1f6e2a00   its id
  0193a5b2-7c1e                          the beginning of its id, if no other
                                         begins like this; at least four digits
  app                                    the newest snapshot of this name
  app~2                                  the second before that
  latest                                 the newest of all
  {"id":"0193a5b2-...","dir":"/work"}    a handle, such as create --json prints;
                                         more fields do not matter
  -                                      one of these on standard input

What could be a name and the beginning of an id is an error that shows both.

Where a command takes a file or directory in a snapshot, a colon and its path
follow, as in app~2:src/main.go; "app:" is the root. The path is from there on,
whether it begins with a slash or not; ".." cannot be in it. Symbolic links lead
inside the snapshot only: one that is absolute, or leads above the root, is an
error. The REF ends at the first colon: a snapshot whose name holds one is named
by its id here.`,
		},
		{
			Use:   "encryption",
			Short: "Encrypted repositories, passphrases and identities",
			Long: `A repository made by snapctl init --encrypt holds nothing in clear but what
cannot be hidden from whoever keeps it: how many objects there are, how large
they are, and when each is written and read. Names, contents, trees and tags are
encrypted by AES-256-GCM, and nobody can tell whether a known file is in it. All
is checked when it is read, so that nobody without a key can change it either.

What opens it:
  a passphrase     asked for at the terminal, or read from the file that
                   SNAPCTL_PASSPHRASE_FILE names. Each command then takes about
                   0.4 seconds longer, and 128 MiB of memory for that time
  an age identity  of a recipient, age1..., as age-keygen makes both: from the
                   file that SNAPCTL_IDENTITY_FILE names. It takes no time: the
                   better choice for machines

  snapctl init --encrypt
  age-keygen -o key.txt; snapctl init --recipient age1...
  snapctl key add --label laptop --recipient age1...
  snapctl key list
  snapctl key remove 4f1d

Without any of its keys nothing can be read again: have two.

Mounts and forks need no passphrase while they last: the process that serves
them has the key in memory, and so has its keeper. After a restart of the
machine, snapctl resume needs one.

Where one of the two variables is set a repository that is not encrypted is
refused: so nobody can put one in its place. This machine also remembers the key
of each encrypted repository that it has used, and refuses another one.

On this machine the cache holds what was fetched as it is stored, encrypted. The
state folder says in clear what is mounted. A mount shows files as they are.`,
		},
		{
			Use:   "repositories",
			Short: "Repository URLs, credentials and environment variables",
			Long: `A repository is named by --repo or SNAPCTL_REPO:
  /srv/snapshots, file:///srv/snapshots      a local folder
  s3://bucket/prefix?endpoint=URL&region=R   S3, or a server that speaks it
  r2://ACCOUNT/bucket/prefix                 Cloudflare R2; ?jurisdiction=eu or
                                             fedramp for a bucket in one

A repository is made once by snapctl init. Without --repo it is the default, a
local folder, which the first create makes.

Environment:
  SNAPCTL_REPO            as --repo
  SNAPCTL_CACHE_DIR       as --cache-dir
  SNAPCTL_CACHE_SIZE      as --cache-size
  SNAPCTL_STATE_DIR       as --state-dir
  SNAPCTL_PASSPHRASE_FILE, SNAPCTL_IDENTITY_FILE
                          what opens an encrypted one: snapctl help encryption
  XDG_DATA_HOME           holds the default repository, snapctl (~/.local/share)
  XDG_CACHE_HOME          holds the default cache, snapctl (~/.cache)
  XDG_STATE_HOME          holds what is mounted, snapctl (~/.local/state)
  AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN
                          credentials, for R2 too; else they come from the
                          shared credentials file, or from the machine's role
  AWS_PROFILE, AWS_SHARED_CREDENTIALS_FILE
                          which file, and which profile in it
  AWS_REGION              where the URL has no region
  AWS_ENDPOINT_URL_S3     where the URL has no endpoint

Credentials never go into the URL.`,
		},
	}
}
