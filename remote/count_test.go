package remote_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/snapctl/snapctl/remote"
	"github.com/snapctl/snapctl/remote/remotetest"
)

func TestCount(t *testing.T) {
	ctx := t.Context()
	var count remote.Counter
	s := count.Wrap(remotetest.NewMemory())
	if got := count.Requests().Ops.String(); got != "no requests" {
		t.Error(got)
	}
	_ = s.Put(ctx, "a", make([]byte, 100))
	_ = s.Put(ctx, "a", make([]byte, 50)) // another's content
	_ = s.(remote.Replacer).Replace(ctx, "b", make([]byte, 7))
	before := count.Requests().Ops
	_, _ = s.Get(ctx, "a")
	_, _ = s.Get(ctx, "none")
	_ = s.ReadAt(ctx, "a", 10, make([]byte, 20))
	_ = s.ReadAt(ctx, "a", 90, make([]byte, 20))
	_, _ = s.Stat(ctx, "a")
	_ = s.List(ctx, "", func(remote.Info) error { return nil })
	_ = s.List(ctx, "", func(remote.Info) error { return errTest }) // no failure of the store
	_ = s.Delete(ctx, "a", "b")
	got := count.Requests()
	const want = "put 2 (100 bytes, 1 failed), get 2 (100 bytes, 1 failed), read 2 (20 bytes, 1 failed), " +
		"list 2, stat 1, delete 1, replace 1 (7 bytes)"
	if got.Ops.String() != want {
		t.Errorf("got  %s\nwant %s", got.Ops, want)
	}
	if got := got.Ops.Sub(before).Total(); got != (remote.OpCount{Calls: 8, Failed: 2, Received: 120}) {
		t.Errorf("got %+v", got)
	}
	if got.Total() != got.Ops.Total().Calls {
		t.Errorf("%d in all, not %d", got.Total(), got.Ops.Total().Calls)
	}
	got.Ops = remote.Counts{}
	if got != (remote.Requests{Put: 3, List: 2, Get: 4, Head: 1, Delete: 1, Failed: 3, Sent: 107, Received: 120, Waits: 11}) {
		t.Errorf("got %+v", got)
	}
}

// TestCountBeneathRetry: every attempt counts.
func TestCountBeneathRetry(t *testing.T) {
	var count remote.Counter
	if err := quick(count.Wrap(failing(3, transient(0)))).Put(t.Context(), "a", make([]byte, 10)); err != nil {
		t.Fatal(err)
	}
	got := count.Requests()
	if got.Ops.String() != "put 4 (10 bytes, 3 failed)" || got.Waits != 4 {
		t.Errorf("%s in %d waits", got.Ops, got.Waits)
	}
}

// stepped is a store whose gets end when they are told to.
type stepped struct {
	remote.Store
	begun chan string
	end   map[string]chan error
}

func (s *stepped) Get(_ context.Context, name string) ([]byte, error) {
	end := s.end[name]
	s.begun <- name
	return nil, <-end
}

// TestWaits: "+a" is that request a begins, "-a" that it ends, "!a" that it fails.
func TestWaits(t *testing.T) {
	for steps, want := range map[string]int64{
		"":                                 0,
		"+a -a":                            1,
		"+a":                               0, // it is under way
		"+a -a +b":                         1,
		"+a -a +b -b +c -c":                3,
		"+a +b +c -a -b -c":                1,
		"+a +b -b -a":                      1,
		"+a +b -a +c -b -c":                2, // c after a, and b beside both
		"+a -a +b +c -b +d -d -c +e -e":    4,
		"+a +b -b +c -c +d -d -a":          3, // a took as long as three that followed one another
		"+a +b -b +c -c -a +d -d":          3,
		"+a +b -a +c -b +d -c +e -d -e":    3, // each beside the one before it: a, c, e
		"+a !a +a !a +a -a":                3, // attempts follow one another
		"+a +b !a !b +c !c +d -d":          3,
		"+a +b -b !a +c +d !d -c":          2,
		"+a +b +c -b -c +b +c -c -b -a +d": 2,
	} {
		var count remote.Counter
		under := &stepped{begun: make(chan string), end: map[string]chan error{}}
		s := count.Wrap(under)
		ended := map[string]chan error{}
		for step := range strings.FieldsSeq(steps) {
			name := step[1:]
			switch step[0] {
			case '+':
				done := make(chan error)
				under.end[name], ended[name] = make(chan error), done
				go func() {
					_, err := s.Get(context.Background(), name)
					done <- err
				}()
				<-under.begun
			case '-':
				under.end[name] <- nil
				<-ended[name]
				delete(ended, name)
			case '!':
				under.end[name] <- errTest
				<-ended[name]
				delete(ended, name)
			}
		}
		got := count.Requests()
		if got.Waits != want || got.Get != int64(strings.Count(steps, "+")) || got.Failed != int64(strings.Count(steps, "!")) {
			t.Errorf("%s: %d waits, want %d; %+v", steps, got.Waits, want, got)
		}
		for name, done := range ended {
			under.end[name] <- nil
			<-done
		}
	}
}

// TestS3Waits: a get goes on until its content was read, and not only until the
// answer begins.
func TestS3Waits(t *testing.T) {
	answered, rest := make(chan bool), make(chan bool)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Last-Modified", time.Unix(1e9, 0).UTC().Format(http.TimeFormat))
		w.Header().Set("Content-Length", "10")
		if r.Method == http.MethodGet {
			_, _ = w.Write([]byte("01234"))
			_ = http.NewResponseController(w).Flush()
			answered <- true
			<-rest
			_, _ = w.Write([]byte("56789"))
		}
	}))
	defer srv.Close()
	var count remote.Counter
	s := openS3(t, remote.S3Config{Endpoint: srv.URL, Bucket: "bucket", Credentials: remote.Credentials{AccessKeyID: "a", SecretAccessKey: "b"}, Count: &count})
	stat := func() {
		if _, err := s.Stat(t.Context(), "b"); err != nil {
			t.Error(err)
		}
	}
	expect := func(what string, heads, waits int64) {
		t.Helper()
		if n := count.Requests(); n.Get != 1 || n.Head != heads || n.Waits != waits {
			t.Errorf("%s: got %+v, want %d HEAD, %d waits", what, n, heads, waits)
		}
	}
	got := make(chan error)
	go func() {
		_, err := s.Get(t.Context(), "a")
		got <- err
	}()
	<-answered
	stat()
	expect("while the content arrives", 1, 1)
	rest <- true
	if err := <-got; err != nil {
		t.Error(err)
	}
	expect("when it is there", 1, 1)
	stat()
	expect("after that", 2, 2)
}

// TestS3SentAgain: what the transport itself sends again, since the server had closed the
// connection, are two requests.
func TestS3SentAgain(t *testing.T) {
	var seen atomic.Int64
	var closed atomic.Bool
	last := ""
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		seen.Add(1)
		if r.RemoteAddr == last && !closed.Swap(true) { // a connection that was used before
			conn, _, err := http.NewResponseController(w).Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			conn.Close()
			return
		}
		last = r.RemoteAddr
		w.Header().Set("Last-Modified", time.Unix(1e9, 0).UTC().Format(http.TimeFormat))
		_, _ = w.Write([]byte("0123456789"))
	}))
	defer srv.Close()
	var count remote.Counter
	s := openS3(t, remote.S3Config{Endpoint: srv.URL, Bucket: "bucket", Credentials: remote.Credentials{AccessKeyID: "a", SecretAccessKey: "b"}, Count: &count})
	for !closed.Load() {
		if data, err := s.Get(t.Context(), "a"); err != nil || len(data) != 10 {
			t.Fatalf("%q, %v", data, err)
		}
	}
	got, n := count.Requests(), seen.Load()
	got.Ops = remote.Counts{}
	if want := (remote.Requests{Server: true, Get: n, Failed: 1, Received: 10 * (n - 1), Waits: n}); got != want {
		t.Errorf("counted %+v, want %+v", got, want)
	}
}

// TestS3Count: what is counted is what the server sees.
func TestS3Count(t *testing.T) {
	server := remotetest.StartVersityGW(t)
	strict := remotetest.StartStrictR2(t, server, false)
	strict.WriteInterval = 0
	var count remote.Counter
	c := strict.Config("count")
	c.Count = &count
	s := openS3(t, c)
	ctx := t.Context()
	var last remote.Requests
	check := func(what string, err error, want remote.Requests) {
		t.Helper()
		if err != nil {
			t.Errorf("%s: %v", what, err)
		}
		now := count.Requests()
		got := remote.Requests{
			Put: now.Put - last.Put, List: now.List - last.List, Get: now.Get - last.Get, Head: now.Head - last.Head,
			Delete: now.Delete - last.Delete, Failed: now.Failed - last.Failed, Sent: now.Sent - last.Sent,
			Received: now.Received - last.Received, Waits: now.Waits - last.Waits,
		}
		if want.List > 0 || want.Delete > 0 || want.Failed > 0 { // the server's XML
			if (got.Sent+got.Received > 0) != (want.Sent+want.Received > 0) {
				t.Errorf("%s: %d bytes sent, %d received", what, got.Sent, got.Received)
			}
			want.Sent, want.Received = got.Sent, got.Received
		}
		if got != want {
			t.Errorf("%s: counted %+v, want %+v", what, got, want)
		}
		if seen := strict.Requests(); int64(len(seen)) != got.Total() {
			t.Errorf("%s: counted %d, and these were sent: %s", what, got.Total(), methods(seen))
		}
		last = now
	}
	data := bytes.Repeat([]byte("x"), 100_000)
	check("put", s.Put(ctx, "a", data), remote.Requests{Put: 1, Sent: 100_000, Waits: 1})
	check("empty put", s.Put(ctx, "empty", nil), remote.Requests{Put: 1, Waits: 1})
	check("replace", s.Replace(ctx, "b", data[:10]), remote.Requests{Put: 1, Sent: 10, Waits: 1})
	_, err := s.Get(ctx, "a")
	check("get", err, remote.Requests{Get: 1, Received: 100_000, Waits: 1})
	check("read", s.ReadAt(ctx, "a", 5, make([]byte, 20)), remote.Requests{Get: 1, Received: 20, Waits: 1})
	_, err = s.ReadRange(ctx, "a", 99_990, make([]byte, 20), nil)
	check("range", err, remote.Requests{Get: 1, Received: 10, Waits: 1})
	_, err = s.Stat(ctx, "a")
	check("stat", err, remote.Requests{Head: 1, Waits: 1})
	_, err = s.Get(ctx, "none")
	if errors.Is(err, remote.ErrNotExist) {
		err = nil
	}
	check("get of nothing", err, remote.Requests{Get: 1, Failed: 1, Waits: 1, Received: 1})
	// The conditional put is refused, and the object compared.
	check("the same put", s.Put(ctx, "a", data), remote.Requests{Put: 1, Head: 1, Failed: 1, Waits: 2, Sent: 1})
	strict.Next(remotetest.Trouble{Status: http.StatusServiceUnavailable}, remotetest.Trouble{Reset: true})
	_, err = quick(s).Get(ctx, "a")
	check("attempts", err, remote.Requests{Get: 3, Failed: 2, Waits: 3, Received: 1})
	check("list", s.List(ctx, "", func(remote.Info) error { return nil }), remote.Requests{List: 1, Waits: 1, Received: 1})
	check("delete", s.Delete(ctx, "b"), remote.Requests{Delete: 1, Waits: 1})
	check("delete of two", s.Delete(ctx, "b", "empty"), remote.Requests{Delete: 1, Waits: 1, Sent: 1})

	var names []string
	for i := range 1001 {
		names = append(names, fmt.Sprintf("many/%04d", i))
		if err := os.MkdirAll(filepath.Join(server.Dir(), "count", "many"), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(server.Dir(), "count", names[i]), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	n := 0
	check("pages", s.List(ctx, "many/", func(remote.Info) error { n++; return nil }), remote.Requests{List: 2, Waits: 2, Received: 1})
	if n != len(names) {
		t.Errorf("%d listed", n)
	}
	check("delete of many", s.Delete(ctx, slices.Insert(names, 0, "a")...), remote.Requests{Delete: 2, Waits: 2, Sent: 1})
	if !last.Server {
		t.Error("not to a server")
	}
}
