//go:build linux

package secret

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// openTerminal gives both sides of a terminal of its own.
func openTerminal(t *testing.T) (user *os.File, open func() (*os.File, error)) {
	t.Helper()
	user, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skip("no terminals here:", err)
	}
	t.Cleanup(func() { user.Close() })
	fd := int(user.Fd())
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	path := fmt.Sprintf("/dev/pts/%d", n)
	// As long as one is open the terminal keeps its settings.
	keep, err := os.OpenFile(path, os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { keep.Close() })
	return user, func() (*os.File, error) { return os.OpenFile(path, os.O_RDWR|unix.O_NOCTTY, 0) }
}

// shows reports whether the terminal shows what is typed.
func shows(t *testing.T, terminal *os.File) bool {
	t.Helper()
	s, err := unix.IoctlGetTermios(int(terminal.Fd()), unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	return s.Lflag&unix.ECHO != 0
}

// readUntil reads what the terminal shows, up to some text.
func readUntil(t *testing.T, user io.Reader, end string) string {
	t.Helper()
	var all strings.Builder
	for b := make([]byte, 1); !strings.HasSuffix(all.String(), end); {
		if _, err := user.Read(b); err != nil {
			t.Fatalf("after %q: %v", all.String(), err)
		}
		all.Write(b)
	}
	return all.String()
}

func TestAskSecret(t *testing.T) {
	user, open := openTerminal(t)
	secrets := New(nil, nil, open)
	if !shows(t, user) {
		t.Fatal("the terminal shows nothing from the beginning")
	}
	type answer struct {
		s   string
		err error
	}
	ask := func(ctx context.Context) chan answer {
		got := make(chan answer, 1)
		go func() {
			s, err := secrets.askSecret(ctx, "Passphrase: ")
			got <- answer{s, err}
		}()
		readUntil(t, user, "Passphrase: ")
		if shows(t, user) {
			t.Error("what is typed can be seen")
		}
		return got
	}
	got := ask(t.Context())
	io.WriteString(user, "hunter2\n")
	if x := <-got; x.s != "hunter2" || x.err != nil {
		t.Errorf("%q, %v", x.s, x.err)
	}
	if shown := readUntil(t, user, "\n"); strings.Contains(shown, "hunter") {
		t.Errorf("the terminal shows %q", shown)
	}
	if !shows(t, user) {
		t.Error("after an answer the terminal shows nothing more")
	}

	got = ask(t.Context())
	io.WriteString(user, "\n")
	if x := <-got; x.s != "" || x.err != nil {
		t.Errorf("%q", x.s)
	}

	ctx, cancel := context.WithCancelCause(t.Context())
	got = ask(ctx)
	stopped := errors.New("stopped")
	cancel(stopped)
	if x := <-got; !errors.Is(x.err, stopped) {
		t.Errorf("%q, %v", x.s, x.err)
	}
	for began := time.Now(); !shows(t, user); time.Sleep(5 * time.Millisecond) { // whoever reads puts it right
		if time.Since(began) > 5*time.Minute {
			t.Fatal("after an interrupt the terminal shows nothing more")
		}
	}
	io.WriteString(user, "\n") // for who reads still
}
