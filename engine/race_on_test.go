//go:build race

package engine

// raced: the race detector makes goroutines run in a random order.
const raced = true
