package manifest

import (
	"bytes"
	"encoding/binary"
	"errors"
	"reflect"
	"runtime"
	"slices"
	"testing"

	"github.com/snapctl/snapctl/chunk/wire/wiretest"

	"github.com/snapctl/snapctl/chunk"
	"pgregory.net/rapid"
)

// reencode encodes what a page decoded to.
func reencode(t testing.TB, page any) []byte {
	t.Helper()
	switch p := page.(type) {
	case *Leaf:
		b := NewBuilder(nil)
		b.w.reset()
		var e Entry
		for run := range p.dirs {
			end := p.Len()
			if run+1 < len(p.dirs) {
				end = p.dirs[run+1].first
			}
			b.dir = p.dirs[run].path
			for i := p.dirs[run].first; i < end; i++ {
				p.Entry(i, &e)
				if e.Key() != (Key{}) || i > 0 {
					if err := CheckName(e.Name); err != nil {
						t.Fatal(err)
					}
				}
				b.entries = appendEntry(b.entries, &b.w, &e)
				b.inRun++
			}
			if run+1 < len(p.dirs) {
				b.endRun()
			}
		}
		return b.leafPage()
	case *inner:
		return appendInner(nil, new(tableWriter), p.level, p.children)
	case *spillPage:
		if p.level == 0 {
			return appendExtentPage(nil, new(tableWriter), p.extents)
		}
		return appendExtentRefsPage(nil, new(tableWriter), p.level, p.refs)
	}
	t.Fatalf("page is a %T", page)
	return nil
}

// leafOf encodes entries as one leaf, whatever they are.
func leafOf(entries []Entry) []byte {
	b := NewBuilder(nil)
	b.w.reset()
	for i := range entries {
		if i > 0 && entries[i].Dir != b.dir {
			b.endRun()
		}
		b.dir = entries[i].Dir
		b.entries = appendEntry(b.entries, &b.w, &entries[i])
		b.inRun++
	}
	return slices.Clone(b.leafPage())
}

func TestLeafRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := newRand(rapid.Uint64().Draw(t, "seed"))
		entries := randomEntries(r, rapid.IntRange(1, 60).Draw(t, "entries"))
		if len(entries) > 2 && rapid.Bool().Draw(t, "spill") {
			e := &entries[len(entries)-1]
			*e = Entry{Dir: e.Dir, Name: e.Name, Type: File, Size: 1 << 50, Spill: randomSpill(r)}
		}
		page := leafOf(entries)
		l, err := DecodeLeaf(page)
		if err != nil {
			t.Fatal(err)
		}
		var e Entry
		flags := byte(0)
		for i := range entries {
			l.Entry(i, &e)
			if !reflect.DeepEqual(plain(e), entries[i]) {
				t.Fatalf("entry %d is\n%+v, expected\n%+v", i, e, entries[i])
			}
			flags |= e.flags()
			if got := l.search(e.Key()); got != i {
				t.Fatalf("entry %d found at %d", i, got)
			}
		}
		if l.Len() != len(entries) || l.flags != flags || l.last != entries[len(entries)-1].Key() || l.first() != (Key{}) {
			t.Fatalf("%d entries, flags %x, last %q", l.Len(), l.flags, l.last)
		}
		use := map[chunk.PackID]uint64{}
		l.Use(use)
		want := modelUse(entries)
		for _, e := range entries {
			if e.Spill != nil {
				for _, ref := range e.Spill.Refs {
					want[ref.Pack] += uint64(ref.Frame.Raw)
				}
			}
		}
		if !reflect.DeepEqual(use, want) {
			t.Fatal(use, want)
		}
	})
}

func randomSpill(r interface {
	IntN(int) int
	Uint32() uint32
}) *Spill {
	s := &Spill{Level: r.IntN(3)}
	for range 1 + r.IntN(20) {
		var id chunk.ID
		binary.LittleEndian.PutUint32(id[:], r.Uint32())
		s.Refs = append(s.Refs, SpillRef{
			PageRef{id, somePacks[r.IntN(5)], chunk.Frame{Offset: 16 + r.Uint32()%1e6, Stored: 7, Raw: 8}},
			1 + uint64(r.Uint32()),
		})
	}
	return s
}

func seedPages() [][]byte {
	r := newRand(8)
	var pages [][]byte
	for _, n := range []int{1, 4, 30, 200} {
		pages = append(pages, leafOf(randomEntries(r, n)))
	}
	spilled := append(randomEntries(r, 1), Entry{Name: "large", Type: File, Size: 1 << 50, Spill: randomSpill(r)})
	pages = append(pages, leafOf(spilled))
	var children []child
	for i := range 20 {
		id := randomID(r)
		children = append(children, child{PageRef{id, somePacks[i%3], chunk.Frame{Offset: uint32(16 + i*100), Stored: 90, Raw: 100}}, Key{}, 7, byte(i % 4)})
		if i > 0 {
			children[i].first = Key{string(rune('a' + i)), "x"}
		}
	}
	pages = append(pages, appendInner(nil, new(tableWriter), 1, children), appendInner(nil, new(tableWriter), 3, children[:1]))
	return append(pages,
		appendExtentPage(nil, new(tableWriter), randomFile(r, 30, true).Extents),
		appendExtentPage(nil, new(tableWriter), randomFile(r, 3, false).Extents),
		appendExtentRefsPage(nil, new(tableWriter), 2, randomSpill(r).Refs))
}

// What decodes re-encodes to the same bytes.
func FuzzPage(f *testing.F) {
	for _, p := range seedPages() {
		f.Add(p)
	}
	f.Fuzz(func(t *testing.T, page []byte) {
		wiretest.Bounded(t, 512*len(page), func() { checkCanonical(t, page) })
	})
}

func checkCanonical(t testing.TB, page []byte) {
	p, err := decodePage(page)
	if err != nil {
		if !errors.Is(err, ErrDamaged) {
			t.Fatalf("error is no ErrDamaged: %v", err)
		}
		return
	}
	if got := reencode(t, p); !bytes.Equal(got, page) {
		t.Fatalf("page %x is re-encoded to %x", page, got)
	}
}

func TestDamagedPages(t *testing.T) {
	for _, page := range seedPages() {
		for i := range page {
			if _, err := decodePage(page[:i]); err == nil {
				t.Errorf("the first %d bytes of %d decode", i, len(page))
			}
		}
		if _, err := decodePage(append(slices.Clone(page), 0)); err == nil {
			t.Error("a page with a byte too many decodes")
		}
		// A flipped bit is refused or is another page: its id tells.
		r := newRand(uint64(len(page)))
		for range 500 {
			p := slices.Clone(page)
			p[r.IntN(len(p))] ^= 1 << r.IntN(8)
			if r.IntN(3) == 0 {
				p[r.IntN(min(len(p), 100))] = byte(r.Uint32())
			}
			checkCanonical(t, p)
		}
	}
}

func TestHostileLeaves(t *testing.T) {
	root := Entry{Type: Dir, Links: 1}
	fifo := func(dir, name string) Entry { return Entry{Dir: dir, Name: name, Type: Fifo} }
	x := randomExtent(newRand(1))
	x.Hole = 0
	file := func(change func(e *Entry)) []Entry {
		e := Entry{Name: "f", Type: File, Size: uint64(x.Length), Extents: []Extent{x}} // a copy of x
		change(&e)
		return []Entry{root, e}
	}
	if _, err := DecodeLeaf(leafOf(file(func(*Entry) {}))); err != nil {
		t.Fatal(err)
	}
	for name, entries := range map[string][]Entry{
		"unordered names":        {root, fifo("", "b"), fifo("", "a")},
		"name twice":             {root, fifo("", "a"), fifo("", "a")},
		"unordered folders":      {root, fifo("b", "a"), fifo("a", "a")},
		"folder twice":           {fifo("a", "a"), fifo("b", "a"), fifo("a", "b")},
		"folders as strings":     {fifo("a.b", "a"), fifo("a/b", "a")},
		"root twice":             {root, root},
		"root not first":         {fifo("", "a"), root},
		"root is a file":         {{Type: Fifo}},
		"no name":                {root, fifo("a", "")},
		"dot":                    {root, fifo("", ".")},
		"dot dot":                {root, fifo("", "..")},
		"slash":                  {root, fifo("", "a/b")},
		"NUL":                    {root, fifo("", "a\x00")},
		"long name":              {root, fifo("", string(bytes.Repeat([]byte{'a'}, 256)))},
		"folder dot dot":         {root, fifo("..", "a")},
		"folder in dot dot":      {root, fifo("a/../../etc", "passwd")},
		"absolute folder":        {root, fifo("/etc", "passwd")},
		"folder with two slashs": {root, fifo("a//b", "a")},
		"folder ends in slash":   {root, fifo("a/", "a")},
		"folder with NUL":        {root, fifo("a\x00", "a")},
		"no type":                {root, {Name: "a"}},
		"unknown type":           {root, {Name: "a", Type: 9}},
		"mode":                   {root, {Name: "a", Type: Fifo, Mode: 1 << 12}},
		"nanoseconds":            {root, {Name: "a", Type: Fifo, Mtime: Time{0, 1e9}}},
		"symlink to nothing":     {root, {Name: "a", Type: Symlink}},
		"symlink to NUL":         {root, {Name: "a", Type: Symlink, Target: "a\x00"}},
		"symlink too long":       {root, {Name: "a", Type: Symlink, Target: string(bytes.Repeat([]byte{'a'}, 4096))}},
		"link to the root":       {root, {Name: "a", Type: Link}},
		"link to itself":         {root, {Name: "a", Type: Link, First: Key{"", "a"}}},
		"link ahead":             {root, {Name: "a", Type: Link, First: Key{"", "b"}}},
		"link to dot dot":        {root, {Name: "a", Type: Link, First: Key{"", ".."}}},
		"link out of the tree":   {root, {Dir: "b", Name: "a", Type: Link, First: Key{"../b", "a"}}},
		"link to a path":         {root, {Dir: "b", Name: "a", Type: Link, First: Key{"", "a/b"}}},
		"attributes unordered":   {root, {Name: "a", Type: Fifo, Xattrs: []Xattr{{"b", nil}, {"a", nil}}}},
		"attribute with NUL":     {root, {Name: "a", Type: Fifo, Xattrs: []Xattr{{"b\x00", nil}}}},
		"attributes too large":   {root, {Name: "a", Type: Fifo, Xattrs: manyXattrs(17, MaxXattrValue)}},
		"file too large":         {root, {Name: "a", Type: File, Size: 1 << 63}},
		"extents too many":       {root, func() Entry { e := randomFile(newRand(1), MaxInline+1, false); e.Name = "a"; return e }()},
		"extents beyond the end": file(func(e *Entry) { e.Size-- }),
		"extent out of frame":    file(func(e *Entry) { e.Extents[0].Offset = x.Frame.Raw - 1; e.Extents[0].Length = 2; e.Size = 9 }),
		"empty extent":           file(func(e *Entry) { e.Extents[0].Length = 0; e.Size = 9 }),
		"hole beyond all":        file(func(e *Entry) { e.Extents[0].Hole = 1<<62 + 1; e.Size = 1<<63 - 1 }),
		"frame in the header":    file(func(e *Entry) { e.Extents[0].Frame.Offset = 15 }),
		"frame beyond a pack":    file(func(e *Entry) { e.Extents[0].Frame.Offset = chunk.MaxPack }),
		"frame that grew": file(func(e *Entry) {
			e.Extents[0].Frame.Stored = e.Extents[0].Frame.Raw + chunk.MaxOverhead + 1
		}),
		"spill of nothing":  {root, {Name: "a", Type: File, Size: 9, Spill: &Spill{}}},
		"spill level":       {root, {Name: "a", Type: File, Size: 9, Spill: &Spill{Level: 17, Refs: randomSpill(newRand(1)).Refs[:1]}}},
		"spill beyond":      {root, {Name: "a", Type: File, Size: 1, Spill: randomSpill(newRand(1))}},
		"too many in spill": {root, {Name: "a", Type: File, Size: 1 << 60, Spill: &Spill{Refs: slices.Repeat(randomSpill(newRand(1)).Refs[:1], maxSpilled+1)}}},
	} {
		if _, err := DecodeLeaf(leafOf(entries)); !errors.Is(err, ErrDamaged) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestHostileInnerPages(t *testing.T) {
	r := newRand(2)
	good := func() []child {
		var all []child
		for i := range 5 {
			c := child{PageRef{randomID(r), somePacks[0], chunk.Frame{Offset: uint32(16 + 60*i), Stored: 60, Raw: 60}}, Key{"", string(rune('a' + i))}, 10, 0}
			all = append(all, c)
		}
		all[0].first = Key{}
		return all
	}
	for name, change := range map[string]func(c []child){
		"good":            nil,
		"unordered":       func(c []child) { c[1].first = Key{"", "c"} },
		"twice":           func(c []child) { c[1].first = c[2].first },
		"root twice":      func(c []child) { c[1].first = Key{} },
		"dot dot":         func(c []child) { c[4].first = Key{"..", "c"} },
		"path for a name": func(c []child) { c[4].first = Key{"", "z/c"} },
		"empty":           func(c []child) { c[3].entries = 0 },
		"too many":        func(c []child) { c[3].entries = maxEntries },
		"more than fit":   func(c []child) { c[3].entries = 11 },
		"unknown flag":    func(c []child) { c[3].flags = 4 },
		"frame":           func(c []child) { c[3].Frame.Raw = 0 },
	} {
		c := good()
		if change != nil {
			change(c)
		}
		if _, err := decodeInner(appendInner(nil, new(tableWriter), 1, c)); (err == nil) != (change == nil) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for level, ok := range map[int]bool{0: false, 1: true, maxLevel: true, maxLevel + 1: false} {
		if _, err := decodeInner(appendInner(nil, new(tableWriter), level, good())); (err == nil) != ok {
			t.Errorf("level %d: %v", level, err)
		}
	}
	// A leaf that is as full as one can be, and what can be above it.
	var links []Entry
	for i := range 2000 {
		links = append(links, Entry{Name: string([]byte{1 + byte(i/200), 1 + byte(i%200)}), Type: Link, First: Key{Name: "\x01"}})
	}
	if page := leafOf(links); mostEntries(0, uint32(len(page))) < uint64(len(links)) {
		t.Errorf("%d entries are in %d bytes", len(links), len(page))
	}
	for level := 1; level <= maxLevel; level++ {
		if n, below := mostEntries(level, MaxPage), mostEntries(level-1, MaxPage); n < below || n > maxEntries {
			t.Errorf("level %d: %d entries, %d a level below", level, n, below)
		}
	}
	if n := mostEntries(1, 2*minChild); n != 2*(MaxPage/minEntry) {
		t.Errorf("two leaves hold %d entries", n)
	}
	// Entries whose sum is too large: 2^16 children of 2^48.
	many := make([]child, 1<<16)
	for i := range many {
		many[i] = good()[0]
		many[i].Frame.Stored, many[i].Frame.Raw = MaxPage, MaxPage
		many[i].entries = maxEntries
		if i > 0 {
			many[i].first = Key{"", string([]byte{'a' + byte(i>>12), 'a' + byte(i>>8&15), 'a' + byte(i>>4&15), 'a' + byte(i&15)})}
		}
	}
	if _, err := decodeInner(appendInner(nil, new(tableWriter), maxLevel, many)); err == nil {
		t.Error("a tree of 2^64 entries")
	}
}

// Decoders allocate no more than a multiple of what they are given.
func TestCountsThatLie(t *testing.T) {
	huge := binary.AppendUvarint(nil, 1<<40)
	tables := []byte{0, 0}
	for name, page := range map[string][]byte{
		"packs":       append([]byte{leafPage, 0}, huge...),
		"frames":      append([]byte{leafPage, 0, 0}, huge...),
		"folders":     append(append([]byte{leafPage, 0}, tables...), huge...),
		"entries":     append(append(append([]byte{leafPage, 0}, tables...), 1, 0), huge...),
		"name":        append(append(append([]byte{leafPage, 0}, tables...), 1, 0, 1), huge...),
		"children":    append(append([]byte{innerPage, 1}, tables...), huge...),
		"extents":     append(append([]byte{ExtentPage, 0}, tables...), huge...),
		"extent refs": append(append([]byte{extentRefsPage, 1}, tables...), huge...),
		"frames that could be": func() []byte {
			p := append([]byte{leafPage, 0, 0}, binary.AppendUvarint(nil, 250_000)...)
			return append(p, make([]byte, 1<<20)...)
		}(),
		"folders that could be": func() []byte {
			p := append(append([]byte{leafPage, 0}, tables...), binary.AppendUvarint(nil, 250_000)...)
			return append(p, make([]byte, 1<<20)...)
		}(),
	} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, err := decodePage(page)
		runtime.ReadMemStats(&after)
		if !errors.Is(err, ErrDamaged) {
			t.Errorf("%s: %v", name, err)
		}
		if got := after.TotalAlloc - before.TotalAlloc; got > uint64(16*len(page)+16<<10) {
			t.Errorf("%s: %d bytes allocated for a page of %d", name, got, len(page))
		}
	}
}

func TestTablesAreCanonical(t *testing.T) {
	pack := randomID(newRand(1))
	table := func(packs int, frames ...[]byte) []byte {
		p := append([]byte{ExtentPage, 0}, byte(packs))
		for i := range packs {
			pack[0] = byte(i / 2)
			p = append(p, pack[:]...)
		}
		p = append(p, byte(len(frames)))
		for _, f := range frames {
			p = append(p, f...)
		}
		p = append(p, 1, 0, 0, 0, 1) // one extent: no hole, frame 0, offset 0, length 1
		return append(p, make([]byte, chunk.IDSize)...)
	}
	frame := []byte{0, 16, 1, 1}
	for name, test := range map[string]struct {
		page []byte
		ok   bool
	}{
		"good":         {table(1, frame), true},
		"pack twice":   {table(2, frame, []byte{1, 16, 1, 1}), false},
		"unused pack":  {table(2, frame), false},
		"no pack":      {table(0, frame), false},
		"no frame":     {table(1), false},
		"unused frame": {table(1, frame, []byte{0, 17, 1, 1}), false},
		"frame twice":  {table(1, frame, frame), false},
		"no such pack": {table(1, []byte{1, 16, 1, 1}), false},
	} {
		if _, err := decodePage(test.page); (err == nil) != test.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
}
