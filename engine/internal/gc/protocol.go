package gc

// The protocol of garbage collection.
//
// Nobody takes a lock, no writer is ever stopped, and whoever takes part may be killed, or
// stopped for hours and go on, between any two operations and within one. A pack that
// nothing needs is first doomed, by a tombstone, and deleted by a run that finds it
// unneeded a grace later (gcGraceSeconds of the config). What makes that safe is a
// protocol between collector (gc*.go) and guard (guard.go), which every writer has.
//
// Two facts carry it. A pack has a random salt, so none is ever made twice under one name:
// a delete that comes late hits nothing else. And doomed is for ever: no writer refers
// to a doomed pack any more, whatever the index or the parent says of it. If one came to be
// referred to in the moment before, it stays, and stays doomed, until nothing needs it.
//
// The collector (GC), whose ages are all by the store's clock:
//
// 1. It puts an object of its own and asks when that was: now. Then it lists
//    tombstones, manifests and after them packs, leases, index segments. A listing that
//    fails ends the run.
// 2. Mark: the pack tables of all manifests, sixteen at a time, and of leases that count.
//    No tree is walked and nothing is kept of a manifest. One that cannot be read, or that
//    names a pack that is missing, ends the run before anything is deleted.
// 3. Snapshots that have expired, by a slack of a quarter of an hour, are removed. Their
//    packs are not swept by this run, only doomed.
// 4. Sweep: packs whose tombstone has been seen for longer than a grace, and that this
//    mark, which began after that, does not need. Index segments are written anew without
//    them first, then the packs go. Segments are put together when 32 small ones are there.
// 5. A tombstone all of whose packs are gone gets its done note, and goes a grace later.
// 6. Doom: packs older than a grace that nothing needs, and that no tombstone names.
// 7. Packs of which less than a quarter is needed are repacked; leases, profiles, notes,
//    clocks of what is gone are deleted.
//
// The age of a tombstone is that of its -seen note: a folder's file has the time of its
// last write, and a process that is stopped may publish it an hour later.
//
// The writer (guard), whose time is CLOCK_BOOTTIME, which goes on while the process is
// stopped and while the machine sleeps:
//
// 1. It reads all tombstones, side by side with its other first requests, again every
//    quarter of a grace, and again before it commits unless it did a moment ago (a hundredth
//    of a grace, at most 5 s). If from the beginning of one reading to the end of the next
//    more than half a grace passes it begins anew.
// 2. Packs that it refers to are its own, or asked for (Stat, in the background) after its
//    first reading began, whether a manifest tells of them or the index: see present.
//    Lookup is blind to what is doomed.
// 3. If its pack table names a doomed pack, or one that was asked for and is not there, it
//    begins anew, and reads again what lies in those packs. After four times it gives up.
// 4. The manifest is put within half a grace of the beginning of the last reading. If
//    that took longer after all, it reads tombstones once more and asks for each of its
//    packs; if one is doomed or gone it takes its manifest back and begins anew.
//
// Why no snapshot is ever damaged. Let a run delete pack P, of tombstone T, and M be a
// manifest that names P and that this run's mark did not see. The mark began later than a
// grace after T was seen, so M was put later than that, and M's writer's last reading began
// later than half a grace after T was there. T is there until a grace after P is gone, and
// readings are never further apart than half a grace. So either some reading saw T, and M
// was not put or was taken back; or the first reading came when T had gone, that is, half
// a grace or more after P had gone before this writer began, and neither a manifest
// nor a Stat can have told it of P since. The collector needs no such care: what it deletes
// is doomed, however late it comes; that it gives up after half a grace spares work.
//
// A writer that is stopped while its manifest is being put, for so long that its packs are
// deleted, and killed before it can take it back, leaves a snapshot that nobody was told of.
// A run that finds a pack of a manifest missing, that a tombstone names which was there half
// a grace before the manifest, removes it and says so (Withdrawn); any other missing pack
// is damage.
//
// A repacked pack is doomed by a tombstone that says which packs hold what is needed of it
// (moved). Manifests go on naming the old pack; while one does, the new packs count as
// needed and the tombstone stays. Readers who find it gone look there (repo.Repo.MovedTo), and
// then into the index. Before the old pack is deleted a sweep walks the trees of all
// that name it once more (movedWhole), each page once: a snapshot that was put between
// the first walk and the tombstone may need what was not moved, and then the pack stays.
// From half a grace after the tombstone on those who name a repacked pack only get fewer, so
// that a listing, which is not made in one moment, misses none. That is why a writer does
// not even take such a reference over from its parent: of a directory it reads again what
// lies in such packs, and of a fork all that shows.
//
// Readers are promised less: what a removed snapshot held stays for a grace from the next
// run on, unless it was doomed before. A mount has a lease; a restore of a snapshot that is
// removed meanwhile may fail after that time.
