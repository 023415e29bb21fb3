package engine

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// Some file systems take two names for one: README and readme, on those that do not
// tell upper from lower case (APFS as macOS makes it, FAT, a directory of ext4 with
// casefold), or two spellings of an accent. Which names those are only they know. A
// snapshot may hold both, and restoring it must fail rather than lose one of them.
//
// In a new directory everything is made with O_EXCL or what is like it, so that the
// second one fails (sameName). Where the target is written in place, files replace
// those that have their name: there folding knows what this run has put.

// errSameName: the file system takes two names of a snapshot for one.
var errSameName = errors.New("the file system takes its name for that of another file of the snapshot: restore to one that tells upper from lower case")

// sameName is the error of making an entry.
func (x *restorer) sameName(err error) error {
	if x.fresh && errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("%w (%w)", errSameName, err)
	}
	return err
}

// folding is what a run has put into a target that folds names: a nil one is for a file
// system that does not, and does nothing.
type folding struct {
	mu   sync.Mutex
	made map[inode]string // by inode, the entry's name
}

// newFolding tries whether names are folded in an open directory of ours.
func newFolding(dir int) (*folding, error) {
	const name, other = "folds", "FOLDS"
	if err := unix.Mkdirat(dir, name, 0o700); err != nil {
		return nil, err
	}
	folds := fstatat(dir, other, new(unix.Stat_t)) == nil
	if err := unix.Unlinkat(dir, name, unix.AT_REMOVEDIR); err != nil || !folds {
		return nil, err
	}
	return &folding{made: map[inode]string{}}, nil
}

// findFolding finds out whether names are folded in the target: by an entry that it has, or
// else by one that is made for it.
func (t *target) findFolding() error {
	names, err := namesIn(t.old)
	if err != nil {
		return err
	}
	for _, name := range names {
		other := strings.Map(otherCase, name)
		if other == name {
			continue
		}
		if slices.Contains(names, other) || fstatat(t.old, other, new(unix.Stat_t)) != nil {
			return nil
		}
		t.folding = &folding{made: map[inode]string{}}
		return nil
	}
	if err := t.beginWork(); err != nil {
		return err
	}
	t.folding, err = newFolding(t.work)
	return err
}

// otherCase gives an ASCII letter in the other case.
func otherCase(r rune) rune {
	switch {
	case 'a' <= r && r <= 'z':
		return r - 'a' + 'A'
	case 'A' <= r && r <= 'Z':
		return r - 'A' + 'a'
	}
	return r
}

// put calls do, which puts an entry into an open directory, or finds it there. It fails
// where something of this run's has the name already, or would be replaced.
func (p *folding) put(dir int, name string, do func() error) error {
	if p == nil {
		return do()
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	at, there := p.at(dir, name)
	if there && p.made[at] != "" {
		return fmt.Errorf("%w (%q)", errSameName, p.made[at])
	}
	if err := do(); err != nil {
		return err
	}
	if at, there = p.at(dir, name); there {
		p.made[at] = name
	}
	return nil
}

// at gives the inode that a name of a directory leads to.
func (p *folding) at(dir int, name string) (at inode, there bool) {
	var st unix.Stat_t
	if fstatat(dir, name, &st) != nil {
		return inode{}, false
	}
	return inode{uint64(st.Dev), st.Ino}, true
}

// alone fails where a name that leads to a file of this run is another spelling of the
// name that the file has.
func (p *folding) alone(dir int, name string) error {
	if p == nil {
		return nil
	}
	names, err := namesIn(dir)
	if err == nil && !slices.Contains(names, name) {
		err = errSameName
	}
	return err
}

// has reports whether an entry of a directory is of this run: perhaps under a name that
// it has had before, as replacing a file may leave that.
func (p *folding) has(dir int, name string) bool {
	if p == nil {
		return false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	at, there := p.at(dir, name)
	return there && p.made[at] != ""
}
