// Package disk is what several packages need of files beyond package os: locks
// ([Lock]), directories that are synced ([SyncDir]), names that never replace
// another ([RenameNew]), and files as bare descriptors ([Open], [Pread]).
package disk
