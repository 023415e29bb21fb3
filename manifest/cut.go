package manifest

import (
	"math"

	"github.com/cespare/xxhash/v2"
	"github.com/snapctl/snapctl/chunk"
)

// Where pages are cut. A leaf ends after an entry whose key hashes below a bound
// that grows with the entry's weight, about its bytes in the page: so leaves have
// about pageTarget bytes, 500 small files or a few large ones, and where one ends
// depends on the one entry there. An edit moves no boundary that it does not
// touch. An inner page ends after a child whose first key hashes to 1 in fanOut.
//
// pageLimit ends a page that no key has ended, once in some hundred: after it,
// the next boundaries depend on where the page began, up to the next key that
// ends one.
//
// None of this is needed to read a tree: another rule costs only what trees of
// this one would have shared.
const (
	pageTarget = 40 << 10
	pageLimit  = 256 << 10
	fanOut     = 512
)

// keyHash is XXH64, with the page's level as the seed, of the directory's path,
// NUL and the name.
func keyHash(d *xxhash.Digest, level int, k Key) uint64 {
	d.ResetWithSeed(uint64(level))
	d.WriteString(k.Dir)
	d.Write([]byte{0})
	d.WriteString(k.Name)
	return d.Sum64()
}

// weight is what the entry counts for in a leaf. It knows nothing of where the
// entry's chunks lie, which differs between equal trees.
func (e *Entry) weight() int {
	w := 32 + len(e.Name) + len(e.Target) + len(e.First.Dir) + len(e.First.Name) + (chunk.IDSize+4)*len(e.Extents)
	for _, x := range e.Xattrs {
		w += len(x.Name) + len(x.Value)
	}
	if e.Spill != nil {
		w += 2 * chunk.IDSize * len(e.Spill.Refs)
	}
	return w
}

func cutsLeaf(d *xxhash.Digest, k Key, weight int) bool {
	return weight >= pageTarget || keyHash(d, 0, k) < uint64(weight)*(math.MaxUint64/pageTarget)
}

func cutsInner(d *xxhash.Digest, level int, first Key) bool {
	return keyHash(d, level, first) < math.MaxUint64/fanOut
}

// group cuts the pages of a level into the pages of the next. As many as one
// page has on average are one page, the root: it is in the manifest, and each
// level is a round trip more on the way to an entry.
func group(d *xxhash.Digest, level int, children []child) [][]child {
	if len(children) <= fanOut {
		return [][]child{children}
	}
	var groups [][]child
	start, size := 0, 0
	for i := range children {
		c := &children[i]
		size += 2*chunk.IDSize + len(c.first.Dir) + len(c.first.Name)
		// Two children at least, or the levels would not end.
		if i+1 == len(children) || i > start && (cutsInner(d, level, c.first) || size >= pageLimit) {
			groups = append(groups, children[start:i+1])
			start, size = i+1, 0
		}
	}
	return groups
}
