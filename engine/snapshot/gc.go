package snapshot

import (
	"time"

	"github.com/snapctl/snapctl/manifest"
)

// GCOptions are how a repository is collected. The zero value, and nil, will do.
type GCOptions struct {
	// DryRun writes and deletes nothing, and reports what would be done.
	DryRun bool
	// Repack is the share of a pack's contents, by bytes, below which what is needed of
	// it is written anew, so that the rest can be freed: 0 is the default,
	// DefaultRepack, anything below 0 is never, and the most is 0.9.
	Repack float64

	Progress Progress
}

// DefaultRepack is the default of GCOptions.Repack.
const DefaultRepack = 0.25

// GCReport says what GC did or, with DryRun, would do. All times are those of the
// store's clock.
type GCReport struct {
	Time   time.Time `json:"time"` // when it began
	DryRun bool      `json:"dryRun"`

	Removed   []manifest.ID `json:"removed"`   // snapshots that had expired
	Withdrawn []manifest.ID `json:"withdrawn"` // snapshots that no create has told anybody of: see package gc
	Snapshots int           `json:"snapshots"` // that are left

	Live    GCPacks `json:"live"`    // packs that snapshots need
	Leased  GCPacks `json:"leased"`  // packs that only mounts of removed snapshots need
	Young   GCPacks `json:"young"`   // packs that nothing needs yet, or that are left to be doomed later
	Freed   GCPacks `json:"freed"`   // packs that were deleted
	Doomed  GCPacks `json:"doomed"`  // packs that were found to be of no use: part of Waiting
	Revived GCPacks `json:"revived"` // doomed packs that a snapshot or mount needs after all: part of Live and Leased

	Repacked GCRepacked `json:"repacked"` // packs of which little was needed: part of Waiting

	// Waiting are doomed packs, by the time from which on a GC will delete them.
	Waiting []GCWaiting `json:"waiting"`

	SegmentsBefore int           `json:"segmentsBefore"` // objects that the index is made of
	SegmentsAfter  int           `json:"segmentsAfter"`
	Leftovers      int           `json:"leftovers"` // objects deleted that belonged to what is gone
	Duration       time.Duration `json:"-"`
}

// GCPacks counts packs.
type GCPacks struct {
	Packs int   `json:"packs"`
	Bytes int64 `json:"bytes"`
}

// GCWaiting are packs that will be deleted.
type GCWaiting struct {
	GCPacks
	From time.Time `json:"from"`
}

// GCRepacked counts packs that were repacked, and those that what is needed of them is
// in now.
type GCRepacked struct {
	GCPacks
	NewPacks int   `json:"newPacks"`
	NewBytes int64 `json:"newBytes"`
}
