package engine

import (
	"context"

	"github.com/snapctl/snapctl/engine/view"
)

// FS opens a snapshot for reading: one request, for its manifest. What is read
// later ends with ctx, and goes through the repository, which must stay open.
func (r *Repository) FS(ctx context.Context, ref string) (*SnapshotFS, error) {
	return view.Open(ctx, r.repo, ref)
}

// FindAll is SnapshotFS.Find in all snapshots that have not expired, newest first. What
// snapshots share is fetched once. Damaged snapshots do not hide the others: the
// error, which is ErrIntegrity, comes at the end.
func (r *Repository) FindAll(ctx context.Context, patterns []string, yield func(*Snapshot, *FileInfo) error) error {
	return view.FindAll(ctx, r.repo, patterns, yield)
}

// Diff calls yield for what differs from one snapshot to another, at a path and
// below it, "" for everything, in the order of SnapshotFS.Walk: the entries of a directory
// sorted by name, then those of each directory in it in turn. It stops at yield's
// first error, and returns it.
//
// Pages of the trees that both snapshots have are not read, and no content of
// any file is: how long it takes depends on how much differs. Contents are the
// same where their chunks are. What was moved is a Removed path and an Added one.
// A change of a file with several names is shown at the first of them alone,
// unless path is another one.
//
// The path is taken as for SnapshotFS.OpenPath, but no symbolic link is followed. Where
// neither snapshot has it, the error is an fs.ErrNotExist.
func (r *Repository) Diff(ctx context.Context, oldRef, newRef, path string, opts *DiffOptions, yield func(*Change) error) error {
	return view.Diff(ctx, r.repo, oldRef, newRef, path, opts, yield)
}
