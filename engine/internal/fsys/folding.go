package fsys

import (
	"errors"
	"fmt"
	"slices"
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

// ErrSameName: the file system takes two names of a snapshot for one.
var ErrSameName = errors.New("the file system takes its name for that of another file of the snapshot: restore to one that tells upper from lower case")

// Folding is what a run has put into a target that folds names: a nil one is for a file
// system that does not, and does nothing.
type Folding struct {
	mu   sync.Mutex
	Made map[Inode]string // by inode, the entry's name
}

// NewFolding tries whether names are folded in an open directory of ours.
func NewFolding(dir int) (*Folding, error) {
	const name, other = "folds", "FOLDS"
	if err := unix.Mkdirat(dir, name, 0o700); err != nil {
		return nil, err
	}
	folds := StatAt(dir, other, new(unix.Stat_t)) == nil
	if err := unix.Unlinkat(dir, name, unix.AT_REMOVEDIR); err != nil || !folds {
		return nil, err
	}
	return &Folding{Made: map[Inode]string{}}, nil
}

// OtherCase gives an ASCII letter in the other case.
func OtherCase(r rune) rune {
	switch {
	case 'a' <= r && r <= 'z':
		return r - 'a' + 'A'
	case 'A' <= r && r <= 'Z':
		return r - 'A' + 'a'
	}
	return r
}

// Put calls do, which puts an entry into an open directory, or finds it there. It fails
// where something of this run's has the name already, or would be replaced.
func (p *Folding) Put(dir int, name string, do func() error) error {
	if p == nil {
		return do()
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	at, there := p.at(dir, name)
	if there && p.Made[at] != "" {
		return fmt.Errorf("%w (%q)", ErrSameName, p.Made[at])
	}
	if err := do(); err != nil {
		return err
	}
	if at, there = p.at(dir, name); there {
		p.Made[at] = name
	}
	return nil
}

// at gives the inode that a name of a directory leads to.
func (p *Folding) at(dir int, name string) (at Inode, there bool) {
	var st unix.Stat_t
	if StatAt(dir, name, &st) != nil {
		return Inode{}, false
	}
	return Inode{uint64(st.Dev), st.Ino}, true
}

// Alone fails where a name that leads to a file of this run is another spelling of the
// name that the file has.
func (p *Folding) Alone(dir int, name string) error {
	if p == nil {
		return nil
	}
	names, err := NamesIn(dir)
	if err == nil && !slices.Contains(names, name) {
		err = ErrSameName
	}
	return err
}

// Has reports whether an entry of a directory is of this run: perhaps under a name that
// it has had before, as replacing a file may leave that.
func (p *Folding) Has(dir int, name string) bool {
	if p == nil {
		return false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	at, there := p.at(dir, name)
	return there && p.Made[at] != ""
}
