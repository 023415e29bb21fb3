package remote_test

import (
	"testing"
	"time"

	"github.com/snapctl/snapctl/remote"
	"github.com/snapctl/snapctl/remote/remotetest"
)

func TestMemory(t *testing.T) {
	remotetest.Run(t, func(*testing.T) remote.Store { return remote.NewMemory() })
}

func TestFile(t *testing.T) {
	remotetest.Run(t, func(t *testing.T) remote.Store { return openFile(t, t.TempDir()) })
}

// TestDecorators runs the suite through all of them, which must change
// nothing while there is no trouble.
func TestDecorators(t *testing.T) {
	remotetest.Run(t, func(*testing.T) remote.Store {
		var s remote.Store = remote.NewMemory()
		s = remote.NewFaulty(s, func(remote.Op, string) remote.Fault { return remote.Fault{} })
		s = new(remote.Counter).Wrap(s)
		return remote.Retry(s, nil)
	})
}

// TestTrouble runs the suite with every third operation failing, before or
// after it was done.
func TestTrouble(t *testing.T) {
	remotetest.Run(t, func(*testing.T) remote.Store {
		var n counter
		s := remote.NewFaulty(remote.NewMemory(), func(op remote.Op, _ string) remote.Fault {
			var f remote.Fault
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
