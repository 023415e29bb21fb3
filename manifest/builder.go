package manifest

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"

	"github.com/cespare/xxhash/v2"
	"github.com/snapctl/snapctl/chunk"
	"github.com/snapctl/snapctl/chunk/wire"
)

// A PageSink stores pages for a [Builder].
type PageSink interface {
	// Add stores a page, which it does not keep, and tells its id. Where it
	// lies may be unknown until Flush.
	Add(ctx context.Context, page []byte) (chunk.ID, error)
	// Flush settles where every page added so far lies.
	Flush(ctx context.Context) error
	// Page tells where a page lies that was added before the last Flush.
	Page(id chunk.ID) PageRef
}

// Root is a finished tree.
type Root struct {
	Page      []byte // the root page
	Entries   uint64
	Xattrs    bool // some entry has extended attributes
	HardLinks bool // some entry is a Link
	// Use is the packs that the tree refers to, with the plaintext bytes that
	// it refers to in each; what is referred to twice counts twice.
	Use map[chunk.PackID]uint64
}

// A Builder makes a tree. It is not safe for parallel use. After an error of
// its sink it is of no use; an entry that it refuses leaves it as it was.
type Builder struct {
	sink  PageSink
	reuse *Tree
	hash  *xxhash.Digest
	w     tableWriter
	use   useCount

	// The entry before: what comes next must come after it.
	dir  string
	name []byte

	// The leaf being made: directories before the current one, and entries of
	// the current one.
	runs    int
	body    []byte
	entries []byte
	inRun   int
	leaf    child
	size    int // sum of weights, and paths of directories

	page     []byte
	children []child
	root     Root
}

// NewBuilder starts a tree whose pages go to sink.
func NewBuilder(sink PageSink) *Builder {
	return &Builder{sink: sink, hash: xxhash.New(), use: useCount{m: map[chunk.PackID]uint64{}}}
}

// Reuse lets Add take entries of another tree whose extents are in pages of
// their own: those pages are read, for the packs that they name.
func (b *Builder) Reuse(from *Tree) { b.reuse = from }

// Add appends an entry, which must come after the one before and be valid. A
// file's extents may be any number: those of a large one are spilled here, and
// e is changed to say so. Nothing of e is kept.
func (b *Builder) Add(ctx context.Context, e *Entry) error {
	if err := b.check(e); err != nil {
		return fmt.Errorf("adding %q to the tree: %w", e.Path(), err)
	}
	if e.Spill != nil {
		if err := b.useSpill(ctx, e); err != nil {
			return fmt.Errorf("adding %q to the tree: %w", e.Path(), err)
		}
	}
	if len(e.Extents) > MaxInline {
		if err := b.spill(ctx, e); err != nil {
			return err
		}
	}
	if e.Dir != b.dir {
		if b.inRun > 0 {
			b.endRun()
		}
		b.dir = strings.Clone(e.Dir)
	}
	b.name = append(b.name[:0], e.Name...)
	if b.leaf.entries == 0 {
		b.w.reset()
		b.leaf.first = Key{b.dir, string(b.name)}
	}
	if b.inRun == 0 {
		b.size += len(b.dir)
	}
	weight := e.weight()
	b.entries = appendEntry(b.entries, &b.w, e)
	b.inRun++
	b.size += weight
	b.leaf.entries++
	b.leaf.flags |= e.flags()
	b.root.Entries++
	e.use(&b.use)
	if b.size >= pageLimit || cutsLeaf(b.hash, e.Key(), weight) {
		return b.endLeaf(ctx)
	}
	return nil
}

// last is the key of the entry before.
func (b *Builder) last() Key { return Key{b.dir, string(b.name)} }

func (b *Builder) check(e *Entry) error {
	if b.root.Entries == 0 {
		if e.Key() != (Key{}) {
			return errors.New("the first entry is not the root directory")
		}
		return e.checkNew()
	}
	if e.Dir != b.dir {
		if ComparePaths(b.dir, e.Dir) > 0 {
			return fmt.Errorf("comes after %q", b.last().Path())
		}
		if err := CheckPath(e.Dir); err != nil {
			return err
		}
	} else if string(b.name) >= e.Name {
		return fmt.Errorf("comes after %q", b.last().Path())
	}
	if err := CheckName(e.Name); err != nil {
		return err
	}
	return e.checkNew()
}

func (b *Builder) endRun() {
	b.runs++
	b.body = wire.AppendBytes(b.body, b.dir)
	b.body = binary.AppendUvarint(b.body, uint64(b.inRun))
	b.body = append(b.body, b.entries...)
	b.entries, b.inRun = b.entries[:0], 0
}

// leafPage encodes the leaf being made, into memory that the next one reuses.
func (b *Builder) leafPage() []byte {
	b.endRun()
	b.page = b.w.appendTables(b.page[:0], leafPage, 0)
	b.page = binary.AppendUvarint(b.page, uint64(b.runs))
	b.page = append(b.page, b.body...)
	return b.page
}

func (b *Builder) endLeaf(ctx context.Context) error {
	var err error
	if b.leaf.ID, err = b.add(ctx, b.leafPage()); err != nil {
		return err
	}
	b.children = append(b.children, b.leaf)
	b.runs, b.body, b.leaf, b.size = 0, b.body[:0], child{}, 0
	return nil
}

// adopt appends a leaf of another tree, whose entries come after the one before,
// where a leaf would begin. What its entries use is not counted.
func (b *Builder) adopt(c *child) {
	b.children = append(b.children, *c)
	b.root.Entries += c.entries
	b.dir, b.name = c.first.Dir, append(b.name[:0], c.first.Name...)
}

func (b *Builder) add(ctx context.Context, page []byte) (chunk.ID, error) {
	if len(page) > MaxPage {
		return chunk.ID{}, fmt.Errorf("tree page before %q has %d bytes, the most is %d", b.last().Path(), len(page), MaxPage)
	}
	return b.sink.Add(ctx, page)
}

// Finish ends the tree: it makes the levels above the leaves. The root page is
// not given to the sink.
func (b *Builder) Finish(ctx context.Context) (*Root, error) {
	if b.root.Entries == 0 {
		return nil, errors.New("a tree without its root directory")
	}
	if len(b.children) == 0 {
		return b.finish(append([]byte(nil), b.leafPage()...), b.leaf.flags), nil
	}
	if b.leaf.entries > 0 {
		if err := b.endLeaf(ctx); err != nil {
			return nil, err
		}
	}
	for level := 1; level <= maxLevel; level++ {
		if err := b.sink.Flush(ctx); err != nil {
			return nil, err
		}
		for i := range b.children {
			c := &b.children[i]
			if c.Pack == (chunk.PackID{}) { // else it was adopted
				c.PageRef = b.sink.Page(c.ID)
			}
			b.use.add(&c.Pack, uint64(c.Frame.Raw))
		}
		groups := group(b.hash, level, b.children)
		above := make([]child, 0, len(groups))
		for _, g := range groups {
			c := child{first: g[0].first}
			for i := range g {
				c.entries += g[i].entries
				c.flags |= g[i].flags
			}
			page := appendInner(b.page[:0], &b.w, level, g)
			if len(groups) == 1 {
				return b.finish(page, c.flags), nil
			}
			var err error
			if c.ID, err = b.add(ctx, page); err != nil {
				return nil, err
			}
			above = append(above, c)
		}
		b.children = above
	}
	return nil, fmt.Errorf("tree of more than %d levels", maxLevel)
}

// useCount sums up the bytes that are used of each pack.
type useCount struct {
	m map[chunk.PackID]uint64
	// The pack of late, whose bytes are not in m yet: neighbours share a pack.
	pack  chunk.PackID
	bytes uint64
}

func (u *useCount) add(pack *chunk.PackID, bytes uint64) {
	if *pack != u.pack {
		u.sum()
		u.pack = *pack
	}
	u.bytes += bytes
}

func (u *useCount) sum() map[chunk.PackID]uint64 {
	if u.bytes > 0 {
		u.m[u.pack] += u.bytes
		u.bytes = 0
	}
	return u.m
}

func (b *Builder) finish(page []byte, flags byte) *Root {
	b.root.Page = page
	b.root.Xattrs, b.root.HardLinks = flags&hasXattrs != 0, flags&hasLinks != 0
	b.root.Use = b.use.sum()
	return &b.root
}
