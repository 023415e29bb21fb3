// Package lru has the cache that forgets what was used least recently, for users
// that have a lock of their own. [New] makes one.
package lru

import "github.com/hashicorp/golang-lru/v2/simplelru"

// A Cache is a map that forgets what was used least recently. It is not safe for
// parallel use.
type Cache[K comparable, V any] = simplelru.LRU[K, V]

// New returns an empty cache of at most size entries. It panics if that is less than 1.
// With [math.MaxInt] the caller forgets for itself, by RemoveOldest or Remove.
func New[K comparable, V any](size int) *Cache[K, V] {
	l, err := simplelru.NewLRU[K, V](size, nil)
	if err != nil {
		panic(err)
	}
	return l
}
