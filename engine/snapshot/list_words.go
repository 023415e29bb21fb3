package snapshot

import (
	"time"

	"github.com/snapctl/snapctl/manifest"
)

// ListOptions choose snapshots. The zero value, and nil, choose all that have
// not expired.
type ListOptions struct {
	Name    string
	Tags    map[string]string // all of them
	Limit   int               // 0 for no limit
	Expired bool              // those too
}

// A History is a snapshot and those that it was made from.
type History struct {
	// Snapshots begin with the one that was asked for; each is followed by its
	// parent. Those that have expired and are not collected yet are among them.
	Snapshots []*Snapshot
	// Removed is the parent of the last one if that is not in the repository any
	// more: what was before it is not known. Else it is nil.
	Removed *manifest.ID
}

// InitOptions are how a repository is made. nil will do.
type InitOptions struct {
	// Compression is a zstd level, 1 to 22; 0 is the default, 1.
	Compression int
	// GCGrace is how long garbage collection waits before it deletes what nothing
	// needs any more, in whole seconds, at least ten; 0 is the default, a day. Whoever
	// writes to the repository has to commit within half of it, or begins anew.
	GCGrace time.Duration
	// Keys, if there are any, have all that is stored encrypted, and say who can
	// open it. More can be added later; but a repository is encrypted from the
	// beginning, or never.
	Keys []*NewKey
}
