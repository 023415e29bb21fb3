package remote

import (
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"
)

// TestWatchedConn: silence ends a connection, slowness does not.
func TestWatchedConn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		near, far := net.Pipe()
		defer far.Close()
		c := &watchedConn{Conn: near}
		defer c.Close()

		// Somebody waits for the answer all the while, as net/http does.
		answer := make(chan error, 1)
		go func() {
			_, err := io.ReadFull(c, make([]byte, 3))
			answer <- err
		}()
		// 16 pieces of 64 KiB, each of which takes almost too long.
		go func() {
			p := make([]byte, 64<<10)
			for range 16 {
				time.Sleep(silence - time.Second)
				_, _ = io.ReadFull(far, p)
			}
			for range 3 {
				time.Sleep(silence - time.Second)
				_, _ = far.Write(p[:1])
			}
		}()
		if n, err := c.Write(make([]byte, 1<<20)); err != nil || n != 1<<20 {
			t.Errorf("wrote %d bytes: %v", n, err)
		}
		if err := <-answer; err != nil {
			t.Error(err)
		}
		if took := time.Since(start); took != 19*(silence-time.Second) {
			t.Errorf("took %v", took)
		}

		start = time.Now()
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(start) != silence {
			t.Errorf("a silent peer: got %v after %v", err, time.Since(start))
		}
		start = time.Now()
		if _, err := c.Write(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(start) != silence {
			t.Errorf("a peer that takes nothing: got %v after %v", err, time.Since(start))
		}
	})
}

func TestRetryAfterHeader(t *testing.T) {
	now := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	for header, want := range map[string]time.Duration{
		"": 0, "7": 7 * time.Second, "0": 0, "-5": 0, "soon": 0, "999999999999": 24 * time.Hour,
		now.Add(90 * time.Second).Format(http.TimeFormat): 90 * time.Second,
		now.Add(-time.Hour).Format(http.TimeFormat):       0,
	} {
		if got := retryAfter(header, now); got != want {
			t.Errorf("%q: got %v, want %v", header, got, want)
		}
	}
}

func TestCABundle(t *testing.T) {
	file := filepath.Join(t.TempDir(), "ca.pem")
	t.Setenv("AWS_CA_BUNDLE", file)
	if _, err := newTransport(1); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("missing: got %v", err)
	}
	if err := os.WriteFile(file, []byte("no certificate"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := newTransport(1); err == nil {
		t.Error("no error for a file without a certificate")
	}
}

// TestDateAfterSleep: what a server said of the time does not count after this machine slept.
func TestDateAfterSleep(t *testing.T) {
	now := time.Now()
	date := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	h := &heardDate{date, now, now.Round(0)}
	for _, c := range []struct {
		passed, slept time.Duration
		ok            bool
	}{
		{0, 0, true}, {time.Hour, 0, true}, {time.Minute, time.Hour, false}, {time.Minute, -time.Hour, false},
	} {
		later := now.Add(c.passed)
		at, ok := h.at(later, later.Round(0).Add(c.slept))
		if ok != c.ok || ok && !at.Equal(date.Add(c.passed)) {
			t.Errorf("%v: %v, %v", c, at, ok)
		}
	}
}
