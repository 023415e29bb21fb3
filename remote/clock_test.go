package remote_test

import (
	"errors"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/snapctl/snapctl/remote"
)

// answering is a server that answers after some time, and says what time it then is, or nothing.
type answering struct {
	after time.Duration
	date  func() string
}

func (a *answering) RoundTrip(req *http.Request) (*http.Response, error) {
	time.Sleep(a.after)
	h := http.Header{"Last-Modified": {time.Now().UTC().Format(http.TimeFormat)}}
	if date := a.date(); date != "" {
		h.Set("Date", date)
	}
	return &http.Response{StatusCode: http.StatusOK, Header: h, Body: http.NoBody, Request: req}, nil
}

// TestS3Clock: the time is known from the first answer on that came promptly and tells it.
func TestS3Clock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ahead := func() string { return time.Now().Add(time.Hour).UTC().Format(http.TimeFormat) }
		server := &answering{date: ahead}
		s, err := remote.OpenS3(t.Context(), remote.S3Config{
			Endpoint: "http://server", Bucket: "bucket", Transport: server,
			Credentials: remote.Credentials{AccessKeyID: "k", SecretAccessKey: "s"},
		})
		if err != nil {
			t.Fatal(err)
		}
		ask := func() (time.Duration, error) {
			if _, err := s.Stat(t.Context(), "a"); err != nil {
				t.Fatal(err)
			}
			now, err := remote.Time(t.Context(), s)
			return time.Until(now), err
		}
		if _, err := remote.Time(t.Context(), s); !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("before any answer: %v", err)
		}
		server.date = func() string { return "" }
		if _, err := ask(); !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("without a date: %v", err)
		}
		server.date = ahead
		if d, err := ask(); err != nil || d < time.Hour-time.Second || d > time.Hour {
			t.Errorf("%v, %v", d, err)
		}
		// It goes on, and what was long on its way does not count.
		time.Sleep(time.Minute)
		late := ahead()
		server.after, server.date = 20*time.Second, func() string { return late }
		if d, err := ask(); err != nil || d < time.Hour-time.Second || d > time.Hour {
			t.Errorf("%v, %v", d, err)
		}
	})
}
