package disk

import "golang.org/x/sys/unix"

// renameNew renames a file to a name that nothing has, or fails with EEXIST.
func renameNew(from, to string) error { return unix.RenamexNp(from, to, unix.RENAME_EXCL) }
