// Package fsys is what the engine needs of a file system beyond package os: paths that
// are opened below a directory without following a link, holes, extended attributes,
// times to the nanosecond, and replacing and removing whole trees.
//
// Files named _linux, _darwin and _portable hold what differs by platform.
package fsys
