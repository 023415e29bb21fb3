//go:build !portable

package engine

import (
	"fmt"
	"os"
)

// removeAt removes an entry of an open directory and all below it, whatever the modes of
// directories that are ours.
func removeAt(parent int, name string) error {
	root, err := os.OpenRoot(fmt.Sprintf("/proc/self/fd/%d", parent))
	if err != nil {
		return err
	}
	defer root.Close()
	return removeIn(root, name)
}
