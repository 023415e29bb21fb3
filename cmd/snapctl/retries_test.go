package main

import (
	"bytes"
	"errors"
	"testing"
	"time"
)

// TestRetries: what fails side by side is said once, and again when it goes on.
func TestRetries(t *testing.T) {
	var out bytes.Buffer
	now := time.Unix(1e9, 0)
	r := retries{console: &console{out: &out}, seldom: seldom{now: func() time.Time { return now }}}
	for _, name := range []string{"config", "manifests", "notes"} {
		r.tell(errors.New(name), 400*time.Millisecond)
	}
	now = now.Add(time.Second)
	r.tell(errors.New("config"), 2*time.Second)
	if got, want := out.String(), "retrying in 400ms: config\nretrying in 2s: config\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
