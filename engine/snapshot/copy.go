package snapshot

import (
	"time"
)

// CopyOptions are how snapshots are copied. nil will do.
type CopyOptions struct {
	Progress Progress
}

// CopyResult is what Copy copied.
type CopyResult struct {
	Snapshots []*Copied // in the order of the references
	Duration  time.Duration
}

// A Copied is a snapshot that is in the destination now. Its NewBytes and StoredBytes
// tell, as everything in the Snapshot, of its making, and not of the copy.
type Copied struct {
	Snapshot
	Existed     bool          `json:"existed"`     // it was there already, or somebody else put it there
	CopiedBytes int64         `json:"copiedBytes"` // of contents that were not in the destination
	PutBytes    int64         `json:"putBytes"`    // what that took there, tree included
	Duration    time.Duration `json:"-"`
}
