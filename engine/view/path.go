package view

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"

	"github.com/snapctl/snapctl/engine/snapshot"
	"github.com/snapctl/snapctl/manifest"
	"golang.org/x/sys/unix"
)

// What else can be wrong with a path.
var (
	errNotDir error = unix.ENOTDIR
	errIsDir  error = unix.EISDIR
	errLoop   error = unix.ELOOP
)

// maxFollowed is how many symbolic links a path may lead through, as on Linux.
const maxFollowed = 40

// CleanPath is the path that the tree has for one that a person writes.
func CleanPath(name string) (string, error) {
	var parts []string
	for part := range strings.SplitSeq(name, "/") {
		switch part {
		case "", ".":
		case "..":
			return "", fmt.Errorf(`%w: ".." in a path of a snapshot`, snapshot.ErrInvalid)
		default:
			parts = append(parts, part)
		}
	}
	return strings.Join(parts, "/"), nil
}

// find gives what is at a path, "" for the root, with its extents. With follow
// it follows a symbolic link that the path names, and always those on the way.
func (s *FS) find(p string, follow bool) (*FileInfo, error) {
	// In one step, if no link is on the way.
	info, err := s.at(p)
	if errors.Is(err, fs.ErrNotExist) || err == nil && follow && info.entry.Type == manifest.Symlink {
		info, err = s.findByParts(p, follow)
	}
	if err != nil {
		return nil, err
	}
	if p != "" {
		info.name = path.Base(p)
	}
	return info, nil
}

// at gives the entry of a path as it stands in the tree.
func (s *FS) at(p string) (*FileInfo, error) {
	i := &FileInfo{path: p, name: "."}
	rank, err := s.tree.Lookup(s.ctx, manifest.KeyOf(p), &i.entry)
	if errors.Is(err, manifest.ErrNotExist) {
		return nil, fs.ErrNotExist
	}
	if err != nil {
		return nil, err
	}
	if i.entry.Type == manifest.Link {
		i.first = i.entry.First.Path()
	}
	rank, err = s.tree.Resolve(s.ctx, rank, &i.entry)
	i.inode = rank + 1
	return i, err
}

// findByParts goes from directory to directory, as a kernel does.
func (s *FS) findByParts(p string, follow bool) (*FileInfo, error) {
	here, err := s.at("")
	if err != nil {
		return nil, err
	}
	var link *FileInfo // the last one that was followed
	followed := 0
	for rest := strings.Split(p, "/"); len(rest) > 0; {
		part := rest[0]
		rest = rest[1:]
		if !here.IsDir() {
			return nil, errNotDir
		}
		switch part {
		case "", ".":
			continue
		case "..": // of a link's target
			if here.path == "" {
				return nil, leaves(link)
			}
			if here, err = s.at(manifest.KeyOf(here.path).Dir); err != nil {
				return nil, err
			}
			continue
		}
		next, err := s.at(manifest.Join(here.path, part))
		if err != nil {
			return nil, err
		}
		if next.entry.Type != manifest.Symlink || !follow && len(rest) == 0 {
			here = next
			continue
		}
		if link = next; path.IsAbs(link.entry.Target) {
			return nil, leaves(link)
		}
		if followed++; followed > maxFollowed {
			return nil, errLoop
		}
		rest = append(strings.Split(link.entry.Target, "/"), rest...)
	}
	return here, nil
}

func leaves(link *FileInfo) error {
	return fmt.Errorf("the symbolic link %q leads out of the snapshot, to %q", link.path, link.entry.Target)
}
