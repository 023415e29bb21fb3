//go:build !linux || portable

package diskcache_test

// rangeLocks: a range that two processes miss may be fetched twice.
const rangeLocks = false
