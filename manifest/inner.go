package manifest

import (
	"encoding/binary"
	"fmt"
	"sort"
	"strings"

	"github.com/snapctl/snapctl/chunk"
	"github.com/snapctl/snapctl/chunk/wire"
)

// child is a page as its parent names it.
type child struct {
	PageRef
	first   Key
	entries uint64 // in the page or below it
	flags   byte   // what is in the page or below it
}

// Flags of a page, as its parent names it: what one may look for without
// reading pages that do not have it.
const (
	hasXattrs = 1 << iota // some entry has extended attributes
	hasLinks              // some entry is a hard link to an earlier one

	allFlags = hasXattrs | hasLinks
)

func (e *Entry) flags() (f byte) {
	if len(e.Xattrs) > 0 {
		f |= hasXattrs
	}
	if e.Type == Link {
		f |= hasLinks
	}
	return f
}

// maxEntries is the most entries of a tree.
const maxEntries = 1 << 48

// The least bytes of an entry of a leaf, which a hard link has (appendEntry), and of a
// child of an inner page (appendInner).
const (
	minEntry = 6
	minChild = 1 + chunk.IDSize + 4
)

// mostEntries is how many entries can be in or below a page of that level and length: a
// parent that says more of it lies.
func mostEntries(level int, length uint32) uint64 {
	if level == 0 {
		// The root directory has no name, and may be alone.
		return max(uint64(length)/minEntry, 1)
	}
	most := uint64(length) / minChild
	for ; level > 0 && most < maxEntries; level-- {
		below := uint64(MaxPage / minChild)
		if level == 1 {
			below = MaxPage / minEntry
		}
		most *= below
	}
	return min(most, maxEntries)
}

// inner is a decoded inner page. It is immutable.
type inner struct {
	level    int
	children []child
	ranks    []uint64 // of each child's first entry, from the page's own first
	total    uint64
	flags    byte
}

func appendInner(dst []byte, w *tableWriter, level int, children []child) []byte {
	w.reset()
	body := binary.AppendUvarint(nil, uint64(len(children)))
	for i := range children {
		c := &children[i]
		body = w.appendRef(body, &c.PageRef)
		body = append(binary.AppendUvarint(body, c.entries), c.flags)
		body = wire.AppendBytes(wire.AppendBytes(body, c.first.Dir), c.first.Name)
	}
	return append(w.appendTables(dst, innerPage, byte(level)), body...)
}

func decodeInner(page []byte) (*inner, error) {
	r, kind, level := newPageReader(page)
	if r.Err() == nil && kind != innerPage {
		r.Failf("page of kind %d, an inner page expected", kind)
	}
	n := &inner{level: int(level)}
	count := r.Count("number of children", minChild)
	if count == 0 {
		r.Failf("no children")
	}
	n.children = make([]child, count)
	n.ranks = make([]uint64, count)
	for i := range n.children {
		c := &n.children[i]
		r.ref(&c.PageRef)
		c.entries = r.Uvarint("number of entries", maxEntries)
		c.flags = r.Byte("flags")
		c.first.Dir = r.str("directory", MaxPath)
		c.first.Name = r.str("name", MaxName)
		if c.first != (Key{}) {
			if err := c.first.check(); err != nil {
				r.Failf("%v", err)
			}
		}
		n.ranks[i] = n.total
		n.total += c.entries
		n.flags |= c.flags
		switch {
		case c.entries == 0 || n.total > maxEntries:
			r.Failf("page of %d entries, %d with those before", c.entries, n.total)
		case c.entries > mostEntries(n.level-1, c.Frame.Raw):
			r.Failf("page of %d entries in %d bytes", c.entries, c.Frame.Raw)
		case c.flags&^allFlags != 0:
			r.Failf("unknown flags %#x", c.flags)
		case i > 0 && n.children[i-1].first.Compare(c.first) >= 0:
			r.Failf("pages out of order")
		}
		if r.Err() != nil {
			break
		}
	}
	if err := r.close(); err != nil {
		return nil, fmt.Errorf("%w: inner page: %w", ErrDamaged, err)
	}
	n.ownKeys()
	return n, nil
}

// ownKeys copies the keys out of the page: a decoded one is kept for long, and they must
// not keep its bytes alive.
func (n *inner) ownKeys() {
	var all strings.Builder
	size := 0
	for i := range n.children {
		size += len(n.children[i].first.Dir) + len(n.children[i].first.Name)
	}
	all.Grow(size)
	for i := range n.children {
		all.WriteString(n.children[i].first.Dir)
		all.WriteString(n.children[i].first.Name)
	}
	rest := all.String()
	take := func(s *string) {
		n := len(*s)
		*s, rest = rest[:n], rest[n:]
	}
	for i := range n.children {
		take(&n.children[i].first.Dir)
		take(&n.children[i].first.Name)
	}
}

// byRank is the child that holds the entry of that rank in the page.
func (n *inner) byRank(rank uint64) int {
	return sort.Search(len(n.ranks), func(i int) bool { return n.ranks[i] > rank }) - 1
}

// byKey is the child in which a key stands, if it is there at all.
func (n *inner) byKey(k Key) int {
	i := sort.Search(len(n.children), func(i int) bool { return n.children[i].first.Compare(k) > 0 }) - 1
	return max(i, 0)
}
