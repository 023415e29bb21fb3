package diskcache

import "sync/atomic"

// Stats is what a [Cache] of this process did since it was opened.
type Stats struct {
	Hits   int64 // reads that the disk had all of
	Misses int64 // reads that waited for a fetch of their own
	Shared int64 // reads that waited only for the fetches of others

	DiskBytes    int64 // given to readers from the disk
	FetchedBytes int64 // from the stores, for reads and Fill
	FilledBytes  int64 // of these, for Fill alone
	Requests     int64 // to the stores, for reads and Fill

	Damaged     int64 // blocks of the disk that were not what they must be
	Invalidated int64 // calls of Invalidate
	Evicted     int64 // files that this process removed to make room
	Errors      int64 // failures of the disk

	Used  int64 // bytes in the folder: when it was last looked at, and stored since
	Limit int64
}

type counters struct {
	hits, misses, shared              atomic.Int64
	diskBytes, fetchedBytes, requests atomic.Int64
	filledBytes                       atomic.Int64
	damaged, invalidated, evicted     atomic.Int64
	errors, used                      atomic.Int64
}

// Stats gives the counts of this moment.
func (c *Cache) Stats() Stats {
	s := &c.stats
	return Stats{
		Hits: s.hits.Load(), Misses: s.misses.Load(), Shared: s.shared.Load(),
		DiskBytes: s.diskBytes.Load(), FetchedBytes: s.fetchedBytes.Load(), FilledBytes: s.filledBytes.Load(), Requests: s.requests.Load(),
		Damaged: s.damaged.Load(), Invalidated: s.invalidated.Load(), Evicted: s.evicted.Load(), Errors: s.errors.Load(),
		Used: s.used.Load() + c.added.Load(), Limit: c.limit,
	}
}
