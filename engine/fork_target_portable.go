//go:build !linux

package engine

import "context"

// There are no forks here.

func forkLayers(string) []string { return nil }

type targetFork struct {
	name           string
	there, changed bool
}

func (r *Repository) forkFor(string) (*targetFork, error) { return nil, nil }

func (r *Repository) replaceFork(context.Context, *targetFork) error { return nil }
