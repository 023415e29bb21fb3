package remote_test

import (
	"testing"
	"time"

	"github.com/snapctl/snapctl/remote"
	"github.com/snapctl/snapctl/remote/remotetest"
)

func TestFile(t *testing.T) {
	remotetest.Run(t, func(t *testing.T) remote.Store { return remotetest.OpenFile(t, t.TempDir()) })
}

// TestDecorators runs the suite through all of them, which must change
// nothing while there is no trouble.
func TestDecorators(t *testing.T) {
	remotetest.Run(t, func(*testing.T) remote.Store {
		var s remote.Store = remotetest.NewMemory()
		s = remotetest.NewFaulty(s, func(remote.Op, string) remotetest.Fault { return remotetest.Fault{} })
		s = new(remote.Counter).Wrap(s)
		return remote.Retry(s, nil)
	})
}

// TestTrouble runs the suite with every third operation failing, before or
// after it was done.
func TestTrouble(t *testing.T) {
	remotetest.Run(t, func(*testing.T) remote.Store {
		var n counter
		s := remotetest.NewFaulty(remotetest.NewMemory(), func(op remote.Op, _ string) remotetest.Fault {
			var f remotetest.Fault
			if i := n.next(); i%3 == 0 {
				f.Err = &remote.TransientError{Err: errTest}
				f.Done = i%2 == 0
				f.Entries = int(i % 4)
			}
			return f
		})
		return remote.Retry(s, &remote.RetryOptions{Sleep: noSleep})
	})
}

func TestS3(t *testing.T) {
	strict := remotetest.StartStrictR2(t, remotetest.StartVersityGW(t), false)
	strict.WriteInterval = 2 * time.Millisecond // the suite's many writers of one name would take minutes
	var n counter
	remotetest.Run(t, func(t *testing.T) remote.Store {
		s := openS3(t, strict.Config(n.name("prefix")))
		return remote.Retry(s, &remote.RetryOptions{Initial: 4 * time.Millisecond})
	})
}
