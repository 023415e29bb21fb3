package remotetest

import (
	"testing"

	"github.com/snapctl/snapctl/remote"
)

// OpenFile opens the store in a directory, or ends the test.
func OpenFile(t testing.TB, dir string) *remote.File {
	t.Helper()
	s, err := remote.OpenFile(dir)
	if err != nil {
		t.Fatal(err)
	}
	return s
}
