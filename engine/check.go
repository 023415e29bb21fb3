package engine

import (
	"context"

	"github.com/snapctl/snapctl/engine/internal/check"
)

// Verify looks for damage in the repository, in what the snapshots need that refs
// name or, without refs, in all of it. Snapshots that have expired are part of all until
// they are collected; one that is named is ErrExpired, as everywhere. It reads config, manifests, every page of their trees,
// index segments, notes, leases, access profiles, tombstones and keys, and checks each
// against its name or checksum and against the others: that pack tables are what trees
// refer to, and that every pack is there, of the size and with the chunks in the places
// that the index tells. A page that several snapshots share is read once.
//
// With ReadData, packs are read too, whole and in the order of their names: the name
// must be the BLAKE3 of the bytes, each frame must decode, and each chunk must be what
// its id says.
//
// Everything is read from the store itself, not from this machine's cache. What is
// damaged is in the report, with the files of all snapshots that cannot be read
// because of it, each of which was tried to be read; the error is that of a store
// that does not answer. Writers and collectors may be at work meanwhile.
func (r *Repository) Verify(ctx context.Context, refs []string, opts *VerifyOptions) (*VerifyReport, error) {
	return check.Verify(ctx, r.repo, refs, opts)
}

// Repair mends what Verify finds, as far as that can be done, without making anything
// worse: whatever is new is in the repository before anything old goes, and no pack is
// deleted.
//
// Packs that are not what was written are doomed, as garbage collection dooms packs: no
// writer refers to them any more, whatever index it has, and they are deleted once no
// snapshot refers to them and a grace has passed.
//
// Index segments that are damaged, or that list packs which are missing or damaged,
// are replaced by new ones, made from the packs' own indexes; packs that no segment
// lists are listed again. Of each snapshot that lost something a new one is made, of
// all that can still be read: chunks are copied out of damaged packs, or found in other
// ones. If files are lost it is marked incomplete. It has the time of the old one, and
// name, tags, expiry and pin as Change has left them; where notes are damaged, so that
// nobody knows when it ends, it does not. The old one is its parent, and it comes right
// behind that in the history, so that a name goes on leading to its newest snapshot. The
// old one stays, unless RemoveDamaged is set: another machine may have more of it in its
// cache. But garbage collection does not run while there are snapshots whose packs are
// missing.
//
// It can be stopped and run again at any time.
func (r *Repository) Repair(ctx context.Context, opts *RepairOptions) (*RepairReport, error) {
	return check.Repair(ctx, r.repo, opts)
}

// Usage counts what the repository holds, and what the snapshots do that refs name,
// or all of them. It lists objects and reads manifests and index segments: of packs
// that no segment lists it reads the index, and of no pack what it holds.
//
// Where manifests are damaged the usage leaves them out, where notes are it does not
// know them, and comes together with an error that is ErrIntegrity.
func (r *Repository) Usage(ctx context.Context, refs ...string) (*Usage, error) {
	return check.Usage(ctx, r.repo, refs...)
}
