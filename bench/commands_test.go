package main

import (
	"bytes"
	"errors"
	"io"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/snapctl/snapctl/remote/remotetest"
)

// TestCountCommands: what snapctl says of its requests is what the server has seen.
func TestCountCommands(t *testing.T) {
	for _, tool := range []string{"versitygw", "server"} {
		if _, err := remotetest.Tool(t.Context(), tool); errors.Is(err, remotetest.ErrNoTool) {
			t.Skip(err)
		}
	}
	work := inMemory(t)
	b, err := newBench(t.Context(), &options{suites: []string{"s3"}, peers: []string{}, work: work, snapctl: realSnapctl(t), timeout: time.Minute, smoke: true}, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
		leavesNothing(t, work)
	}()
	s3, err := startS3(t.Context(), b)
	if err != nil {
		t.Fatal(err)
	}
	defer s3.Close()
	if err := b.countCommands(t.Context(), s3); err != nil {
		t.Fatal(err)
	}
	compared := 0
	for _, r := range b.commands {
		kinds := r.kinds()
		if r.Seen != nil {
			compared++
			if !maps.Equal(kinds, r.Seen) {
				t.Errorf("%s, %s cache: snapctl says %s, the server %s", r.Command, r.Cache, requestsText(kinds), requestsText(r.Seen))
			}
		}
		if want := float64(r.Put+r.List)*4.5e-6 + float64(r.Get+r.Head)*0.36e-6; r.Dollars < 0.999*want || r.Dollars > 1.001*want {
			t.Errorf("%s, %s cache: %g dollars, want %g", r.Command, r.Cache, r.Dollars, want)
		}
		if n := r.Put + r.List + r.Get + r.Head + r.Delete; r.Waits < 1 || r.Waits > n || r.Sent+r.Received == 0 {
			t.Errorf("%s, %s cache: %+v", r.Command, r.Cache, r)
		}
	}
	if compared < 18 {
		t.Errorf("only %d commands were compared", compared)
	}
	var tables bytes.Buffer
	if err := b.report().writeTables(&tables); err != nil {
		t.Fatal(err)
	}
	for _, r := range b.commands {
		if !strings.Contains(tables.String(), r.Command+" ") {
			t.Errorf("no row of %s:\n%s", r.Command, &tables)
		}
	}
}

func TestParseAsked(t *testing.T) {
	const line = `time=2026-11-26T08:31:49.930Z level=DEBUG msg=requests repository="s3://b/copy?endpoint=http://h:1&x=\"y\"" until="it served" ` +
		`server=true put=1 list=2 get=3 head=4 delete=5 failed=6 waits=7 sent=8 received=9000000000 dollars=9.36e-06` + "\n"
	log := "requests: 3 PUT\ntime=x level=INFO msg=finished command=\"snapctl list\"\n" + line + "time=x level=DEBUG msg=other put=5\n"
	got, err := parseAsked([]byte(log))
	want := asked{`s3://b/copy?endpoint=http://h:1&x="y"`, 1, 2, 3, 4, 5, 6, 7, 8, 9000000000, 9.36e-06}
	if err != nil || len(got) != 1 || got[0] != want {
		t.Errorf("got %+v, %v", got, err)
	}
	for _, bad := range []string{
		strings.Replace(line, " waits=7", "", 1),
		strings.Replace(line, "get=3", "get=", 1),
		strings.Replace(line, "sent=8", "sent=1.2", 1),
		strings.Replace(line, "9.36e-06", "little", 1),
	} {
		if got, err := parseAsked([]byte(bad)); err == nil {
			t.Errorf("%s: no error, but %+v", bad, got)
		}
	}
}
