package engine

import "github.com/snapctl/snapctl/remote"

// A flaw is a way to break the protocol. The engine is as it is: what a flawed actor
// does other than it should is that its store, its clock or its grace lies to it.
type flaw struct {
	name  string
	store func(a *protocolActor, s simStore) remote.Store
	repo  func(a *protocolActor, r *Repository)
}
