package diskcache_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/snapctl/snapctl/remote"
	"github.com/snapctl/snapctl/remote/diskcache"
	"github.com/snapctl/snapctl/remote/remotetest"
)

// TestCacheDamage: whatever becomes of a file of the cache, while it is open
// or before, reads give the object's bytes, and later they come from the disk
// again.
func TestCacheDamage(t *testing.T) {
	const size = 3*mib + 12345
	data := remotetest.Random(1, size)
	overwrite := func(f *os.File, offset int64, p []byte) error {
		_, err := f.WriteAt(p, offset)
		return err
	}
	const blocks, entries = 1 << 20, 64 // where they begin
	for name, damage := range map[string]func(f *os.File) error{
		"cut to nothing":     func(f *os.File) error { return f.Truncate(0) },
		"cut in the header":  func(f *os.File) error { return f.Truncate(20) },
		"cut in the map":     func(f *os.File) error { return f.Truncate(entries + 8*5 + 3) },
		"cut before blocks":  func(f *os.File) error { return f.Truncate(blocks) },
		"cut in a block":     func(f *os.File) error { return f.Truncate(blocks + 777_777) },
		"cut by a byte":      func(f *os.File) error { return f.Truncate(blocks + size - 1) },
		"longer":             func(f *os.File) error { return f.Truncate(blocks + 2*size) },
		"deleted":            func(f *os.File) error { return os.Remove(f.Name()) },
		"folder deleted":     func(f *os.File) error { return os.RemoveAll(filepath.Dir(f.Name())) },
		"bit of the header":  func(f *os.File) error { return overwrite(f, 10, []byte{0xff}) },
		"bit of the size":    func(f *os.File) error { return overwrite(f, 17, []byte{0xff}) },
		"bit of an entry":    func(f *os.File) error { return overwrite(f, entries+8*7+5, []byte{0x5a}) },
		"number of an entry": func(f *os.File) error { return overwrite(f, entries+8*7, []byte{0x99}) },
		"bit of a block":     func(f *os.File) error { return overwrite(f, blocks+1_000_000, []byte{data[1_000_000] ^ 4}) },
		"bit of the last":    func(f *os.File) error { return overwrite(f, blocks+size-1, []byte{data[size-1] ^ 1}) },
		"zeros in blocks":    func(f *os.File) error { return overwrite(f, blocks+500_000, make([]byte, 100_000)) },
		"zeros in the map":   func(f *os.File) error { return overwrite(f, entries, make([]byte, 100*8)) },
		"zeros everywhere":   func(f *os.File) error { return overwrite(f, 0, make([]byte, blocks+size)) },
		"noise in the map":   func(f *os.File) error { return overwrite(f, entries, remotetest.Random(2, 4000)) },
		"noise everywhere":   func(f *os.File) error { return overwrite(f, 0, remotetest.Random(3, blocks+size)) },
		"blocks exchanged": func(f *os.File) error {
			return errors.Join(overwrite(f, blocks, data[16*kib:32*kib]), overwrite(f, blocks+16*kib, data[:16*kib]))
		},
		"entries and blocks exchanged": func(f *os.File) error {
			var e [16]byte
			_, err := f.ReadAt(e[:], entries)
			return errors.Join(err, overwrite(f, entries, append(e[8:], e[:8]...)),
				overwrite(f, blocks, data[16*kib:32*kib]), overwrite(f, blocks+16*kib, data[:16*kib]))
		},
		"another object's": func(f *os.File) error {
			b, err := os.ReadFile(filepath.Join(filepath.Dir(f.Name()), "b"))
			return errors.Join(err, f.Truncate(0), overwrite(f, 0, b))
		},
		"a folder": func(f *os.File) error { return errors.Join(os.Remove(f.Name()), os.Mkdir(f.Name(), 0o700)) },
		"a fifo":   func(f *os.File) error { return errors.Join(os.Remove(f.Name()), unix.Mkfifo(f.Name(), 0o600)) },
		"a link":   func(f *os.File) error { return errors.Join(os.Remove(f.Name()), os.Symlink("/dev/zero", f.Name())) },
	} {
		t.Run(name, func(t *testing.T) {
			ours := name != "a folder" && name != "a fifo" && name != "a link"
			testDamage(t, data, ours, damage)
		})
	}
}

// testDamage damages the mirror of an object: what is read of it stays right, and it is
// made good if it still is a file of ours.
func testDamage(t *testing.T, data []byte, ours bool, damage func(f *os.File) error) {
	size := len(data)
	o := newOrigin(t, map[string][]byte{"packs/a": data, "packs/b": remotetest.Random(5, size)})
	dir := t.TempDir()
	open := openCache(t, dir, 1<<30, nil).Wrap(o, "repo")
	for _, name := range []string{"packs/a", "packs/b"} {
		if err := open.Prefetch(t.Context(), name, 0, -1); err != nil {
			t.Fatal(err)
		}
	}
	f, err := os.OpenFile(filepath.Join(dir, "repo/packs/a"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := damage(f); err != nil {
		t.Fatal(err)
	}
	c := openCache(t, dir, 1<<30, nil)
	fresh := c.Wrap(o, "repo")
	for _, s := range []remote.Store{fresh, open, fresh} {
		read(t, s, "packs/a", data, 100_000, 2*mib)
		read(t, s, "packs/a", data, size-10, 10)
		read(t, s, "packs/a", data, 0, size)
	}
	if !ours {
		return // not ours to remove
	}
	if err := fresh.Prefetch(t.Context(), "packs/a", 0, -1); err != nil {
		t.Fatal(err)
	}
	o.asked()
	read(t, fresh, "packs/a", data, 0, size)
	expectAsked(t, o)
}

// notices counts what a cache says.
type notices struct {
	mu   sync.Mutex
	errs []error
}

func (n *notices) add(err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.errs = append(n.errs, err)
}

func (n *notices) expect(t *testing.T, want error) {
	t.Helper()
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(n.errs) != 1 || !errors.Is(n.errs[0], want) {
		t.Errorf("notified of %v; want %v", n.errs, want)
	}
}

// TestCacheNoFolder: what cannot be a folder at all.
func TestCacheNoFolder(t *testing.T) {
	data := remotetest.Random(1, 2*mib)
	o := newOrigin(t, map[string][]byte{"packs/a": data})
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	var said notices
	s := openCache(t, file, 1<<30, &diskcache.Options{Notify: said.add}).Wrap(o, "repo")
	for range 3 {
		read(t, s, "packs/a", data, 5, mib)
	}
	said.expect(t, unix.ENOTDIR)
}

// diskUse is what a folder takes.
func diskUse(t *testing.T, dir string) (n int64) {
	t.Helper()
	err := filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return nil
		}
		if info, err := d.Info(); err == nil {
			n += info.Sys().(*syscall.Stat_t).Blocks * 512
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// TestCacheEvicts: over the limit, whole files go, least recently used first,
// and those that are used stay.
func TestCacheEvicts(t *testing.T) {
	const packs, limit = 12, 8 * mib
	data := remotetest.Random(1, mib)
	o := newOrigin(t, nil)
	dir := t.TempDir()
	path := func(i int) string { return filepath.Join(dir, "repo/packs", fmt.Sprint(i)) }
	exists := func(i int) bool {
		_, err := os.Lstat(path(i))
		return err == nil
	}
	big := openCache(t, dir, 1<<30, nil)
	s := big.Wrap(o, "repo")
	for i := range packs {
		name := fmt.Sprintf("packs/%d", i)
		if err := o.Put(t.Context(), name, data); err != nil {
			t.Fatal(err)
		}
		if err := s.Prefetch(t.Context(), name, 0, -1); err != nil {
			t.Fatal(err)
		}
		age := time.Duration((i*5)%packs) * time.Hour // 0, 5, 10, 3, ...
		if err := os.Chtimes(path(i), time.Time{}, time.Now().Add(-age)); err != nil {
			t.Fatal(err)
		}
	}
	// A read makes its file the most recently used one.
	read(t, openCache(t, dir, 1<<30, nil).Wrap(o, "repo"), "packs/7", data, 0, 10) // 11 hours
	small := diskcache.Open(dir, limit, nil)
	synced := small.Wrap(o, "repo")
	waitFor(t, func() bool { return diskUse(t, dir) <= limit })
	small.Close()
	for i := range packs {
		age := (i * 5) % packs
		if i == 7 {
			age = 0
		}
		if want := age <= 5; exists(i) != want && age != 6 { // 6 is at the limit
			t.Errorf("%d hours: %v", age, exists(i))
		}
	}
	if got := small.Stats(); got.Evicted < 4 || got.Evicted > 6 || got.Used > limit {
		t.Errorf("%+v", got)
	}
	_ = synced
	// The first process has the evicted files open still; it goes on as if they
	// were new.
	for range 2 {
		for i := range packs {
			read(t, s, fmt.Sprintf("packs/%d", i), data, 0, mib)
		}
	}
	if err := big.Close(); err != nil {
		t.Fatal(err)
	}
	for i := range packs {
		if !exists(i) {
			t.Errorf("%d was not stored again", i)
		}
	}
}

// waitFor returns when the condition, which other goroutines or processes bring
// about, holds.
func waitFor(t *testing.T, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(5 * time.Minute); !cond(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it does not happen")
		}
	}
}

// TestCacheEvictsNotWhatIsFilled, neither by this process nor by another.
func TestCacheEvictsNotWhatIsFilled(t *testing.T) {
	data := remotetest.Random(1, 4*mib)
	o := newOrigin(t, map[string][]byte{"packs/a": data, "packs/b": data})
	dir := t.TempDir()
	one := openCache(t, dir, 1<<30, nil)
	s := one.Wrap(o, "repo")
	for _, name := range []string{"packs/a", "packs/b"} {
		if err := s.Prefetch(t.Context(), name, 0, 3*mib); err != nil {
			t.Fatal(err)
		}
	}
	proceed, began := make(chan struct{}), make(chan struct{})
	o.hook = func(ctx context.Context, name string, offset int64, p []byte, arrived func(int)) (int, error) {
		close(began)
		<-proceed
		return o.Memory.ReadRange(ctx, name, offset, p, arrived)
	}
	done := make(chan struct{})
	go func() {
		read(t, s, "packs/a", data, 3*mib, 10)
		close(done)
	}()
	<-began
	two := openCache(t, dir, 100*kib, nil)
	waitFor(t, func() bool { return two.Stats().Evicted > 0 })
	if err := two.Close(); err != nil {
		t.Fatal(err)
	}
	if n := two.Stats().Evicted; n != 1 {
		t.Errorf("%d evicted", n)
	}
	if _, err := os.Lstat(filepath.Join(dir, "repo/packs/a")); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(filepath.Join(dir, "repo/packs/b")); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	close(proceed)
	<-done
	o.hook = nil
	if err := one.Close(); err != nil {
		t.Fatal(err)
	}
	o.asked()
	read(t, openCache(t, dir, 1<<30, nil).Wrap(o, "repo"), "packs/a", data, 0, 4*mib)
	expectAsked(t, o)
}

// TestCacheTurmoil: readers, fills, invalidations, damage and evictions at
// once, by three caches on one folder that is much too small. It goes on until
// all of that happened.
func TestCacheTurmoil(t *testing.T) {
	const limit = 6 * mib
	u := turmoil{T: t, origin: newOrigin(t, nil), dir: t.TempDir(), rounds: 400}
	if testing.Short() {
		u.rounds = 100
	}
	for i := range u.contents {
		u.contents[i] = remotetest.Random(uint64(i), turmoilSize)
		if err := u.origin.Put(t.Context(), fmt.Sprintf("packs/%d", i), u.contents[i]); err != nil {
			t.Fatal(err)
		}
	}
	for k := range u.caches {
		u.caches[k] = openCache(t, u.dir, limit, &diskcache.Options{OpenFiles: 4, Window: 256 * kib, Piece: mib, Notify: func(err error) { t.Errorf("notified of %v", err) }})
	}
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	var wg sync.WaitGroup
	for k, c := range u.caches {
		s := c.Wrap(u.origin, "repo")
		var mine sync.WaitGroup
		for w := range 3 {
			rnd := rand.New(rand.NewPCG(seed, uint64(10*k+w)))
			mine.Go(func() { u.work(s, rnd) })
		}
		wg.Go(func() {
			mine.Wait()
			c.Close()
		})
	}
	wg.Wait()
	evicted, damaged := u.happened()
	t.Logf("%d evicted, %d damaged", evicted, damaged)
	if evicted == 0 || damaged == 0 {
		t.Error("nothing of that happened")
	}
	if used := diskUse(t, u.dir); used > limit {
		t.Errorf("the folder has %d bytes", used)
	}
}

const turmoilSize = 2*mib + 777

// turmoil is what TestCacheTurmoil works with.
type turmoil struct {
	*testing.T
	origin   *origin
	dir      string
	contents [10][]byte
	caches   [3]*diskcache.Cache
	rounds   int // of each worker, and more until everything has happened
}

// happened tells how often files were evicted, and damage was noticed.
func (u *turmoil) happened() (evicted, damaged int64) {
	for _, c := range u.caches {
		evicted += c.Stats().Evicted
		damaged += c.Stats().Damaged
	}
	return evicted, damaged
}

// work does things at random.
func (u *turmoil) work(s *diskcache.Store, rnd *rand.Rand) {
	for round := 0; ; round++ {
		if evicted, damaged := u.happened(); round >= u.rounds && evicted > 0 && damaged > 0 {
			return
		}
		if u.Failed() || round == 100*u.rounds {
			return
		}
		u.step(s, rnd)
	}
}

func (u *turmoil) step(s *diskcache.Store, rnd *rand.Rand) {
	i := rnd.IntN(len(u.contents))
	name := fmt.Sprintf("packs/%d", i)
	off := rnd.IntN(turmoilSize)
	n := 1 + rnd.IntN(min(turmoilSize-off, 1<<rnd.IntN(22)))
	switch rnd.IntN(20) {
	case 0:
		s.Invalidate(name, int64(off), int64(n))
	case 1:
		if err := s.Prefetch(u.Context(), name, int64(off), int64(n)); err != nil {
			u.Error(err)
		}
	case 2:
		if f, err := os.OpenFile(filepath.Join(u.dir, "repo", name), os.O_WRONLY, 0); err == nil {
			_, _ = f.WriteAt(make([]byte, 1+rnd.IntN(1000)), rnd.Int64N(mib+turmoilSize))
			f.Close()
		}
	case 3:
		ctx, cancel := context.WithCancel(u.Context())
		go cancel()
		_ = s.ReadAt(ctx, name, int64(off), make([]byte, n))
	default:
		read(u.T, s, name, u.contents[i], off, n)
	}
}
