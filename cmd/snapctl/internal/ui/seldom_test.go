package ui

import (
	"bytes"
	"fmt"
	"testing"
	"time"
)

// TestSeldom: what fails side by side is said once, and again when it goes on.
func TestSeldom(t *testing.T) {
	var out bytes.Buffer
	now := time.Unix(1e9, 0)
	s := Seldom{Console: NewConsole(&out), Now: func() time.Time { return now }}
	tell := func(name string) {
		s.Tell(func(unsaid int64) string { return fmt.Sprintf("%s, %d before", name, unsaid) })
	}
	tell("config")
	tell("manifests")
	tell("notes")
	now = now.Add(time.Second)
	tell("config")
	now = now.Add(time.Second)
	tell("index")
	if got, want := out.String(), "config, 0 before\nconfig, 2 before\nindex, 0 before\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
