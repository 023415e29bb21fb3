// Package fusefs serves the tree of a snapshot to the kernel as a read-only file
// system. [Mount] mounts one; a [Source] gives the contents of files.
//
// Everything is immutable, so the kernel is told to keep all that it learns for
// ever. Inode numbers are ranks plus one, so that there is no table of inodes:
// what the server keeps does not grow with the tree.
package fusefs
