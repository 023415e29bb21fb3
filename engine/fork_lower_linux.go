package engine

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/snapctl/snapctl/engine/internal/local"
	"github.com/snapctl/snapctl/fusefs"
	"github.com/snapctl/snapctl/manifest"
)

// A lowerKey names the mount of a snapshot that the forks of one mode lie over. Each
// mode has its own: overlays of different kinds believe different names of their lower
// directory, see fusefs.View.
type lowerKey struct {
	id   manifest.ID
	mode ForkMode
}

// lower is what the fork lies over.
func (c *forkRecord) lower() lowerKey { return lowerKey{c.Snapshot.ID, c.Mode} }

func (k lowerKey) String() string {
	if k.mode == ForkOverlay {
		return k.id.String()
	}
	return k.id.String() + "." + string(k.mode)
}

// parseLowerKey undoes String.
func parseLowerKey(name string) (k lowerKey, ok bool) {
	word, mode, other := strings.Cut(name, ".")
	id, err := manifest.ParseID(word)
	k = lowerKey{id, ForkMode(mode)}
	if !other {
		k.mode = ForkOverlay
	}
	if err != nil || k.String() != name || !slices.Contains(forkModes[:3], k.mode) {
		return lowerKey{}, false
	}
	return k, true
}

// lower is where it is mounted.
func (g *forkRegistry) lower(k lowerKey) string {
	return filepath.Join(g.state, local.Lowers, k.String())
}

// isLower reports whether a path is such a mount point.
func (g *forkRegistry) isLower(path string) bool {
	return filepath.Dir(path) == filepath.Join(g.state, local.Lowers)
}

// lockLower locks where a snapshot is mounted: LOCK_SH keeps it there, LOCK_EX is
// for who mounts or unmounts it.
func (g *forkRegistry) lockLower(ctx context.Context, k lowerKey, how int) (*os.File, error) {
	if err := os.MkdirAll(filepath.Join(g.state, local.Lowers), 0o700); err != nil {
		return nil, err
	}
	return lockFile(ctx, g.lower(k)+".lock", how)
}

// viewAt is how a snapshot is to look that is mounted at a path: of the mount points of
// a state folder the path alone tells, whichever process mounts there.
func viewAt(stateDir, path string) fusefs.View {
	g, err := newForkRegistry(stateDir)
	if err != nil || !g.isLower(path) {
		return fusefs.Plain
	}
	switch k, _ := parseLowerKey(filepath.Base(path)); k.mode {
	case ForkOverlay:
		return fusefs.BelowTrusted
	case ForkUserOverlay:
		return fusefs.BelowUser
	case ForkFuse:
		return fusefs.BelowFuse
	}
	return fusefs.Plain
}
