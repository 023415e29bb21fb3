package index

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// The test binary is run again as a process that takes a slot.
const childEnv = "SNAPCTL_INDEX_TEST_CHILD"

func TestMain(m *testing.M) {
	if dir := os.Getenv(childEnv); dir != "" {
		if err := child(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// child opens the index, adds chunks of its own, says which slot it has, waits
// for its standard input to end, and closes.
func child(dir string) error {
	ix, err := Open(dir, testRepo, testCodec, nil)
	if err != nil {
		return err
	}
	p := makePack(os.Getpid(), span(0, keepAfter)...)
	data, err := (&Segment{Packs: []Pack{p}}).Encode(testCodec)
	if err != nil {
		return err
	}
	if err := ix.Commit(SumSegment(data), &Segment{Packs: []Pack{p}}); err != nil {
		return err
	}
	if loc, ok := ix.Lookup(chunkID(1)); !ok || loc.Pack != p.ID {
		return fmt.Errorf("chunk 1: %v, %v", loc, ok)
	}
	if ix.slot == nil {
		return errors.New("no slot")
	}
	fmt.Println(filepath.Base(ix.slot.dir))
	bufio.NewReader(os.Stdin).ReadByte()
	return ix.Close()
}

type process struct {
	cmd   *exec.Cmd
	stdin func() error
	slot  string
}

func start(t *testing.T, dir string) *process {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"="+dir)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill() })
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatalf("the process said nothing: %v", err)
	}
	return &process{cmd, in.Close, strings.TrimSpace(line)}
}

func (p *process) end(t *testing.T) {
	t.Helper()
	p.stdin()
	if err := p.cmd.Wait(); err != nil {
		t.Error(err)
	}
}

func TestParallelProcesses(t *testing.T) {
	dir := t.TempDir()
	var all []*process
	for range maxSlots + 3 {
		all = append(all, start(t, dir))
	}
	slots := map[string]bool{}
	private := 0
	for _, p := range all {
		if slots[p.slot] {
			t.Errorf("two processes have slot %s", p.slot)
		}
		slots[p.slot] = true
		if strings.HasPrefix(p.slot, privatePrefix) {
			private++
		}
	}
	for n := range maxSlots {
		if !slots[strconv.Itoa(n)] {
			t.Errorf("nobody has slot %d", n)
		}
	}
	if private != 3 {
		t.Errorf("%d private slots, want 3", private)
	}

	// One private slot's process is killed; the next Open removes what it left.
	last := all[len(all)-1]
	last.cmd.Process.Kill()
	last.cmd.Wait()
	for _, p := range all[:len(all)-1] {
		p.end(t)
	}
	if got := names(t, dir); len(got) != maxSlots+1 || !slices.Contains(got, last.slot) {
		t.Errorf("left behind: %v", got)
	}
	ix := open(t, dir)
	if got := names(t, dir); len(got) != maxSlots || slices.Contains(got, last.slot) {
		t.Errorf("left behind after Open: %v", got)
	}
	if _, ok := ix.Lookup(chunkID(1)); !ok {
		t.Error("what a process committed is not known to the next one in its slot")
	}
}

func TestKilledProcessGivesItsSlotBack(t *testing.T) {
	dir := t.TempDir()
	p := start(t, dir)
	p.cmd.Process.Kill()
	p.cmd.Wait()
	ix := open(t, dir)
	if got := filepath.Base(ix.slot.dir); got != p.slot {
		t.Errorf("slot %s, want %s", got, p.slot)
	}
	mustClose(t, ix)
}

func TestSlotsInOneProcess(t *testing.T) {
	dir := t.TempDir()
	a, b := open(t, dir), open(t, dir)
	if a.slot.dir == b.slot.dir {
		t.Errorf("both have %s", a.slot.dir)
	}
	mustClose(t, a)
	if c := open(t, dir); c.slot.dir != a.slot.dir {
		t.Errorf("%s is free and not taken", a.slot.dir)
	}
}

func TestFoldersThatAreNotOurs(t *testing.T) {
	for name, files := range map[string][]string{
		"no lock":           {"0/notes.txt"},
		"more than a slot":  {"0/lock", "0/notes.txt"},
		"catalog only":      {"0/catalog"},
		"file for a folder": {"0"},
		"foreign in db":     {"0/lock", "0/db/notes.txt", "0/db/000001.sst"},
		"folder in db":      {"0/lock", "0/db/sub/000001.sst"},
		"leftover":          {"tmp-1/lock", "tmp-1/notes.txt"},
		"leftover no lock":  {"tmp-1/notes.txt"},
		"leftover with db":  {"tmp-1/lock", "tmp-1/db/notes.txt"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			for _, f := range files {
				path := filepath.Join(dir, f)
				if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			before := tree(t, dir)
			b := newBucket()
			b.fill(t, 0, 5000)
			ix := open(t, dir)
			b.sync(t, ix)
			check(t, ix, b.places(t), 6000)
			mustClose(t, ix)
			after := tree(t, dir)
			for path := range before {
				if filepath.Base(path) != catalogName && after[path] != before[path] {
					t.Errorf("%s was touched", path)
				}
			}
		})
	}
}

func TestLinksAreNotFollowed(t *testing.T) {
	dir, other := t.TempDir(), t.TempDir()
	b := newBucket()
	b.fill(t, 0, 5000)
	ix := open(t, other)
	b.sync(t, ix)
	mustClose(t, ix)
	os.Remove(filepath.Join(other, "0", catalogName))
	before := tree(t, other)
	if err := os.Symlink(filepath.Join(other, "0"), filepath.Join(dir, "0")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(filepath.Join(other, "0"), filepath.Join(dir, "tmp-1")); err != nil {
		t.Fatal(err)
	}
	mustClose(t, open(t, dir))
	if !maps.Equal(before, tree(t, other)) {
		t.Error("a slot was emptied through a symbolic link")
	}
}

func TestAnotherRepository(t *testing.T) {
	dir := t.TempDir()
	b := newBucket()
	b.fill(t, 0, 5000)
	ix := open(t, dir)
	b.sync(t, ix)
	mustClose(t, ix)
	other, err := Open(dir, [16]byte{9}, testCodec, nil)
	if err != nil {
		t.Fatal(err)
	}
	check(t, other, nil, 6000)
	if s := other.Stats(); s != (Stats{}) {
		t.Errorf("%+v", s)
	}
	mustClose(t, other)
}

func names(t *testing.T, dir string) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}
