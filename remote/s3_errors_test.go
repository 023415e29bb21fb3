package remote_test

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/snapctl/snapctl/remote"
	"github.com/snapctl/snapctl/remote/remotetest"
)

// everyOperation is each kind of request of a store.
func everyOperation(s remote.Store) map[string]func(context.Context) error {
	return map[string]func(context.Context) error{
		"Put":        func(ctx context.Context) error { return s.Put(ctx, "a", []byte("content")) },
		"Get":        func(ctx context.Context) error { _, err := s.Get(ctx, "a"); return err },
		"ReadAt":     func(ctx context.Context) error { return s.ReadAt(ctx, "a", 0, make([]byte, 1)) },
		"Stat":       func(ctx context.Context) error { _, err := s.Stat(ctx, "a"); return err },
		"List":       func(ctx context.Context) error { return s.List(ctx, "", func(remote.Info) error { return nil }) },
		"Delete":     func(ctx context.Context) error { return s.Delete(ctx, "a") },
		"DeleteMany": func(ctx context.Context) error { return s.Delete(ctx, "a", "b") },
	}
}

// TestS3Region: whatever is the first thing that is asked of a bucket in another region, the
// error names the right one.
func TestS3Region(t *testing.T) {
	c := remotetest.StartVersityGW(t).Config("p")
	right := c.Region
	c.Region = "eu-west-3"
	for name, f := range everyOperation(openS3(t, c)) {
		if err := f(t.Context()); err == nil || !strings.Contains(err.Error(), "?region="+right) || remote.Transient(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestS3ClockOff: a server that refuses requests for their time makes the error speak of the
// clock, and not of access.
func TestS3ClockOff(t *testing.T) {
	for _, off := range []time.Duration{-time.Hour, time.Hour, -365 * 24 * time.Hour, 365 * 24 * time.Hour} {
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Date", time.Now().Add(-off).UTC().Format(http.TimeFormat))
			w.WriteHeader(http.StatusForbidden)
			if r.Method != http.MethodHead {
				w.Write([]byte(`<?xml version="1.0"?><Error><Code>RequestTimeTooSkewed</Code><Message>The difference is too large.</Message></Error>`))
			}
		}))
		s := openS3(t, remote.S3Config{Endpoint: srv.URL, Bucket: "bucket", Credentials: remote.Credentials{AccessKeyID: "k", SecretAccessKey: "s"}})
		want := "ahead"
		if off < 0 {
			want = "behind"
		}
		for name, f := range everyOperation(s) {
			err := f(t.Context())
			if !errors.Is(err, remote.ErrClock) || errors.Is(err, remote.ErrAccess) || remote.Transient(err) || !strings.Contains(err.Error(), " "+want+")") {
				t.Errorf("%s, %v ahead: %v", name, off, err)
			}
		}
		srv.Close()
	}
}
