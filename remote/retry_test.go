package remote_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/snapctl/snapctl/remote"
	"github.com/snapctl/snapctl/remote/remotetest"
)

// transient is an error worth another attempt.
func transient(after time.Duration) error {
	return &remote.TransientError{Err: errTest, After: after}
}

// failing fails the first n operations of an empty store with err.
func failing(n int, err error) *remotetest.Faulty {
	return remotetest.NewFaulty(remotetest.NewMemory(), func(remote.Op, string) remotetest.Fault {
		if n--; n >= 0 {
			return remotetest.Fault{Err: err}
		}
		return remotetest.Fault{}
	})
}

func TestRetryDelays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var delays []time.Duration
		s := remote.Retry(failing(8, transient(0)), &remote.RetryOptions{
			Notify: func(err error, d time.Duration) {
				if !errors.Is(err, errTest) || !strings.Contains(err.Error(), "put a") {
					t.Errorf("told of %v", err)
				}
				delays = append(delays, d)
			},
		})
		start := time.Now()
		if err := s.Put(t.Context(), "a", nil); err != nil {
			t.Fatal(err)
		}
		var sum time.Duration
		mean := 400 * time.Millisecond
		for i, d := range delays {
			if d < mean/2 || d > mean*3/2 {
				t.Errorf("delay %d is %v, want about %v", i+1, d, mean)
			}
			mean = min(2*mean, 15*time.Second)
			sum += d
		}
		if len(delays) != 8 || time.Since(start) != sum {
			t.Errorf("%d delays, which say %v, took %v", len(delays), sum, time.Since(start))
		}
	})
}

func TestRetryGivesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := remote.Retry(failing(1000, transient(0)), nil)
		start := time.Now()
		_, err := s.Get(t.Context(), "a")
		if !errors.Is(err, errTest) || !strings.Contains(err.Error(), "get a: trouble made by the test (tried ") {
			t.Errorf("got %v", err)
		}
		if took := time.Since(start); took != 2*time.Minute {
			t.Errorf("gave up after %v", took)
		}
	})
}

func TestRetryAfter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		s := remote.Retry(failing(2, transient(30*time.Second)), nil)
		if err := s.Put(t.Context(), "a", nil); err != nil {
			t.Error(err)
		}
		if took := time.Since(start); took != time.Minute {
			t.Errorf("took %v, want twice what the server asked for", took)
		}
		// An hour is more than there is.
		start = time.Now()
		s = remote.Retry(failing(2, transient(time.Hour)), nil)
		if err := s.Put(t.Context(), "a", nil); !errors.Is(err, errTest) {
			t.Errorf("got %v", err)
		}
		if took := time.Since(start); took != 2*time.Minute {
			t.Errorf("took %v", took)
		}
	})
}

func TestRetryNot(t *testing.T) {
	for _, permanent := range []error{
		remote.ErrNotExist, remote.ErrExist, remote.ErrShort, remote.ErrAccess, remote.ErrNoBucket,
		context.Canceled, errTest,
	} {
		calls := 0
		s := remote.Retry(remotetest.NewFaulty(remotetest.NewMemory(), func(remote.Op, string) remotetest.Fault {
			calls++
			return remotetest.Fault{Err: permanent}
		}), &remote.RetryOptions{Sleep: noSleep})
		if err := s.Put(t.Context(), "a", nil); !errors.Is(err, permanent) || calls != 1 {
			t.Errorf("%v: got %v after %d attempts", permanent, err, calls)
		}
	}
	calls := 0
	s := remote.Retry(remotetest.NewFaulty(remotetest.NewMemory(), func(remote.Op, string) remotetest.Fault {
		calls++
		return remotetest.Fault{Err: transient(0)}
	}), &remote.RetryOptions{Total: -1})
	if err := s.Put(t.Context(), "a", nil); !errors.Is(err, errTest) || calls != 1 {
		t.Errorf("without retries: got %v after %d attempts", err, calls)
	}
}

func TestRetryCancelled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		start := time.Now()
		err := remote.Retry(failing(1000, transient(0)), nil).Put(ctx, "a", nil)
		if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), errTest.Error()) {
			t.Errorf("got %v", err)
		}
		if took := time.Since(start); took != 10*time.Second {
			t.Errorf("took %v", took)
		}
	})
}

// TestRetryDeadline has the server fall silent: an attempt is given up after a
// minute, and a second more for every 64 KiB.
func TestRetryDeadline(t *testing.T) {
	const silence = time.Hour
	for _, test := range []struct {
		op   remote.Op
		want time.Duration
		f    func(context.Context, remote.Store) error
	}{
		{remote.OpPut, time.Minute + 16*time.Second, func(ctx context.Context, s remote.Store) error {
			return s.Put(ctx, "b", make([]byte, 1<<20))
		}},
		{remote.OpReadAt, time.Minute + time.Second, func(ctx context.Context, s remote.Store) error {
			return s.ReadAt(ctx, "a", 0, make([]byte, 64<<10))
		}},
		{remote.OpStat, time.Minute, func(ctx context.Context, s remote.Store) error {
			_, err := s.Stat(ctx, "a")
			return err
		}},
		{remote.OpList, 2 * time.Minute, func(ctx context.Context, s remote.Store) error {
			return s.List(ctx, "", func(remote.Info) error { return nil })
		}},
		{remote.OpDelete, time.Minute + time.Second/10, func(ctx context.Context, s remote.Store) error {
			return s.Delete(ctx, "a")
		}},
	} {
		synctest.Test(t, func(t *testing.T) {
			m := remotetest.NewMemory()
			if err := m.Put(t.Context(), "a", make([]byte, 64<<10)); err != nil {
				t.Fatal(err)
			}
			silent := true
			f := remotetest.NewFaulty(m, func(op remote.Op, _ string) (fault remotetest.Fault) {
				if op == test.op && silent {
					silent = false
					fault.Delay = silence
				}
				return fault
			})
			start := time.Now()
			// The attempt may take longer than Total, so that says nothing here.
			s := remote.Retry(f, &remote.RetryOptions{Sleep: noSleep, Total: silence})
			if err := test.f(t.Context(), s); err != nil {
				t.Errorf("%v: %v", test.op, err)
			}
			if took := time.Since(start); took != test.want {
				t.Errorf("%v: the attempt was given up after %v, want %v", test.op, took, test.want)
			}
		})
	}
}

// TestRetrySlowList: a list may take as long as it likes while it gets on.
func TestRetrySlowList(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := remotetest.NewMemory()
		for i := range 10 {
			if err := m.Put(t.Context(), fmt.Sprint(i), nil); err != nil {
				t.Fatal(err)
			}
		}
		n := 0
		err := remote.Retry(m, nil).List(t.Context(), "", func(remote.Info) error {
			n++
			time.Sleep(time.Minute)
			return nil
		})
		if err != nil || n != 10 {
			t.Errorf("got %d entries and %v", n, err)
		}
	})
}

// TestRetryList breaks a list off again and again, farther on every time: that
// is progress, and never too often.
func TestRetryList(t *testing.T) {
	m := remotetest.NewMemory()
	var want []string
	for i := range 100 {
		want = append(want, fmt.Sprintf("n/%03d", i))
		if err := m.Put(t.Context(), want[i], nil); err != nil {
			t.Fatal(err)
		}
	}
	f := remotetest.NewFaulty(m, func(remote.Op, string) remotetest.Fault {
		return remotetest.Fault{Err: transient(0), Entries: 3}
	})
	waits := 0
	s := remote.Retry(f, &remote.RetryOptions{Sleep: func(context.Context, time.Duration) error {
		waits++
		return nil
	}, Total: time.Minute})
	var got []string
	enough := errors.New("enough")
	err := s.List(t.Context(), "n/", func(i remote.Info) error {
		if got = append(got, i.Name); len(got) == 99 {
			return enough
		}
		return nil
	})
	if err != enough || !slices.Equal(got, want[:99]) || waits != 32 {
		t.Errorf("got %d names after %d waits: %v", len(got), waits, err)
	}
}

// TestRetryDelete: only what failed is deleted again, and what cannot succeed
// is told at the end.
func TestRetryDelete(t *testing.T) {
	tries := make(map[string]int)
	f := remotetest.NewFaulty(remotetest.NewMemory(), func(_ remote.Op, name string) (fault remotetest.Fault) {
		tries[name]++
		switch {
		case name == "never":
			fault.Err = remote.ErrAccess
		case name == "later" && tries[name] < 4:
			fault.Err = transient(0)
		}
		return fault
	})
	s := remote.Retry(f, &remote.RetryOptions{Sleep: noSleep})
	err := s.Delete(t.Context(), "a", "never", "later", "b")
	if !errors.Is(err, remote.ErrAccess) || remote.Transient(err) {
		t.Errorf("got %v", err)
	}
	if fmt.Sprint(tries) != "map[a:1 b:1 later:4 never:1]" {
		t.Errorf("tries: %v", tries)
	}
}
