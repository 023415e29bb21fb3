//go:build !portable

package fsys

import (
	"fmt"
	"os"
)

// RemoveAt removes an entry of an open directory and all below it, whatever the modes of
// directories that are ours.
func RemoveAt(parent int, name string) error {
	root, err := os.OpenRoot(fmt.Sprintf("/proc/self/fd/%d", parent))
	if err != nil {
		return err
	}
	defer root.Close()
	return RemoveIn(root, name)
}
