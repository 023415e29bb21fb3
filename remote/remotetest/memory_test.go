package remotetest_test

import (
	"testing"

	"github.com/snapctl/snapctl/remote"
	"github.com/snapctl/snapctl/remote/remotetest"
)

func TestMemory(t *testing.T) {
	remotetest.Run(t, func(*testing.T) remote.Store { return remotetest.NewMemory() })
}
