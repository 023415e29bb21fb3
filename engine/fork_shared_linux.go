package engine

import "bytes"

// A fork can be made over the directory of another one that is not mounted, if that was
// moved. Then both have one directory beneath them, which stays guarded as long as one of
// them is there.

// is reports whether two records are of one directory.
func (b *bareDir) is(c *bareDir) bool {
	if b == nil || c == nil || b.forkCopy != c.forkCopy {
		return false
	}
	return b.Handle == nil || c.Handle == nil || b.Handle.Type == c.Handle.Type && bytes.Equal(b.Handle.Bytes, c.Handle.Bytes)
}

// bareOf gives what another fork than the one of an ID says of the directory beneath it, if
// it is this one; nil for none.
func (g *forkRegistry) bareOf(b *bareDir, but string) *bareDir {
	if b == nil {
		return nil
	}
	all, _ := g.all() // what cannot be read says nothing
	var found *bareDir
	for _, e := range all {
		if e.rec.ID != but && e.rec.Mode != ForkRestore && e.rec.Bare.is(b) {
			found = e.rec.Bare
		}
		e.close()
	}
	return found
}

// bareFor is bareAt for the fork of an ID. A guarded directory of another fork is what
// it was before that one.
func (g *forkRegistry) bareFor(dir, id string) (*bareDir, error) {
	b, err := bareAt(dir)
	if was := g.bareOf(b, id); was != nil {
		b.Mode, b.Immutable = was.Mode, was.Immutable
	}
	return b, err
}

// sharesBare reports whether the directory beneath the fork is another one's as well.
func (e *forkEntry) sharesBare() bool { return e.g.bareOf(e.rec.Bare, e.rec.ID) != nil }
