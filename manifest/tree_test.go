package manifest

import (
	"context"
	"errors"
	"math/rand/v2"
	"reflect"
	"slices"
	"sort"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/snapctl/snapctl/chunk"
)

// modelUse is what a tree of entries uses of each pack, tree pages not counted.
func modelUse(entries []Entry) map[chunk.PackID]uint64 {
	use := map[chunk.PackID]uint64{}
	for _, e := range entries {
		for _, x := range e.Extents {
			use[x.Pack] += uint64(x.Length)
		}
	}
	return use
}

func TestTreeAgainstSortedSlice(t *testing.T) {
	for _, n := range []int{1, 2, 3, 100, 511, 5000, 50_000} {
		r := newRand(uint64(n))
		entries := randomEntries(r, n)
		s := newPageStore()
		root, pages := build(t, s, entries)
		tree := newTree(t, root, s)
		if tree.Len() != uint64(n) || root.Entries != uint64(n) {
			t.Fatalf("%d entries, %d in the root, %d expected", tree.Len(), root.Entries, n)
		}
		if n >= 5000 && len(pages) < n/1000 {
			t.Fatalf("%d entries in %d pages", n, len(pages))
		}

		testWalk(t, tree, entries)
		for range min(n, 2000) {
			i := r.IntN(n)
			testFind(t, tree, entries, i)
			testFindNear(t, r, tree, entries, entries[i].Key())
		}
		testBehind(t, tree)
		testPages(t, tree, root, pages, entries)
	}
}

// testWalk reads all entries in order.
func testWalk(t *testing.T, tree *Tree, entries []Entry) {
	t.Helper()
	c, err := tree.Seek(t.Context(), Key{})
	if err != nil {
		t.Fatal(err)
	}
	var e Entry
	for i := range entries {
		if c.Rank() != uint64(i) {
			t.Fatalf("rank %d before entry %d", c.Rank(), i)
		}
		if ok, err := c.Next(t.Context(), &e); !ok || err != nil {
			t.Fatal(i, ok, err)
		}
		if got := plain(e); !reflect.DeepEqual(got, entries[i]) {
			t.Fatalf("entry %d is\n%+v, expected\n%+v", i, got, entries[i])
		}
	}
	for range 2 {
		if ok, err := c.Next(t.Context(), &e); ok || err != nil {
			t.Fatal("behind the last entry:", ok, err)
		}
	}
}

// testFind looks an entry up, by its rank and by its key.
func testFind(t *testing.T, tree *Tree, entries []Entry, i int) {
	t.Helper()
	var e Entry
	if err := tree.At(t.Context(), uint64(i), &e); err != nil || !reflect.DeepEqual(plain(e), entries[i]) {
		t.Fatalf("at %d: %v %+v", i, err, e)
	}
	if rank, err := tree.Lookup(t.Context(), entries[i].Key(), &e); err != nil || rank != uint64(i) || e.Key() != entries[i].Key() {
		t.Fatalf("lookup of %d: %d %v", i, rank, err)
	}
	c, err := tree.SeekRank(t.Context(), uint64(i))
	if err != nil || c.Rank() != uint64(i) {
		t.Fatal(c.Rank(), err)
	}
	if ok, err := c.Next(t.Context(), &e); !ok || err != nil || e.Key() != entries[i].Key() {
		t.Fatal(i, ok, err)
	}
}

// testFindNear looks for a key that is not there, near one that is.
func testFindNear(t *testing.T, r *rand.Rand, tree *Tree, entries []Entry, k Key) {
	t.Helper()
	n := len(entries)
	var e Entry
	switch r.IntN(3) {
	case 0:
		k.Name += "\x01"
	case 1:
		k.Dir += "/" + randomName(r)
	case 2:
		k.Name = ""
	}
	want := sort.Search(n, func(j int) bool { return entries[j].Key().Compare(k) >= 0 })
	c, err := tree.Seek(t.Context(), k)
	if err != nil || c.Rank() != uint64(want) {
		t.Fatalf("seek %q: %d %v, expected %d", k, c.Rank(), err, want)
	}
	ok, err := c.Next(t.Context(), &e)
	if ok != (want < n) || err != nil || ok && e.Key() != entries[want].Key() {
		t.Fatalf("seek %q: %v %v %q", k, ok, err, e.Key())
	}
	if _, err := tree.Lookup(t.Context(), k, &e); (want == n || entries[want].Key() != k) && !errors.Is(err, ErrNotExist) {
		t.Fatalf("lookup of %q: %v", k, err)
	}
}

// testBehind looks for what would be behind the last entry.
func testBehind(t *testing.T, tree *Tree) {
	t.Helper()
	n := tree.Len()
	var e Entry
	if err := tree.At(t.Context(), n, &e); !errors.Is(err, ErrNotExist) {
		t.Fatal(err)
	}
	if c, err := tree.SeekRank(t.Context(), n+5); err != nil || c.Rank() != n {
		t.Fatal(err)
	} else if ok, err := c.Next(t.Context(), &e); ok || err != nil {
		t.Fatal(ok, err)
	}
}

// testPages: Pages tells what Add was given, and Use counts that and the extents.
func testPages(t *testing.T, tree *Tree, root *Root, pages []chunk.ID, entries []Entry) {
	t.Helper()
	var listed []chunk.ID
	use := modelUse(entries)
	if err := tree.Pages(t.Context(), func(p PageRef) {
		listed = append(listed, p.ID)
		use[p.Pack] += uint64(p.Frame.Raw)
	}); err != nil {
		t.Fatal(err)
	}
	sortIDs(listed)
	sortIDs(pages)
	if !slices.Equal(listed, pages) {
		t.Fatalf("%d pages listed, %d made", len(listed), len(pages))
	}
	if !reflect.DeepEqual(use, root.Use) {
		t.Fatalf("use %v, expected %v", root.Use, use)
	}
}

func sortIDs(ids []chunk.ID) {
	slices.SortFunc(ids, func(a, b chunk.ID) int { return slices.Compare(a[:], b[:]) })
}

func TestRootSaysWhatIsBelow(t *testing.T) {
	entries := smallFiles(60_000)
	for _, test := range []struct {
		name       string
		change     func(e *Entry)
		xattr, lnk bool
	}{
		{"neither", func(*Entry) {}, false, false},
		{"attributes", func(e *Entry) { e.Xattrs = []Xattr{{"user.x", []byte("y")}} }, true, false},
		{"hard link", func(e *Entry) {
			*e = Entry{Dir: e.Dir, Name: e.Name, Type: Link, First: Key{"node_modules/package-00000/lib", "module-0.js"}}
		}, false, true},
	} {
		changed := slices.Clone(entries)
		test.change(&changed[40_000])
		s := newPageStore()
		root, _ := build(t, s, changed)
		if root.Xattrs != test.xattr || root.HardLinks != test.lnk {
			t.Errorf("%s: attributes %v, hard links %v", test.name, root.Xattrs, root.HardLinks)
		}
		// One leaf below the root has it, the others do not.
		n, err := decodeInner(root.Page)
		if err != nil {
			t.Fatal(err)
		}
		flagged := 0
		for _, c := range n.children {
			if c.flags != 0 {
				flagged++
			}
		}
		if want := map[bool]int{true: 1}[test.xattr || test.lnk]; flagged != want {
			t.Errorf("%s: %d pages of %d are flagged, expected %d", test.name, flagged, len(n.children), want)
		}
	}
}

func TestBuilderRefuses(t *testing.T) {
	root := Entry{Type: Dir, Links: 1}
	file := func(dir, name string) Entry { return Entry{Dir: dir, Name: name, Type: File} }
	with := func(e Entry, change func(*Entry)) Entry { change(&e); return e }
	x := randomExtent(newRand(1))
	for name, entries := range map[string][]Entry{
		"no root":              {file("", "a")},
		"root is a file":       {{Type: File}},
		"root twice":           {root, root},
		"unordered":            {root, file("", "b"), file("", "a")},
		"unordered folders":    {root, file("b", "a"), file("a", "b")},
		"as strings, not path": {root, file("a.b", "x"), file("a/b", "x")},
		"twice":                {root, file("", "a"), file("", "a")},
		"parent":               {root, file("", "..")},
		"self":                 {root, file("", ".")},
		"empty":                {root, file("a", "")},
		"slash":                {root, file("", "a/b")},
		"NUL":                  {root, file("", "a\x00b")},
		"long name":            {root, file("", string(make([]byte, 256)))},
		"parent in folder":     {root, file("a/../b", "x")},
		"absolute folder":      {root, file("/a", "x")},
		"folder ends in slash": {root, file("a/", "x")},
		"no type":              {root, {Name: "a"}},
		"unknown type":         {root, {Name: "a", Type: Link + 1}},
		"mode":                 {root, {Name: "a", Type: Fifo, Mode: 0o10000}},
		"nanoseconds":          {root, {Name: "a", Type: Fifo, Mtime: Time{0, 1e9}}},
		"target":               {root, {Name: "a", Type: Symlink}},
		"link to the root":     {root, {Name: "a", Type: Link}},
		"link to itself":       {root, {Name: "a", Type: Link, First: Key{"", "a"}}},
		"link to a later one":  {root, {Name: "a", Type: Link, First: Key{"a", "b"}}},
		"link to a path":       {root, {Dir: "b", Name: "a", Type: Link, First: Key{"", "a/b"}}},
		"link with attributes": {root, {Name: "b", Type: Link, First: Key{"", "a"}, Xattrs: []Xattr{{"user.x", nil}}}},
		"folder with extents":  {root, {Name: "a", Type: Dir, Extents: []Extent{x}}},
		"attributes unordered": {root, {Name: "a", Type: Fifo, Xattrs: []Xattr{{"user.b", nil}, {"user.a", nil}}}},
		"attribute twice":      {root, {Name: "a", Type: Fifo, Xattrs: []Xattr{{"user.a", nil}, {"user.a", nil}}}},
		"attribute's name":     {root, {Name: "a", Type: Fifo, Xattrs: []Xattr{{string(make([]byte, 256)), nil}}}},
		"attribute's value":    {root, {Name: "a", Type: Fifo, Xattrs: []Xattr{{"user.a", make([]byte, MaxXattrValue+1)}}}},
		"too many attributes":  {root, {Name: "a", Type: Fifo, Xattrs: manyXattrs(MaxXattrs+1, 1)}},
		"attributes' bytes":    {root, {Name: "a", Type: Fifo, Xattrs: manyXattrs(17, MaxXattrValue)}},
		"extents beyond":       {root, {Name: "a", Type: File, Size: 0, Extents: []Extent{x}}},
		"size":                 {root, {Name: "a", Type: File, Size: 1 << 63}},
		"frame": {root, with(file("", "a"), func(e *Entry) {
			y := x
			y.Frame.Offset = 3
			e.Size, e.Extents = uint64(y.Length), []Extent{y}
		})},
		"spilled by a stranger": {root, {Name: "a", Type: File, Size: 1 << 40, Spill: &Spill{Refs: []SpillRef{{Length: 1}}}}},
	} {
		t.Run(name, func(t *testing.T) {
			b := NewBuilder(newPageStore())
			for i := range entries[:len(entries)-1] {
				if err := b.Add(t.Context(), &entries[i]); err != nil {
					t.Fatal(err)
				}
			}
			if err := b.Add(t.Context(), &entries[len(entries)-1]); err == nil {
				t.Fatal("accepted")
			}
			// Refusing leaves a builder that goes on.
			if len(entries) == 1 {
				return
			}
			last := Entry{Dir: "zz", Name: "z", Type: Fifo}
			if err := b.Add(t.Context(), &last); err != nil {
				t.Fatal(err)
			}
			root, err := b.Finish(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if l, err := DecodeLeaf(root.Page); err != nil || l.Len() != len(entries) {
				t.Fatal(err)
			}
		})
	}
	if _, err := NewBuilder(newPageStore()).Finish(t.Context()); err == nil {
		t.Fatal("a tree without a root directory")
	}
}

func manyXattrs(n, size int) []Xattr {
	all := make([]Xattr, n)
	for i := range all {
		all[i] = Xattr{"user." + string([]byte{byte('A' + i/26%26), byte('A' + i/676), byte('A' + i%26)}), make([]byte, size)}
	}
	slices.SortFunc(all, func(a, b Xattr) int { return slices.Compare([]byte(a.Name), []byte(b.Name)) })
	return all
}

// Entries as large as they can be make pages that can be read.
func TestLargestEntries(t *testing.T) {
	r := newRand(3)
	entries := []Entry{{Type: Dir, Links: 1}}
	for i := range 12 {
		e := randomFile(r, MaxInline, true)
		for j := range e.Extents {
			e.Extents[j].Pack = randomID(r)
		}
		e.Xattrs = manyXattrs(16, MaxXattrValue-8)
		e.UID, e.GID, e.Links, e.Mtime = 1<<32-1, 1<<32-1, 1<<32-1, Time{-1 << 63, 999_999_999}
		e.Name = string(rune('a' + i))
		entries = append(entries, e)
	}
	// Folders of the longest path, of one entry each.
	long := ""
	for len(long)+2*MaxName < MaxPath {
		long = Join(long, string(slices.Repeat([]byte{'x'}, MaxName)))
	}
	for i := range 300 {
		e := randomFile(r, 1, false)
		e.Dir, e.Name = Join(long, string(rune(0x1000+i))), "f"
		entries = append(entries, e)
	}
	s := newPageStore()
	root, _ := build(t, s, entries)
	tree := newTree(t, root, s)
	var e Entry
	for i := range entries {
		if err := tree.At(t.Context(), uint64(i), &e); err != nil || !reflect.DeepEqual(plain(e), entries[i]) {
			t.Fatal(i, err)
		}
	}
}

func TestTreeInParallel(t *testing.T) {
	entries := smallFiles(20_000)
	s := newPageStore()
	root, _ := build(t, s, entries)
	tree := newTree(t, root, s)
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			var e Entry
			r := newRand(uint64(g))
			if g%2 == 0 {
				c, err := tree.Seek(t.Context(), Key{})
				for i := 0; err == nil && i < len(entries); i++ {
					var ok bool
					if ok, err = c.Next(t.Context(), &e); !ok || e.Key() != entries[i].Key() {
						t.Errorf("entry %d is %q", i, e.Path())
						return
					}
				}
				if err != nil {
					t.Error(err)
				}
				return
			}
			for range 2000 {
				i := r.IntN(len(entries))
				if rank, err := tree.Lookup(t.Context(), entries[i].Key(), &e); err != nil || rank != uint64(i) {
					t.Errorf("lookup of %d: %d %v", i, rank, err)
					return
				}
			}
		})
	}
	wg.Wait()
	if reads, pages := s.reads.Load(), int64(len(s.pages)); reads > pages {
		t.Errorf("%d pages were read %d times", pages, reads)
	}
}

// Of readers that wait for one page, those who still want it get it when the
// one who began to fetch it gives up, whatever made it give up.
func TestSharedFetchSurvivesItsBeginner(t *testing.T) {
	entries := smallFiles(5000)
	s := newPageStore()
	root, _ := build(t, s, entries)
	for name, end := range map[string]func(ctx context.Context) (context.Context, context.CancelFunc){
		"cancelled": context.WithCancel,
		"deadline": func(ctx context.Context) (context.Context, context.CancelFunc) {
			return context.WithTimeout(ctx, 20*time.Millisecond)
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				began := make(chan struct{}, 10)
				var first sync.Once
				s.onRead = func(ctx context.Context, _ PageRef) (err error) {
					began <- struct{}{}
					first.Do(func() {
						<-ctx.Done()
						err = ctx.Err()
					})
					return err
				}
				defer func() { s.onRead = nil }()
				tree := newTree(t, root, s)
				ctx, cancel := end(t.Context())
				defer cancel()
				beginner, other := make(chan error, 1), make(chan error, 1)
				go func() { beginner <- tree.At(ctx, 1, new(Entry)) }()
				<-began
				go func() { other <- tree.At(t.Context(), 1, new(Entry)) }()
				synctest.Wait() // it has joined
				if name == "cancelled" {
					cancel()
				}
				if err := <-beginner; !errors.Is(err, ctx.Err()) || err == nil {
					t.Errorf("beginner: %v", err)
				}
				if err := <-other; err != nil {
					t.Errorf("other: %v", err)
				}
			})
		})
	}
}

func TestFailedFetch(t *testing.T) {
	entries := smallFiles(5000)
	s := newPageStore()
	root, _ := build(t, s, entries)
	tree := newTree(t, root, s)
	boom := errors.New("no network")
	fail := true
	s.onRead = func(context.Context, PageRef) error {
		if fail {
			return boom
		}
		return nil
	}
	var e Entry
	if err := tree.At(t.Context(), 3, &e); !errors.Is(err, boom) {
		t.Fatal(err)
	}
	// A cursor that failed goes on where it was.
	fail = false
	c, err := tree.Seek(t.Context(), Key{})
	if err != nil {
		t.Fatal(err)
	}
	for i := range entries {
		fail = true
		ok, err := c.Next(t.Context(), &e)
		fail = false
		if err != nil {
			ok, err = c.Next(t.Context(), &e)
		}
		if !ok || err != nil || e.Key() != entries[i].Key() {
			t.Fatal(i, ok, err, e.Key())
		}
	}
}
