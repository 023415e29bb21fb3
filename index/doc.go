// Package index remembers on this machine which chunks a repository holds and
// where they lie. [Open] one, [Index.Sync] it with the repository's listing of
// segments, then [Index.Lookup].
//
// It is a cache and never the truth. The truth is the [Segment] objects of the
// repository; the folder may be deleted at any time, and is filled again by the
// next Sync. The one dangerous error is a false 'present', from which a
// snapshot would be made that refers to a chunk that is not there. So nothing
// on disk is believed that cannot be verified: whatever makes the index doubt
// itself makes it forget.
//
// What lies in the folder, and why it can be believed:
//
//	DIR/0 ... DIR/7   slots: complete caches of their own, each used by one
//	                  Index at a time. Badger's folder belongs to one process
//	                  and does not wait, so several processes take several slots.
//	DIR/tmp-*         a slot for one process only, where all eight are taken
//	  lock            flock(2)ed by the process that uses the slot
//	  catalog         segments, packs, and a fingerprint of every file in db
//	  db/             Badger: chunk id → place (see the table in entry.go)
//
// The catalog commits. Badger is open read-only nearly always; to write, the
// catalog is removed first, and written anew when Badger has been closed. A
// process that dies in between leaves a slot without a catalog, and a slot
// without a catalog is emptied. Packs that are not in any segment yet, and
// segments that have just come, wait in memory for such a moment.
package index
