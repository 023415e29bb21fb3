//go:build !portable

package diskcache_test

// rangeLocks: a range that two processes miss is fetched once.
const rangeLocks = true
