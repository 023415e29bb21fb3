package remote_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/snapctl/snapctl/remote"
)

func TestFaulty(t *testing.T) {
	ctx := t.Context()
	m := remote.NewMemory()
	var fault remote.Fault
	f := remote.NewFaulty(m, func(remote.Op, string) remote.Fault { return fault })
	if err := m.Put(ctx, "a", []byte("0123")); err != nil {
		t.Fatal(err)
	}
	exists := func(name string) bool {
		_, err := m.Stat(ctx, name)
		return err == nil
	}

	fault = remote.Fault{Err: errTest}
	if err := f.Put(ctx, "b", nil); !errors.Is(err, errTest) || exists("b") {
		t.Errorf("got %v, the object exists: %v", err, exists("b"))
	}
	if err := f.Delete(ctx, "a"); !errors.Is(err, errTest) || !exists("a") {
		t.Errorf("got %v, the object exists: %v", err, exists("a"))
	}
	fault = remote.Fault{Err: errTest, Done: true}
	if err := f.Put(ctx, "b", nil); !errors.Is(err, errTest) || !exists("b") {
		t.Errorf("got %v, the object exists: %v", err, exists("b"))
	}
	if err := f.Delete(ctx, "b"); !errors.Is(err, errTest) || exists("b") {
		t.Errorf("got %v, the object exists: %v", err, exists("b"))
	}
	if data, err := f.Get(ctx, "a"); !errors.Is(err, errTest) || data != nil {
		t.Errorf("got %q, %v", data, err)
	}

	fault = remote.Fault{Corrupt: true}
	p := make([]byte, 2)
	if err := f.ReadAt(ctx, "a", 0, p); err != nil || string(p) != "00" {
		t.Errorf("got %q, %v", p, err)
	}
	if data, err := f.Get(ctx, "a"); err != nil || string(data) != "0133" {
		t.Errorf("got %q, %v", data, err)
	}
	mine := []byte("45")
	if err := f.Put(ctx, "c", mine); err != nil || string(mine) != "45" {
		t.Errorf("the caller's bytes are now %q, %v", mine, err)
	}
	if data, err := m.Get(ctx, "c"); err != nil || string(data) != "44" {
		t.Errorf("got %q, %v", data, err)
	}

	fault = remote.Fault{Short: true}
	if data, err := f.Get(ctx, "a"); err != nil || string(data) != "01" {
		t.Errorf("got %q, %v", data, err)
	}
	if err := f.ReadAt(ctx, "a", 0, p); !errors.Is(err, remote.ErrShort) {
		t.Errorf("got %v", err)
	}

	fault = remote.Fault{Err: errTest, Entries: 1}
	n := 0
	err := f.List(ctx, "", func(remote.Info) error { n++; return nil })
	if !errors.Is(err, errTest) || n != 1 {
		t.Errorf("got %d entries and %v", n, err)
	}

	synctest.Test(t, func(t *testing.T) {
		fault = remote.Fault{Delay: time.Hour}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		start := time.Now()
		if _, err := f.Get(ctx, "a"); !errors.Is(err, context.DeadlineExceeded) || time.Since(start) != time.Minute {
			t.Errorf("got %v after %v", err, time.Since(start))
		}
		if _, err := f.Get(t.Context(), "a"); err != nil || time.Since(start) != time.Hour+time.Minute {
			t.Errorf("got %v after %v", err, time.Since(start))
		}
	})
}
