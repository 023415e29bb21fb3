package snapshot

import "time"

// A Progress is told how an operation gets on. Update is called from one
// goroutine at a time, about ten times a second and once at the end; Warn at
// once, from any goroutine, for what a person should know and the operation
// survives: a file that could not be read, a retry.
type Progress interface {
	Update(Stats)
	Warn(err error)
}

// Stats is how far an operation got.
type Stats struct {
	Phase      Phase
	Files      int64 // entries done
	Bytes      int64 // of file contents done
	TotalFiles int64 // 0 while unknown
	TotalBytes int64 // 0 while unknown
	NewBytes   int64 // contents that were not in the repository yet
	Moved      int64 // bytes uploaded or downloaded
	InFlight   int   // uploads or downloads under way
	Elapsed    time.Duration
}

// Phase is what an operation is doing.
type Phase string

// The phases of operations.
const (
	PhaseReading    Phase = "reading"      // create: walking, hashing, uploading
	PhaseCommitting Phase = "committing"   // create: tree, index and manifest
	PhasePlanning   Phase = "planning"     // restore: reading the tree
	PhaseWriting    Phase = "writing"      // restore: files
	PhaseVerifying  Phase = "verifying"    // restore: reading back
	PhaseChecking   Phase = "checking"     // verify: manifests, trees and index
	PhaseData       Phase = "reading data" // verify: packs, of which Stats counts the stored bytes
	PhaseCopying    Phase = "copying"      // copy: reading one repository, uploading to another
	PhaseMarking    Phase = "marking"      // gc: reading manifests
	PhaseSweeping   Phase = "sweeping"     // gc: deleting and announcing
)
