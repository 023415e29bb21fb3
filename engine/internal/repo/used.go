package repo

import (
	"encoding/json"
	"fmt"
	"path/filepath"

	"github.com/google/uuid"
	"github.com/snapctl/snapctl/engine/internal/fsys"
	"github.com/snapctl/snapctl/engine/internal/local"
	"github.com/zeebo/blake3"
)

// A usedRepository is a repository that this machine has used, in the file used/HASH of
// the state folder, where HASH is of the URL. So one that is gone is not taken for one
// that nobody has made yet, and no restore deletes one in a local folder.
type usedRepository struct {
	Version int       `json:"version"`
	URL     string    `json:"url"`
	ID      uuid.UUID `json:"id"`
	Dir     []byte    `json:"dir,omitempty"`   // of the store, if it is a folder
	Cache   []byte    `json:"cache,omitempty"` // the folder of caches that it was last used with
}

const usedVersion = 1

func usedName(url string) string {
	sum := blake3.Sum256([]byte(url))
	return fmt.Sprintf("%x", sum[:16])
}

// NoteUse remembers this repository.
func (r *Repo) NoteUse() {
	if r.State == "" || r.url == "" {
		return
	}
	b, err := json.Marshal(usedRepository{usedVersion, r.url, r.Cfg.ID, []byte(r.Dir), []byte(r.CacheDir())})
	if err != nil {
		r.Logger.Info("remembering the repository", "err", err)
		return
	}
	state := local.Dir{Root: r.State}
	if name := usedName(r.url); string(state.Read(local.Used, name)) != string(b) {
		if err := state.Write(local.Used, name, b); err != nil {
			r.Logger.Info("remembering the repository", "err", err)
		}
	}
}

// UsedHere gives what a state folder knows of the repository at a URL; nil for nothing.
func UsedHere(stateDir, url string) *usedRepository {
	if stateDir == "" || url == "" {
		return nil
	}
	return readUsed(local.Dir{Root: stateDir}.Read(local.Used, usedName(url)))
}

// UsedRepositories gives all that a state directory knows of; what cannot be read is left out.
func UsedRepositories(stateDir string) (all []*usedRepository) {
	if stateDir == "" {
		return nil
	}
	state := local.Dir{Root: stateDir}
	for _, name := range state.Names(local.Used) {
		if u := readUsed(state.Read(local.Used, name)); u != nil {
			all = append(all, u)
		}
	}
	return all
}

// IsUsed reports whether a file is the record of a used repository that its name says.
func IsUsed(name string, b []byte) bool {
	u := readUsed(b)
	return u != nil && name == usedName(u.URL)
}

// readUsed reads a record; nil for one that is damaged, or a newer program's.
func readUsed(b []byte) *usedRepository {
	u := &usedRepository{}
	if json.Unmarshal(b, u) != nil || u.Version != usedVersion || u.URL == "" {
		return nil
	}
	return u
}

// whyGone says where the way to a local repository ends, if that is before its own
// directory; "" for nothing.
func whyGone(dir string) string {
	w := fsys.Follow(dir)
	switch {
	case dir == "" || w.Err == nil:
		return ""
	case len(w.Links) > 0:
		return fmt.Sprintf(": %s is a symbolic link that leads to it, and there is no %s now: if that is on another disk, mount it", w.Links[len(w.Links)-1], w.Next)
	case w.Next != filepath.Clean(dir):
		return fmt.Sprintf(": there is no %s now: if that is on another disk, mount it", w.Next)
	}
	return ""
}
