package remote_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/snapctl/snapctl/remote"
	"github.com/snapctl/snapctl/remote/remotetest"
)

// files gives the paths of all files in a folder, sorted.
func files(t *testing.T, dir string) []string {
	t.Helper()
	found := []string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			rel, _ := filepath.Rel(dir, path)
			found = append(found, rel)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func TestFileMissing(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "b")
	if _, err := remote.OpenFile(dir); !errors.Is(err, remote.ErrNoBucket) || !strings.Contains(err.Error(), dir) {
		t.Errorf("got %v", err)
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dir, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := remote.OpenFile(dir); !errors.Is(err, remote.ErrNoBucket) {
		t.Errorf("a file instead of a folder: got %v", err)
	}
	if err := remote.MakeDir(dir); err == nil {
		t.Error("MakeDir takes a file for a folder")
	}

	// A folder that goes away while the store is open (an unmounted disk) is
	// not a store without objects.
	dir = filepath.Join(t.TempDir(), "made", "deep")
	for range 2 {
		if err := remote.MakeDir(dir); err != nil {
			t.Fatal(err)
		}
	}
	s := remotetest.OpenFile(t, dir)
	ctx := t.Context()
	if err := s.Put(ctx, "a", nil); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	_, getErr := s.Get(ctx, "a")
	_, statErr := s.Stat(ctx, "a")
	for what, err := range map[string]error{
		"Get": getErr, "Stat": statErr,
		"ReadAt":        s.ReadAt(ctx, "a", 0, make([]byte, 1)),
		"Put":           s.Put(ctx, "packs/00/b", nil),
		"List":          s.List(ctx, "", func(remote.Info) error { return nil }),
		"List of packs": s.List(ctx, "packs/", func(remote.Info) error { return nil }),
		"Delete":        s.Delete(ctx, "a"),
		"Delete of two": s.Delete(ctx, "a", "b"),
	} {
		if !errors.Is(err, remote.ErrNoBucket) {
			t.Errorf("%s: got %v, want ErrNoBucket", what, err)
		}
		if err != nil && strings.Contains(err.Error(), "\n") { // it is one line that users see
			t.Errorf("%s: %q", what, err)
		}
	}
}

// TestFileModes: what is in the repository is nobody else's, but its group's
// where the repository is.
func TestFileModes(t *testing.T) {
	defer syscall.Umask(syscall.Umask(0))
	for _, test := range []struct{ dir, sub, object fs.FileMode }{
		{0o700, 0o700, 0o400},
		{0o755, 0o750, 0o440},
		{0o770, 0o770, 0o440},
		{0o777, 0o770, 0o440},
		{0o770 | fs.ModeSetgid, 0o770 | fs.ModeSetgid, 0o440},
	} {
		dir := filepath.Join(t.TempDir(), "repo")
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(dir, test.dir); err != nil {
			t.Fatal(err)
		}
		if err := remotetest.OpenFile(t, dir).Put(t.Context(), "packs/00/a", nil); err != nil {
			t.Fatal(err)
		}
		for path, want := range map[string]fs.FileMode{"packs/00": test.sub, "packs/00/a": test.object, "tmp": test.sub} {
			fi, err := os.Stat(filepath.Join(dir, path))
			if err != nil {
				t.Fatal(err)
			}
			if got := fi.Mode() & (fs.ModePerm | fs.ModeSetgid); got != want {
				t.Errorf("in a folder of %v, %s is %v, want %v", test.dir, path, got, want)
			}
		}
	}
}

// TestFileLeftovers: opening a store takes away temporary files of writers
// that were killed, and nothing else.
func TestFileLeftovers(t *testing.T) {
	dir := t.TempDir()
	tmp := filepath.Join(dir, "tmp")
	if err := os.Mkdir(tmp, 0o700); err != nil {
		t.Fatal(err)
	}
	const id = "abcdefghijklmnopqrstuvwxyz"
	old := time.Now().Add(-time.Hour)
	for _, name := range []string{"put-" + id, "put-" + strings.ToUpper(id), "put-notes.txt", "mine", "put-" + id + "2"} {
		if err := os.WriteFile(filepath.Join(tmp, name), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(filepath.Join(tmp, name), old, old); err != nil {
			t.Fatal(err)
		}
	}
	young := "put-" + strings.Repeat("y", 26)
	locked := "put-" + strings.Repeat("l", 26)
	for _, name := range []string{young, locked} {
		if err := os.WriteFile(filepath.Join(tmp, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chtimes(filepath.Join(tmp, locked), old, old); err != nil {
		t.Fatal(err)
	}
	writer, err := os.Open(filepath.Join(tmp, locked))
	if err != nil {
		t.Fatal(err)
	}
	defer writer.Close()
	if err := unix.Flock(int(writer.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}

	s := remotetest.OpenFile(t, dir)
	want := []string{"tmp/mine", "tmp/put-" + strings.ToUpper(id), "tmp/put-" + id + "2", "tmp/" + locked, "tmp/put-notes.txt", "tmp/" + young}
	slices.Sort(want)
	if got := files(t, dir); !slices.Equal(got, want) {
		t.Errorf("left:\n%q, want\n%q", got, want)
	}
	err = s.List(t.Context(), "", func(i remote.Info) error { return fmt.Errorf("listed: %v", i) })
	if err != nil {
		t.Error(err)
	}
}

// TestFileForeign: files that are no objects are no trouble.
func TestFileForeign(t *testing.T) {
	dir := t.TempDir()
	s := remotetest.OpenFile(t, dir)
	for _, name := range []string{"a", "packs/00/b", "packs/01/c"} {
		if err := s.Put(t.Context(), name, []byte(name)); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"README.md", "packs/.nfs0001", "packs/00/B"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mkfifo(filepath.Join(dir, "packs", "fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	// A part of it was moved to another place.
	moved := filepath.Join(t.TempDir(), "moved")
	if err := os.Rename(filepath.Join(dir, "packs", "01"), moved); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(moved, filepath.Join(dir, "packs", "01")); err != nil {
		t.Fatal(err)
	}
	var got []string
	err := s.List(t.Context(), "", func(i remote.Info) error {
		got = append(got, i.Name)
		return nil
	})
	if err != nil || !slices.Equal(got, []string{"a", "packs/00/b", "packs/01/c"}) {
		t.Errorf("got %q, %v", got, err)
	}
	if data, err := s.Get(t.Context(), "packs/01/c"); err != nil || string(data) != "packs/01/c" {
		t.Errorf("got %q, %v", data, err)
	}
}

// hash names an object by its content.
func hash(data []byte) string { return fmt.Sprintf("packs/%x", sha256.Sum256(data)) }

const writerDir = "SNAPCTL_TEST_WRITER"

// TestWriter is the process that TestFileKilled kills: it puts objects for
// ever, and prints the name of each when it is there.
func TestWriter(t *testing.T) {
	dir := os.Getenv(writerDir)
	if dir == "" {
		t.Skip("it is a part of TestFileKilled")
	}
	s := remotetest.OpenFile(t, dir)
	data := make([]byte, 2<<20)
	for {
		_, _ = rand.Read(data)
		if err := s.Put(t.Context(), hash(data), data); err != nil {
			t.Fatal(err)
		}
		fmt.Println(hash(data))
	}
}

// TestFileKilled kills writers in the middle: every object there is is whole,
// every one that was reported is there, and what is left of others goes away.
func TestFileKilled(t *testing.T) {
	dir := t.TempDir()
	s := remotetest.OpenFile(t, dir)
	var reported []string
	for round := range 8 {
		cmd := exec.Command(os.Args[0], "-test.run=^TestWriter$")
		cmd.Env = append(os.Environ(), writerDir+"="+dir)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		for i := 0; i <= round%3 && lines.Scan(); i++ {
			reported = append(reported, lines.Text())
		}
		time.Sleep(time.Duration(round) * time.Millisecond) // some way into the next
		_ = cmd.Process.Kill()
		for lines.Scan() {
			reported = append(reported, lines.Text())
		}
		_ = cmd.Wait()
	}
	seen := make(map[string]bool)
	err := s.List(t.Context(), "", func(i remote.Info) error {
		data, err := s.Get(t.Context(), i.Name)
		if err == nil && hash(data) != i.Name {
			err = fmt.Errorf("%s has other content, %d bytes", i.Name, len(data))
		}
		seen[i.Name] = true
		return err
	})
	if err != nil {
		t.Error(err)
	}
	for _, name := range reported {
		if !seen[name] {
			t.Errorf("%s was reported, and is not there", name)
		}
	}
	if len(reported) < 8 {
		t.Errorf("only %d objects were put", len(reported))
	}
	left := files(t, filepath.Join(dir, "tmp"))
	if len(left) == 0 {
		t.Log("no writer was killed while it wrote")
	}
	old := time.Now().Add(-time.Hour)
	for _, name := range left {
		if err := os.Chtimes(filepath.Join(dir, "tmp", name), old, old); err != nil {
			t.Fatal(err)
		}
	}
	remotetest.OpenFile(t, dir)
	if left := files(t, filepath.Join(dir, "tmp")); len(left) > 0 {
		t.Errorf("left in tmp: %q", left)
	}
}

// meddler is a context that calls f every time it is asked for its error: Put
// does so before it begins, and between writing an object and naming it.
type meddler struct {
	context.Context
	f func()
}

func (m meddler) Err() error {
	m.f()
	return m.Context.Err()
}

// TestFileMeddled: a writer whose temporary file or folders somebody took away
// writes it again, as long as they do not do so every time.
func TestFileMeddled(t *testing.T) {
	dir := t.TempDir()
	s := remotetest.OpenFile(t, dir)
	data := bytes.Repeat([]byte("x"), 100<<10)
	for _, folder := range []string{"tmp", "packs", "packs/00"} {
		for first := range 3 {
			name := fmt.Sprintf("packs/00/%d", first)
			calls := 0
			ctx := meddler{t.Context(), func() {
				if calls == first || calls == first+1 {
					if err := os.RemoveAll(filepath.Join(dir, folder)); err != nil {
						t.Error(err)
					}
				}
				calls++
			}}
			if err := s.Put(ctx, name, data); err != nil {
				t.Errorf("%s removed at %d: %v", folder, first, err)
			}
			if got, err := s.Get(t.Context(), name); err != nil || !bytes.Equal(got, data) {
				t.Errorf("%s removed at %d: got %d bytes, %v", folder, first, len(got), err)
			}
			if left := files(t, dir); !slices.Equal(left, []string{name}) {
				t.Errorf("%s removed at %d: left %q", folder, first, left)
			}
			if err := s.Delete(t.Context(), name); err != nil {
				t.Error(err)
			}
		}
	}
	always := meddler{t.Context(), func() { os.RemoveAll(filepath.Join(dir, "tmp")) }}
	if err := s.Put(always, "packs/00/x", data); err == nil || errors.Is(err, remote.ErrNotExist) {
		t.Errorf("removed every time: got %v", err)
	}
}
