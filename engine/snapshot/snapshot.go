package snapshot

import (
	"encoding/json"
	"time"

	"github.com/snapctl/snapctl/manifest"
)

// A Snapshot describes a directory at a point in time. Its JSON form holds
// "id" and "dir", which alone are a handle that every command takes back. Get, List
// and Log give name, tags and expiry as Change has left them; what else names a
// snapshot may have them as they were when it was made.
type Snapshot struct {
	ID        manifest.ID       `json:"id"`
	Dir       string            `json:"dir"` // as it was given to Create, made absolute
	Name      string            `json:"name,omitempty"`
	Tags      map[string]string `json:"tags,omitempty"`
	Parent    *manifest.ID      `json:"parent,omitempty"` // what unchanged files were taken from
	CreatedAt time.Time         `json:"createdAt"`
	ExpiresAt *time.Time        `json:"expiresAt,omitempty"`
	Pinned    bool              `json:"pinned,omitempty"` // it never expires, and Prune keeps it
	Host      string            `json:"host,omitempty"`
	User      string            `json:"user,omitempty"`
	Version   string            `json:"version,omitempty"` // of the snapctl that made it

	Files       int64 `json:"files"`             // entries of every type but directories
	Dirs        int64 `json:"dirs"`              // the root included
	Bytes       int64 `json:"bytes"`             // sum of the files' sizes, hard links once
	NewBytes    int64 `json:"newBytes"`          // of contents that were not in the repository
	StoredBytes int64 `json:"storedBytes"`       // what that took in the repository, tree included
	Skipped     int64 `json:"skipped,omitempty"` // sockets
	Unreadable  int64 `json:"unreadable,omitempty"`
	Incomplete  bool  `json:"incomplete"` // something that was asked for is not in it

	// Notes are those that Name, Tags, ExpiresAt and Pinned have come from, in order.
	Notes []manifest.NoteID `json:"-"`
}

// Expired reports whether the time to live has passed.
func (s *Snapshot) Expired(now time.Time) bool {
	return s.ExpiresAt != nil && !now.Before(*s.ExpiresAt)
}

// Handle is the short JSON form, {"id": ..., "dir": ...}.
func (s *Snapshot) Handle() string {
	b, err := json.Marshal(struct {
		ID  manifest.ID `json:"id"`
		Dir string      `json:"dir"`
	}{s.ID, s.Dir})
	if err != nil {
		panic(err) // two strings always marshal
	}
	return string(b)
}
