package engine

import (
	"context"
	"log/slog"
	"time"

	"filippo.io/age"
	"github.com/snapctl/snapctl/chunk"
	"github.com/snapctl/snapctl/engine/internal/repo"
	"github.com/snapctl/snapctl/remote"
)

// Options are how a repository is opened. The zero value, and nil, will do.
type Options struct {
	// CacheDir holds what makes the next operation fast, and can be deleted at
	// any time. The default is snapctl under os.UserCacheDir.
	CacheDir string
	// CacheSize is how many bytes of fetched packs CacheDir may hold, of all
	// repositories and processes together. The default is DefaultCacheSize,
	// 10 GiB. A repository in a local folder needs none.
	CacheSize int64
	// Ref, if not "", is the reference of the snapshot that will be asked for: what
	// it names is looked up while the repository is opened, which saves a round
	// trip or two, and is then as it was at that moment; it is looked up again if a
	// passphrase took long.
	Ref string
	// List does the same for all snapshots, for who will ask for List or Prune.
	List bool
	// StateDir holds what must outlive a process: which snapshots are mounted
	// where. Processes with the same one share servers of mounts, and Mounts lists
	// them. It must not be deleted while something is mounted. The default is none;
	// that of the command is DefaultStateDir.
	StateDir string
	// Passphrase is asked for the passphrase of the repository at a URL, if that is
	// encrypted and has a key that takes one. It is not asked again when it was wrong.
	Passphrase func(ctx context.Context, url string) (string, error)
	// Identities are tried on the keys of an encrypted repository first.
	Identities []age.Identity
	// Key opens an encrypted repository as another process has: see Repository.Key.
	Key *chunk.Key
	// Encrypted refuses a repository that is not encrypted, with ErrNotEncrypted: so
	// that nobody can put one in its place. Identities and Key do too.
	Encrypted bool
	// Store is used instead of what the URL names, if it is not nil. One that has a method
	// Dir() string, as remote.File, is a folder of this machine.
	Store remote.Store
	// Requests, if not nil, counts what is asked of the store, as Repository.Requests
	// tells: for who wants to know that of an Open that fails too.
	Requests *remote.Counter
	// Log is told what a developer wants to know. The default is silence.
	Log *slog.Logger
	// OnRetry is told of every request that failed and will be sent again.
	OnRetry func(err error, wait time.Duration)
	// OnClock is told, once, by how much this machine's clock is ahead of the store's if
	// that is more than a few seconds; negative if it is behind. What counts for
	// lifetimes is the store's.
	OnClock func(ahead time.Duration)
	// Version of the program that uses the engine: snapshots and requests carry
	// it. The default is that of the main module.
	Version string
	// Now is this machine's clock. The default is time.Now.
	Now func() time.Time

	patience repo.Patience // of tests; the zero value is the usual
}
