package index

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/snapctl/snapctl/chunk"
)

// damages are what may happen to a file.
var damages = map[string]func(data []byte) []byte{
	"emptied":     func([]byte) []byte { return nil },
	"halved":      func(d []byte) []byte { return d[:len(d)/2] },
	"one less":    func(d []byte) []byte { return d[:max(len(d)-1, 0)] },
	"one more":    func(d []byte) []byte { return append(d, 0) },
	"zeroed":      func(d []byte) []byte { return make([]byte, len(d)) },
	"zeroed half": func(d []byte) []byte { clear(d[len(d)/2:]); return d },
	"flip first":  func(d []byte) []byte { return flip(d, 0) },
	"flip middle": func(d []byte) []byte { return flip(d, len(d)/2) },
	"flip last":   func(d []byte) []byte { return flip(d, len(d)-1) },
	"removed":     nil,
}

func flip(d []byte, i int) []byte {
	if len(d) > 0 {
		d[i] ^= 0x40
	}
	return d
}

func damage(t testing.TB, path string, f func([]byte) []byte) {
	t.Helper()
	if f == nil {
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		return
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	// In place, so that the inode stays: the times have to tell.
	if err := os.WriteFile(path, f(data), 0o600); err != nil {
		t.Fatal(err)
	}
}

// Every file of a slot, damaged in every way, after a clean end and after the
// process was killed while it read and while it wrote. No chunk may be found
// that is not there, and the slot must work again afterwards.
func TestCorruption(t *testing.T) {
	root := t.TempDir()
	b := newBucket()
	b.fill(t, 0, 1000)
	seg, _ := b.put(t, makePack(7, span(1000, 1000)...))

	clean := filepath.Join(root, "clean")
	ix := open(t, clean)
	b.sync(t, ix)
	delete(b.segments, seg) // what only that one lists must not be found from now on
	b.sync(t, ix)
	mustClose(t, ix)
	reader := open(t, clean)
	killedReading := copyDir(t, clean)
	mustClose(t, reader)

	writing := filepath.Join(root, "writing")
	ix = open(t, writing)
	b.sync(t, ix)
	ix.writing.Lock()
	ix.takePack(makePack(8, span(1000, 1000)...))
	if err := ix.flush(); err != nil {
		t.Fatal(err)
	}
	ix.writing.Unlock()
	killedWriting := copyDir(t, writing)
	mustClose(t, ix)

	want := b.places(t)
	for state, from := range map[string]string{"clean": clean, "killed reading": killedReading, "killed writing": killedWriting} {
		files := []string{}
		for _, file := range names(t, filepath.Join(from, "0", dbName)) {
			files = append(files, filepath.Join("0", dbName, file))
		}
		if _, err := os.Stat(filepath.Join(from, "0", catalogName)); err == nil {
			files = append(files, filepath.Join("0", catalogName))
		}
		if len(files) < 3 {
			t.Fatalf("%s: only %v", state, files)
		}
		for _, file := range files {
			for name, f := range damages {
				t.Run(fmt.Sprintf("%s/%s/%s", state, file, name), func(t *testing.T) {
					dir := copyDir(t, from)
					if state == "clean" {
						// Make the slot one whose files are known by their stat.
						mustClose(t, open(t, dir))
					}
					damage(t, filepath.Join(dir, file), f)
					testDamaged(t, dir, b, want)
				})
			}
		}
	}
}

func testDamaged(t *testing.T, dir string, b *bucket, want map[chunk.ID][]chunk.Location) {
	ix := open(t, dir)
	checkPresent(t, ix, want, 2100)
	b.sync(t, ix)
	check(t, ix, want, 2100)
	mustClose(t, ix)
	ix = open(t, dir)
	check(t, ix, want, 2100)
	if err := ix.Err(); err != nil {
		t.Error(err)
	}
	mustClose(t, ix)
	os.RemoveAll(dir)
}

// A copy that is whole is believed, without its segments being fetched.
func TestWholeCopyIsBelieved(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a")
	b := newBucket()
	b.fill(t, 0, 5000)
	ix := open(t, dir)
	b.sync(t, ix)
	mustClose(t, ix)
	b.fetches.Store(0)
	for range 2 {
		ix = open(t, copyDir(t, dir))
		b.sync(t, ix)
		check(t, ix, b.places(t), 6000)
		mustClose(t, ix)
	}
	if f := b.fetches.Load(); f != 0 {
		t.Errorf("%d segments fetched", f)
	}
}

// After a reboot, files are read even if nothing seems to have touched them.
func TestReboot(t *testing.T) {
	dir := t.TempDir()
	b := newBucket()
	b.fill(t, 0, 5000)
	ix := open(t, dir)
	b.sync(t, ix)
	mustClose(t, ix)
	lie(t, dir, "another boot", func(d []byte) []byte { return flip(d, len(d)/3) })
	var told []string
	ix, err := Open(dir, testRepo, testCodec, &Options{Log: func(msg string) { told = append(told, msg) }})
	if err != nil {
		t.Fatal(err)
	}
	check(t, ix, nil, 6000)
	mustClose(t, ix)
	if len(told) != 1 || !strings.Contains(told[0], "not those of its catalog") {
		t.Errorf("told %q", told)
	}
}

// Bits that rot under the page cache change no stat: what lookups find has to
// be verified by itself.
func TestRot(t *testing.T) {
	b := newBucket()
	b.fill(t, 0, 5000)
	want := b.places(t)
	doubted := 0
	for round := range 15 {
		dir := t.TempDir()
		ix := open(t, dir)
		b.sync(t, ix)
		mustClose(t, ix)
		lie(t, dir, bootID(), func(d []byte) []byte {
			for i := range 50 { // where entries are, not where Badger's index is
				d = flip(d, (round*7919+i*4099)%(len(d)*3/4))
			}
			return d
		})
		ix = open(t, dir)
		// Chunks that were there may be absent, no more.
		checkPresent(t, ix, want, 6000)
		if ix.Err() == nil {
			mustClose(t, ix)
			continue
		}
		doubted++
		if _, err := os.Stat(filepath.Join(dir, "0", catalogName)); err == nil {
			t.Error("a doubtful slot has a catalog")
		}
		mustClose(t, ix)
		ix = open(t, dir)
		b.sync(t, ix)
		check(t, ix, want, 6000)
		mustClose(t, ix)
	}
	if doubted == 0 {
		t.Error("no round came to doubt: the test tests nothing")
	}
}

// lie damages the largest table, and makes the catalog say that nothing but
// reading it would tell.
func lie(t *testing.T, dir, boot string, f func([]byte) []byte) {
	t.Helper()
	s := &slot{dir: filepath.Join(dir, "0")}
	data, err := os.ReadFile(s.path(catalogName))
	if err != nil {
		t.Fatal(err)
	}
	c, err := decodeCatalog(data)
	if err != nil {
		t.Fatal(err)
	}
	largest := 0
	for i, f := range c.files {
		if strings.HasSuffix(f.name, ".sst") && f.size > c.files[largest].size {
			largest = i
		}
	}
	name := c.files[largest].name
	damage(t, filepath.Join(s.db(), name), f)
	touched, err := statFile(s.db(), name)
	if err != nil {
		t.Fatal(err)
	}
	touched.hash = c.files[largest].hash
	c.files[largest] = touched
	c.boot = boot
	if err := os.WriteFile(s.path(catalogName), c.encode(), 0o600); err != nil {
		t.Fatal(err)
	}
}
