package crypt

import (
	"crypto/subtle"
	"encoding/hex"
	"fmt"

	"github.com/snapctl/snapctl/chunk"
	"github.com/snapctl/snapctl/engine/snapshot"
)

// An encrypted repository has a random master key, from which all others are derived
// (chunk.Key). It lies in the repository only as key objects (see Object), each of
// which somebody can open. What it is used for, beside what stands at chunk.Use:
const (
	useKeyCheck   chunk.Use = "snapctl 2026-11-26 key check"
	UseConfig     chunk.Use = "snapctl 2026-11-26 config"
	UseKeyDetails chunk.Use = "snapctl 2026-11-26 details of keys"
	UseProfile    chunk.Use = "snapctl 2026-11-26 access profiles"
	UseNote       chunk.Use = "snapctl 2026-11-26 notes"
)

// Config is what the config of an encrypted repository says of that.
type Config struct {
	// Algorithm seals: see package chunk.
	Algorithm string `json:"algorithm"`
	// KeyCheck tells the master key from others, and nothing else about it: the
	// first 16 bytes of a key derived from it, in hex.
	KeyCheck string `json:"keyCheck"`
	// MAC is the BLAKE3-256, keyed with a key derived from the master key, of the
	// config with MAC and Checksum empty: who has no key cannot change the config.
	MAC string `json:"mac"`
}

// SealAlgorithm is the only Config.Algorithm that this version knows.
const SealAlgorithm = "XAES-256-GCM"

// Check fails with ErrIntegrity if KeyCheck or MAC cannot be what they say they are.
func (e *Config) Check() error {
	for name, v := range map[string]struct {
		s string
		n int
	}{"keyCheck": {e.KeyCheck, 16}, "mac": {e.MAC, 32}} {
		if b, err := hex.DecodeString(v.s); err != nil || len(b) != v.n || hex.EncodeToString(b) != v.s {
			return fmt.Errorf("%w: config: %s is not %d bytes in hex", snapshot.ErrIntegrity, name, v.n)
		}
	}
	return nil
}

// Check is Config.KeyCheck of a master key.
func Check(key *chunk.Key) string {
	d := key.Derive(useKeyCheck)
	return hex.EncodeToString(d[:16])
}

// Same compares two secrets in a time that tells nothing about them.
func Same(a, b string) bool { return subtle.ConstantTimeCompare([]byte(a), []byte(b)) == 1 }
