//go:build linux

package fusefs

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/snapctl/snapctl/manifest"
	"golang.org/x/sys/unix"
)

// silent mounts the world as a server does, and leaves it to the test to take
// requests, which nobody answers.
func (w *world) silent(t *testing.T) (dir string, c *Connection) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("only root can mount without a helper program")
	}
	w.build(t)
	dir = t.TempDir()
	dev, err := openDevice(dir, SourceOf(w.manifest.ID), false)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := Unmount(dir, false); err != nil && !errors.Is(err, ErrNotMounted) {
			t.Error(err, Unmount(dir, true))
		}
		dev.Close()
	})
	init := make([]byte, 8<<10)
	n, err := unix.Read(int(dev.Fd()), init)
	check(t, err)
	server, answer, _, err := newServer(newFS(t.Context(), w.manifest, nil, w, &Options{}), init[:n], serverOptions(w.manifest))
	check(t, err)
	if !touchBuffers(server) {
		t.Error("the buffers of this go-fuse are out of reach")
	}
	_, err = unix.Write(int(dev.Fd()), answer)
	check(t, err)
	c, err = (&Server{server: server, device: &device{file: dev, init: init[:n], answer: answer}}).Connection()
	if errors.Is(err, ErrNoTakeOver) {
		t.Skip(err)
	}
	check(t, err)
	dev.Close()
	return dir, c
}

// take takes a request, as a server does that then dies.
func take(t *testing.T, c *Connection) fuse.InHeader {
	t.Helper()
	b := make([]byte, maxRequest+8<<10)
	n, err := retry(func() (int, error) { return unix.Read(int(c.Device.Fd()), b) })
	check(t, err)
	var h fuse.InHeader
	if _, err := binary.Decode(b[:n], binary.NativeEndian, &h); err != nil {
		t.Fatal(err)
	}
	return h
}

func (w *world) takeOver(t *testing.T, c *Connection, dir string) (*Server, error) {
	t.Helper()
	tree, err := manifest.NewTree(w.manifest.Root, w.source())
	check(t, err)
	s, err := TakeOver(c, dir, w.manifest, tree, w, nil)
	if err == nil {
		s.Start()
		check(t, settle(dir)) // as Mount would have
		t.Cleanup(func() {
			if err := s.Unmount(false); err != nil && !errors.Is(err, ErrNotMounted) {
				t.Error(err, s.Unmount(true))
			}
			s.Wait()
		})
	}
	return s, err
}

// TestTakeOver: what was asked before and while there was no server is answered by
// the one that takes over.
func TestTakeOver(t *testing.T) {
	w := newWorld()
	w.dir("dir")
	content := strings.Repeat("some content ", 1<<16)
	w.file("dir/file", 0, piece{0, content})
	w.file("other", 0, piece{0, "other"})
	dir, c := w.silent(t)
	type answer struct {
		data []byte
		err  error
	}
	read := func(name string) chan answer {
		ch := make(chan answer, 1)
		go func() {
			// Not os.ReadFile, which stops a thread of the runtime where there is no server.
			fd, err := unix.Open(filepath.Join(dir, name), unix.O_RDONLY|unix.O_CLOEXEC, 0)
			if err != nil {
				ch <- answer{nil, err}
				return
			}
			defer unix.Close(fd)
			var data []byte
			b := make([]byte, 64<<10)
			for {
				n, err := unix.Read(fd, b)
				if n <= 0 || err != nil {
					ch <- answer{data, err}
					return
				}
				data = append(data, b[:n]...)
			}
		}()
		return ch
	}
	first := read("dir/file")
	h := take(t, c) // and it is never answered
	if h.NodeId != fuse.FUSE_ROOT_ID {
		t.Fatalf("%+v", h)
	}
	second := read("other")
	s, err := w.takeOver(t, c, dir)
	check(t, err)
	for want, ch := range map[string]chan answer{content: first, "other": second} {
		if got := <-ch; got.err != nil || string(got.data) != want {
			t.Errorf("%d bytes, %v", len(got.data), got.err)
		}
	}
	if b, err := os.ReadFile(filepath.Join(dir, "dir/file")); string(b) != content {
		t.Errorf("%d bytes, %v", len(b), err)
	}
	// It can be handed on as well, until it has ended.
	next, err := s.Connection()
	check(t, err)
	if !bytes.Equal(next.Init, c.Init) || !bytes.Equal(next.Answer, c.Answer) {
		t.Error("it hands over something else")
	}
	next.Device.Close()
	check(t, s.Unmount(false))
	s.Wait()
	if _, err := s.Connection(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("a connection that has ended: %v", err)
	}
}

// TestTakeOverInterrupted: who is killed while there is no server is let go by the
// one that takes over.
func TestTakeOverInterrupted(t *testing.T) {
	w := newWorld()
	w.file("file", 0, piece{0, "content"})
	dir, c := w.silent(t)
	r, pipe, err := os.Pipe()
	check(t, err)
	defer r.Close()
	p, err := os.StartProcess("/bin/cat", []string{"cat", filepath.Join(dir, "file")}, &os.ProcAttr{Files: []*os.File{nil, pipe, pipe}})
	check(t, err)
	pipe.Close()
	h := take(t, c)
	check(t, p.Kill())
	const interrupt = 36
	if i := take(t, c); i.Opcode != interrupt || i.Unique&^1 != h.Unique {
		t.Fatalf("%+v", i)
	}
	_, err = w.takeOver(t, c, dir)
	check(t, err)
	_, err = p.Wait()
	check(t, err)
	if b, err := io.ReadAll(r); len(b) > 0 || err != nil {
		t.Fatalf("%q, %v", b, err)
	}
	if b, err := os.ReadFile(filepath.Join(dir, "file")); string(b) != "content" {
		t.Fatalf("%q, %v", b, err)
	}
}

// TestTakeOverDiscarded: one that took over and does not serve after all leaves the mount
// to the next; where there is none the mount is dead, and readers know.
func TestTakeOverDiscarded(t *testing.T) {
	w := newWorld()
	w.file("file", 0, piece{0, "content"})
	dir, c := w.silent(t)
	fd, err := unix.FcntlInt(c.Device.Fd(), unix.F_DUPFD_CLOEXEC, 3)
	check(t, err)
	next := &Connection{os.NewFile(uintptr(fd), "/dev/fuse"), c.Init, c.Answer}
	tree, err := manifest.NewTree(w.manifest.Root, w.source())
	check(t, err)
	s, err := TakeOver(c, dir, w.manifest, tree, w, nil)
	check(t, err)
	s.Discard()
	_, err = w.takeOver(t, next, dir)
	check(t, err)
	if b, err := os.ReadFile(filepath.Join(dir, "file")); string(b) != "content" {
		t.Fatalf("%q, %v", b, err)
	}
	dir, c = w.silent(t)
	s, err = TakeOver(c, dir, w.manifest, tree, w, nil)
	check(t, err)
	s.Discard()
	// Not too long: the collector frees everything some time.
	if err := Probe(dir, 10*time.Second); !errors.Is(err, ErrNoServer) {
		t.Fatal(err)
	}
}

// TestTakeOverFails: a device that cannot be written to is in nobody's hands afterwards.
func TestTakeOverFails(t *testing.T) {
	w := newWorld()
	w.file("file", 0, piece{0, "content"})
	dir, c := w.silent(t)
	r, pipe, err := os.Pipe()
	check(t, err)
	defer pipe.Close()
	c.Device.Close()
	c.Device = r
	if _, err := w.takeOver(t, c, dir); !errors.Is(err, unix.EBADF) {
		t.Fatal(err)
	}
	if _, err := pipe.Write([]byte{1}); !errors.Is(err, unix.EPIPE) {
		t.Errorf("somebody can still read from the device: %v", err)
	}
}

// TestTakeOverRefused: what was not said to the kernel in the same way is not
// taken over.
func TestTakeOverRefused(t *testing.T) {
	w := newWorld()
	w.file("file", 0, piece{0, "content"})
	dir, c := w.silent(t)
	c.Answer[20]++
	if _, err := w.takeOver(t, c, dir); err == nil || !strings.Contains(err.Error(), "another way") {
		t.Fatal(err)
	}
	// Nobody has the device any more: the mount is dead, and readers know.
	if err := Probe(dir, tooLong); !errors.Is(err, ErrNoServer) {
		t.Fatal(err)
	}
}
