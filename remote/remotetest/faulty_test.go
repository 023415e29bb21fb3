package remotetest_test

import (
	"bytes"
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/snapctl/snapctl/remote"
	"github.com/snapctl/snapctl/remote/remotetest"
)

var errTest = errors.New("trouble made by the test")

// newFaulty is a store with the object a, beneath one whose operations fail as fault says.
func newFaulty(t *testing.T) (m *remotetest.Memory, f *remotetest.Faulty, fault *remotetest.Fault) {
	t.Helper()
	m, fault = remotetest.NewMemory(), new(remotetest.Fault)
	if err := m.Put(t.Context(), "a", []byte("0123")); err != nil {
		t.Fatal(err)
	}
	return m, remotetest.NewFaulty(m, func(remote.Op, string) remotetest.Fault { return *fault }), fault
}

func TestFaultyErrors(t *testing.T) {
	ctx := t.Context()
	m, f, fault := newFaulty(t)
	exists := func(name string) bool {
		_, err := m.Stat(ctx, name)
		return err == nil
	}
	*fault = remotetest.Fault{Err: errTest}
	if err := f.Put(ctx, "b", nil); !errors.Is(err, errTest) || exists("b") {
		t.Errorf("got %v, the object exists: %v", err, exists("b"))
	}
	if err := f.Delete(ctx, "a"); !errors.Is(err, errTest) || !exists("a") {
		t.Errorf("got %v, the object exists: %v", err, exists("a"))
	}
	*fault = remotetest.Fault{Err: errTest, Done: true}
	if err := f.Put(ctx, "b", nil); !errors.Is(err, errTest) || !exists("b") {
		t.Errorf("got %v, the object exists: %v", err, exists("b"))
	}
	if err := f.Delete(ctx, "b"); !errors.Is(err, errTest) || exists("b") {
		t.Errorf("got %v, the object exists: %v", err, exists("b"))
	}
	if data, err := f.Get(ctx, "a"); !errors.Is(err, errTest) || data != nil {
		t.Errorf("got %q, %v", data, err)
	}

	*fault = remotetest.Fault{Err: errTest, Entries: 1}
	n := 0
	err := f.List(ctx, "", func(remote.Info) error { n++; return nil })
	if !errors.Is(err, errTest) || n != 1 {
		t.Errorf("got %d entries and %v", n, err)
	}
}

func TestFaultyContent(t *testing.T) {
	ctx := t.Context()
	m, f, fault := newFaulty(t)
	*fault = remotetest.Fault{Corrupt: true}
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

	*fault = remotetest.Fault{Short: true}
	if data, err := f.Get(ctx, "a"); err != nil || string(data) != "01" {
		t.Errorf("got %q, %v", data, err)
	}
	if err := f.ReadAt(ctx, "a", 0, p); !errors.Is(err, remote.ErrShort) {
		t.Errorf("got %v", err)
	}
}

func TestFaultyDelay(t *testing.T) {
	_, f, fault := newFaulty(t)
	synctest.Test(t, func(t *testing.T) {
		*fault = remotetest.Fault{Delay: time.Hour}
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

// TestReadRangeFaulty: spoilt bytes never arrive as good ones.
func TestReadRangeFaulty(t *testing.T) {
	m := remotetest.NewMemory()
	data := remotetest.Random(1, 1000)
	if err := m.Put(t.Context(), "a", data); err != nil {
		t.Fatal(err)
	}
	var fault remotetest.Fault
	f := remotetest.NewFaulty(m, func(remote.Op, string) remotetest.Fault { return fault })
	p := make([]byte, 2000)
	fault = remotetest.Fault{Corrupt: true}
	n, err := f.ReadRange(t.Context(), "a", 0, p, func(int) { t.Error("arrived") })
	if err != nil || n != 1000 || bytes.Equal(p[:n], data) {
		t.Errorf("got %d, %v", n, err)
	}
	fault = remotetest.Fault{Err: errTest}
	if n, err := f.ReadRange(t.Context(), "a", 0, p, nil); n != 0 || !errors.Is(err, errTest) {
		t.Errorf("got %d, %v", n, err)
	}
	fault = remotetest.Fault{Short: true}
	if _, err := f.ReadRange(t.Context(), "a", 0, p, nil); !errors.Is(err, remote.ErrShort) {
		t.Errorf("got %v", err)
	}
}
