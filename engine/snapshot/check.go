package snapshot

import (
	"fmt"
	"time"

	"github.com/snapctl/snapctl/manifest"
)

// RepairOptions are how a repository is repaired. nil will do.
type RepairOptions struct {
	// Apply does what is otherwise only told.
	Apply bool
	// ReadData looks for damage in what files hold too, as VerifyOptions.ReadData
	// with 1. Without it, only what shows without is found.
	ReadData bool
	// RemoveDamaged removes the snapshots that lost something, when what is left of
	// them is a snapshot of its own, or nothing is.
	RemoveDamaged bool
	Progress      Progress
}

// A RepairReport says what Repair did or, without Apply, would do.
type RepairReport struct {
	Applied bool
	Found   *VerifyReport // what is wrong: before, with all paths

	Doomed       []string // damaged packs that nobody will refer to any more
	Indexed      int      // packs that new index segments list
	BadSegments  []string // objects that the new ones take the place of
	SavedChunks  int      // that were copied from damaged packs, or found elsewhere
	SavedBytes   int64
	Snapshots    []RepairedSnapshot // those that lost something, oldest first
	BytesWritten int64              // packs that were put
	Duration     time.Duration
}

// A RepairedSnapshot is one that lost something.
type RepairedSnapshot struct {
	ID   manifest.ID
	Name string
	Dir  string
	// New is the snapshot of what is left: the zero ID without Apply, and where
	// nothing is left. Before says that an earlier Repair made it.
	New    manifest.ID
	Before bool
	Files  int64       // that are left; entries of every type but directories
	Lost   []string    // paths of all that is not in the new one, as far as they are known
	Ranges []LostRange // and of what they are not
	Made   []string    // directories of which nothing but the path is known
	// Nothing is left of it, for Why.
	Nothing bool
	Why     error
	Removed bool // RemoveDamaged
}

// LostEntries counts what is lost.
func (s *RepairedSnapshot) LostEntries() int64 {
	n := int64(len(s.Lost))
	for _, r := range s.Ranges {
		n += r.Entries
	}
	return n
}

// Nothing reports whether there is nothing to repair.
func (r *RepairReport) Nothing() bool {
	return r.Indexed == 0 && len(r.Doomed) == 0 && len(r.BadSegments) == 0 && len(r.Snapshots) == 0
}

// Usage is what a repository holds. Sizes are in bytes.
type Usage struct {
	Snapshots int   // those that have expired too, until they are collected
	Logical   int64 // sum of the snapshots' Bytes: what restoring all of them writes
	// Unique is the plaintext of the contents in packs that snapshots refer to, and
	// Stored what these packs take. A chunk counts once, but for one that lies in two
	// packs; chunks that no snapshot refers to any more count as long as their pack
	// has another one.
	Unique int64
	Stored int64
	Trees  int64 // what packs of tree pages take that snapshots refer to
	// Unused is what packs take that no snapshot refers to. Garbage collection frees
	// them when they are old enough, unless a mount of a removed snapshot needs them.
	Unused int64

	Objects []ObjectUsage
	// Of are the snapshots that were asked for, or all, newest first.
	Of []SnapshotUsage
	// Together is what removing all of Of would free: more than the sum of their
	// Only, where a pack is needed by several of them and by no other.
	Together int64
}

// Total is what all objects take.
func (u *Usage) Total() (n int64) {
	for _, o := range u.Objects {
		n += o.Bytes
	}
	return n
}

// ObjectUsage counts objects of a kind.
type ObjectUsage struct {
	Kind  string
	Count int
	Bytes int64
}

// SnapshotUsage is what a snapshot holds.
type SnapshotUsage struct {
	Snapshot
	// Only is what removing this snapshot alone, and collecting garbage, would free:
	// its manifest, notes and access profiles, and the packs that no other snapshot's
	// manifest names. Chunks that only it refers to do not count where they lie in packs
	// that others need too.
	Only int64
	// Referred is what the packs take that it refers to.
	Referred int64
}

// VerifyOptions are how a repository is verified. nil will do.
type VerifyOptions struct {
	// ReadData is the share of the packs' bytes that is read: 0 for none, 1 for
	// all, and what lies between for a random sample of packs.
	ReadData float64
	// Resume goes on with the reading of packs where the last Verify on this
	// machine, of the same snapshots and share, was stopped.
	Resume bool
	// MaxFiles bounds the paths that an Affected names: 0 for 10, negative for all.
	MaxFiles int
	Progress Progress
}

// A VerifyReport is what Verify looked at and what it found.
type VerifyReport struct {
	Snapshots int   // those that have expired too
	Entries   int64 // of all snapshots
	Pages     int64 // of trees, each once however many snapshots share it
	Segments  int
	Packs     int   // that were looked at
	PackBytes int64 // their sizes

	Read, Skipped           int   // packs of which every byte was read; that an earlier run had read
	ReadBytes, SkippedBytes int64 // their sizes
	SkippedSince            time.Time

	Findings []Finding // by the names of objects
	Duration time.Duration
}

// A Finding is something that is not as it should be.
type Finding struct {
	Object  string // name of the object in the repository
	Problem error
	// Note: nothing is damaged and nothing can be lost by it, but a person may
	// want to know.
	Note     bool
	Affected []Affected // snapshots that lost something by it, oldest first
}

// Affected is what a snapshot lost by one Finding.
type Affected struct {
	ID    manifest.ID
	Name  string // of the snapshot
	Dir   string
	Whole bool     // its manifest cannot be read, and so nothing of it
	Files int64    // that cannot be read whole; not those of Ranges
	Paths []string // the first of them
	// Ranges are runs of entries that cannot be found, as the page that names them
	// cannot be read.
	Ranges []LostRange
}

// A LostRange is a run of entries in the order of Walk.
type LostRange struct {
	Entries int64
	From    string // path of the first
	Before  string // path of the first behind it, "" for the end of the snapshot
}

// Damaged counts the findings that are no notes.
func (r *VerifyReport) Damaged() (n int) {
	for i := range r.Findings {
		if !r.Findings[i].Note {
			n++
		}
	}
	return n
}

// Err is ErrIntegrity, in one sentence, if something is damaged; else nil.
func (r *VerifyReport) Err() error {
	n := r.Damaged()
	if n == 0 {
		return nil
	}
	hit := map[manifest.ID]bool{}
	for i := range r.Findings {
		for _, a := range r.Findings[i].Affected {
			hit[a.ID] = true
		}
	}
	word := "objects are"
	if n == 1 {
		word = "object is"
	}
	if len(hit) == 0 {
		return fmt.Errorf("%w: %d %s not what was written; no snapshot has lost anything", ErrIntegrity, n, word)
	}
	return fmt.Errorf("%w: %d %s not what was written, and of %d of %d snapshots something cannot be read",
		ErrIntegrity, n, word, len(hit), r.Snapshots)
}
