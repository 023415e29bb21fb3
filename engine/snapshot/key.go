package snapshot

import (
	"time"

	"filippo.io/age"
)

// NewKey says who can open an encrypted repository: whoever knows Passphrase, or has
// the identity of Recipient. One of them is set.
type NewKey struct {
	Passphrase string
	// Recipient is an age recipient, such as *age.X25519Recipient. A String method
	// gives what Keys shows of it. It must be of one identity: not a scrypt one.
	Recipient age.Recipient
	// Label tells the key from others: up to 256 bytes without control characters.
	Label string
	// WorkFactor is the logarithm of scrypt's N for a passphrase, 1 to 20. 0 is the
	// default, 17; a smaller one makes it easier to guess the passphrase.
	WorkFactor int
}

// KeyInfo tells of a key. Nobody can see any of it who has not opened the repository.
type KeyInfo struct {
	ID        string    `json:"id"`   // 64 hex digits
	Kind      string    `json:"kind"` // "passphrase" or "recipient"
	Label     string    `json:"label,omitempty"`
	Recipient string    `json:"recipient,omitempty"`
	CreatedAt time.Time `json:"createdAt"`
}
